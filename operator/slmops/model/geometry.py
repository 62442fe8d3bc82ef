# SPDX-License-Identifier: Apache-2.0
"""The shape of a model, as far as it decides how much memory its key-value cache takes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

GEOMETRY_FILES: Final = ("genai_config.json", "config.json")
"""Files that tell it, the first that is there counts: of onnxruntime-genai, and of transformers."""
MAX_GEOMETRY_BYTES: Final = 256 << 10
_LARGEST: Final = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Numbers of one decoder; `context_length` is the most tokens that it was made for."""

    layers: int
    kv_heads: int
    head_size: int
    context_length: int

    @property
    def cache_elements(self) -> int:
        """Numbers that the cache keeps for one token: a key and a value of each head and layer."""
        return 2 * self.layers * self.kv_heads * self.head_size

    def to_body(self) -> dict[str, int]:
        """Inverse of `read_geometry`."""
        return asdict(self)


def read_geometry(body: Any) -> Geometry | None:
    """What `to_body` gave; None for anything else."""
    if not isinstance(body, Mapping):
        return None
    numbers = [_number(body.get(name)) for name in ("layers", "kv_heads", "head_size", "context_length")]
    return _build(*numbers)


def parse_geometry(text: str | bytes) -> Geometry | None:
    """From the text of one of GEOMETRY_FILES; None where it does not tell."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, Mapping):
        return None
    model = body.get("model")
    if isinstance(model, Mapping):
        decoder = model.get("decoder")
        if not isinstance(decoder, Mapping):
            return None
        return _build(
            _number(decoder.get("num_hidden_layers")),
            _number(decoder.get("num_key_value_heads")),
            _number(decoder.get("head_size")),
            _number(model.get("context_length")),
        )
    heads = _number(body.get("num_attention_heads"))
    hidden = _number(body.get("hidden_size"))
    return _build(
        _number(body.get("num_hidden_layers")),
        _number(body.get("num_key_value_heads")) or heads,
        _number(body.get("head_dim")) or (hidden // heads if heads else 0),
        _number(body.get("max_position_embeddings")),
    )


def _build(layers: int, kv_heads: int, head_size: int, context_length: int) -> Geometry | None:
    numbers = (layers, kv_heads, head_size, context_length)
    # From a file that anybody may have written: what is absurd is as good as nothing.
    if not all(numbers) or layers > 1000 or kv_heads > 1000 or head_size > 10_000:
        return None
    return Geometry(layers=layers, kv_heads=kv_heads, head_size=head_size, context_length=context_length)


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _LARGEST:
        return 0
    return value
