# SPDX-License-Identifier: Apache-2.0
"""Unstructured and N:M pruning: which weights become zero."""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from slmopt.errors import unfit
from slmopt.graph import OnnxExport
from slmopt.job import Prune
from slmopt.log import log

Matrix2D = NDArray[np.float32]
_LOW_BITS: Final = 16


def prune_magnitude(weight: Matrix2D, count: int) -> Matrix2D:
    """`weight` with its `count` smallest entries by magnitude set to zero, exactly as many."""
    if count <= 0:
        return weight
    flat = weight.reshape(-1).copy()
    flat[np.argpartition(np.abs(flat), count - 1)[:count]] = 0
    return flat.reshape(weight.shape)


def prune_n_of_m(weight: Matrix2D, *, kept: int, group: int) -> Matrix2D:
    """`weight` [inputs, outputs] with the `kept` largest of each `group` inputs of an output, others zero.

    Groups lie along the inputs, which is what sparse kernels read; the last one may be shorter and keeps
    as many.
    """
    inputs, outputs = weight.shape
    padded = np.zeros((-(-inputs // group) * group, outputs), weight.dtype)
    padded[:inputs] = weight
    blocks = padded.reshape(-1, group, outputs)
    order = np.argsort(-np.abs(blocks), axis=1, kind="stable")
    keep = np.zeros(blocks.shape, bool)
    np.put_along_axis(keep, order[:, :kept], np.array(True), axis=1)
    return np.where(keep, blocks, 0).reshape(padded.shape)[:inputs].astype(weight.dtype, copy=False)


def find_threshold(weights: Iterable[Matrix2D], share: float) -> float:
    """Magnitude that `share` of all entries are at most, exact for fp32.

    The bits of a positive float order like the number, so two counts of 65,536 bins each find it with
    constant memory. `weights` is read twice; it may not be a one-time iterator.
    """
    high = np.zeros(1 << _LOW_BITS, np.int64)
    for weight in weights:
        high += np.bincount(_bits(weight) >> _LOW_BITS, minlength=high.size)
    wanted = max(1, round(int(high.sum()) * share))
    top = int(np.searchsorted(high.cumsum(), wanted))
    before = int(high[:top].sum())
    low = np.zeros(1 << _LOW_BITS, np.int64)
    for weight in weights:
        bits = _bits(weight)
        low += np.bincount(bits[bits >> _LOW_BITS == top] & (low.size - 1), minlength=low.size)
    bottom = int(np.searchsorted(low.cumsum(), wanted - before))
    return float(np.array((top << _LOW_BITS) | bottom, np.uint32).view(np.float32))


def _bits(weight: Matrix2D) -> NDArray[np.int64]:
    bits: NDArray[Any] = np.abs(weight).astype(np.float32).reshape(-1).view(np.uint32)
    return bits.astype(np.int64)


class _Stored:
    """The chosen matrices, read one at a time and as often as asked."""

    def __init__(self, export: OnnxExport, names: list[str]) -> None:
        self._export, self._names = export, names

    def __iter__(self) -> Any:
        return (self._export.read(name) for name in self._names)


def apply_prune(export: OnnxExport, step: Prune) -> None:
    """Prune the matrices in place; raises OptimizeError (Unfit)."""
    export.refuse_quantized("prune")
    exclude = step.exclude
    if exclude is None:  # a model with tied embeddings has no matrix of its own for the head
        exclude = ("lm_head",) if any("lm_head" in matrix.node for matrix in export.matrices()) else ()
    names = sorted({matrix.weight for matrix in export.select(exclude, step="prune")})
    share = step.sparsity_percent / 100
    threshold = -1.0
    if step.method == "magnitude" and step.scope == "global":
        threshold = find_threshold(_Stored(export, names), share)
    zeros = total = 0
    for name in names:
        weight = export.read(name)
        if weight.ndim != 2:
            raise unfit(f"prune: {name} has {weight.ndim} dimensions, not 2; exclude it")
        if step.method == "nm":
            pruned = prune_n_of_m(weight, kept=step.kept, group=step.group)
        elif threshold >= 0:
            pruned = np.where(np.abs(weight) <= threshold, np.float32(0), weight)
        else:
            pruned = prune_magnitude(weight, round(weight.size * share))
        export.write(name, pruned)
        zeros, total = zeros + int((pruned == 0).sum()), total + pruned.size
    log("pruned", matrices=len(names), sparsity=round(zeros / total, 4))
