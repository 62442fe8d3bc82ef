# SPDX-License-Identifier: Apache-2.0
"""Rules of normalisation by the root mean square, alone and after a residual sum."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from slmopt.autodiff.node import Array, Gradients, Node, Pullback, Rule


def _normalise(x: Array, weight: Array, epsilon: float) -> tuple[Array, Pullback]:
    """y = weight * x / rms(x); the pullback is that of x alone."""
    inverse = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + x.dtype.type(epsilon))
    unit = x * inverse

    def pull(gradients: Gradients) -> Gradients:
        (g,) = gradients
        assert g is not None
        scaled = g * weight
        return (inverse * (scaled - unit * np.mean(scaled * unit, axis=-1, keepdims=True)),)

    return unit * weight, pull


def simplified(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """SimplifiedLayerNormalization along the last axis."""
    x, weight = inputs[:2]
    if node.get("axis", -1) not in (-1, x.ndim - 1):
        raise node.refuse("another axis than the last")
    if any(node.outputs[1:]) or any(node.wanted[1:]):
        raise node.refuse("the inverse deviation as an output, or weights that are computed")
    y, pull = _normalise(x, weight, node.get("epsilon", 1e-5))
    return (y,), lambda gradients: (*pull(gradients[:1]), None)


def skip_simplified(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """SkipSimplifiedLayerNormalization: of x + skip (+ bias); the fourth output is that sum."""
    x, skip, weight, bias = (*inputs, None)[:4]
    if any(node.outputs[1:3]) or any(node.wanted[2:]):
        raise node.refuse("mean or inverse deviation as outputs, or weights that are computed")
    total = x + skip if bias is None else x + skip + bias
    y, pull = _normalise(total, weight, node.get("epsilon", 1e-12))

    def pull_both(gradients: Gradients) -> Gradients:
        normalised, residual = gradients[0], gradients[3] if len(gradients) > 3 else None
        g = residual if normalised is None else pull((normalised,))[0]
        if normalised is not None and residual is not None:
            assert g is not None
            g = g + residual
        return (g, g, *(None,) * (len(inputs) - 2))

    return (y, None, None, total), pull_both


NORMS: Final[dict[str, Rule]] = {
    "SimplifiedLayerNormalization": simplified,
    "com.microsoft.SkipSimplifiedLayerNormalization": skip_simplified,
}
