# SPDX-License-Identifier: Apache-2.0
"""Rules of operators that look values up or give them another shape."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from slmopt.autodiff.linear import dequantize_blocks
from slmopt.autodiff.node import Array, Gradients, Node, Pullback, Rule, no_gradient


def gather(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """Rows by number; no gradient, as tables are frozen."""
    table, indices = inputs
    if node.wanted[0]:
        raise node.refuse("a table that is computed from an adapter's matrices")
    found = np.take(table, indices, axis=node.get("axis", 0))
    return (found.astype(node.dtype) if np.issubdtype(found.dtype, np.floating) else found,), no_gradient


def gather_blocks(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """GatherBlockQuantized (com.microsoft) as onnxruntime's quantizer writes it for an embedding table."""
    table, indices, scales, zeros = (*inputs, None)[:4]
    bits = node.get("bits", 4)
    plain = node.get("gather_axis", 0) == 0 and node.get("quantize_axis", 1) == 1
    if not plain or table.dtype not in (np.uint8, np.int8):
        raise node.refuse("other axes than rows and columns")
    # Each row that is asked for is dequantized by itself: the table is never made whole.
    rows = np.asarray(indices).reshape(-1)
    block = node.attributes["block_size"]
    picked = scales[rows].astype(node.dtype)
    values, offsets = table[rows], None if zeros is None else zeros[rows]
    if values.shape[-1] * 8 // bits <= picked.shape[-1] * block:
        # Two to a byte. Where a type of four bits is given, they have been unpacked when they were read.
        columns = values.shape[-1] * 8 // bits
        dense = dequantize_blocks(
            values, picked, offsets, bits=bits, block=block, columns=columns, dtype=node.dtype
        )
    else:
        middle = np.zeros_like(picked) if table.dtype == np.int8 else np.full_like(picked, 1 << (bits - 1))
        middle = middle if offsets is None else offsets.astype(node.dtype)
        wide = (np.repeat(part, block, axis=-1)[:, : values.shape[-1]] for part in (middle, picked))
        dense = (values.astype(node.dtype) - next(wide)) * next(wide)
    return (dense.reshape(*np.shape(indices), -1),), no_gradient


def shape(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """The sizes of a tensor, or some of them."""
    sizes = np.array(np.shape(inputs[0]), np.int64)
    return (sizes[node.get("start", 0) : node.get("end", None)],), no_gradient


def reshape(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """Another shape; 0 keeps a size."""
    x, wanted = inputs
    if node.get("allowzero", 0):
        raise node.refuse("allowzero")
    sizes = [x.shape[i] if size == 0 else int(size) for i, size in enumerate(np.ravel(wanted))]
    return (x.reshape(sizes),), lambda g: (None if g[0] is None else g[0].reshape(x.shape), None)


def transpose(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """Axes in another order."""
    x = inputs[0]
    order = node.get("perm", tuple(reversed(range(x.ndim))))
    back = np.argsort(order)
    return (x.transpose(order),), lambda g: (None if g[0] is None else g[0].transpose(back),)


def unsqueeze(_node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """New axes of size one."""
    x, axes = inputs
    y = np.expand_dims(x, tuple(int(axis) for axis in np.ravel(axes)))
    return (y,), lambda g: (None if g[0] is None else g[0].reshape(np.shape(x)), None)


def concat(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """Tensors one after the other."""
    axis = node.attributes["axis"]
    ends = np.cumsum([np.shape(x)[axis] for x in inputs])[:-1]

    def pull(gradients: Gradients) -> Gradients:
        (g,) = gradients
        assert g is not None
        parts: Sequence[Array] = np.split(g, ends, axis)
        return parts

    return (np.concatenate(inputs, axis),), pull


def reduce_sum(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """Sums along axes."""
    x, axes = (*inputs, None)[:2]
    keep = bool(node.get("keepdims", 1))
    along = None if axes is None else tuple(int(axis) for axis in np.ravel(axes))

    def pull(gradients: Gradients) -> Gradients:
        (g,) = gradients
        assert g is not None
        wide = g if keep or along is None else np.expand_dims(g, along)
        return (np.broadcast_to(wide, x.shape), None)[: len(inputs)]

    return (np.asarray(x.sum(axis=along, keepdims=keep)),), pull


SHAPES: Final[dict[str, Rule]] = {
    "Gather": gather,
    "com.microsoft.GatherBlockQuantized": gather_blocks,
    "Shape": shape,
    "Reshape": reshape,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Concat": concat,
    "ReduceSum": reduce_sum,
}
