# SPDX-License-Identifier: Apache-2.0
"""From logits to the next token: greedy, temperature, nucleus; the same seed gives the same answer."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

NOT_A_NUMBER: Final = -1
"""Stands for "the model's logits for this row were not finite"."""

_GREEDY_BELOW: Final = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """`temperature` 0 is greedy; `top_p` in (0, 1]; `seed` None draws one from the system."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


class Sampler:
    """Sampling state of one request; not thread-safe."""

    __slots__ = ("_generator", "_temperature", "_top_p", "greedy", "params")

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.greedy = params.temperature < _GREEDY_BELOW
        self._temperature = max(params.temperature, _GREEDY_BELOW)
        self._top_p = params.top_p
        self._generator: np.random.Generator | None = None
        if not self.greedy:
            seed = secrets.randbits(64) if params.seed is None else params.seed & (2**64 - 1)
            self._generator = np.random.Generator(np.random.PCG64(seed))

    def pick(self, logits: NDArray[np.float32]) -> int:
        """Next token for one row `[vocab]`; NOT_A_NUMBER when the row's peak is not finite."""
        if self._generator is None:
            return _checked(logits, int(logits.argmax()))
        peak = float(logits.max())
        if not math.isfinite(peak):
            return NOT_A_NUMBER
        weights = np.exp((logits.astype(np.float64) - peak) / self._temperature)
        candidates: NDArray[np.int64] | None = None
        if self._top_p < 1.0:
            candidates, weights = _nucleus(weights, self._top_p)
        cumulative = weights.cumsum()
        drawn = int(cumulative.searchsorted(self._generator.random() * cumulative[-1], side="right"))
        index = min(drawn, len(cumulative) - 1)
        return index if candidates is None else int(candidates[index])


def _nucleus(weights: NDArray[np.float64], top_p: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Smallest set of most likely tokens that together have probability `top_p`, likeliest first.

    Tokens below (1 - top_p) / vocab have less than 1 - top_p together, so none of them is in the
    set: only the few above need sorting, not the whole vocabulary.
    """
    total = float(weights.sum())
    floor = (1.0 - top_p) / len(weights) * total
    candidates = np.flatnonzero(weights >= min(floor, float(weights.max())))
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    kept = int(weights[order].cumsum().searchsorted(top_p * total, side="left")) + 1
    order = order[:kept]
    return order, weights[order]


def _checked(row: NDArray[np.float32], token: int) -> int:
    # argmax returns the first NaN when there is one, so looking at the winner is enough.
    return token if math.isfinite(row[token]) else NOT_A_NUMBER


def log_probabilities(
    row: NDArray[np.float32], token: int, top: int
) -> tuple[float, list[tuple[int, float]]]:
    """Of `token` and of the `top` likeliest (token, value), likeliest first; `row` is logits [vocab]."""
    peak = float(row.max())
    total = peak + math.log(float(np.exp(row.astype(np.float64) - peak).sum()))
    best = np.argpartition(-row, min(top, len(row) - 1))[:top] if top else np.empty(0, np.int64)
    best = best[np.argsort(-row[best], kind="stable")]
    return float(row[token]) - total, [(int(i), float(row[i]) - total) for i in best]


def choose_tokens(logits: NDArray[np.float32], samplers: Sequence[Sampler]) -> list[int]:
    """Next token of each row of `[rows, vocab]`, row i by sampler i."""
    best = logits.argmax(axis=-1).tolist()
    return [
        _checked(logits[row], best[row]) if sampler.greedy else sampler.pick(logits[row])
        for row, sampler in enumerate(samplers)
    ]
