# SPDX-License-Identifier: Apache-2.0
"""Evidence that a new revision is worse than allowed, valid however often one looks.

A comparison that is repeated every few seconds sooner or later shows a difference by chance. Here each
look gives an e-value E, kept as log_e: the value of a process that starts at 1 and, as long as the new
revision is as good as allowed, grows in no step on average. By Ville's inequality the chance that it
ever reaches 1/alpha, at any look, is at most alpha. So a rollback at log_e >= log(1/alpha) is false with
a probability of at most alpha, over all looks together and whoever chooses when to look or to stop.
`required_log_e` shares one alpha among several tests (union bound).

One side against a bound: the mixture martingale of `mixture`, at the bound.

Two sides, rates. The stable revision's rate is not known. For each rate q that it may have, the product
of two martingales speaks against q: the canary's, against "at most limit(q)", and the stable's, against
"at least q". limit(q) = q * (1 + relative) + allowed grows with q, so if the canary is as good as
allowed, the true stable rate is a q for which both factors are supermartingales, and so is their
product. The reported evidence is the least over all q, hence never above that product; it needs no
guess of q and no prior for it. The logarithm is convex in q, which makes the least value exact: it is
bracketed by tangents and taken from below. The factors are tilted binomial counts, which only shrink
where a rate is better than at the boundary: the whole composite null hypothesis is covered.

Two sides, latency. Histograms know shares, not seconds, so shares are tested: no assumption is made
about how long the slow requests take. limit(the stable quantile) lies in one of the canary's buckets.
Two e-values speak about it, and their weighted mean is one too:

- At the bucket's upper end: at most 1 - quantile of the canary's requests are beyond it. Needs no
  interpolation, sees new slow requests in a tail, but no slowdown that stays within the bucket.
- At the bucket's lower end c: the canary's share above c is at most the stable's share above x, where
  limit(x) = c; a comparison of two rates. Sees that the tail as a whole moved by more than is allowed.
  The stable's share above x is interpolated within its bucket as Prometheus' histogram_quantile does.
  While latencies get rarer from the start of that bucket to its end, as they do in a tail, this makes
  the share too high rather than too low, which speaks for the canary.

Which bucket it is depends on the unknown stable quantile. So each bucket's mean also holds the stable's
own evidence that the limit is not in this one, and the least over all buckets counts. Without the second
e-value no p95 that is 1.5 times as long would be seen with buckets 1.33 to 1.67 apart; the finer the
buckets around the quantile, the smaller the regressions that are.

What it assumes: requests fail independently of each other given the side, at rates that hold from the
first to the last count. Cumulative counts from one start (when the wave's nodes took the revision) on
both sides carry all there is to know, so nothing but them has to survive a restart. What hits both sides
alike (a shared backend) gives no evidence. Failures that come in bursts are worth fewer requests than
they look; what that does to the false alarms is measured by `python -m e2e.bench.evidence`.

No evidence is not proof of health: whether enough was seen for a pass is decided elsewhere.

Sources: J. Ville, Etude critique de la notion de collectif (1939). H. Robbins, Statistical methods
related to the law of the iterated logarithm, Ann. Math. Stat. 41 (1970). S. Howard, A. Ramdas,
J. McAuliffe, J. Sekhon, Time-uniform, nonparametric, nonasymptotic confidence sequences, Ann. Stat. 49
(2021). P. Grünwald, R. de Heide, W. Koolen, Safe testing, J. R. Stat. Soc. B 86 (2024). R. Turner,
A. Ly, P. Grünwald, Generic E-variables for exact sequential k-sample tests that allow for optional
stopping, J. Stat. Plan. Inference 230 (2024).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Self

from slmops.planning.mixture import Point, above, below, least_of_convex

_LOG_COMPARED: Final = math.log(0.5)
_LOG_BEYOND: Final = math.log(0.3)
_LOG_FASTER: Final = math.log(0.1)
_LOG_SLOWER: Final = math.log(0.1)
"""Weights of a bucket's e-values; the last two are those of the stable quantile's being elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Cumulative requests of one side: `events` bad ones of `total`; may be fractions.

    ValueError unless 0 <= events <= total < infinity.
    """

    events: float
    total: float

    def __post_init__(self) -> None:
        for name, value in (("events", self.events), ("total", self.total)):
            if not 0.0 <= value < math.inf:
                raise ValueError(
                    f"Counts.{name} is {value}: must be a number from 0 on; a counter that was reset must be "
                    "carried on by who reads it (increase() does)"
                )
        if self.events > self.total:
            raise ValueError(
                f"Counts.events is {self.events:g} of a total of {self.total:g}: bad requests must be "
                "part of the total; Counts.cut evens out readings of two moments"
            )

    @classmethod
    def cut(cls, *, events: float, total: float) -> Self:
        """Counts of two readings: bad requests that outran the total, as one scrape makes them, are cut."""
        return cls(events=min(events, total), total=total)

    @property
    def rate(self) -> float | None:
        """Share of bad requests; None without requests."""
        return self.events / self.total if self.total > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Cumulative requests of one side by latency.

    `buckets` holds (upper bound in seconds, requests at or below it) as Prometheus does: bounds that
    rise from above 0 to infinity, counts that never fall. ValueError otherwise.
    """

    buckets: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not self.buckets or self.buckets[-1][0] != math.inf:
            raise ValueError("Histogram.buckets: the last upper bound must be infinity (le=+Inf)")
        if not self.buckets[0][0] > 0.0 or not all(a < b for (a, _), (b, _) in pairwise(self.buckets)):
            raise ValueError("Histogram.buckets: upper bounds must be above 0 and rise; Histogram.cut sorts")
        for bound, count in self.buckets:
            if not 0.0 <= count < math.inf:
                raise ValueError(f"Histogram.buckets: {count} at le={bound:g} must be a number from 0 on")
        if not all(a <= b for (_, a), (_, b) in pairwise(self.buckets)):
            raise ValueError("Histogram.buckets: counts must never fall; Histogram.cut evens them out")

    @classmethod
    def cut(cls, buckets: Iterable[tuple[float, float]]) -> Self:
        """Histogram of readings in any order, with counts raised to those of the bucket before."""
        level, even = 0.0, []
        for bound, count in sorted(buckets):
            level = max(level, count)
            even.append((bound, level))
        return cls(buckets=tuple(even))

    @property
    def total(self) -> float:
        """Requests in all buckets."""
        return self.buckets[-1][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """How strongly the counts speak against "as good as allowed", and what was compared.

    `canary`, `stable` and `limit` are point estimates for people: shares, or seconds for latency; None
    where there is no data or no stable side. Only `log_e` decides.
    """

    log_e: float
    canary: float | None
    stable: float | None
    limit: float | None

    @property
    def p_value(self) -> float:
        """Anytime-valid p-value: the chance that log_e ever gets here in a good revision is not larger."""
        return math.exp(-max(self.log_e, 0.0))


def required_log_e(false_rollback_rate: float, tests: int) -> float:
    """`log_e` from which a test fails, so that all `tests` together are false at no more than the rate.

    `tests` counts everything that may roll one rollout back: metrics x waves x device classes.
    """
    if not 0.0 < false_rollback_rate < 1.0:
        raise ValueError(f"false_rollback_rate is {false_rollback_rate}: must be between 0 and 1, as 0.01")
    if tests < 1:
        raise ValueError(f"tests is {tests}: must be at least 1")
    return math.log(tests / false_rollback_rate)


def above_bound(canary: Counts, *, bound: float) -> Evidence:
    """Evidence against "the canary's rate is at most `bound`" (a share from 0 to 1)."""
    if not 0.0 <= bound <= 1.0:
        raise ValueError(f"bound is {bound}: must be a share from 0 to 1")
    log_e = above(canary.events, canary.total, bound)[0] if canary.total > 0 else 0.0
    return Evidence(log_e=log_e, canary=canary.rate, stable=None, limit=bound)


def compare_rates(canary: Counts, stable: Counts, *, allowed: float, relative: float) -> Evidence:
    """Evidence against "the canary's rate is at most stable's rate * (1 + relative) + allowed".

    `allowed` is a share (0.02), `relative` a fraction (0.1 for 10 %); both from 0 on. Either side
    without requests gives none.
    """
    _check_margin(allowed=allowed, relative=relative)
    limit = None if stable.rate is None else min(1.0, stable.rate * (1.0 + relative) + allowed)
    log_e = 0.0
    if canary.total > 0 and stable.total > 0:

        def at(rate: float) -> Point:
            share = min(1.0, rate * (1.0 + relative) + allowed)
            worse, worse_slope = above(canary.events, canary.total, share)
            better, better_slope = below(stable.events, stable.total, rate)
            return worse + better, worse_slope * (1.0 + relative) + better_slope

        # At higher rates any canary is as good as allowed.
        highest = max(0.0, (1.0 - allowed) / (1.0 + relative))
        log_e = least_of_convex(at, low=0.0, high=highest)
    return Evidence(log_e=log_e, canary=canary.rate, stable=stable.rate, limit=limit)


def latency_above_bound(canary: Histogram, *, quantile: float = 0.95, bound_seconds: float) -> Evidence:
    """Evidence against "the canary's quantile is at most `bound_seconds`".

    Slow are requests above the first bucket bound at or after it: a bound between two buckets is seen to
    be broken only when the upper one is.
    """
    _check_quantile(quantile)
    if not bound_seconds > 0.0:
        raise ValueError(f"bound_seconds is {bound_seconds}: must be above 0")
    seen = canary.total - next(count for bound, count in canary.buckets if bound >= bound_seconds)
    log_e = above(seen, canary.total, 1.0 - quantile)[0] if canary.total > 0 else 0.0
    return Evidence(log_e=log_e, canary=quantile_of(canary, quantile), stable=None, limit=bound_seconds)


def compare_latency(
    canary: Histogram,
    stable: Histogram,
    *,
    quantile: float = 0.95,
    allowed_seconds: float,
    relative: float,
) -> Evidence:
    """Evidence against "the canary's quantile is at most stable's * (1 + relative) + allowed_seconds".

    As good as allowed means, as far as buckets can tell: at most 1 - quantile of its requests are slower
    than the limit, and from the start of the limit's bucket on it has no larger share of slow requests
    than a stable revision that is slower by the margin. Both margins from 0 on. Either side without
    requests gives none. The sides may have different buckets.
    """
    _check_quantile(quantile)
    _check_margin(allowed=allowed_seconds, relative=relative)
    stable_quantile = quantile_of(stable, quantile)
    limit = None if stable_quantile is None else stable_quantile * (1.0 + relative) + allowed_seconds
    log_e = 0.0
    if canary.total > 0 and stable.total > 0:
        cells = _build_cells(canary, allowed_seconds=allowed_seconds, relative=relative)
        log_e = _least_over_buckets(cells, canary.total, stable, quantile=quantile)
    return Evidence(log_e=log_e, canary=quantile_of(canary, quantile), stable=stable_quantile, limit=limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """One bucket of the canary: stable quantiles in (fastest, slowest] put the limit into it."""

    fastest: float
    slowest: float
    slow: float
    """The canary's requests above the bucket's lower end."""
    beyond: float
    """Those above its upper end."""


def _build_cells(canary: Histogram, *, allowed_seconds: float, relative: float) -> list[_Cell]:
    cells = []
    fastest, slow = 0.0, canary.total
    for upper, count in canary.buckets:
        slowest = (upper - allowed_seconds) / (1.0 + relative)
        beyond = canary.total - count
        if slowest > fastest:
            cells.append(_Cell(fastest=fastest, slowest=slowest, slow=slow, beyond=beyond))
            fastest = slowest
        slow = beyond
    return cells


def _least_over_buckets(
    cells: Sequence[_Cell], canary_total: float, stable: Histogram, *, quantile: float
) -> float:
    share, total = 1.0 - quantile, stable.total

    def quantile_is_faster(cell: _Cell) -> float:
        events = _slower_than(stable, cell.fastest)
        return _LOG_FASTER + below(events, total, share)[0]

    def quantile_is_slower(cell: _Cell) -> float:
        # Only what is surely slower counts here: no interpolation.
        surely = total - next(count for bound, count in stable.buckets if bound >= cell.slowest)
        return _LOG_SLOWER + above(surely, total, share)[0]

    def lower(least: float, cell: _Cell, elsewhere: float) -> float:
        beyond = _LOG_BEYOND + above(cell.beyond, canary_total, share)[0]
        known = _log_sum(beyond, elsewhere)
        if known >= least:
            return least
        compared = compare_rates(
            Counts(events=cell.slow, total=canary_total),
            Counts(events=_slower_than(stable, cell.fastest), total=total),
            allowed=0.0,
            relative=0.0,
        )
        return min(least, _log_sum(_LOG_COMPARED + compared.log_e, known))

    estimate = quantile_of(stable, quantile) or 0.0
    start = next(index for index, cell in enumerate(cells) if cell.slowest >= estimate)
    least = math.inf
    # From the likeliest bucket outwards: the stable's evidence only grows on the way.
    for cell in cells[start:]:
        faster = quantile_is_faster(cell)
        if faster >= least:
            break
        least = lower(least, cell, _log_sum(faster, quantile_is_slower(cell)))
    for cell in reversed(cells[:start]):
        slower = quantile_is_slower(cell)
        if slower >= least:
            break
        least = lower(least, cell, _log_sum(quantile_is_faster(cell), slower))
    return least


def _log_sum(first: float, second: float) -> float:
    top = max(first, second)
    return top + math.log1p(math.exp(min(first, second) - top))


def quantile_of(histogram: Histogram, quantile: float) -> float | None:
    """Seconds, interpolated as Prometheus' histogram_quantile does; None without requests.

    Beyond the last finite bound nothing is known: that bound is the answer then (infinity when there
    is none).
    """
    if not 0.0 <= quantile <= 1.0:
        raise ValueError(f"quantile is {quantile}: must be from 0 to 1")
    if histogram.total <= 0:
        return None
    rank = quantile * histogram.total
    lower, before = 0.0, 0.0
    for bound, count in histogram.buckets:
        if count >= rank and count > before:
            if bound == math.inf:
                break
            return lower + (bound - lower) * max(0.0, rank - before) / (count - before)
        lower, before = bound, count
    return lower or math.inf


def _slower_than(histogram: Histogram, seconds: float) -> float:
    """Requests above `seconds`, interpolated within its bucket; in the last one all of it."""
    lower, before = 0.0, 0.0
    for bound, count in histogram.buckets:
        if seconds < bound:
            left = 1.0 if bound == math.inf else (bound - seconds) / (bound - lower)
            return histogram.total - count + (count - before) * left
        lower, before = bound, count
    return 0.0


def _check_margin(*, allowed: float, relative: float) -> None:
    for name, value in (("allowed", allowed), ("relative", relative)):
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{name} is {value}: must be a number from 0 on, how much worse is allowed")


def _check_quantile(quantile: float) -> None:
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile is {quantile}: must be between 0 and 1, as 0.95")
