# SPDX-License-Identifier: Apache-2.0
"""A copy of a model that has more outputs, to look at what is inside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import onnx

from slmopt.graph import SMALL_BYTES

_PAGE_BYTES: Final = 4096


def save_probe(model: Any, path: Path, *, outputs: Sequence[Any]) -> None:
    """Write a copy of `model` with more outputs, as `save_onnx` does, but leave `model` as it is.

    Weights go from `model` to the file one after the other: there is no second copy in memory.
    """
    probe = onnx.ModelProto()
    _merge(probe, model, without="graph")
    _merge(probe.graph, model.graph, without="initializer")
    probe.graph.output.extend(outputs)
    with path.with_name(f"{path.name}.data").open("wb") as file:
        for tensor in model.graph.initializer:
            if not tensor.HasField("raw_data") or len(tensor.raw_data) < SMALL_BYTES:
                probe.graph.initializer.add().CopyFrom(tensor)
                continue
            file.write(bytes(-file.tell() % _PAGE_BYTES))
            kept = probe.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            kept.data_location = onnx.TensorProto.EXTERNAL
            where = {"location": f"{path.name}.data", "offset": file.tell(), "length": len(tensor.raw_data)}
            for key, value in where.items():
                kept.external_data.add(key=key, value=str(value))
            file.write(tensor.raw_data)
    path.write_bytes(probe.SerializeToString())


def _merge(target: Any, source: Any, *, without: str) -> None:
    """Copy the fields of a message but for one."""
    for field, value in source.ListFields():
        if field.name == without:
            continue
        held = getattr(target, field.name)
        if hasattr(held, "MergeFrom"):
            held.MergeFrom(value)
        else:
            setattr(target, field.name, value)
