# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters of ONNX models: `adapters/<name>.onnx_adapter` beside an export with LoRA inputs.

Such an export declares its low-rank matrices as inputs with a default value that does nothing
(initializers that may be overridden), and the files of onnxruntime's adapter format give others by
the same names. The library applies active adapters in `run` only, not with bound memory, so an
adapter's matrices are bound like any input.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from slmserve.engines.loading import brief
from slmserve.errors import StartError
from slmwire.reasons import Reason

PATTERN: Final = "adapters/*.onnx_adapter"

Matrices = Mapping[str, Any]
"""Values of the model's LoRA inputs by name."""


def load_adapters(
    model_dir: Path, session: Any, more: Mapping[str, Path] | None = None
) -> dict[str, Matrices]:
    """All adapters of the directory by name, and `more`.

    Raises StartError (Unfit) for one that does not fit.
    """
    kinds = {node.name: node for node in session.get_overridable_initializers()}
    adapters = {}
    found = {path.stem: path for path in sorted(model_dir.glob(PATTERN))} | dict(more or {})
    for name, path in found.items():
        try:
            matrices = ort.AdapterFormat.read_adapter(str(path)).get_parameters()
        except Exception as error:
            raise _unfit(path, f"cannot be read: {brief(error, 300)}") from error
        _check(path, matrices, kinds)
        adapters[name] = matrices
    return adapters


def _check(path: Path, matrices: Matrices, kinds: Mapping[str, Any]) -> None:
    if not kinds:
        raise _unfit(path, "needs a model with LoRA inputs; export the model with them, or merge the adapter")
    if unknown := sorted(matrices.keys() - kinds.keys()):
        raise _unfit(path, f"has matrices that the model does not take: {unknown[:4]}")
    for name, value in matrices.items():
        wanted, given = kinds[name].shape, value.shape()
        fits = len(wanted) == len(given) and all(
            not isinstance(size, int) or size == own for size, own in zip(wanted, given, strict=True)
        )
        if not fits or value.data_type() != kinds[name].type:
            shown = f"{value.data_type()} {given}, the model takes {kinds[name].type} {wanted}"
            raise _unfit(path, f"has {name} as {shown}")


def _unfit(path: Path, message: str) -> StartError:
    return StartError(Reason.UNFIT, f"adapters/{path.name} {message}")
