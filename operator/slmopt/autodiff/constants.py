# SPDX-License-Identifier: Apache-2.0
"""The constants of a graph, as its files hold them: mapped into memory, so that the kernel may drop them."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from slmopt.autodiff.node import Array
from slmopt.errors import unfit

CACHE_BYTES: Final = 64 << 20
"""Dequantized matrices that are kept; the others are made anew whenever they are used."""
_NIBBLES: Final = {TensorProto.UINT4: np.uint8, TensorProto.INT4: np.int8}


def map_tensor(tensor: onnx.TensorProto, directory: Path) -> Array:
    """A tensor in its own type; four-bit types as bytes. Raises OptimizeError (Unfit)."""
    if tensor.data_location != TensorProto.EXTERNAL:
        values: Array = numpy_helper.to_array(tensor)
    else:
        values = _map_file(tensor, directory)
    return values.astype(_NIBBLES[tensor.data_type]) if tensor.data_type in _NIBBLES else values


def _map_file(tensor: onnx.TensorProto, directory: Path) -> Array:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    name = fields.get("location", "")
    if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise unfit(f"{tensor.name} lies in {name!r}, outside the model directory; export the model again")
    offset, shape = int(fields.get("offset", 0)), tuple(tensor.dims)
    try:
        if tensor.data_type in _NIBBLES:
            size = (int(np.prod(shape)) + 1) // 2
            packed = np.memmap(directory / name, np.uint8, "r", offset, (size,))
            whole = TensorProto(data_type=tensor.data_type, dims=shape, raw_data=packed.tobytes())
            return np.asarray(numpy_helper.to_array(whole))
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.asarray(np.memmap(directory / name, kind, "r", offset, shape or (1,))).reshape(shape)
    except (OSError, ValueError, OverflowError) as error:
        raise unfit(f"{tensor.name} cannot be read from {name} ({error}); fetch the model again") from error


class DenseCache:
    """Dequantized matrices up to a number of bytes.

    A pass goes through the layers in order and back again. The least recently used matrix is then the one
    that is needed soonest, so whatever came first stays.
    """

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._left = limit_bytes
        self._held: dict[str, Array] = {}

    def get(self, name: str, make: Callable[[], Array]) -> Array:
        """The matrix of that name, made when it is not there."""
        if name in self._held:
            return self._held[name]
        made = make()
        if made.nbytes <= self._left:
            self._left -= made.nbytes
            self._held[name] = made
        return made


def constant_value(node: Any, directory: Path) -> Array:
    """The value of a Constant node; raises OptimizeError (Unfit) for text and sparse ones."""
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value":
            return map_tensor(value, directory)
        if attribute.name in ("value_float", "value_floats"):
            return np.array(value, np.float32)
        if attribute.name in ("value_int", "value_ints"):
            return np.array(value, np.int64)
    raise unfit(f"training knows no constant like {node.name}; export the model again")
