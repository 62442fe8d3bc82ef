# SPDX-License-Identifier: Apache-2.0
"""The sequential test: its guarantee by exact enumeration, its invariants, and what it sees."""

import math
from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmops.planning.evidence import (
    Counts,
    Evidence,
    Histogram,
    above_bound,
    compare_latency,
    compare_rates,
    latency_above_bound,
    quantile_of,
    required_log_e,
)
from slmserve.metrics import SECONDS_BUCKETS

NEED = required_log_e(0.01, 4)
EDGES = (1.0, 2.0, 3.0, math.inf)
"""Of the histograms in the exact tests."""


def counts(events: float, total: float) -> Counts:
    return Counts(events=events, total=total)


def rates(canary: Counts, stable: Counts, *, allowed: float = 0.02, relative: float = 0.0) -> float:
    return compare_rates(canary, stable, allowed=allowed, relative=relative).log_e


def histogram(bounds: Sequence[float], each: Sequence[float]) -> Histogram:
    """Of the requests in each bucket."""
    return Histogram(buckets=tuple((bound, sum(each[: index + 1])) for index, bound in enumerate(bounds)))


def latency(canary: Histogram, stable: Histogram, *, quantile: float = 0.95, relative: float = 0.2) -> float:
    return compare_latency(canary, stable, quantile=quantile, allowed_seconds=0.0, relative=relative).log_e


def lognormal(p95: float, total: float, *, sigma: float = 0.5) -> Histogram:
    """What slmserve's buckets hold on average of that many requests."""
    middle = math.log(p95) - 1.6448536 * sigma
    below = [0.5 * math.erfc((middle - math.log(bound)) / sigma / math.sqrt(2)) for bound in SECONDS_BUCKETS]
    return Histogram.cut((*zip(SECONDS_BUCKETS, (total * b for b in below), strict=True), (math.inf, total)))


def binomial(n: int, k: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


sides = st.integers(0, 5000).flatmap(lambda n: st.builds(counts, st.integers(0, n), st.just(n)))
margins = st.tuples(st.sampled_from([0.0, 0.001, 0.02, 0.3]), st.sampled_from([0.0, 0.1, 1.0]))
bucket_counts = st.lists(st.integers(0, 400), min_size=4, max_size=4)


# The guarantee, exactly.


@pytest.mark.parametrize("bound", [0.001, 0.05, 0.5, 0.95])
@pytest.mark.parametrize("total", [1, 7, 40])
def test_the_mean_of_e_is_one_at_the_bound_and_less_below_it(bound: float, total: int) -> None:
    def mean(rate: float) -> float:
        return sum(
            binomial(total, k, rate) * math.exp(above_bound(counts(k, total), bound=bound).log_e)
            for k in range(total + 1)
        )

    assert mean(bound) == pytest.approx(1.0, abs=1e-9)
    assert mean(bound * 0.8) < 1.0


def test_looking_after_every_request_and_stopping_at_will_keeps_the_mean_at_one() -> None:
    bound, level = 0.2, math.log(1 / 0.2)
    alive, stopped, crossed = {0: 1.0}, 0.0, 0.0
    for total in range(1, 61):
        grown: dict[int, float] = {}
        for k, chance in alive.items():
            for events, part in ((k, chance * (1 - bound)), (k + 1, chance * bound)):
                log_e = above_bound(counts(events, total), bound=bound).log_e
                if log_e >= level:
                    stopped += part * math.exp(log_e)
                    crossed += part
                else:
                    grown[events] = grown.get(events, 0.0) + part
        alive = grown
    rest = sum(part * math.exp(above_bound(counts(k, 60), bound=bound).log_e) for k, part in alive.items())
    assert 0.02 < crossed <= 0.2
    assert stopped + rest == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("stable_rate", [0.02, 0.2, 0.5, 0.8])
@pytest.mark.parametrize(("allowed", "relative"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.2)])
def test_two_sides_mean_at_most_one_whatever_the_stable_rate(
    stable_rate: float, allowed: float, relative: float
) -> None:
    n, m = 12, 9
    canary_rate = stable_rate * (1 + relative) + allowed
    mean = sum(
        binomial(n, k, canary_rate)
        * binomial(m, s, stable_rate)
        * math.exp(rates(counts(k, n), counts(s, m), allowed=allowed, relative=relative))
        for k in range(n + 1)
        for s in range(m + 1)
    )
    assert mean <= 1.0


def test_two_sides_looked_at_after_every_pair_are_false_no_more_often_than_stated() -> None:
    rate, alpha = 0.3, 0.5
    alive, crossed = {(0, 0): 1.0}, 0.0
    for total in range(1, 16):
        grown: dict[tuple[int, int], float] = {}
        for (k, s), chance in alive.items():
            for more in (0, 1):
                for less in (0, 1):
                    part = chance * binomial(1, more, rate) * binomial(1, less, rate)
                    at = (k + more, s + less)
                    grown[at] = grown.get(at, 0.0) + part
        alive = {}
        for (k, s), chance in grown.items():
            if rates(counts(k, total), counts(s, total), allowed=0.0) >= math.log(1 / alpha):
                crossed += chance
            else:
                alive[k, s] = chance
    assert 0.0 < crossed <= alpha


@pytest.mark.parametrize("quantile", [0.7, 0.85])
@pytest.mark.parametrize("relative", [0.0, 0.4])
def test_latency_mean_at_most_one_at_the_margin(quantile: float, relative: float) -> None:
    # A density that falls from bucket to bucket and is even within each: at the edge of what is assumed.
    heights = (0.6, 0.25, 0.1, 0.05)

    def below(seconds: float) -> float:
        return sum(height * min(max(seconds - low, 0.0), 1.0) for low, height in enumerate(heights))

    def cells(factor: float) -> list[float]:
        at = [below(edge / factor) for edge in EDGES[:-1]]
        return [b - a for a, b in pairwise([0.0, *at, 1.0])]

    def outcomes(total: int, shares: Sequence[float]) -> list[tuple[float, Histogram]]:
        found = []
        for a in range(total + 1):
            for b in range(total + 1 - a):
                for c in range(total + 1 - a - b):
                    each = (a, b, c, total - a - b - c)
                    ways = math.factorial(total) // math.prod(math.factorial(x) for x in each)
                    chance = ways * math.prod(p**x for p, x in zip(shares, each, strict=True))
                    found.append((chance, histogram(EDGES, each)))
        return found

    canaries, stables = outcomes(5, cells(1 + relative)), outcomes(5, cells(1.0))
    mean = sum(
        p * q * math.exp(latency(canary, stable, quantile=quantile, relative=relative))
        for p, canary in canaries
        for q, stable in stables
    )
    assert sum(p for p, _ in canaries) == pytest.approx(1.0)
    assert mean <= 1.0


def test_equal_rates_watched_for_long_are_rolled_back_no_more_often_than_stated() -> None:
    random, alpha, paths, false = Random(7), 0.05, 300, 0
    for _ in range(paths):
        k = s = 0
        for look in range(1, 61):
            k += sum(random.random() < 0.1 for _ in range(5))
            s += sum(random.random() < 0.1 for _ in range(10))
            # At or below the stable's rate there is never evidence, as another test shows.
            if 2 * k > s and rates(counts(k, 5 * look), counts(s, 10 * look), allowed=0.0) >= math.log(
                1 / alpha
            ):
                false += 1
                break
    assert false <= alpha * paths


# Invariants.


@given(canary=sides, stable=sides, margin=margins, more=st.integers(1, 50))
def test_more_bad_requests_of_the_canary_never_lower_the_evidence(
    canary: Counts, stable: Counts, margin: tuple[float, float], more: int
) -> None:
    allowed, relative = margin
    worse = counts(min(canary.total, canary.events + more), canary.total)
    before = rates(canary, stable, allowed=allowed, relative=relative)
    assert rates(worse, stable, allowed=allowed, relative=relative) >= before - 1e-5
    assert above_bound(worse, bound=allowed).log_e >= above_bound(canary, bound=allowed).log_e - 1e-9


@given(canary=sides, stable=sides, margin=margins, more=st.integers(1, 50))
def test_more_bad_requests_of_the_stable_never_raise_the_evidence(
    canary: Counts, stable: Counts, margin: tuple[float, float], more: int
) -> None:
    allowed, relative = margin
    worse = counts(min(stable.total, stable.events + more), stable.total)
    before = rates(canary, stable, allowed=allowed, relative=relative)
    assert rates(canary, worse, allowed=allowed, relative=relative) <= before + 1e-5


@given(canary=sides, stable=sides, margin=margins)
def test_a_canary_within_the_limit_gives_no_evidence(
    canary: Counts, stable: Counts, margin: tuple[float, float]
) -> None:
    allowed, relative = margin
    evidence = compare_rates(canary, stable, allowed=allowed, relative=relative)
    if evidence.canary is None or evidence.limit is None or evidence.canary <= evidence.limit:
        assert evidence.log_e <= 1e-12  # rounding
        assert evidence.p_value >= 1.0 - 1e-12


@given(canary=sides, stable=sides, rate=st.floats(0.0, 1.0), margin=margins)
def test_no_stable_rate_explains_the_counts_better_than_is_reported(
    canary: Counts, stable: Counts, rate: float, margin: tuple[float, float]
) -> None:
    allowed, relative = margin
    limit = rate * (1 + relative) + allowed
    if limit > 1.0 or not canary.total or not stable.total:
        return
    # The stable's martingale against "at least rate" is that of its good requests against "at most 1 - rate".
    good = counts(stable.total - stable.events, stable.total)
    at_rate = above_bound(canary, bound=limit).log_e + above_bound(good, bound=1.0 - rate).log_e
    assert rates(canary, stable, allowed=allowed, relative=relative) <= at_rate + 1e-6 * max(
        1.0, abs(at_rate)
    )


@given(canary=sides, stable=sides)
def test_the_reported_least_is_reached_by_some_stable_rate(canary: Counts, stable: Counts) -> None:
    if not canary.total or not stable.total:
        return
    good = counts(stable.total - stable.events, stable.total)

    def at(rate: float) -> float:
        return above_bound(canary, bound=rate).log_e + above_bound(good, bound=1.0 - rate).log_e

    low, high = 0.0, 1.0
    for _ in range(100):
        third = (high - low) / 3
        if at(low + third) <= at(high - third):
            high -= third
        else:
            low += third
    assert rates(canary, stable, allowed=0.0) == pytest.approx(at((low + high) / 2), abs=1e-4, rel=1e-5)


@settings(max_examples=60)
@given(canary=bucket_counts, stable=bucket_counts, bucket=st.integers(0, 2), moved=st.integers(1, 50))
def test_slower_requests_of_the_canary_never_lower_the_evidence(
    canary: list[int], stable: list[int], bucket: int, moved: int
) -> None:
    moved = min(moved, canary[bucket])
    slower = list(canary)
    slower[bucket] -= moved
    slower[bucket + 1] += moved
    base, worse, other = (histogram(EDGES, each) for each in (canary, slower, stable))
    assert latency(worse, other) >= latency(base, other) - 1e-5
    fixed = [latency_above_bound(side, bound_seconds=2.0).log_e for side in (base, worse)]
    assert fixed[1] >= fixed[0] - 1e-9


# What it sees.


def test_one_error_in_three_is_nothing_and_the_same_rate_in_three_thousand_is_overwhelming() -> None:
    stable = counts(30, 3000)
    assert rates(counts(1, 3), stable) < NEED
    assert above_bound(counts(1, 3), bound=0.05).log_e < NEED
    assert rates(counts(1000, 3000), stable) > 100
    assert above_bound(counts(1000, 3000), bound=0.05).log_e > 100


def test_a_stable_that_is_as_bad_gives_no_evidence() -> None:
    assert rates(counts(1000, 3000), counts(2000, 6000)) <= 0.0
    slow = lognormal(8.0, 3000)
    assert latency(slow, lognormal(8.0, 6000)) <= 0.0
    assert above_bound(counts(1000, 3000), bound=0.05).log_e > 100


def test_a_regression_from_one_to_six_percent_needs_about_a_thousand_requests() -> None:
    assert rates(counts(12, 200), counts(4, 400)) < NEED
    assert rates(counts(120, 2000), counts(40, 4000)) > NEED


@pytest.mark.parametrize("p95", [0.06 * 1.13**step for step in range(52)])
def test_half_as_slow_again_is_seen_wherever_the_quantile_lies_in_the_server_buckets(p95: float) -> None:
    stable = lognormal(p95, 6000)
    assert latency(lognormal(p95 * 1.5, 3000), stable) > NEED
    assert latency(lognormal(p95 * 1.2, 3000), stable) <= 0.0


def test_new_slow_requests_in_the_tail_are_seen_though_the_others_are_as_fast() -> None:
    stable = lognormal(1.6, 4000)
    late = lognormal(1.6, 1840)
    canary = Histogram(
        buckets=tuple((bound, count + (160 if bound == math.inf else 0)) for bound, count in late.buckets)
    )
    assert latency(canary, stable) > NEED


def test_the_sides_may_have_different_buckets() -> None:
    canary = histogram((0.5, 1.5, 4.0, math.inf), (500, 300, 200, 0))
    assert latency(canary, histogram((0.4, 0.9, math.inf), (3000, 900, 100))) > NEED
    assert latency(canary, histogram((2.0, 6.0, math.inf), (2000, 1000, 100))) <= 0.0


def test_an_absolute_latency_bound_counts_only_what_was_surely_slower() -> None:
    canary = histogram(EDGES, (500, 300, 200, 0))
    assert latency_above_bound(canary, bound_seconds=2.0).log_e > NEED
    assert latency_above_bound(canary, bound_seconds=2.1).log_e < 0.0
    expected = above_bound(counts(200, 1000), bound=0.05).log_e
    assert latency_above_bound(canary, bound_seconds=2.0).log_e == pytest.approx(expected)
    assert latency_above_bound(canary, bound_seconds=99.0).log_e < 0.0


# Edges.


def test_the_evidence_tells_what_was_compared() -> None:
    evidence = compare_rates(counts(6, 100), counts(2, 200), allowed=0.02, relative=0.5)
    assert (evidence.canary, evidence.stable) == (0.06, 0.01)
    assert evidence.limit == pytest.approx(0.035)
    slow = compare_latency(
        histogram(EDGES, (0, 0, 100, 0)),
        histogram(EDGES, (0, 100, 0, 0)),
        quantile=0.5,
        allowed_seconds=0.25,
        relative=0.1,
    )
    assert (slow.canary, slow.stable) == (2.5, 1.5)
    assert slow.limit == pytest.approx(1.9)


def test_nothing_seen_is_no_evidence() -> None:
    none, some = counts(0, 0), counts(5, 10)
    empty, full = histogram(EDGES, (0, 0, 0, 0)), histogram(EDGES, (1, 2, 3, 4))
    assert rates(none, some) == rates(some, none) == rates(none, none) == 0.0
    assert above_bound(none, bound=0.01).log_e == 0.0
    assert latency(empty, full) == latency(full, empty) == 0.0
    assert latency_above_bound(empty, bound_seconds=1.0).log_e == 0.0
    assert compare_rates(none, some, allowed=0.02, relative=0.0).canary is None
    assert compare_latency(full, empty, allowed_seconds=0.0, relative=0.0).limit is None


def test_no_bad_requests_at_all() -> None:
    assert rates(counts(0, 1000), counts(0, 1000), allowed=0.0) <= 0.0
    assert rates(counts(20, 1000), counts(0, 1000), allowed=0.0) > NEED
    assert above_bound(counts(0, 1000), bound=0.0).log_e <= 0.0


def test_huge_and_fractional_counts() -> None:
    many = 10_000_000.0
    assert rates(counts(many, many), counts(0, many)) > 1e6
    assert rates(counts(0, many), counts(many, many)) <= 0.0
    assert rates(counts(0.033 * many, many), counts(0.01 * many, many)) > NEED
    assert rates(counts(0.03 * many, many), counts(0.01 * many, many)) <= 0.0
    assert math.isfinite(rates(counts(0.25, 0.5), counts(1e-9, many)))
    assert latency(lognormal(1.5, many), lognormal(1.0, many)) > 1e4


@pytest.mark.parametrize("margin", [{"allowed": 1.0}, {"allowed": 0.5, "relative": 9.0}, {"allowed": 3.0}])
def test_a_margin_beyond_everything_allows_everything(margin: dict[str, float]) -> None:
    assert rates(counts(100, 100), counts(50, 100), **margin) <= 0.0


@pytest.mark.parametrize(
    ("quantile", "seconds"), [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 1.5), (0.95, 3.0), (1.0, 3.0)]
)
def test_a_quantile_is_interpolated_as_prometheus_does(quantile: float, seconds: float) -> None:
    # High ones lie beyond the last finite bound, where that bound is the answer.
    each = (50, 50, 0, 0) if quantile < 0.95 else (10, 5, 0, 85)
    assert quantile_of(histogram(EDGES, each), quantile) == pytest.approx(seconds)


def test_a_quantile_where_nothing_is_known() -> None:
    assert quantile_of(histogram(EDGES, (0, 0, 0, 0)), 0.95) is None
    assert quantile_of(histogram((math.inf,), (7,)), 0.95) == math.inf
    assert latency(histogram((math.inf,), (700,)), histogram(EDGES, (700, 0, 0, 0))) <= 0.0


def test_the_threshold_shares_the_false_rollback_rate_among_the_tests() -> None:
    assert required_log_e(0.01, 1) == pytest.approx(math.log(100))
    assert required_log_e(0.01, 12) == pytest.approx(math.log(1200))
    at = Evidence(log_e=required_log_e(0.01, 1), canary=None, stable=None, limit=None)
    assert at.p_value == pytest.approx(0.01)
    with pytest.raises(ValueError, match="false_rollback_rate is 1"):
        required_log_e(1.0, 1)
    with pytest.raises(ValueError, match="tests is 0"):
        required_log_e(0.01, 0)


@pytest.mark.parametrize(
    ("events", "total", "message"),
    [
        (-1, 5, "events is -1: must be a number from 0 on; a counter that was reset"),
        (math.nan, 5, "events is nan"),
        (1, math.inf, "total is inf"),
        (6, 5, "events is 6 of a total of 5: .* Counts.cut"),
    ],
)
def test_counts_that_cannot_be(events: float, total: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        counts(events, total)


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ((), "infinity"),
        (((1.0, 5),), "infinity"),
        (((2.0, 1), (1.0, 2), (math.inf, 3)), "rise"),
        (((0.0, 1), (math.inf, 3)), "above 0"),
        (((1.0, 4), (math.inf, 3)), "never fall"),
        (((1.0, math.nan), (math.inf, 3)), "nan at le=1 must be"),
    ],
)
def test_histograms_that_cannot_be(buckets: tuple[tuple[float, float], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Histogram(buckets=buckets)


def test_readings_of_two_moments_are_evened_out() -> None:
    assert Counts.cut(events=6, total=5) == counts(5, 5)
    assert Histogram.cut([(math.inf, 7.5), (1.0, 3.0), (2.0, 2.9)]) == Histogram(
        buckets=((1.0, 3.0), (2.0, 3.0), (math.inf, 7.5))
    )


def test_arguments_that_cannot_be() -> None:
    side, seconds = counts(1, 2), histogram(EDGES, (1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"bound is 1\.5"):
        above_bound(side, bound=1.5)
    with pytest.raises(ValueError, match=r"allowed is -0\.1"):
        compare_rates(side, side, allowed=-0.1, relative=0.0)
    with pytest.raises(ValueError, match="relative is nan"):
        compare_latency(seconds, seconds, allowed_seconds=0.0, relative=math.nan)
    with pytest.raises(ValueError, match="quantile is 1"):
        compare_latency(seconds, seconds, quantile=1.0, allowed_seconds=0.0, relative=0.0)
    with pytest.raises(ValueError, match="bound_seconds is 0"):
        latency_above_bound(seconds, bound_seconds=0.0)
