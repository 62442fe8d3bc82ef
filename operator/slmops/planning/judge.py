# SPDX-License-Identifier: Apache-2.0
"""From the metrics' running counts to a judgement of the wave, and which measurements are due."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from slmops.api.base import duration_seconds
from slmops.api.spec import Analysis, Metric
from slmops.api.status import MAX_MEASUREMENTS, Baseline, Measurement, MetricState, RolloutStatus
from slmops.model.observed import MetricQuery, Preset, ProviderSettings, Reading, Sample
from slmops.model.plan import MeasureRequest
from slmops.planning import times
from slmops.planning.analysis import Verdict, fold_reading, min_samples, single

MAX_WINDOW_SECONDS: Final = 3600.0
BASELINE_WINDOW_SECONDS: Final = 600.0
_MEASURED_STEPS: Final = frozenset({"Prefetching", "Flipping", "Soaking", "Analysing"})


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
    limit_reached: str = ""
    """Why onDeadline is to decide at once; empty when it is not."""


def judge_metrics(analysis: Analysis, rollout: RolloutStatus) -> Judgement:
    """Judge the wave from the running counts in status."""
    states = {state.name: state for state in rollout.metrics}
    failed, waiting = [], []
    reason = "Analysing"
    for metric in analysis.metrics:
        state = states.get(metric.name)
        if state is not None and state.consecutive_failures >= metric.failure_limit:
            failed.append(f"{metric.name}: {_latest(rollout, metric.name)}")
        elif metric.required and (state is None or state.consecutive_passes < analysis.passes):
            verdict = state.verdict if state is not None and state.verdict else "not measured yet"
            if verdict in (Verdict.NO_DATA, Verdict.PROVIDER_ERROR, Verdict.INCONCLUSIVE):
                reason = verdict
            passes = state.consecutive_passes if state else 0
            waiting.append(f"{metric.name}: {_say(verdict)} ({passes} of {analysis.passes} passes)")
    return Judgement(
        passed=not failed and not waiting,
        failed="; ".join(failed),
        reason=reason,
        summary="; ".join(waiting) or "all required metrics pass",
        missing_baseline=_missing_baseline(analysis, states),
    )


def _say(verdict: str) -> str:
    return "no data" if verdict == Verdict.NO_DATA else verdict


def _latest(rollout: RolloutStatus, metric: str) -> str:
    wave = rollout.waves[rollout.wave].name if rollout.waves else ""
    return next(
        (m.message for m in reversed(rollout.measurements) if m.metric == metric and m.wave == wave), ""
    )


def _missing_baseline(analysis: Analysis, states: dict[str, MetricState]) -> str:
    # One look at the stable revision is taken before a wave begins: after the last wave there is no
    # stable node left to compare with. That it has no data (no traffic, say) does not stop the wave;
    # that nobody could be asked does.
    for metric in analysis.metrics:
        state = states.get(metric.name)
        if metric.max_degradation is None:
            continue
        if state is None or state.measured_at is None:
            return f"the stable revision has not been measured yet for {metric.name}"
        if state.verdict == Verdict.PROVIDER_ERROR:
            return f"the metrics provider cannot be asked for {metric.name}"
    return ""


def due_measurements(
    analysis: Analysis, rollout: RolloutStatus, *, namespace: str, deployment: str, stable: str, now: float
) -> tuple[MeasureRequest, ...]:
    """Measurements whose interval has passed; none outside the steps that look at metrics."""
    if rollout.step not in _MEASURED_STEPS or not stable:
        return ()
    states = {state.name: state for state in rollout.metrics}
    before_wave = rollout.step == "Prefetching"
    window = (
        BASELINE_WINDOW_SECONDS
        if before_wave
        else min(MAX_WINDOW_SECONDS, now - times.to_seconds(rollout.wave_started_at))
    )

    def query(metric: Metric, revision: str) -> MetricQuery:
        return MetricQuery(
            preset=Preset(metric.preset or ""),
            namespace=namespace,
            deployment=deployment,
            revision=revision,
            window_seconds=max(window, 1.0),
        )

    return tuple(
        MeasureRequest(
            metric=metric.name,
            canary=query(metric, rollout.revision),
            stable=query(metric, stable),
            provider=ProviderSettings(),
        )
        for metric in analysis.metrics
        if _is_due(metric, states.get(metric.name), analysis, before_wave=before_wave, now=now)
    )


def _is_due(
    metric: Metric, state: MetricState | None, analysis: Analysis, *, before_wave: bool, now: float
) -> bool:
    if before_wave and metric.max_degradation is None:
        return False
    if state is None or state.measured_at is None:
        return True
    if before_wave and state.verdict != Verdict.PROVIDER_ERROR:
        return False
    return now - times.to_seconds(state.measured_at) >= duration_seconds(analysis.interval)


def next_measurement_seconds(analysis: Analysis, rollout: RolloutStatus, *, now: float) -> float | None:
    """Seconds until a measurement that is not due yet becomes due; None when there is none.

    Those that are due already are under way; their readings wake the planner.
    """
    if rollout.step not in _MEASURED_STEPS:
        return None
    states = {state.name: state for state in rollout.metrics}
    before_wave = rollout.step == "Prefetching"
    interval = duration_seconds(analysis.interval)
    waits = []
    for metric in analysis.metrics:
        state = states.get(metric.name)
        if state is None or state.measured_at is None:
            continue
        if before_wave and state.verdict != Verdict.PROVIDER_ERROR:
            continue
        wait = interval - (now - times.to_seconds(state.measured_at))
        if wait > 0:
            waits.append(wait)
    return min(waits, default=None)


def fold_readings(analysis: Analysis, rollout: RolloutStatus, readings: Sequence[Reading]) -> RolloutStatus:
    """Take fresh readings into the rollout's counts, history and baseline.

    A reading from before the wave's clock started belongs to an earlier wave and is dropped.
    """
    metrics = {metric.name: metric for metric in analysis.metrics}
    # Status keeps whole seconds, so a reading of the same second belongs to the wave.
    since = times.to_seconds(rollout.wave_started_at)
    for reading in readings:
        metric = metrics.get(reading.metric)
        if metric is None or reading.at < since or rollout.step not in _MEASURED_STEPS:
            continue
        rollout = _fold(metric, rollout, reading)
    return rollout


def _fold(metric: Metric, rollout: RolloutStatus, reading: Reading) -> RolloutStatus:
    baseline = {entry.metric: entry for entry in rollout.baseline}
    if (
        not reading.error
        and single(reading.stable).value is not None
        and single(reading.stable).samples >= min_samples(metric)
    ):
        baseline[metric.name] = Baseline(
            metric=metric.name,
            value=repr(single(reading.stable).value),
            samples=single(reading.stable).samples,
            at=times.to_text(reading.at),
        )
    elif not reading.error and metric.name in baseline:
        known = baseline[metric.name]
        reading = Reading(
            metric=reading.metric,
            canary=reading.canary,
            stable={"": Sample(value=float(known.value), samples=known.samples)},
            at=reading.at,
        )
    states = {state.name: state for state in rollout.metrics}
    measurements: list[Measurement] = list(rollout.measurements)
    if rollout.step == "Prefetching":
        verdict = Verdict.PROVIDER_ERROR if reading.error else ""
        states[metric.name] = MetricState(
            name=metric.name, verdict=verdict, measured_at=times.to_text(reading.at)
        )
    else:
        wave = rollout.waves[rollout.wave].name
        states[metric.name], measurement = fold_reading(metric, states.get(metric.name), reading, wave=wave)
        measurements.append(measurement)
    return rollout.model_copy(
        update={
            "metrics": [states[name] for name in sorted(states)],
            "measurements": measurements[-MAX_MEASUREMENTS:],
            "baseline": [baseline[name] for name in sorted(baseline)],
        }
    )
