# SPDX-License-Identifier: Apache-2.0
"""From the metrics' running counts to a judgement of the wave, and which measurements are due."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from slmops.api.analysis import Analysis, Metric
from slmops.api.status import MAX_MEASUREMENTS, Measurement, MetricState, RolloutStatus
from slmops.model.config import OperatorConfig
from slmops.model.observed import MetricQuery, Reading
from slmops.model.plan import MeasureRequest
from slmops.planning import times
from slmops.planning.analysis import Verdict, assess_reading, fold_assessment
from slmops.planning.baseline import keep_stable, samples_of
from slmops.planning.evidence import required_log_e
from slmops.planning.metric_rules import (
    compares,
    count_tests,
    failure_limit,
    is_read_off_pods,
    is_wanted,
    preset_of,
    seconds_until_due,
)
from slmops.planning.provider import provider_settings
from slmops.planning.queries import Sides, build_promql

MAX_WINDOW_SECONDS: Final = 86400.0
BASELINE_WINDOW_SECONDS: Final = 600.0
SOON_SECONDS: Final = 0.1
"""When to look again for what a look alone measures."""
MEASURED_STEPS: Final = frozenset({"Prefetching", "Flipping", "Soaking", "Analysing"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the metrics say about the wave so far."""

    passed: bool
    failed: str
    """Why the wave failed; empty when it did not."""
    reason: str
    """Why it has not passed yet: Analysing, or a verdict that keeps it from passing."""
    summary: str
    missing_baseline: str
    """Why the wave may not begin: a comparison was never possible; empty when it may."""
    limit_reached: str
    """Metric, limit and count when one of the limits of a metric is reached: rollout.onDeadline is to
    decide at once; empty when none is, and when the wave has passed or failed."""


def judge_metrics(analysis: Analysis, rollout: RolloutStatus) -> Judgement:
    """Judge the wave from the running counts in status. Metrics with dryRun have no part in it."""
    states = {state.name: state for state in rollout.metrics}
    failed, waiting, limits = [], [], []
    reason = "Analysing"
    for metric in analysis.metrics:
        if metric.dry_run:
            continue
        state = states.get(metric.name) or MetricState(name=metric.name)
        limits += _limits_reached(metric, state)
        if _has_failed(metric, state):
            failed.append(f"{metric.name}: {_why_failed(rollout, state)}")
        elif metric.required and not _has_passed(analysis, state):
            verdict = state.verdict or "not measured yet"
            if verdict in (Verdict.NO_DATA, Verdict.PROVIDER_ERROR, Verdict.INCONCLUSIVE):
                reason = verdict
            passes = f"{state.consecutive_passes} of {analysis.passes} passes"
            waiting.append(f"{metric.name}: {_say(verdict)} ({passes})")
    return Judgement(
        passed=not failed and not waiting,
        failed="; ".join(failed),
        reason=reason,
        summary="; ".join(waiting) or "all required metrics pass",
        missing_baseline=_missing_baseline(analysis, states),
        limit_reached="; ".join(limits) if waiting and not failed else "",
    )


def _has_failed(metric: Metric, state: MetricState) -> bool:
    return not metric.dry_run and state.consecutive_failures >= failure_limit(metric)


def _has_passed(analysis: Analysis, state: MetricState) -> bool:
    # Passes from before an outage or a silence are kept, but the latest look must be one of them.
    return state.consecutive_passes >= analysis.passes and state.verdict == Verdict.PASS


def _limits_reached(metric: Metric, state: MetricState) -> list[str]:
    counts = (
        (
            "inconclusiveLimit",
            metric.inconclusive_limit,
            state.consecutive_inconclusive,
            "without a clear result",
        ),
        ("noDataLimit", metric.no_data_limit, state.consecutive_no_data, "without data"),
        ("consecutiveErrorLimit", metric.consecutive_error_limit, state.consecutive_errors, "not made"),
    )
    return [
        f"{metric.name}: {count} measurements in a row {what}, {field} is {limit}"
        for field, limit, count, what in counts
        if limit is not None and count >= limit
    ]


def _say(verdict: str) -> str:
    return "no data" if verdict == Verdict.NO_DATA else verdict


def _why_failed(rollout: RolloutStatus, state: MetricState) -> str:
    wave = rollout.waves[rollout.wave].name if rollout.waves else ""
    seen = (
        m.message
        for m in reversed(rollout.measurements)
        if m.metric == state.name and m.wave == wave and m.verdict == Verdict.FAIL
    )
    return next(seen, f"{state.consecutive_failures} failures in a row")


def _missing_baseline(analysis: Analysis, states: dict[str, MetricState]) -> str:
    # One look at the stable revision is taken before a wave begins: after the last wave there is no
    # stable node left to compare with. That it has no data (no traffic, say) does not stop the wave;
    # that nobody could be asked does.
    for metric in analysis.metrics:
        state = states.get(metric.name)
        if metric.dry_run or not compares(metric):
            continue
        if state is None or state.measured_at is None:
            return f"the stable revision has not been measured yet for {metric.name}"
        if state.verdict == Verdict.PROVIDER_ERROR:
            return f"the metrics provider cannot be asked for {metric.name}"
    return ""


def due_measurements(
    analysis: Analysis,
    rollout: RolloutStatus,
    *,
    config: OperatorConfig,
    namespace: str,
    deployment: str,
    stable: str,
    now: float,
) -> tuple[MeasureRequest, ...]:
    """Measurements whose interval has passed; none outside the steps that look at metrics.

    What is read off the pods is not among them: see `pod_metrics.pod_readings`.
    """
    if rollout.step not in MEASURED_STEPS or not stable:
        return ()
    states = {state.name: state for state in rollout.metrics}
    before_wave = rollout.step == "Prefetching"
    if before_wave:
        since = now - BASELINE_WINDOW_SECONDS
    else:
        since = max(now - MAX_WINDOW_SECONDS, times.to_seconds(rollout.wave_started_at))
    sides = Sides(namespace=namespace, deployment=deployment, canary=rollout.revision, stable=stable)
    provider = provider_settings(analysis, config, namespace=namespace)

    def query(metric: Metric, revision: str) -> MetricQuery:
        window_seconds = max(now - since, 1.0)

        def replaced(text: str | None) -> str:
            return build_promql(text or "", sides, revision=revision, window_seconds=window_seconds)

        return MetricQuery(
            namespace=namespace,
            deployment=deployment,
            revision=revision,
            window_seconds=window_seconds,
            since=since,
            preset=preset_of(metric),
            promql=replaced(metric.query),
            samples_promql=replaced(metric.samples_query),
        )

    return tuple(
        MeasureRequest(
            metric=metric.name,
            canary=query(metric, rollout.revision),
            stable=query(metric, stable),
            provider=provider,
        )
        for metric in analysis.metrics
        if not is_read_off_pods(metric)
        and is_wanted(metric, states.get(metric.name), before_wave=before_wave)
        and seconds_until_due(metric, states.get(metric.name), analysis, now=now) <= 0
    )


def next_measurement_seconds(analysis: Analysis, rollout: RolloutStatus, *, now: float) -> float | None:
    """Seconds until a measurement that is not due yet becomes due; None when there is none.

    Those that are due already are under way, and their readings wake the planner; but what is read off
    the pods needs another look.
    """
    if rollout.step not in MEASURED_STEPS:
        return None
    states = {state.name: state for state in rollout.metrics}
    before_wave = rollout.step == "Prefetching"
    waits = []
    for metric in analysis.metrics:
        state = states.get(metric.name)
        if not is_wanted(metric, state, before_wave=before_wave):
            continue
        wait = seconds_until_due(metric, state, analysis, now=now)
        if is_read_off_pods(metric):
            wait = max(wait, SOON_SECONDS)
        if wait > 0:
            waits.append(wait)
    return min(waits, default=None)


def fold_readings(
    analysis: Analysis, rollout: RolloutStatus, readings: Sequence[Reading], *, classes: int = 1
) -> RolloutStatus:
    """Take fresh readings into the rollout's counts, history and baseline.

    `classes` is the number of device classes (variants) that may be compared. A reading from before the
    wave's clock started belongs to an earlier wave and is dropped.
    """
    metrics = {metric.name: metric for metric in analysis.metrics}
    # Status keeps whole seconds, so a reading of the same second belongs to the wave.
    since = times.to_seconds(rollout.wave_started_at)
    for reading in readings:
        metric = metrics.get(reading.metric)
        if metric is None or reading.at < since or rollout.step not in MEASURED_STEPS:
            continue
        tests = count_tests(
            # One that is tried out is judged as strictly as it would be in earnest.
            (m if m is not metric else m.model_copy(update={"dry_run": False}) for m in analysis.metrics),
            waves=len(rollout.waves),
            classes=max(classes, len(reading.canary)),
        )
        required = required_log_e(float(analysis.false_rollback_rate), tests)
        rollout = _fold(metric, rollout, reading, metrics=metrics, required=required)
    return rollout


def forget_passes(rollout: RolloutStatus) -> RolloutStatus:
    """The rollout after an edit of spec: what passed may have passed other bounds than those of now."""
    if rollout.step not in MEASURED_STEPS or not any(state.consecutive_passes for state in rollout.metrics):
        return rollout
    states = [state.model_copy(update={"consecutive_passes": 0}) for state in rollout.metrics]
    return rollout.model_copy(update={"metrics": states})


def _fold(
    metric: Metric, rollout: RolloutStatus, reading: Reading, *, metrics: dict[str, Metric], required: float
) -> RolloutStatus:
    states = {state.name: state for state in rollout.metrics}
    measurements: list[Measurement] = list(rollout.measurements)
    baseline = keep_stable(rollout.baseline, metric, reading, metrics=metrics)
    if rollout.step == "Prefetching":
        states[metric.name] = _state_before_wave(states.get(metric.name), reading)
    else:
        found = assess_reading(
            metric, reading, required_log_e=required, kept=samples_of(baseline, metric.name)
        )
        wave = rollout.waves[rollout.wave].name
        states[metric.name], measurement = fold_assessment(
            metric, states.get(metric.name), found, wave=wave, at=reading.at
        )
        measurements.append(measurement)
    return rollout.model_copy(
        update={
            "metrics": [states[name] for name in sorted(states)],
            "measurements": measurements[-MAX_MEASUREMENTS:],
            "baseline": baseline,
        }
    )


def _state_before_wave(state: MetricState | None, reading: Reading) -> MetricState:
    return MetricState(
        name=reading.metric,
        verdict=Verdict.PROVIDER_ERROR if reading.error else "",
        consecutive_errors=(state.consecutive_errors if state else 0) + 1 if reading.error else 0,
        measured_at=times.to_text(reading.at),
    )


def terminate_measurements(analysis: Analysis, rollout: RolloutStatus, *, now: float) -> RolloutStatus:
    """The rollout of a failed wave with the measurements that are still under way shown Terminated.

    Under way is what was due and has not been answered; its answer is dropped when it comes.
    """
    states = {state.name: state for state in rollout.metrics}
    failed = [m.name for m in analysis.metrics if m.name in states and _has_failed(m, states[m.name])]
    measurements = list(rollout.measurements)
    for metric in analysis.metrics:
        state = states.get(metric.name, MetricState(name=metric.name))
        under_way = seconds_until_due(metric, state, analysis, now=now) <= 0
        if metric.name in failed or is_read_off_pods(metric) or not under_way:
            continue
        states[metric.name] = state.model_copy(update={"verdict": Verdict.TERMINATED.value})
        measurements.append(
            Measurement(
                metric=metric.name,
                wave=rollout.waves[rollout.wave].name,
                at=times.to_text(now),
                verdict=Verdict.TERMINATED,
                message=f"the wave failed on {', '.join(failed) or 'its nodes'}"[:512],
                dry_run=metric.dry_run,
            )
        )
    return rollout.model_copy(
        update={
            "metrics": [states[name] for name in sorted(states)],
            "measurements": measurements[-MAX_MEASUREMENTS:],
        }
    )
