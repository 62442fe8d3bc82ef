# SPDX-License-Identifier: Apache-2.0
"""What is kept of the stable revision, limits, trial runs, and the end of a wave."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.api.analysis import Analysis, Metric
from slmops.api.status import MAX_BASELINES, MetricState, RolloutStatus
from slmops.model.observed import Reading, Sample
from slmops.planning import times
from slmops.planning.analysis import Verdict
from slmops.planning.baseline import samples_of
from slmops.planning.judge import (
    due_measurements,
    fold_readings,
    judge_metrics,
    next_measurement_seconds,
    terminate_measurements,
)
from tests.unit.planning.fleet_sim import CONFIG
from tests.unit.planning.metric_readings import (
    BOTH,
    MAX,
    NOW,
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
    stored,
)

# What is kept of the stable revision


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
        requests = due_measurements(
            analysis, status, config=CONFIG, namespace="a", deployment="b", stable="old", now=now
        )
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
        analysis, rollout(), config=CONFIG, namespace="a", deployment="b", stable="old", now=NOW + 99
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
