# SPDX-License-Identifier: Apache-2.0
"""Muon (Jordan et al., 2024): momentum whose matrices are orthogonalised before they are applied.

torch has it too, but takes the matrices one by one, which for a model of this size costs as much as the
backward pass. Here matrices of one shape go through the iteration together.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import torch

COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration that drives all singular values towards 1."""
ITERATIONS: Final = 5


def orthogonalize(stack: torch.Tensor) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrices, roughly, to `stack` [count, rows, columns]."""
    a, b, c = COEFFICIENTS
    tall = stack.size(1) > stack.size(2)
    x = stack.mT if tall else stack
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Nesterov momentum, orthogonalised per matrix, with decoupled weight decay; matrices only."""

    def __init__(self, matrices: Iterable[torch.nn.Parameter], *, momentum: float, decay: float) -> None:
        self._momentum = momentum
        self._decay = decay
        self._by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            self._by_shape[matrix.shape].append(matrix)
        self._moving = {shape: torch.zeros(len(group), *shape) for shape, group in self._by_shape.items()}

    def step(self, *, rate: float) -> None:
        """Apply one update from the gradients at this learning rate, and clear them."""
        with torch.no_grad():
            for shape, matrices in self._by_shape.items():
                gradients = torch.stack([matrix.grad for matrix in matrices])
                moving = self._moving[shape].lerp_(gradients, 1 - self._momentum)
                update = orthogonalize(gradients.lerp(moving, self._momentum))
                scaled = rate * max(1.0, shape[0] / shape[1]) ** 0.5
                for matrix, change in zip(matrices, update, strict=True):
                    matrix.mul_(1 - rate * self._decay).add_(change, alpha=-scaled)
                    matrix.grad = None
