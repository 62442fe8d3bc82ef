# SPDX-License-Identifier: Apache-2.0
"""Texts as vectors: the port to whatever computes them, and vectors cut short."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

_CONFIG_FILE: Final = "config.json"


class Embedder(Protocol):
    """A model that turns token ids into vectors; one thread calls it."""

    @property
    def dimensions(self) -> int:
        """Length of each vector."""

    @property
    def max_length(self) -> int:
        """Most token ids of one text, special tokens included."""

    def embed(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Vectors [n, dimensions] of n >= 1 texts of 1..max_length ids each, L2-normalised; may raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortening:
    """Which shorter vectors a model's own files allow (Matryoshka embeddings)."""

    full: int
    allowed: frozenset[int] = frozenset()
    any_length: bool = False

    def permits(self, dimensions: int) -> bool:
        """Whether vectors of this model may be cut to `dimensions`."""
        return (
            dimensions == self.full
            or dimensions in self.allowed
            or (self.any_length and 1 <= dimensions < self.full)
        )

    def describe(self) -> str:
        """What `dimensions` may be, for people."""
        if self.any_length:
            return f"1 to {self.full}"
        return ", ".join(map(str, sorted({self.full, *self.allowed})))


def load_shortening(model_dir: Path, dimensions: int) -> Shortening:
    """Read `matryoshka_dimensions` and `is_matryoshka` of config.json; without them there is none."""
    try:
        config = json.loads((model_dir / _CONFIG_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        config = {}
    if not isinstance(config, dict):
        config = {}
    named = config.get("matryoshka_dimensions")
    lengths = named if isinstance(named, list) else []
    allowed = frozenset(n for n in lengths if isinstance(n, int) and 1 <= n < dimensions)
    any_length = config.get("is_matryoshka") is True and not allowed
    return Shortening(full=dimensions, allowed=allowed, any_length=any_length)


def shorten(vectors: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    """The first `dimensions` of each row, L2-normalised again."""
    if dimensions == vectors.shape[1]:
        return vectors
    cut = vectors[:, :dimensions].astype(np.float64)
    lengths = np.sqrt((cut * cut).sum(axis=1, keepdims=True))
    scaled: NDArray[np.float32] = (cut / np.maximum(lengths, 1e-12)).astype(np.float32)
    return scaled
