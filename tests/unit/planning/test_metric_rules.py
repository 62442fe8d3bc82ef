# SPDX-License-Identifier: Apache-2.0
"""Sequential tests, device classes, what is kept of the stable revision, limits, and counts off the pods."""

import json
import math
import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.api.analysis import Analysis, Metric
from slmops.api.status import MAX_BASELINES, MetricState, RolloutStatus, WaveStatus
from slmops.model.observed import Preset, Reading, Sample
from slmops.planning import times
from slmops.planning.analysis import Assessment, Verdict, assess_reading
from slmops.planning.baseline import samples_of
from slmops.planning.evidence import required_log_e
from slmops.planning.judge import (
    due_measurements,
    fold_readings,
    judge_metrics,
    next_measurement_seconds,
    terminate_measurements,
)
from slmops.planning.metric_rules import count_tests, is_higher_better, is_sequential, min_samples
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_sim import sample_of

NOW = 1_750_000_000.0
REQUIRED = required_log_e(0.01, 2)


def metric(preset: str = "ErrorRate", **fields: Any) -> Metric:
    return Metric.model_validate({"name": "m", "preset": preset, **fields})


def errors(rate: float, samples: int = 3000) -> Sample:
    return Sample(value=rate, samples=samples, events=rate * samples)


def latency(p95_seconds: float, samples: int = 3000) -> Sample:
    sample = sample_of(Behaviour(p95_seconds=p95_seconds, samples=samples), Preset.LATENCY_P95, "")
    assert sample is not None
    return sample


def reading(
    canary: Mapping[str, Sample], stable: Mapping[str, Sample] | None = None, *, at: float = NOW
) -> Reading:
    return Reading(metric="m", canary=canary, stable=stable or {}, at=at)


def assess(judge: Metric, seen: Reading, kept: Mapping[str, Sample] | None = None) -> Assessment:
    return assess_reading(judge, seen, required_log_e=REQUIRED, kept=kept)


MAX = metric(max="0.05")
WORSE = metric(max_degradation="0.02")
WORSE_THRESHOLD = metric(max_degradation="0.02", test="Threshold")
SLOWER = metric("LatencyP95", max_degradation="20%")
SLOW = metric("LatencyP95", max="1.5")
BOTH = metric(max="0.05", max_degradation="0.02")


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
        ({"preset": "TokensPerSecond", "direction": "LowerIsBetter"}, False, 30, False),
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


# What is kept of the stable revision


def rollout(step: str = "Analysing", **fields: Any) -> RolloutStatus:
    at = times.to_text(NOW)
    return RolloutStatus.model_validate(
        {
            "revision": "new",
            "step": step,
            "step_started_at": at,
            "wave_started_at": at,
            "started_at": at,
            "waves": [WaveStatus(name="canary"), WaveStatus(name="rest")],
            **fields,
        }
    )


def stored(status: RolloutStatus) -> RolloutStatus:
    """As the API server gives it back."""
    return RolloutStatus.model_validate(json.loads(json.dumps(status.to_body())))


@pytest.mark.parametrize(("judge", "sample"), [(WORSE, errors(0.01)), (SLOWER, latency(1.0))])
def test_kept_stable_proves_as_much_as_a_live_one(judge: Metric, sample: Sample) -> None:
    analysis = Analysis(metrics=[judge])
    before = rollout("Prefetching")
    known = stored(fold_readings(analysis, before, [reading({}, {"a": sample, "b": sample})]))
    kept = samples_of(known.baseline, "m")
    assert set(kept) == {"a", "b"}
    for canary in (errors(0.2), errors(0.01)) if judge is WORSE else (latency(2.5), latency(1.0)):
        live = assess(judge, reading({"a": canary}, {"a": sample}))
        later = assess(judge, reading({"a": canary}), kept)
        assert later.verdict == live.verdict and later.stable.value == live.stable.value
        assert later.p_value == pytest.approx(live.p_value, rel=0.2)


def test_live_stable_is_preferred_and_few_samples_do_not_replace_many() -> None:
    analysis = Analysis(metrics=[WORSE])
    status = fold_readings(analysis, rollout(), [reading({"a": errors(0.0)}, {"a": errors(0.01, 3000)})])
    status = fold_readings(
        analysis, status, [reading({"a": errors(0.0)}, {"a": errors(0.02, 400)}, at=NOW + 1)]
    )
    assert status.baseline[0].samples == 400, "the latest with enough samples"
    status = fold_readings(analysis, status, [reading({"a": errors(0.0)}, {"a": errors(0.5, 4)}, at=NOW + 2)])
    assert status.baseline[0].samples == 400 and status.measurements[-1].stable_samples == 400


def test_stable_nodes_that_get_worse_themselves_share_the_blame() -> None:
    kept = {"a": errors(0.0)}
    seen = reading({"a": errors(0.5)}, {"a": errors(0.5, 20)})
    found = assess(WORSE, seen, kept)
    assert found.verdict is Verdict.INCONCLUSIVE and "got worse as well" in found.message
    assert assess(WORSE, reading({"a": errors(0.5)}, {"a": errors(0.0, 20)}), kept).verdict is Verdict.FAIL


def test_status_stays_small_with_the_most_metrics_and_classes() -> None:
    kinds = ["LatencyP95", "ErrorRate"]
    metrics = [
        Metric.model_validate({"name": f"metric-{i:013}", "preset": kinds[i % 2], "maxDegradation": "10%"})
        for i in range(20)
    ]
    analysis = Analysis(metrics=metrics)
    status = rollout()
    for judge in metrics:
        sample = latency(1 / 3, 987654321) if judge.preset == "LatencyP95" else errors(1 / 7, 987654321)
        side = {f"variant-{i:012}": sample for i in range(16)}
        status = fold_readings(
            analysis, status, [Reading(metric=judge.name, canary=side, stable=side, at=NOW)], classes=16
        )
    assert len(status.baseline) == MAX_BASELINES
    assert len(json.dumps(status.to_body())) < 40 * 1024


NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 0.5, 1.0])
SAMPLES = st.builds(
    Sample,
    value=st.none() | NUMBERS,
    samples=st.integers(0, 10**9),
    events=NUMBERS,
    buckets=st.lists(st.tuples(NUMBERS, NUMBERS), max_size=5).map(tuple),
)


@given(st.lists(st.tuples(*[st.dictionaries(st.sampled_from("ab"), SAMPLES)] * 2), max_size=4), st.data())
def test_no_answer_of_a_provider_ends_the_planner(
    answers: list[tuple[dict[str, Sample], dict[str, Sample]]], data: st.DataObject
) -> None:
    analysis = Analysis(metrics=[data.draw(st.sampled_from([BOTH, SLOWER, SLOW, WORSE_THRESHOLD]))])
    status = rollout()
    for canary, stable in answers:
        status = stored(fold_readings(analysis, status, [reading(canary, stable)]))
        judge_metrics(analysis, status)


# Limits, trial runs and the end of a wave


def judged(status: RolloutStatus, **fields: Any) -> str:
    return judge_metrics(Analysis(metrics=[metric(max="0.05", **fields)]), status).limit_reached


@pytest.mark.parametrize(
    ("field", "seen", "says"),
    [
        ("inconclusive_limit", reading({"a": errors(0.0, 3)}), "inconclusiveLimit is 3"),
        ("no_data_limit", reading({}), "noDataLimit is 3"),
        (
            "consecutive_error_limit",
            Reading(metric="m", canary={}, stable={}, at=NOW, error="503"),
            "consecutiveErrorLimit is 3",
        ),
    ],
)
def test_limits_count_in_a_row(field: str, seen: Reading, says: str) -> None:
    limit: dict[str, Any] = {field: 3}
    analysis = Analysis(metrics=[metric(max="0.05", **limit)])
    status = fold_readings(analysis, rollout(), [seen, seen])
    assert not judged(status, **limit)
    reached = judged(fold_readings(analysis, status, [seen]), **limit)
    assert reached.startswith("m: 3 measurements in a row") and reached.endswith(says)
    assert not judged(fold_readings(analysis, status, [seen]), **limit, dry_run=True)
    good = reading({"a": errors(0.0)})
    broken = fold_readings(analysis, status, [good, seen, seen])
    assert not judged(broken, **limit), "a different verdict sets the count back"


def test_limit_of_errors_counts_before_the_wave_too() -> None:
    judge = metric(max_degradation="0.02", consecutive_error_limit=2)
    failed = Reading(metric="m", canary={}, stable={}, at=NOW, error="503")
    status = fold_readings(Analysis(metrics=[judge]), rollout("Prefetching"), [failed, failed])
    assert "consecutiveErrorLimit" in judge_metrics(Analysis(metrics=[judge]), status).limit_reached


def test_sequential_failure_counts_at_once_and_threshold_in_a_row() -> None:
    for judge, failures in ((metric(max="0.05"), 1), (metric(max="0.05", test="Threshold"), 2)):
        analysis = Analysis(metrics=[judge])
        status = rollout()
        seen = 0
        while not judge_metrics(analysis, status).failed:
            status = fold_readings(analysis, status, [reading({"a": errors(0.5)}, at=NOW + seen)])
            seen += 1
        assert seen == failures
        assert judge_metrics(analysis, status).failed.startswith("m: 0.5 is above max 0.05")


def test_trial_metric_is_shown_and_counts_for_nothing() -> None:
    trial = Metric.model_validate({"name": "t", "preset": "ErrorRate", "maxDegradation": "0", "dryRun": True})
    analysis = Analysis(metrics=[MAX, trial])
    seen = Reading(metric="t", canary={"a": errors(0.9)}, stable={"a": errors(0.0)}, at=NOW)
    status = fold_readings(analysis, rollout(), [seen, reading({"a": errors(0.0)})])
    status = fold_readings(analysis, status, [reading({"a": errors(0.0)})])
    shown = next(m for m in status.measurements if m.metric == "t")
    assert shown.dry_run and shown.verdict == "Fail"
    found = judge_metrics(analysis, status)
    assert (
        found.passed
        and not found.failed
        and not judge_metrics(analysis, rollout("Prefetching")).missing_baseline
    )


def test_interval_of_a_metric_goes_before_that_of_the_analysis() -> None:
    slow = Metric.model_validate({"name": "slow", "preset": "ErrorRate", "max": "1", "interval": "1m"})
    states = [MetricState(name=name, measured_at=times.to_text(NOW)) for name in ("m", "slow")]
    analysis, status = Analysis(metrics=[MAX, slow]), rollout(metrics=states)

    def due(now: float) -> list[str]:
        requests = due_measurements(analysis, status, namespace="a", deployment="b", stable="old", now=now)
        return [request.metric for request in requests]

    assert due(NOW + 9) == [] and due(NOW + 10) == ["m"] and due(NOW + 60) == ["m", "slow"]
    assert next_measurement_seconds(analysis, status, now=NOW + 15) == 45


def test_what_is_read_off_the_pods_asks_for_another_look() -> None:
    pods = Metric(name="pods", preset="Restarts", max="0")
    analysis = Analysis(metrics=[pods])
    measured = MetricState(name="pods", measured_at=times.to_text(NOW))
    assert next_measurement_seconds(analysis, rollout(), now=NOW) == 0.1
    assert next_measurement_seconds(analysis, rollout(metrics=[measured]), now=NOW + 4) == 6
    assert next_measurement_seconds(analysis, rollout("Prefetching"), now=NOW) is None
    assert not due_measurements(
        analysis, rollout(), namespace="a", deployment="b", stable="old", now=NOW + 99
    )


def test_what_is_under_way_when_the_wave_fails_is_terminated() -> None:
    def named(name: str) -> Metric:
        return Metric.model_validate({"name": name, "preset": "ErrorRate", "max": "0.05"})

    pods = Metric(name="pods", preset="Restarts", max="0")
    analysis = Analysis(metrics=[MAX, named("asked"), named("answered"), pods])
    done = MetricState(
        name="answered", verdict="Pass", consecutive_passes=1, measured_at=times.to_text(NOW + 5)
    )
    status = fold_readings(analysis, rollout(metrics=[done]), [reading({"a": errors(0.9)}, at=NOW + 5)])
    ended = terminate_measurements(analysis, status, now=NOW + 6)
    assert {s.name: s.verdict for s in ended.metrics} == {
        "m": "Fail",
        "answered": "Pass",
        "asked": "Terminated",
    }
    (shown,) = [m for m in ended.measurements if m.verdict == "Terminated"]
    assert shown.metric == "asked" and shown.message == "the wave failed on m"
