# SPDX-License-Identifier: Apache-2.0
"""What is plotted: canary against stable for each metric and variant, and what bounds it. Pure."""

import math
from collections.abc import Iterable, Mapping
from typing import Final

from slmops.api import SLMDeploymentStatus
from slmops.api.analysis import Analysis, Metric
from slmops.model.observed import Preset
from slmops.page.documents import Mark, Plot, shorten
from slmops.page.history import Point, SeriesKey, read_number
from slmops.planning.metric_rules import compares, is_higher_better, margin_of

_UNITS: Final[Mapping[str, str]] = {
    Preset.ERROR_RATE: "share",
    Preset.LATENCY_P95: "s",
    Preset.TTFT_P95: "s",
    Preset.TOKENS_PER_SECOND: "tokens/s",
    Preset.EVALUATION_SCORE: "share",
    Preset.RESTARTS: "per node",
    Preset.OOM_KILLS: "per node",
}


def build_plots(
    analysis: Analysis | None,
    status: SLMDeploymentStatus,
    series: Mapping[SeriesKey, tuple[Point, ...]],
) -> tuple[Plot, ...]:
    """Plots in the order of the spec; metrics that the spec has no more come last, without bounds."""
    known = {metric.name: metric for metric in (analysis.metrics if analysis is not None else ())}
    order = list(known)
    latest = {
        (m.metric, m.variant): m for m in (status.rollout.measurements if status.rollout is not None else ())
    }
    keys = sorted(
        series,
        key=lambda key: (order.index(key[0]) if key[0] in known else len(order), key),
    )
    plots = []
    for key in keys:
        name, variant = key
        metric, last = known.get(name), latest.get(key)
        plots.append(
            Plot(
                metric=name,
                variant=variant,
                preset=(metric.preset or "") if metric is not None else "",
                unit=_UNITS.get(metric.preset or "", "") if metric is not None else "",
                higher_is_better=metric is not None and is_higher_better(metric),
                maximum=read_number(metric.max) if metric is not None else None,
                minimum=read_number(metric.min) if metric is not None else None,
                degradation=(metric.max_degradation or "") if metric is not None else "",
                verdict=last.verdict if last is not None else "",
                message=shorten(last.message) if last is not None else "",
                marks=tuple(_marks(metric, series[key])),
            )
        )
    return tuple(plots)


def _marks(metric: Metric | None, points: Iterable[Point]) -> Iterable[Mark]:
    for point in points:
        yield point.at, point.canary, point.stable, _bound(metric, point.stable), point.verdict


def _bound(metric: Metric | None, stable: float | None) -> float | None:
    """The worst value that still is no worse than stable by more than allowed."""
    if metric is None or stable is None or not compares(metric):
        return None
    width = margin_of(metric).width(stable)
    bound = stable - width if is_higher_better(metric) else stable + width
    # What a device reports is finite, and may be too large to add to.
    return bound if math.isfinite(bound) else None
