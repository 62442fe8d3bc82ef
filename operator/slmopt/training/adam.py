# SPDX-License-Identifier: Apache-2.0
"""AdamW (Loshchilov and Hutter 2019): Adam with a decay of weights that is no part of the gradient."""

from typing import Final

import numpy as np

from slmopt.autodiff.network import Matrices
from slmopt.autodiff.node import Array

MOMENTUM: Final = 0.9
VARIANCE: Final = 0.99
"""Shorter a memory than usual: there are few steps."""
_EPSILON: Final = 1e-8


class AdamW:
    """Steps for a fixed set of matrices, which are changed in place."""

    def __init__(self, matrices: dict[str, Array], *, decay: float, clip: float) -> None:
        """`decay` is of a step relative to its rate; `clip` bounds the gradient's norm."""
        self._matrices, self._decay, self._clip = matrices, decay, clip
        self._mean = {name: np.zeros_like(value) for name, value in matrices.items()}
        self._square = {name: np.zeros_like(value) for name, value in matrices.items()}
        self._steps = 0

    def step(self, gradients: Matrices, rate: float) -> None:
        """One step against `gradients`."""
        self._steps += 1
        norm = float(np.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values())))
        shrink = min(1.0, self._clip / norm) if norm > 0 else 1.0
        warm_mean = 1 - MOMENTUM**self._steps
        warm_square = 1 - VARIANCE**self._steps
        for name, gradient in gradients.items():
            g = gradient * shrink
            mean, square, value = self._mean[name], self._square[name], self._matrices[name]
            mean += (1 - MOMENTUM) * (g - mean)
            square += (1 - VARIANCE) * (g * g - square)
            value -= rate * self._decay * value
            value -= rate * (mean / warm_mean) / (np.sqrt(square / warm_square) + _EPSILON)
