# SPDX-License-Identifier: Apache-2.0
"""Rules of operators that work value by value, and of Softmax."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from onnx import helper

from slmopt.autodiff.node import Array, Gradients, Node, Pullback, Rule, no_gradient, reduce_to


def add(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """a + b."""
    a, b = inputs
    return (a + b,), _both(node, a, b, lambda g: g, lambda g: g)


def subtract(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """a - b."""
    a, b = inputs
    return (a - b,), _both(node, a, b, lambda g: g, lambda g: -g)


def multiply(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """a * b."""
    a, b = inputs
    return (a * b,), _both(node, a, b, lambda g: g * b, lambda g: g * a)


def divide(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """a / b; whole numbers are divided as ONNX does, towards zero."""
    a, b = inputs
    if np.issubdtype(np.result_type(a), np.integer):
        return (np.trunc(a / b).astype(np.result_type(a)),), no_gradient
    return (a / b,), _both(node, a, b, lambda g: g / b, lambda g: -g * a / (b * b))


def _both(
    node: Node, a: Array, b: Array, of_a: Callable[[Array], Array], of_b: Callable[[Array], Array]
) -> Pullback:
    shapes = np.shape(a), np.shape(b)

    def pull(gradients: Gradients) -> Gradients:
        (g,) = gradients
        assert g is not None
        return tuple(
            reduce_to(rule(g), shape) if wanted else None
            for rule, shape, wanted in zip((of_a, of_b), shapes, node.wanted, strict=True)
        )

    return pull


def _unary(value: Array, slope: Callable[[], Array]) -> tuple[Sequence[Any], Pullback]:
    def pull(gradients: Gradients) -> Gradients:
        (g,) = gradients
        assert g is not None
        return (g * slope(),)

    return (value,), pull


def _logistic(x: Array) -> Array:
    # By tanh, which does not overflow.
    half: Array = np.tanh(x * 0.5)
    return half * 0.5 + 0.5


def sigmoid(_node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """1 / (1 + exp(-x))."""
    y = _logistic(inputs[0])
    return _unary(y, lambda: y * (1 - y))


def tanh(_node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """tanh(x)."""
    y = np.tanh(inputs[0])
    return _unary(y, lambda: 1 - y * y)


def relu(_node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """max(x, 0)."""
    x = inputs[0]
    return _unary(np.maximum(x, 0), lambda: (x > 0).astype(x.dtype))


def quick_gelu(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """x * sigmoid(alpha * x)."""
    x, alpha = inputs[0], node.get("alpha", 1.702)
    s = _logistic(alpha * x)
    return _unary(x * s, lambda: s + alpha * x * s * (1 - s))


_ROOT: Final = math.sqrt(2 / math.pi)
_CUBIC: Final = 0.044715


def fast_gelu(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """GELU by tanh; the bias that onnxruntime's operator may add is refused."""
    if len(inputs) > 1 and inputs[1] is not None:
        raise node.refuse("a bias")
    x = inputs[0]
    t = np.tanh(_ROOT * (x + _CUBIC * x * x * x))
    return _unary(
        0.5 * x * (1 + t),
        lambda: 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * _ROOT * (1 + 3 * _CUBIC * x * x),
    )


_ERF: Final = np.frompyfunc(math.erf, 1, 1)


def gelu(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """GELU by the error function, or by tanh where the node says so."""
    if node.get("approximate", b"none") == b"tanh":
        return fast_gelu(node, inputs)
    x = inputs[0]
    cumulative = 0.5 * (1 + _ERF(x / math.sqrt(2)).astype(x.dtype))
    return _unary(
        x * cumulative, lambda: cumulative + x * np.exp(-0.5 * x * x) / x.dtype.type(math.sqrt(2 * math.pi))
    )


def softmax(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """Along one axis, as since opset 13."""
    axis = node.get("axis", -1)
    y = np.exp(inputs[0] - inputs[0].max(axis, keepdims=True))
    y /= y.sum(axis, keepdims=True)

    def pull(gradients: Gradients) -> Gradients:
        (g,) = gradients
        assert g is not None
        return (y * (g - (g * y).sum(axis, keepdims=True)),)

    return (y,), pull


def cast(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """To another type; all floats are one, so that between two of them nothing happens."""
    kind = helper.tensor_dtype_to_np_dtype(node.attributes["to"])
    target = node.dtype if np.issubdtype(kind, np.floating) else kind
    return (np.asarray(inputs[0]).astype(target, copy=False),), lambda gradients: gradients


ELEMENTWISE: Final[dict[str, Rule]] = {
    "Add": add,
    "Sub": subtract,
    "Mul": multiply,
    "Div": divide,
    "Sigmoid": sigmoid,
    "Tanh": tanh,
    "Relu": relu,
    "com.microsoft.QuickGelu": quick_gelu,
    "com.microsoft.FastGelu": fast_gelu,
    "com.microsoft.Gelu": gelu,
    "Gelu": gelu,
    "Softmax": softmax,
    "Cast": cast,
}
