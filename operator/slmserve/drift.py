# SPDX-License-Identifier: Apache-2.0
"""How far the latest requests are from the first ones: population stability index of bounded histograms.

The index of two distributions p and q over the same classes is the sum of (p - q) * ln(p / q), the symmetric
Kullback-Leibler divergence (Jeffreys 1946); as a monitor of scorecards it is the population stability index
(Siddiqi, Credit Risk Scorecards, 2006), where 0.1 is read as a small shift and 0.25 as one to act on. Without
any shift it is about (classes - 1) * (1/n + 1/m) for samples of n and m (Yurdakul, Statistical Properties of
Population Stability Index, 2018), which is taken off here, so that few requests do not look like drift. A
half is added to each class (Krichevsky and Trofimov 1981), so that an empty one gives no infinity.

The latest requests are counted with weights that fall by a constant factor per request (exponential decay:
Cormode et al., Forward Decay, 2009), so memory is a number per class. Their effective number is the square of
the sum of the weights over the sum of their squares (Kish 1965).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

REFERENCE_REQUESTS: Final = 300
"""The first ones, which all later ones are compared with."""
MEMORY_REQUESTS: Final = 150
"""Mean age of the latest ones, in requests."""
LEAST_REQUESTS: Final = 50
"""Of the latest ones (effective) before anything is told: fewer would tell of single requests."""
_KEEP: Final = 1 - 1 / MEMORY_REQUESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The index, 0 or more, and the effective number of the latest requests behind it."""

    index: float
    samples: float


class DriftGauge:
    """One signal with `classes` classes; in memory only, so a restart begins with a new reference."""

    def __init__(self, classes: int) -> None:
        self._reference = [0.0] * classes
        self._latest = [0.0] * classes
        self._seen = 0
        self._squares = 0.0

    def observe(self, at: int) -> None:
        """One request in class `at`, from 0."""
        if self._seen < REFERENCE_REQUESTS:
            self._seen += 1
            self._reference[at] += 1
            return
        self._latest = [_KEEP * weight for weight in self._latest]
        self._latest[at] += 1
        self._squares = _KEEP * _KEEP * self._squares + 1

    def read(self) -> Drift | None:
        """None while there is too little to tell."""
        total = sum(self._latest)
        samples = total * total / self._squares if self._squares else 0.0
        if self._seen < REFERENCE_REQUESTS or samples < LEAST_REQUESTS:
            return None
        # The latest counts stand for as many requests as they are worth.
        latest = [weight * samples / total for weight in self._latest]
        return Drift(index=stability_index(self._reference, latest), samples=samples)


def stability_index(reference: Sequence[float], latest: Sequence[float]) -> float:
    """Index of two histograms over the same classes, less what chance alone gives; 0 or more."""
    used = [(a, b) for a, b in zip(reference, latest, strict=True) if a or b]
    n, m = sum(a for a, _ in used), sum(b for _, b in used)
    if not n or not m or len(used) < 2:
        return 0.0
    half = 0.5 * len(used)
    index = 0.0
    for a, b in used:
        p, q = (a + 0.5) / (n + half), (b + 0.5) / (m + half)
        index += (p - q) * math.log(p / q)
    return max(0.0, index - (len(used) - 1) * (1 / n + 1 / m))
