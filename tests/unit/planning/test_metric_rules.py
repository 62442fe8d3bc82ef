# SPDX-License-Identifier: Apache-2.0
"""Defaults of metrics, sequential tests, device classes and queries."""

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.api.analysis import Analysis, Metric
from slmops.model.observed import Sample
from slmops.planning.analysis import Verdict
from slmops.planning.judge import (
    fold_readings,
    judge_metrics,
)
from slmops.planning.metric_rules import count_tests, is_higher_better, is_sequential, min_samples
from tests.unit.planning.metric_readings import (
    BOTH,
    MAX,
    NOW,
    REQUIRED,
    SLOW,
    SLOWER,
    WORSE,
    WORSE_THRESHOLD,
    assess,
    errors,
    latency,
    metric,
    reading,
    rollout,
)


@pytest.mark.parametrize(
    ("fields", "sequential", "samples", "higher"),
    [
        ({"preset": "ErrorRate"}, True, 300, False),
        ({"preset": "LatencyP95"}, True, 300, False),
        ({"preset": "TimeToFirstTokenP95"}, True, 300, False),
        ({"preset": "ErrorRate", "test": "Threshold"}, False, 50, False),
        ({"preset": "LatencyP95", "test": "Threshold"}, False, 30, False),
        ({"preset": "TokensPerSecond"}, False, 30, True),
        ({"preset": "EvaluationScore"}, False, 10, True),
        ({"preset": "EvaluationScore", "test": "Sequential"}, False, 10, True),
        ({"preset": "Restarts"}, False, 1, False),
        ({"preset": "OOMKills"}, False, 1, False),
        ({"query": "foo"}, False, 1, False),
        ({"query": "foo", "min_samples": 9}, False, 1, False),
        ({"query": "foo", "samples_query": "bar"}, False, 30, False),
        ({"query": "foo", "samples_query": "bar", "min_samples": 9}, False, 9, False),
        ({"query": "foo", "direction": "HigherIsBetter"}, False, 1, True),
        ({"preset": "TokensPerSecond", "direction": "LowerIsBetter"}, False, 30, True),
    ],
)
def test_defaults(fields: dict[str, Any], sequential: bool, samples: int, higher: bool) -> None:
    judge = Metric.model_validate({"name": "m", "max": "1", **fields})
    assert (is_sequential(judge), min_samples(judge), is_higher_better(judge)) == (
        sequential,
        samples,
        higher,
    )


def test_tests_that_share_the_false_rollback_rate_are_all_counted() -> None:
    metrics = [MAX, WORSE, BOTH, metric("EvaluationScore", min="0.9"), metric(max="0.1", dry_run=True)]
    assert count_tests(metrics, waves=4, classes=3) == (1 + 2 + 3) * 4 * 3
    assert count_tests([], waves=0, classes=0) == 1


@pytest.mark.parametrize(
    ("judge", "canary", "stable", "verdict"),
    [
        (MAX, errors(0.04), None, "Pass"),
        (MAX, errors(0.10), None, "Fail"),
        (MAX, errors(0.06, 300), None, "Inconclusive"),  # beyond, but 300 requests do not prove it
        (MAX, errors(1 / 3, 3), None, "Inconclusive"),
        (MAX, errors(1 / 3, 3000), None, "Fail"),
        (MAX, errors(0.0, 299), None, "Inconclusive"),
        (MAX, errors(0.9, 100), None, "Fail"),  # proof needs no minimum of samples
        (MAX, errors(0.5), errors(0.5), "Inconclusive"),
        (WORSE, errors(0.01), errors(0.01), "Pass"),
        (WORSE, errors(0.10), errors(0.01), "Fail"),
        (WORSE, errors(0.04, 300), errors(0.01, 300), "Inconclusive"),
        (WORSE, errors(0.01), errors(0.01, 299), "Inconclusive"),
        (WORSE, errors(0.01), None, "NoData"),
        (WORSE, errors(0.5), errors(0.5), "Pass"),
        (BOTH, errors(0.5), errors(0.5), "Inconclusive"),
        (BOTH, errors(0.9), errors(0.5), "Fail"),
        (SLOWER, latency(1.0), latency(1.0), "Pass"),
        (SLOWER, latency(2.0), latency(1.0), "Fail"),
        (SLOWER, latency(1.3, 300), latency(1.0, 300), "Inconclusive"),
        (SLOW, latency(1.0), None, "Pass"),
        (SLOW, latency(4.0), None, "Fail"),
        (SLOW, latency(4.0), latency(4.0), "Inconclusive"),
        (metric("LatencyP95", max="0"), latency(1.0), None, "Fail"),
        (metric(max="7"), errors(1.0), None, "Pass"),
    ],
)
def test_sequential_verdicts(judge: Metric, canary: Sample, stable: Sample | None, verdict: str) -> None:
    found = assess(judge, reading({"int4": canary}, {"int4": stable} if stable else {}))
    assert found.verdict == verdict and found.message, found
    assert found.p_value is not None
    if verdict == "Fail":
        assert found.p_value <= math.exp(-REQUIRED) and "(p " in found.message


def test_share_without_a_count_of_events_tells_the_same() -> None:
    bare = Sample(value=0.1, samples=3000)
    assert assess(MAX, reading({"": bare})).p_value == assess(MAX, reading({"": errors(0.1)})).p_value


@pytest.mark.parametrize("buckets", [(), ((1.0, 5.0),), ((0.0, 5.0), (math.inf, 9.0))])
def test_latency_without_a_sound_histogram_decides_nothing(buckets: tuple[tuple[float, float], ...]) -> None:
    found = assess(SLOW, reading({"int4": Sample(value=9.0, samples=3000, buckets=buckets)}))
    assert found.verdict is Verdict.INCONCLUSIVE and "istogram" in found.message


def test_looking_often_fails_no_revision_that_is_not_worse() -> None:
    # 10 % errors on both sides, 150 looks at 4 new requests each: a fixed threshold is crossed twice in
    # a row in most of these rollouts, the proof in none.
    sequential, threshold = 0, 0
    for seed in range(20):
        draw = random.Random(seed)
        bad = [0, 0]
        proven, row, crossed = False, 0, False
        for look in range(1, 151):
            for side in (0, 1):
                bad[side] += sum(draw.random() < 0.1 for _ in range(4))
            samples = 4 * look
            canary, stable = (Sample(value=b / samples, samples=samples, events=float(b)) for b in bad)
            seen = reading({"": canary}, {"": stable})
            proven |= assess(WORSE, seen).verdict is Verdict.FAIL
            row = row + 1 if assess(WORSE_THRESHOLD, seen).verdict is Verdict.FAIL else 0
            crossed |= row >= WORSE_THRESHOLD.failure_limit
        sequential, threshold = sequential + proven, threshold + crossed
    assert sequential == 0
    assert threshold >= 5


def test_a_regression_well_beyond_what_is_allowed_rarely_passes() -> None:
    analysis = Analysis(metrics=[WORSE])
    ended = {"passed": 0, "failed": 0}
    for seed in range(60):
        draw = random.Random(seed)
        status, bad, samples = rollout(), [0, 0], [0, 0]
        for look in range(180):
            for side, (rate, requests) in enumerate(((0.06, 15), (0.01, 60))):
                bad[side] += sum(draw.random() < rate for _ in range(requests))
                samples[side] += requests
            canary, stable = (errors(b / n, n) for b, n in zip(bad, samples, strict=True))
            seen = reading({"": canary}, {"": stable}, at=NOW + 10 * look)
            status = fold_readings(analysis, status, [seen])
            found = judge_metrics(analysis, status)
            if found.passed or found.failed:
                ended["passed" if found.passed else "failed"] += 1
                break
    assert ended["passed"] <= 3 and ended["failed"] >= 55, ended


# Device classes


def test_each_class_is_compared_with_its_own() -> None:
    # The small device is slow with both revisions; over all of them the new one would look slower.
    seen = reading(
        {"small": latency(3.0), "large": latency(0.5, 300)},
        {"small": latency(3.0, 300), "large": latency(0.5, 9000)},
    )
    assert assess(SLOWER, seen).verdict is Verdict.PASS


def test_one_class_that_fails_decides_and_is_named() -> None:
    seen = reading(
        {"fp32": errors(0.0), "int4": errors(0.3), "int8": errors(0.0, 3)},
        {"fp32": errors(0.0), "int4": errors(0.0), "int8": errors(0.0)},
    )
    found = assess(WORSE, seen)
    assert found.verdict is Verdict.FAIL and found.variant == "int4"
    assert found.message.startswith("int4: 0.3 against 0 on stable")
    assert (found.canary.value, found.stable.value) == (0.3, 0.0)


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        (errors(0.0), "Pass"),
        (errors(0.0, 3), "Inconclusive"),
        (Sample(value=math.nan, samples=3), "NoData"),
        (Sample(value=None, samples=3), "NoData"),
        (Sample(value=None, samples=0), "Pass"),
    ],
)
def test_every_class_with_samples_must_pass(other: Sample, verdict: str) -> None:
    stable = {"a": errors(0.0), "b": errors(0.0)}
    assert assess(WORSE, reading({"a": errors(0.0), "b": other}, stable)).verdict == verdict


def test_class_without_stable_nodes_is_compared_with_nobody() -> None:
    seen = reading({"int8": errors(0.0)}, {"int4": errors(0.0)})
    found = assess(WORSE, seen)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "no stable node of variant int8 to compare with" in found.message
    assert assess(MAX, seen).verdict is Verdict.PASS, "an absolute bound needs no stable"


@given(
    st.dictionaries(
        st.sampled_from("abc"), st.tuples(st.sampled_from([None, 0.0, 0.03, 0.5]), st.integers(0, 9999))
    ),
    st.dictionaries(st.sampled_from("abc"), st.tuples(st.sampled_from([0.0, 0.5]), st.integers(1, 9999))),
    st.sampled_from([MAX, WORSE, BOTH, WORSE_THRESHOLD]),
)
def test_no_pass_without_evidence_in_every_class(
    canary: dict[str, tuple[float | None, int]], stable: dict[str, tuple[float, int]], judge: Metric
) -> None:
    sides = [
        {v: Sample(value=value, samples=n if value is not None else 0) for v, (value, n) in side.items()}
        for side in (canary, stable)
    ]
    found = assess(judge, reading(sides[0], sides[1]))
    need = min_samples(judge)
    known = {v: s for v, s in sides[0].items() if s.value is not None}
    if found.verdict is Verdict.PASS:
        assert known and all(s.samples >= need for s in known.values())
        if judge.max_degradation:
            assert all(v in sides[1] and sides[1][v].samples >= need for v in known)
    if found.verdict is Verdict.FAIL:
        assert known[found.variant].value


# Queries


def test_query_for_the_new_side_alone_has_no_stable_to_share_the_blame() -> None:
    judge = Metric.model_validate({"name": "m", "query": "sum(foo{$canary})", "max": "1"})
    one = {"": Sample(value=2.0, samples=1)}
    assert assess(judge, reading(one, one)).verdict is Verdict.FAIL
    both = judge.model_copy(update={"query": "sum(foo{$selector})"})
    assert assess(both, reading(one, one)).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(("direction", "verdict"), [("LowerIsBetter", "Pass"), ("HigherIsBetter", "Fail")])
def test_direction_of_a_query_counts(direction: str, verdict: str) -> None:
    judge = Metric.model_validate(
        {"name": "m", "query": "sum(foo{$selector})", "maxDegradation": "10%", "direction": direction}
    )
    low, high = {"": Sample(value=0.5, samples=1)}, {"": Sample(value=1.0, samples=1)}
    assert assess(judge, reading(low, high)).verdict == verdict
