# SPDX-License-Identifier: Apache-2.0
"""Test martingales for a share of bad requests: what `evidence` is built of.

Let k of n requests be bad, each with probability at most p. For theta >= 0

    exp(theta * k) / (1 - p + p * exp(theta)) ** n

is a nonnegative supermartingale that starts at 1: one request multiplies it by a factor whose mean is
at most 1, as exp(theta * x) is convex and grows with x. Nothing more is asked of a request than a
badness in [0, 1], so counts may be fractions. The same holds for theta <= 0 when the probability is at
least p. A weighted sum of such martingales is one too (the method of mixtures, Robbins 1970). It is taken
over a few log-spaced theta, that is over fixed odds ratios, because the size of the regression is not
known beforehand. Most weight lies where hundreds to thousands of requests can decide; a rate only a few
percent above what is allowed (3.1 % where 3 % is) is not told apart, however many requests there are.
theta = 0 is among them: it bounds from below what a side can cost the product of two sides.

Everything is a function of the cumulative counts k and n alone, and its logarithm is convex in p.
"""

import math
from collections.abc import Callable
from typing import Final

Tilt = tuple[float, float, float]
"""theta, exp(theta) - 1, logarithm of the weight."""

_WEIGHTS: Final = {0.0: 1, 0.05: 1, 0.1: 2, 0.2: 3, 0.4: 4, 0.8: 4, 1.6: 3, 3.2: 1}
"""By the size of theta, a logarithm of an odds ratio."""


def _tilts(sign: float) -> tuple[Tilt, ...]:
    whole = sum(_WEIGHTS.values())
    return tuple(
        (sign * size, math.expm1(sign * size), math.log(weight / whole)) for size, weight in _WEIGHTS.items()
    )


_UP: Final = _tilts(1.0)
_DOWN: Final = _tilts(-1.0)
_TOLERANCE: Final = 1e-6
_MAX_STEPS: Final = 200

Point = tuple[float, float]
"""Value and slope of a function at one place."""


def above(events: float, total: float, share: float) -> Point:
    """Log of the martingale against "each is bad with probability <= share", and its slope in share."""
    return _mix(_UP, events, total, share)


def below(events: float, total: float, share: float) -> Point:
    """Log of the martingale against "each is bad with probability >= share", and its slope in share."""
    return _mix(_DOWN, events, total, share)


def _mix(tilts: tuple[Tilt, ...], events: float, total: float, share: float) -> Point:
    logs = [weight + theta * events - total * math.log1p(share * growth) for theta, growth, weight in tilts]
    top = max(logs)
    mass = slope = 0.0
    for (_, growth, _), log in zip(tilts, logs, strict=True):
        part = math.exp(log - top)
        mass += part
        slope -= part * growth / (1.0 + share * growth)
    return top + math.log(mass), total * slope / mass


def least_of_convex(function: Callable[[float], Point], *, low: float, high: float) -> float:
    """Least value of a convex function on [low, high], from below and within 1e-6 (relative above 1e6).

    A convex function lies above its tangents, so where the two tangents around the minimum meet is a
    proven lower bound; the bracket shrinks until the bound is tight.
    """
    left, (left_value, left_slope) = low, function(low)
    if left_slope >= 0.0 or high <= low:
        return left_value
    right, (right_value, right_slope) = high, function(high)
    if right_slope <= 0.0:
        return right_value
    bound = -math.inf
    for step in range(_MAX_STEPS):
        # Where the tangents meet, measured from the left end.
        offset = (right_value - left_value - right_slope * (right - left)) / (left_slope - right_slope)
        offset = min(max(offset, 0.0), right - left)
        bound = max(bound, min(left_value + left_slope * offset, left_value, right_value))
        best = min(left_value, right_value)
        if best - bound <= _TOLERANCE * max(1.0, abs(best) * _TOLERANCE):
            break
        place = left + offset
        if step % 2 or not left < place < right:
            # Rates span many powers of ten: halve the exponent while the ends are far apart.
            place = math.sqrt(left * right) if 0.0 < left < right / 4 else (left + right) / 2
        if not left < place < right:
            break
        value, slope = function(place)
        if slope < 0.0:
            left, left_value, left_slope = place, value, slope
        else:
            right, right_value, right_slope = place, value, slope
    return bound
