# SPDX-License-Identifier: Apache-2.0
"""Rules of products with matrices, in floats and in the forms that onnxruntime's quantizers write."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from slmopt.autodiff.node import Array, Gradients, Node, Pullback, Rule, reduce_to

_LEVELS: Final = 255
"""Steps of an 8-bit activation."""


def matmul(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """a @ b with broadcasting, both of at least two dimensions."""
    a, b = inputs
    if a.ndim < 2 or b.ndim < 2:
        raise node.refuse("vectors")
    if b.ndim == 2 and not node.wanted[1] and not (b.dtype == node.dtype and b.flags.aligned):
        return _frozen(node, a, lambda: np.ascontiguousarray(b.T.astype(node.dtype)))

    def pull(gradients: Gradients) -> Gradients:
        (g,) = gradients
        assert g is not None
        of_a = reduce_to(_product(g, b.swapaxes(-1, -2)), a.shape) if node.wanted[0] else None
        if not node.wanted[1]:
            return of_a, None
        if b.ndim == 2:
            # One product over all positions, not one per row of the batch.
            return of_a, a.reshape(-1, a.shape[-1]).T @ g.reshape(-1, g.shape[-1])
        return of_a, reduce_to(a.swapaxes(-1, -2) @ g, b.shape)

    return (_product(a, b),), pull


def _frozen(
    node: Node, x: Array, make: Callable[[], Array], *, inputs: int = 2
) -> tuple[Sequence[Any], Pullback]:
    """x @ W^T for a W that `make` makes [N, K]; it may have left the cache by the time of the pullback."""

    def pull(gradients: Gradients) -> Gradients:
        (g,) = gradients
        assert g is not None
        return (_product(g, node.dense(node, make)), *(None,) * (inputs - 1))

    return (_product(x, node.dense(node, make).T),), pull


def _product(a: Array, b: Array) -> Array:
    """a @ b, as one product of matrices where b is one."""
    if b.ndim != 2:
        result: Array = a @ b
        return result
    flat: Array = a.reshape(-1, a.shape[-1]) @ b
    return flat.reshape(*a.shape[:-1], b.shape[1])


def matmul_nbits(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """x @ W^T + bias with W [N, K] in blocks along K that share a scale (com.microsoft, MatMulNBits).

    The rounding of activations that `accuracy_level` allows is left out.
    """
    x, packed, scales, zeros, group, bias = (*inputs, None, None, None)[:6]
    if group is not None:
        raise node.refuse("g_idx")

    def make() -> Array:
        return dequantize_blocks(
            packed,
            scales,
            zeros,
            bits=node.get("bits", 4),
            block=node.attributes["block_size"],
            columns=node.attributes["K"],
            dtype=node.dtype,
        )

    (y,), pull = _frozen(node, x, make, inputs=len(inputs))
    return (y if bias is None else y + bias.astype(node.dtype),), pull


def dequantize_blocks(
    packed: Array,
    scales: Array,
    zeros: Array | None,
    *,
    bits: int,
    block: int,
    columns: int,
    dtype: Any,
) -> Array:
    """The matrix [N, K] of a MatMulNBits: (integer - zero point) * scale, block by block along K.

    `packed` [N, blocks, block * bits / 8] holds the lowest bits first; zero points are packed the same way,
    each row filled up to whole bytes, or floats; without any they are in the middle of the range.
    """
    rows, blocks = packed.shape[0], -(-columns // block)
    values = _unpack(packed.reshape(rows, blocks, -1), bits).astype(dtype)
    if zeros is None:
        middle: Any = dtype.type(1 << (bits - 1))
    elif zeros.dtype == np.uint8:
        middle = _unpack(zeros.reshape(rows, -1), bits)[:, :blocks, None].astype(dtype)
    else:
        middle = zeros.reshape(rows, blocks, 1).astype(dtype)
    values -= middle
    values *= scales.reshape(rows, blocks, 1)
    return np.ascontiguousarray(values.reshape(rows, -1)[:, :columns])


def _unpack(packed: Array, bits: int) -> Array:
    """The unsigned integers in bytes, lowest bits first; the last axis grows by 8 / bits."""
    if bits == 8:
        return packed
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return parts.reshape(*packed.shape[:-1], -1)


def dynamic_quantize(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """x as integers 0..255 with a scale and a zero point of the whole tensor.

    Rounding has no slope, so the gradient goes straight through (Bengio et al. 2013): that of x / scale.
    """
    (x,) = inputs
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = node.dtype.type((high - low) / _LEVELS or 1.0)
    zero = node.dtype.type(np.clip(np.round(-low / scale), 0, _LEVELS))
    y = np.clip(np.round(x / scale) + zero, 0, _LEVELS)

    def pull(gradients: Gradients) -> Gradients:
        g = gradients[0]
        return (None if g is None else g / scale,)

    return (y.astype(node.dtype), np.array(scale), np.array(zero)), pull


def matmul_integer(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """(a - zero of a) @ (b - zero of b), b [K, N] constant; sums stay floats and are exact up to 2^24."""
    a, b, zero_a, zero_b = (*inputs, None, None)[:4]

    def make() -> Array:
        signed = b.astype(node.dtype)
        return np.ascontiguousarray((signed if zero_b is None else signed - zero_b.astype(node.dtype)).T)

    return _frozen(node, a if zero_a is None else a - zero_a, make, inputs=len(inputs))


LINEAR: Final[dict[str, Rule]] = {
    "MatMul": matmul,
    "com.microsoft.MatMulNBits": matmul_nbits,
    "DynamicQuantizeLinear": dynamic_quantize,
    "MatMulInteger": matmul_integer,
}
