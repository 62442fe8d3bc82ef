# SPDX-License-Identifier: Apache-2.0
"""What is kept in status of the stable revision, for the wave after which no stable node is left."""

import math
from collections.abc import Iterable, Mapping
from typing import Final

from slmops.api.analysis import Metric
from slmops.api.status import MAX_BASELINES, Baseline
from slmops.model.observed import Preset, Reading, Sample, Samples
from slmops.planning import times
from slmops.planning.metric_rules import (
    LATENCY_PRESETS,
    asks_each_side,
    compares,
    is_sequential,
    min_samples,
    preset_of,
)

_BUCKETS_BELOW: Final = 7
_BUCKETS_ABOVE: Final = 5
"""Buckets kept on either side of the quantile: those that a comparison of tails looks at."""
_QUANTILE: Final = 0.95


def samples_of(baseline: Iterable[Baseline], metric: str) -> Samples:
    """What is kept of one metric, by variant."""
    return {
        entry.variant: Sample(
            value=float(entry.value),
            samples=entry.samples,
            events=float(entry.events or 0.0),
            buckets=_parse_buckets(entry.buckets or ""),
        )
        for entry in baseline
        if entry.metric == metric
    }


def keep_stable(
    baseline: Iterable[Baseline], metric: Metric, reading: Reading, *, metrics: Mapping[str, Metric]
) -> list[Baseline]:
    """The baseline with the stable side of a reading in it.

    The latest value with enough samples is kept; one with fewer only while nothing better is known.
    More than status may hold (metrics x variants) is cut: comparisons stay first, then what has most
    samples behind it.
    """
    known = {(entry.metric, entry.variant): entry for entry in baseline if entry.metric in metrics}
    if not reading.error and asks_each_side(metric):
        for variant, sample in reading.stable.items():
            entry = known.get((metric.name, variant))
            enough = sample.samples >= min(min_samples(metric), entry.samples if entry else 1)
            if sample.value is not None and math.isfinite(sample.value) and enough:
                known[metric.name, variant] = _entry(metric, variant, sample, at=reading.at)
    ranked = sorted(
        known.items(), key=lambda item: (not compares(metrics[item[0][0]]), -item[1].samples, item[0])
    )
    return [entry for _, entry in sorted(ranked[:MAX_BASELINES], key=lambda item: item[0])]


def _entry(metric: Metric, variant: str, sample: Sample, *, at: float) -> Baseline:
    tested = is_sequential(metric)
    preset = preset_of(metric)
    return Baseline(
        metric=metric.name,
        variant=variant,
        value=repr(sample.value),
        samples=sample.samples,
        events=f"{sample.events:.10g}" if tested and preset is Preset.ERROR_RATE else None,
        buckets=_buckets_text(sample.buckets) if tested and preset in LATENCY_PRESETS else None,
        at=times.to_text(at),
    )


def _buckets_text(buckets: tuple[tuple[float, float], ...]) -> str | None:
    """The buckets around the quantile and the last one: a coarser histogram, but a true one."""
    if not buckets:
        return None
    rank = _QUANTILE * buckets[-1][1]
    at = next((i for i, (_, count) in enumerate(buckets) if count >= rank), len(buckets) - 1)
    near = buckets[max(0, at - _BUCKETS_BELOW) : at + _BUCKETS_ABOVE]
    kept = near if near[-1] == buckets[-1] else (*near, buckets[-1])
    return " ".join(f"{bound:.6g}:{count:.8g}" for bound, count in kept)


def _parse_buckets(text: str) -> tuple[tuple[float, float], ...]:
    pairs = (part.split(":") for part in text.split())
    return tuple((float(bound), float(count)) for bound, count in pairs)
