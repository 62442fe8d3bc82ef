# SPDX-License-Identifier: Apache-2.0
"""Whatever counts come in, what comes out is sane."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmops.adapters.samples import (
    build_latency,
    build_score,
    build_share,
    build_speed,
    count_whole,
    quantile,
)

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
BOUNDS = st.floats(min_value=0.001, max_value=120)


def test_counts_are_rounded_down_but_for_binary_dust() -> None:
    assert [count_whole(x) for x in (2.9999999, 2.9, 0.4, -3.0, math.nan, math.inf)] == [3, 2, 0, 0, 0, 0]
    assert count_whole(1e300) == 2**53


@settings(deadline=None)
@given(NUMBERS, NUMBERS)
def test_a_share_is_one(requests: float, errors: float) -> None:
    sample = build_share(requests=requests, errors=errors)
    if sample is not None:
        assert sample.value is not None and 0 <= sample.value <= 1
        assert 0 <= sample.events <= sample.samples
        assert sample.value * sample.samples == pytest.approx(sample.events)


@settings(deadline=None)
@given(st.dictionaries(BOUNDS | st.just(math.inf), NUMBERS))
def test_buckets_never_fall_and_end_at_the_samples(buckets: dict[float, float]) -> None:
    sample = build_latency(buckets)
    if sample is not None:
        bounds, counts = zip(*sample.buckets, strict=True)
        assert list(bounds) == sorted(set(bounds)) and bounds[-1] == math.inf
        assert list(counts) == sorted(counts) and counts[0] >= 0
        assert counts[-1] == sample.samples > 0
        assert sample.value is not None and 0 <= sample.value <= max(bounds[:-1])


@settings(deadline=None)
@given(st.lists(st.floats(min_value=0.01, max_value=9.9), min_size=1, max_size=200))
def test_the_quantile_lies_in_the_bucket_of_the_true_one(values: list[float]) -> None:
    bounds = (0.1, 0.5, 1.0, 5.0, 10.0, math.inf)
    buckets = tuple((bound, float(sum(v <= bound for v in values))) for bound in bounds)
    found = quantile(buckets, 0.95)
    exact = sorted(values)[math.ceil(0.95 * len(values)) - 1]
    upper = next(bound for bound in bounds if exact <= bound)
    lower = max((bound for bound in bounds if bound < upper), default=0.0)
    assert found is not None and lower <= found <= upper


def test_quantile_of_nothing_and_beyond_the_last_bound() -> None:
    assert quantile((), 0.95) is None
    assert quantile(((math.inf, 5.0),), 0.95) is None
    assert quantile(((1.0, 0.0), (math.inf, 0.0)), 0.95) is None
    assert quantile(((1.0, 2.0), (math.inf, 100.0)), 0.95) == 1.0


def test_speed_and_score_need_evidence() -> None:
    assert build_speed(tokens=5, seconds=0, requests=3) is None
    assert build_speed(tokens=math.nan, seconds=1, requests=3) is None
    assert build_speed(tokens=5, seconds=2, requests=0) is None
    assert build_score(weighted=1, cases=0) is None
    assert build_score(weighted=math.inf, cases=3) is None
