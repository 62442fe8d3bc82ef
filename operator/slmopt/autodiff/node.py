# SPDX-License-Identifier: Apache-2.0
"""What the rules of single operators are written against.

A rule takes a node and its inputs and returns its outputs with a *pullback*: a function from the gradients
of the outputs to those of the inputs (the vector-Jacobian product). A pullback holds on to what it needs of
the forward pass, so dropping it frees the memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from slmopt.errors import OptimizeError, unfit

Array: TypeAlias = NDArray[Any]
Gradients: TypeAlias = Sequence[Array | None]
"""One per output or input; None stands for zero, or for a gradient that nobody wants."""
Pullback: TypeAlias = Callable[[Gradients], Gradients]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of the graph, and what is to be known of its surroundings."""

    op: str
    """As in the table of rules."""
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    wanted: tuple[bool, ...]
    """Of which inputs a gradient is wanted; the others may be None."""
    dtype: np.dtype[Any]
    """In which all floats are computed."""
    dense: Callable[["Node", Callable[[], Array]], Array]
    """The dequantized weight of this node [outputs, inputs], from a bounded cache or made anew."""

    def get(self, attribute: str, default: Any) -> Any:
        """An attribute or its default."""
        return self.attributes.get(attribute, default)

    def refuse(self, what: str) -> OptimizeError:
        """The error for a form of the operator that no rule covers."""
        return unfit(
            f"training knows no gradient of {self.op} with {what} (node {self.name}); export the model with "
            "the onnxruntime-genai builder for cpu, or leave spec.adaptation out"
        )


Rule: TypeAlias = Callable[[Node, Sequence[Any]], tuple[Sequence[Any], Pullback]]


def no_gradient(_gradients: Gradients) -> Gradients:
    """Of an operator on integers and shapes."""
    return ()


def reduce_to(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Undo broadcasting: sum `gradient` to `shape`."""
    if gradient.shape == shape:
        return gradient
    extra = gradient.ndim - len(shape)
    gradient = gradient.sum(axis=tuple(range(extra))) if extra else gradient
    axes = tuple(i for i, size in enumerate(shape) if size == 1 and gradient.shape[i] != 1)
    return gradient.sum(axis=axes, keepdims=True) if axes else gradient
