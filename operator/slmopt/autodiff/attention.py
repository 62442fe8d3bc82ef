# SPDX-License-Identifier: Apache-2.0
"""Rules of grouped causal attention and of rotary position embedding.

Sequences start at position 0 with an empty cache, and padding stands at their ends: what comes later cannot
be seen by what is before it, so padding needs no mask.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from slmopt.autodiff.node import Array, Gradients, Node, Pullback, Rule

_QUERY, _KEY, _VALUE, _COS, _SIN, _POSITIONS, _BIAS, _SINK = 0, 1, 2, 7, 8, 9, 10, 11


def grouped_attention(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """GroupQueryAttention (com.microsoft): y [batch, length, heads * size] of a whole sequence.

    Queries, keys and values are three inputs, or packed into the first. Of the outputs, only the first is
    made: the cache is nobody's input when there is one pass.
    """
    given = [*inputs, *(None,) * (_SINK + 1 - len(inputs))]
    _check(node, given)
    heads, groups = node.attributes["num_heads"], node.attributes["kv_num_heads"]
    packed = given[_KEY] is None
    if packed:
        size = given[_QUERY].shape[-1] // (heads + 2 * groups)
        parts = np.split(given[_QUERY], [heads * size, (heads + groups) * size], axis=-1)
    else:
        size = given[_QUERY].shape[-1] // heads
        parts = [given[_QUERY], given[_KEY], given[_VALUE]]
    q, k, v = (_split_heads(part, size) for part in parts)
    rotary = _rotary(node, given, q.shape[2]) if node.get("do_rotary", 0) else None
    if rotary is not None:
        q, k = rotary.turn(q), rotary.turn(k)
    scale = q.dtype.type(node.get("scale", 0.0) or 1 / math.sqrt(size))
    softcap = q.dtype.type(node.get("softcap", 0.0))
    batch, _, length, _ = q.shape
    # Heads of a group side by side: one product per group of keys.
    q = q.reshape(batch, groups, -1, size)
    scores = (q @ k.swapaxes(-1, -2)) * scale
    capped = np.tanh(scores / softcap) if softcap else None
    logits = scores if capped is None else softcap * capped
    logits = logits.reshape(batch, groups, -1, length, length)
    logits = np.where(_visible(length, node.get("local_window_size", -1)), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    weights = weights.reshape(batch, groups, -1, length)
    y = _join_heads((weights @ v).reshape(batch, heads, length, size))

    def pull(gradients: Gradients) -> Gradients:
        g = gradients[0]
        assert g is not None
        g = _split_heads(g, size).reshape(batch, groups, -1, size)
        of_v = weights.swapaxes(-1, -2) @ g
        of_weights = g @ v.swapaxes(-1, -2)
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdims=True))
        if capped is not None:
            of_scores = of_scores * (1 - capped * capped)
        of_scores = of_scores * scale
        of_q = (of_scores @ k).reshape(batch, heads, length, size)
        of_k = of_scores.swapaxes(-1, -2) @ q
        if rotary is not None:
            of_q, of_k = rotary.turn_back(of_q), rotary.turn_back(of_k)
        found = [_join_heads(part) for part in (of_q, of_k, of_v)]
        if packed:
            found = [np.concatenate(found, axis=-1)]
        return (*found, *(None,) * (len(inputs) - len(found)))

    return (y, *(None,) * (len(node.outputs) - 1)), pull


def _check(node: Node, given: Sequence[Any]) -> None:
    if given[_BIAS] is not None:
        raise node.refuse("a bias")
    if given[_SINK] is not None or node.get("smooth_softmax", 0) > 0:
        raise node.refuse("attention sinks")
    for name in ("k_quant_type", "v_quant_type"):
        if node.get(name, b"NONE") not in (b"NONE", b""):
            raise node.refuse("a quantized cache")


def _visible(length: int, window: int) -> Array:
    """Which keys a query sees [queries, keys]: itself and what is before it, at most `window` of them."""
    distance = np.arange(length)[:, None] - np.arange(length)[None, :]
    visible: Array = (distance >= 0) if window < 0 else (distance >= 0) & (distance < window)
    return visible


def _split_heads(x: Array, size: int) -> Array:
    """[batch, length, heads * size] as [batch, heads, length, size], in one piece."""
    return np.ascontiguousarray(x.reshape(*x.shape[:2], -1, size).swapaxes(1, 2))


def _join_heads(x: Array) -> Array:
    """Inverse of _split_heads."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


class _Rotary:
    """Turns pairs of values by an angle that grows with the position."""

    def __init__(self, cos: Array, sin: Array, *, style: str) -> None:
        """`cos` and `sin` are [length, pairs] or [batch, 1, length, pairs]; style halves or neighbours."""
        self._cos, self._sin, self._style = cos, sin, style

    def turn(self, x: Array) -> Array:
        """x [batch, heads, length, size]; values beyond the pairs stay."""
        return self._turn(x, self._sin)

    def turn_back(self, x: Array) -> Array:
        """Inverse of `turn`, which is also its transpose."""
        return self._turn(x, -self._sin)

    def _turn(self, x: Array, sin: Array) -> Array:
        pairs = self._cos.shape[-1]
        first, second = slice(0, pairs), slice(pairs, 2 * pairs)
        if self._style == "neighbours":
            first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
        turned = x.copy()
        turned[..., first] = x[..., first] * self._cos - x[..., second] * sin
        turned[..., second] = x[..., second] * self._cos + x[..., first] * sin
        return turned


def _rotary(node: Node, given: Sequence[Any], length: int) -> _Rotary:
    style = "neighbours" if node.get("rotary_interleaved", 0) else "halves"
    cos, sin = given[_COS], given[_SIN]
    if length > len(cos):
        raise node.refuse(f"{length} tokens, where its tables of angles end at {len(cos)}")
    if given[_POSITIONS] is not None:
        places = given[_POSITIONS]
        return _Rotary(cos[places][:, None], sin[places][:, None], style=style)
    return _Rotary(cos[:length], sin[:length], style=style)


def rotary_embedding(node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """RotaryEmbedding (com.microsoft) of x [batch, length, heads * size].

    Positions are [batch, length], or [1] for that of the first token.
    """
    x, positions, cos, sin = inputs
    if x.ndim != 3:
        raise node.refuse("four dimensions")
    heads = node.get("num_heads", 0)
    size = x.shape[-1] // heads if heads else 2 * cos.shape[-1]
    if positions.size == 1:
        positions = int(positions.reshape(-1)[0]) + np.arange(x.shape[1])[None]
    style = "neighbours" if node.get("interleaved", 0) else "halves"
    rotary = _Rotary(cos[positions][:, None], sin[positions][:, None], style=style)
    scale = x.dtype.type(node.get("scale", 1.0))
    if scale != 1:
        raise node.refuse("a scale")

    def pull(gradients: Gradients) -> Gradients:
        (g,) = gradients
        assert g is not None
        return _join_heads(rotary.turn_back(_split_heads(g, size))), None, None, None

    return (_join_heads(rotary.turn(_split_heads(x, size))),), pull


ATTENTION: Final[dict[str, Rule]] = {
    "com.microsoft.GroupQueryAttention": grouped_attention,
    "com.microsoft.RotaryEmbedding": rotary_embedding,
}
