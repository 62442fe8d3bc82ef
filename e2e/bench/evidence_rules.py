# SPDX-License-Identifier: Apache-2.0
"""The three rules that `e2e.bench.evidence` sets side by side: when does a trace end in a rollback?

Each returns the look at which it rolls back, or None when it never does. All see the same counts at the
same looks. A comparison of the peers is the usual one of point estimates, `canary <= limit(stable)`.
"""

from collections.abc import Callable, Iterator
from typing import Final

from e2e.bench.evidence_traces import Latency, LatencyTrace, Rates, RateTrace
from slmops.planning.evidence import (
    Counts,
    Evidence,
    Histogram,
    compare_latency,
    compare_rates,
    quantile_of,
    required_log_e,
)

MIN_SAMPLES: Final = 300
TESTS: Final = 4
"""Two metrics, two waves, one device class: what shares the false rollback rate in a usual setup."""
FALSE_ROLLBACK_RATE: Final = 0.01
WINDOW_LOOKS: Final = 12
"""Two minutes, of the counting peer's query."""
FAILURE_LIMIT: Final = 3

Trace = RateTrace | LatencyTrace
Law = Rates | Latency
Rule = Callable[[Law, Trace], int | None]
Side = Counts | Histogram


def sides(trace: Trace) -> Iterator[tuple[Side, Side]]:
    """Cumulative counts of canary and stable at each look."""
    if isinstance(trace, RateTrace):
        for ce, ct, se, st in zip(
            trace.canary_events.tolist(),
            trace.canary_total.tolist(),
            trace.stable_events.tolist(),
            trace.stable_total.tolist(),
            strict=True,
        ):
            yield Counts(events=ce, total=ct), Counts(events=se, total=st)
    else:
        for canary, stable in zip(trace.canary.tolist(), trace.stable.tolist(), strict=True):
            yield (
                Histogram(buckets=tuple(zip(trace.buckets, canary, strict=True))),
                Histogram(buckets=tuple(zip(trace.buckets, stable, strict=True))),
            )


def point_estimate(side: Side) -> float | None:
    """Rate or p95."""
    return side.rate if isinstance(side, Counts) else quantile_of(side, 0.95)


def is_over(law: Law, canary: Side, stable: Side) -> bool:
    """Whether the canary's point estimate is worse than allowed."""
    measured, base = point_estimate(canary), point_estimate(stable)
    if measured is None or base is None:
        return False
    return measured > base * (1.0 + law.relative) + (law.allowed if isinstance(law, Rates) else 0.0)


def weigh(law: Law, canary: Side, stable: Side) -> Evidence | None:
    """Our evidence; None where it is known to be none: at a rate within the limit log_e is never above 0."""
    if isinstance(law, Rates) and isinstance(canary, Counts) and isinstance(stable, Counts):
        if not is_over(law, canary, stable):
            return None
        return compare_rates(canary, stable, allowed=law.allowed, relative=law.relative)
    assert isinstance(canary, Histogram) and isinstance(stable, Histogram)
    return compare_latency(canary, stable, allowed_seconds=0.0, relative=law.relative)


def ours(law: Law, trace: Trace) -> int | None:
    """Evidence of all counts since the wave began, at the threshold that `TESTS` tests share."""
    need = required_log_e(FALSE_ROLLBACK_RATE, TESTS)
    for look, (canary, stable) in enumerate(sides(trace)):
        evidence = weigh(law, canary, stable)
        if evidence is not None and evidence.log_e >= need:
            return look
    return None


def threshold(law: Law, trace: Trace) -> int | None:
    """Naive: the first look at which the point estimate is over, from `MIN_SAMPLES` on both sides on."""
    for look, (canary, stable) in enumerate(sides(trace)):
        if min(canary.total, stable.total) >= MIN_SAMPLES and is_over(law, canary, stable):
            return look
    return None


def counting(law: Law, trace: Trace) -> int | None:
    """As Argo Rollouts counts: more than `FAILURE_LIMIT` failed measurements of a two-minute query."""
    history = list(sides(trace))
    start = (_minus(history[0][0], history[0][0]), _minus(history[0][1], history[0][1]))
    history.insert(0, start)
    failures = 0
    for look, now in enumerate(history[1:], start=1):
        before = history[max(0, look - WINDOW_LOOKS)]
        failures += is_over(law, _minus(now[0], before[0]), _minus(now[1], before[1]))
        if failures > FAILURE_LIMIT:
            return look - 1
    return None


def _minus(now: Side, before: Side) -> Side:
    if isinstance(now, Counts) and isinstance(before, Counts):
        return Counts(events=now.events - before.events, total=now.total - before.total)
    assert isinstance(now, Histogram) and isinstance(before, Histogram)
    return Histogram(
        buckets=tuple((le, a - b) for (le, a), (_, b) in zip(now.buckets, before.buckets, strict=True))
    )


RULES: Final[dict[str, Rule]] = {"ours": ours, "threshold": threshold, "counting": counting}
PEER_NAMES: Final = {
    "threshold": "point estimate over the margin",
    "counting": "Argo-Rollouts-like counting",
}
