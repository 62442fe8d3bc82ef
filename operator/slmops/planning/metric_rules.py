# SPDX-License-Identifier: Apache-2.0
"""What a metric of the spec means where it leaves something out, and when it is measured."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from slmops.api.analysis import Analysis, Metric
from slmops.api.base import duration_seconds
from slmops.api.status import MetricState
from slmops.model.observed import Preset
from slmops.planning import times

SEQUENTIAL_PRESETS: Final = frozenset({Preset.ERROR_RATE, Preset.LATENCY_P95, Preset.TTFT_P95})
"""Presets whose counts a Sequential test can be made of."""
LATENCY_PRESETS: Final = frozenset({Preset.LATENCY_P95, Preset.TTFT_P95})
POD_PRESETS: Final = frozenset({Preset.RESTARTS, Preset.OOM_KILLS})
"""Presets that are read off the pods: no metrics provider is asked."""

_HIGHER_IS_BETTER: Final = frozenset(
    {Preset.EVALUATION_SCORE, Preset.TOKENS_PER_SECOND, Preset.FEEDBACK_SCORE}
)
_SEQUENTIAL_SAMPLES: Final = 300
_QUERY_SAMPLES: Final = 30
_SAMPLES: Final[Mapping[Preset, int]] = {
    Preset.ERROR_RATE: 50,
    Preset.LATENCY_P95: 30,
    Preset.TTFT_P95: 30,
    Preset.TOKENS_PER_SECOND: 30,
    Preset.EVALUATION_SCORE: 10,
    Preset.RESTARTS: 1,
    Preset.OOM_KILLS: 1,
    Preset.FEEDBACK_SCORE: 30,
    Preset.REFUSAL_RATE: 100,
    Preset.DRIFT: 200,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """How much worse than stable a value may be: `allowed` in its unit, `relative` as a fraction."""

    allowed: float
    relative: float

    def width(self, stable: float) -> float:
        """The same as one number, in the value's unit."""
        return self.allowed + abs(stable) * self.relative


def preset_of(metric: Metric) -> Preset | None:
    """The preset; None for a query."""
    return Preset(metric.preset) if metric.preset else None


def is_sequential(metric: Metric) -> bool:
    """Whether a Sequential test judges it: the default where the counts for it are there."""
    return metric.test != "Threshold" and preset_of(metric) in SEQUENTIAL_PRESETS


def is_read_off_pods(metric: Metric) -> bool:
    """No metrics provider is asked for it."""
    return preset_of(metric) in POD_PRESETS


def asks_each_side(metric: Metric) -> bool:
    """Whether there is a value of the stable side. A query without $selector is the same for both."""
    if is_read_off_pods(metric):
        return False
    return metric.query is None or "$selector" in metric.query


def compares(metric: Metric) -> bool:
    """Whether it judges against the stable revision."""
    return metric.max_degradation is not None and asks_each_side(metric)


def is_higher_better(metric: Metric) -> bool:
    """Which way is better."""
    preset = preset_of(metric)
    return metric.direction == "HigherIsBetter" if preset is None else preset in _HIGHER_IS_BETTER


def min_samples(metric: Metric) -> int:
    """Samples needed on each side before the metric passes. One value of a query is one sample."""
    preset = preset_of(metric)
    if preset is None and metric.samples_query is None:
        return 1
    if metric.min_samples is not None:
        return metric.min_samples
    if preset is None:
        return _QUERY_SAMPLES
    return _SEQUENTIAL_SAMPLES if is_sequential(metric) else _SAMPLES[preset]


def failure_limit(metric: Metric) -> int:
    """Failures in a row that fail the wave. A Sequential test has weighed all looks together."""
    return 1 if is_sequential(metric) else metric.failure_limit


def margin_of(metric: Metric) -> Margin:
    """`maxDegradation` as numbers."""
    text = metric.max_degradation or "0"
    if text.endswith("%"):
        return Margin(allowed=0.0, relative=float(text.removesuffix("%")) / 100)
    return Margin(allowed=float(text), relative=0.0)


def count_tests(metrics: Iterable[Metric], *, waves: int, classes: int) -> int:
    """Sequential tests that may roll one rollout back: they share the false rollback rate.

    A comparison counts twice, once with the stable nodes and once with what is kept of them for the
    time when there are none.
    """
    tests = 0
    for metric in metrics:
        if is_sequential(metric) and not metric.dry_run:
            tests += (metric.max is not None) + 2 * compares(metric)
    return max(1, tests * max(1, waves) * max(1, classes))


def interval_seconds(metric: Metric, analysis: Analysis) -> float:
    """Time between two measurements."""
    return duration_seconds(metric.interval or analysis.interval)


def is_wanted(metric: Metric, state: MetricState | None, *, before_wave: bool) -> bool:
    """Whether it is measured at all in this part of a wave.

    Before a wave the stable revision is looked at once, for the comparison after the last wave; again
    only when nobody could be asked.
    """
    if not before_wave:
        return True
    measured = state is not None and state.measured_at is not None and not state.consecutive_errors
    return compares(metric) and not measured


def seconds_until_due(metric: Metric, state: MetricState | None, analysis: Analysis, *, now: float) -> float:
    """Until its interval has passed; 0 or less when it has, or when it was never measured."""
    if state is None or state.measured_at is None:
        return 0.0
    return interval_seconds(metric, analysis) - (now - times.to_seconds(state.measured_at))
