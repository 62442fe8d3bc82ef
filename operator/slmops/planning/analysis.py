# SPDX-License-Identifier: Apache-2.0
"""Judges a measurement: one metric, canary against bounds and against the stable revision.

Three things are kept apart: measuring (a provider), assessing (here) and deciding (rollout).
No value never passes and never fails; an error of the provider is neither.
"""

from enum import StrEnum
from typing import Final

from slmops.api.spec import Metric
from slmops.api.status import Measurement, MetricState
from slmops.model.observed import NO_SAMPLE, Preset, Reading, Sample, Samples
from slmops.planning import times

DEFAULT_MIN_SAMPLES: Final = {
    Preset.ERROR_RATE: 50,
    Preset.LATENCY_P95: 30,
    Preset.TTFT_P95: 30,
    Preset.EVALUATION_SCORE: 10,
}

_HIGHER_IS_BETTER: Final = frozenset({Preset.EVALUATION_SCORE})


class Verdict(StrEnum):
    """What a measurement says about the new revision."""

    PASS = "Pass"
    FAIL = "Fail"
    INCONCLUSIVE = "Inconclusive"
    NO_DATA = "NoData"
    PROVIDER_ERROR = "ProviderError"


def min_samples(metric: Metric) -> int:
    """Samples needed before the metric judges."""
    return metric.min_samples or DEFAULT_MIN_SAMPLES[Preset(metric.preset or "")]


def single(samples: Samples) -> Sample:
    """The first of the samples."""
    return next(iter(samples.values()), NO_SAMPLE)


def assess_reading(metric: Metric, reading: Reading) -> tuple[Verdict, str]:
    """Verdict on one reading and why.

    Absolute bounds are judged first. The comparison with stable needs a stable that has data; when
    the stable breaks the absolute bound as well, the fault is not the canary's: Inconclusive, unless
    the metric also compares the two and the canary is the worse one by more than is allowed.
    """
    if reading.error:
        return Verdict.PROVIDER_ERROR, reading.error
    canary, stable, need = single(reading.canary), single(reading.stable), min_samples(metric)
    if canary.value is None:
        return Verdict.NO_DATA, "no data from the new revision"
    if canary.samples < need:
        return Verdict.INCONCLUSIVE, f"{canary.samples} of {need} samples"
    broken = _broken_bound(metric, canary.value)
    if broken:
        stable_known = stable.value is not None and stable.samples >= need
        if stable_known and stable.value is not None and _broken_bound(metric, stable.value):
            if metric.max_degradation is not None:
                verdict, message = _compare(metric, canary.value, stable, need)
                if verdict is Verdict.FAIL:
                    return verdict, message
            return Verdict.INCONCLUSIVE, f"{broken}; the stable revision as well ({_number(stable.value)})"
        return Verdict.FAIL, broken
    if metric.max_degradation is None:
        return Verdict.PASS, "within bounds"
    return _compare(metric, canary.value, stable, need)


def _broken_bound(metric: Metric, value: float) -> str:
    if metric.max is not None and value > float(metric.max):
        return f"{_number(value)} is above max {metric.max}"
    if metric.min is not None and value < float(metric.min):
        return f"{_number(value)} is below min {metric.min}"
    return ""


def _compare(metric: Metric, value: float, stable: Sample, need: int) -> tuple[Verdict, str]:
    if stable.value is None:
        return Verdict.NO_DATA, "no data from the stable revision to compare with"
    if stable.samples < need:
        return Verdict.INCONCLUSIVE, f"{stable.samples} of {need} samples from the stable revision"
    text = metric.max_degradation or "0"
    allowed = abs(stable.value) * float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    better_is_higher = Preset(metric.preset or "") in _HIGHER_IS_BETTER
    worse_by = stable.value - value if better_is_higher else value - stable.value
    message = f"{_number(value)} against {_number(stable.value)} on stable, {text} worse is allowed"
    # The tolerance keeps equal decimals from failing through binary rounding.
    return (Verdict.FAIL if worse_by > allowed + 1e-9 else Verdict.PASS), message


def _number(value: float) -> str:
    return f"{value:.4g}"


def value_text(value: float | None) -> str | None:
    """A value as status shows it."""
    return None if value is None else _number(value)


def fold_reading(
    metric: Metric, state: MetricState | None, reading: Reading, *, wave: str
) -> tuple[MetricState, Measurement]:
    """New running counts of the metric, and the measurement for the history.

    Rule: failures count in a row. A pass sets them back to none; Inconclusive, NoData and
    ProviderError leave both counts as they are, so an outage neither promotes nor rolls back.
    """
    verdict, message = assess_reading(metric, reading)
    passes = state.consecutive_passes if state else 0
    failures = state.consecutive_failures if state else 0
    if verdict is Verdict.PASS:
        passes, failures = passes + 1, 0
    elif verdict is Verdict.FAIL:
        passes, failures = 0, failures + 1
    at = times.to_text(reading.at)
    return (
        MetricState(
            name=metric.name,
            verdict=verdict,
            consecutive_passes=passes,
            consecutive_failures=failures,
            measured_at=at,
        ),
        Measurement(
            metric=metric.name,
            wave=wave,
            at=at,
            verdict=verdict,
            canary=value_text(single(reading.canary).value),
            stable=value_text(single(reading.stable).value),
            canary_samples=single(reading.canary).samples,
            stable_samples=single(reading.stable).samples,
            message=message[:512],
        ),
    )
