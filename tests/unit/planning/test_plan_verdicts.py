# SPDX-License-Identifier: Apache-2.0
"""Verdicts of the Threshold rule, the counts that are kept of them, and what they make of a wave."""

from itertools import takewhile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.api.spec import Analysis, Metric
from slmops.api.status import MetricState, RolloutStatus, WaveStatus
from slmops.model.observed import Reading, Sample
from slmops.planning import times
from slmops.planning.analysis import Assessment, Verdict, assess_reading, fold_assessment
from slmops.planning.judge import due_measurements, fold_readings, judge_metrics, next_measurement_seconds
from tests.unit.planning.fleet_sim import CONFIG

NOW = 1_750_000_000.0


def metric(preset: str = "ErrorRate", **bounds: Any) -> Metric:
    return Metric.model_validate({"name": "m", "preset": preset, "test": "Threshold", **bounds})


def assess(judge: Metric, seen: Reading) -> tuple[Verdict, str]:
    found = assess_reading(judge, seen, required_log_e=0.0)
    return found.verdict, found.message


def reading(
    canary: float | None,
    stable: float | None = None,
    *,
    samples: int = 1000,
    error: str = "",
    at: float = NOW,
) -> Reading:
    return Reading(
        metric="m",
        canary={} if canary is None else {"int4": Sample(value=canary, samples=samples)},
        stable={} if stable is None else {"int4": Sample(value=stable, samples=samples)},
        at=at,
        error=error,
    )


MAX = metric(max="0.05")
MIN = metric("EvaluationScore", min="0.9")
WORSE = metric(max_degradation="0.02")
WORSE_PERCENT = metric("LatencyP95", max_degradation="10%")
SCORE = metric("EvaluationScore", max_degradation="0.03")
BOTH = metric(max="0.05", max_degradation="0.02")


@pytest.mark.parametrize(
    ("judge", "canary", "stable", "verdict"),
    [
        (MAX, 0.05, None, "Pass"),
        (MAX, 0.051, None, "Fail"),
        (MAX, 0.9, 0.01, "Fail"),
        (MAX, 0.9, 0.5, "Inconclusive"),
        (MAX, None, 0.01, "NoData"),
        (MIN, 0.9, None, "Pass"),
        (MIN, 0.89, None, "Fail"),
        (MIN, 0.5, 0.6, "Inconclusive"),
        (WORSE, 0.03, 0.01, "Pass"),
        (WORSE, 0.031, 0.01, "Fail"),
        (WORSE, 0.0, 0.01, "Pass"),
        (WORSE, 0.01, None, "NoData"),
        (WORSE, None, None, "NoData"),
        (WORSE_PERCENT, 1.1, 1.0, "Pass"),
        (WORSE_PERCENT, 1.11, 1.0, "Fail"),
        (WORSE_PERCENT, 0.001, 0.0, "Fail"),
        (SCORE, 0.96, 0.99, "Pass"),
        (SCORE, 0.95, 0.99, "Fail"),
        (SCORE, 1.0, 0.5, "Pass"),
        (BOTH, 0.06, 0.055, "Inconclusive"),
        (BOTH, 0.9, 0.055, "Fail"),
        (BOTH, 0.04, 0.01, "Fail"),
    ],
)
def test_verdicts(judge: Metric, canary: float | None, stable: float | None, verdict: str) -> None:
    found, message = assess(judge, reading(canary, stable))
    assert found == verdict and message


@pytest.mark.parametrize(("samples", "verdict"), [(0, "Inconclusive"), (49, "Inconclusive"), (50, "Fail")])
def test_too_few_samples_judge_nothing(samples: int, verdict: str) -> None:
    assert assess(MAX, reading(1.0, samples=samples))[0] == verdict


def test_own_number_of_samples_counts() -> None:
    judge = metric(max="0.05", min_samples=3000)
    assert assess(judge, reading(1.0, samples=2999))[0] is Verdict.INCONCLUSIVE
    assert assess(judge, reading(1.0, samples=3000))[0] is Verdict.FAIL


def test_stable_with_too_few_samples_is_no_comparison() -> None:
    few = Reading(
        metric="m",
        canary={"int4": Sample(value=0.5, samples=99)},
        stable={"int4": Sample(value=0.0, samples=9)},
        at=NOW,
    )
    assert assess(WORSE, few)[0] is Verdict.INCONCLUSIVE


def test_error_of_the_provider_is_no_verdict_on_the_revision() -> None:
    verdict, message = assess(MAX, reading(1.0, error="503 Service Unavailable"))
    assert verdict is Verdict.PROVIDER_ERROR and "503" in message


@given(st.sampled_from([MAX, MIN, WORSE, WORSE_PERCENT, SCORE, BOTH]), st.none() | st.floats(0, 1))
def test_nothing_passes_or_fails_without_a_value(judge: Metric, stable: float | None) -> None:
    assert assess(judge, reading(None, stable))[0] is Verdict.NO_DATA


@given(st.sampled_from([MAX, MIN, SCORE, WORSE, BOTH]), st.floats(0, 1), st.floats(0, 1), st.integers(1, 9))
def test_too_small_a_sample_never_passes_or_fails(
    judge: Metric, canary: float, stable: float, samples: int
) -> None:
    verdict, _ = assess(judge, reading(canary, stable, samples=samples))
    assert verdict in (Verdict.INCONCLUSIVE, Verdict.NO_DATA)


@given(st.lists(st.sampled_from(list(Verdict)[:5]), max_size=30))
def test_counts_are_of_results_in_a_row(verdicts: list[Verdict]) -> None:
    state: MetricState | None = None
    passes = failures = 0
    for index, verdict in enumerate(verdicts):
        state, measurement = fold_assessment(
            MAX, state, Assessment(verdict=verdict, message="x"), wave="w", at=NOW
        )
        if verdict is Verdict.PASS:
            passes, failures = passes + 1, 0
        elif verdict is Verdict.FAIL:
            passes, failures = 0, failures + 1
        elif verdict is Verdict.INCONCLUSIVE:
            passes = 0
        assert (state.consecutive_passes, state.consecutive_failures) == (passes, failures)
        row = len(list(takewhile(verdict.__eq__, reversed(verdicts[: index + 1]))))
        counts = {
            Verdict.INCONCLUSIVE: state.consecutive_inconclusive,
            Verdict.NO_DATA: state.consecutive_no_data,
            Verdict.PROVIDER_ERROR: state.consecutive_errors,
        }
        assert counts == {kind: row if kind is verdict else 0 for kind in counts}
        assert measurement.verdict == state.verdict


def rollout(
    step: str = "Analysing", *, states: list[MetricState] | None = None, **fields: Any
) -> RolloutStatus:
    return RolloutStatus.model_validate(
        {
            "revision": "new",
            "step": step,
            "step_started_at": times.to_text(NOW),
            "wave_started_at": times.to_text(NOW),
            "started_at": times.to_text(NOW),
            "waves": [WaveStatus(name="canary"), WaveStatus(name="rest")],
            "metrics": states or [],
        }
    )


def state(*, passes: int = 0, failures: int = 0, verdict: str = "Pass", name: str = "m") -> MetricState:
    return MetricState(
        name=name,
        verdict=verdict,
        consecutive_passes=passes,
        consecutive_failures=failures,
        measured_at=times.to_text(NOW),
    )


REQUIRED = Analysis(metrics=[metric(max="0.05")])
OPTIONAL = Analysis(metrics=[metric(max="0.05", required=False)])


@pytest.mark.parametrize(
    ("analysis", "states", "passed", "failed", "reason"),
    [
        (REQUIRED, [], False, False, "Analysing"),
        (REQUIRED, [state(passes=1)], False, False, "Analysing"),
        (REQUIRED, [state(passes=2)], True, False, "Analysing"),
        (REQUIRED, [state(passes=2, verdict="NoData")], False, False, "NoData"),
        (REQUIRED, [state(passes=2, verdict="ProviderError")], False, False, "ProviderError"),
        (REQUIRED, [state(verdict="NoData")], False, False, "NoData"),
        (REQUIRED, [state(verdict="ProviderError")], False, False, "ProviderError"),
        (REQUIRED, [state(failures=1, verdict="Fail")], False, False, "Analysing"),
        (REQUIRED, [state(failures=2, verdict="Fail")], False, True, "Analysing"),
        (OPTIONAL, [], True, False, "Analysing"),
        (OPTIONAL, [state(verdict="NoData")], True, False, "Analysing"),
        (OPTIONAL, [state(failures=2, verdict="Fail")], False, True, "Analysing"),
    ],
)
def test_judgement(
    analysis: Analysis, states: list[MetricState], passed: bool, failed: bool, reason: str
) -> None:
    found = judge_metrics(analysis, rollout(states=states))
    assert (found.passed, bool(found.failed), found.reason) == (passed, failed, reason)


def test_one_failed_metric_outweighs_all_that_pass() -> None:
    analysis = Analysis(metrics=[metric(max="0.05"), Metric(name="b", preset="EvaluationScore", min="0.9")])
    states = [state(passes=9), state(failures=2, verdict="Fail", name="b")]
    found = judge_metrics(analysis, rollout(states=states))
    assert found.failed.startswith("b:") and not found.passed


def test_last_stable_value_stands_in_when_no_stable_node_is_left() -> None:
    analysis = Analysis(metrics=[SCORE])
    known = fold_readings(analysis, rollout("Flipping"), [reading(0.98, 0.99, at=NOW + 1)])
    assert known.baseline[0].value == "0.99"
    later = fold_readings(analysis, known, [reading(0.5, None, at=NOW + 2)])
    assert later.measurements[-1].verdict == "Fail" and later.measurements[-1].stable == "0.99"


def test_readings_from_before_the_wave_do_not_count() -> None:
    analysis = Analysis(metrics=[MAX])
    assert fold_readings(analysis, rollout(), [reading(1.0, at=NOW - 1)]) == rollout()
    assert fold_readings(analysis, rollout(), [reading(1.0, at=NOW)]).metrics[0].consecutive_failures == 1


def test_readings_of_metrics_that_are_gone_or_of_an_ended_rollout_do_not_count() -> None:
    other = Analysis(metrics=[Metric(name="else", preset="ErrorRate", max="0.1")])
    assert fold_readings(other, rollout(), [reading(1.0)]) == rollout()
    assert fold_readings(REQUIRED, rollout("RollingBack"), [reading(1.0)]) == rollout("RollingBack")


def test_history_of_measurements_is_bounded() -> None:
    found = rollout()
    for index in range(50):
        found = fold_readings(REQUIRED, found, [reading(0.0, at=NOW + index)])
    assert len(found.measurements) == 20
    assert found.measurements[-1].at == times.to_text(NOW + 49)


@pytest.mark.parametrize(
    ("age_seconds", "due"),
    [(9.9, False), (10.0, True), (500.0, True)],
)
def test_measurements_are_due_once_an_interval(age_seconds: float, due: bool) -> None:
    found = rollout(states=[state(passes=1)])
    now = NOW + age_seconds
    requests = due_measurements(
        REQUIRED, found, config=CONFIG, namespace="a", deployment="b", stable="old", now=now
    )
    assert bool(requests) is due
    wait = next_measurement_seconds(REQUIRED, found, now=now)
    assert wait == (None if due else pytest.approx(10 - age_seconds))


def test_window_begins_with_the_wave_and_is_a_day_at_most() -> None:
    for age_seconds, window in ((0.2, 1.0), (90.0, 90.0), (90000.0, 86400.0)):
        (request,) = due_measurements(
            REQUIRED,
            rollout(),
            config=CONFIG,
            namespace="a",
            deployment="b",
            stable="old",
            now=NOW + age_seconds,
        )
        assert request.stable is not None
        assert request.canary.window_seconds == request.stable.window_seconds == window
        assert request.canary.since == max(NOW, NOW + age_seconds - 86400)
        assert (request.canary.revision, request.stable.revision) == ("new", "old")


@pytest.mark.parametrize("step", ["Installing", "RollingBack", "Completed", "Failed", "Cancelled"])
def test_nothing_is_measured_outside_the_waves(step: str) -> None:
    found = rollout(step)
    assert not due_measurements(
        REQUIRED, found, config=CONFIG, namespace="a", deployment="b", stable="old", now=NOW + 99
    )
    assert next_measurement_seconds(REQUIRED, found, now=NOW) is None


def test_before_a_wave_only_what_is_compared_is_measured_and_only_once() -> None:
    analysis = Analysis(metrics=[MAX, Metric(name="s", preset="EvaluationScore", max_degradation="0.1")])
    found = rollout("Prefetching")
    (request,) = due_measurements(
        analysis, found, config=CONFIG, namespace="a", deployment="b", stable="old", now=NOW
    )
    assert request.metric == "s"
    assert judge_metrics(analysis, found).missing_baseline
    seen = Reading(metric="s", canary={}, stable={}, at=NOW)
    after = fold_readings(analysis, found, [seen])
    assert not judge_metrics(analysis, after).missing_baseline, "no data does not stop a wave"
    assert not due_measurements(
        analysis, after, config=CONFIG, namespace="a", deployment="b", stable="old", now=NOW + 99
    )
