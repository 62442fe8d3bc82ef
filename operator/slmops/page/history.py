# SPDX-License-Identifier: Apache-2.0
"""Measurements of the rollout under way, or the last one, and the latest events of one deployment.

Status holds the twenty latest measurements. A plot wants the whole rollout, so each look at a status adds
what is new here. It is bounded whatever happens: where a series is full, the older half is thinned out.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from slmops.api import SLMDeploymentStatus
from slmops.api.status import Measurement
from slmops.page.documents import EventRow
from slmops.planning import times

MAX_SERIES: Final = 16
MAX_POINTS: Final = 120
MAX_EVENTS: Final = 20
SeriesKey = tuple[str, str]
"""Metric, variant."""


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement; values are finite or None. `at` is in seconds since the epoch."""

    at: float
    canary: float | None
    stable: float | None
    verdict: str


def read_number(text: str | None) -> float | None:
    """The number in a measurement; None when there is none, also for NaN and infinity."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def thin(points: list[Point], limit: int) -> list[Point]:
    """At most `limit` points, two at least: the newer half as it is, every other one of the older half."""
    while len(points) > max(2, limit):
        half = (len(points) + 1) // 2
        points = points[:half:2] + points[half:]
    return points


@dataclass(slots=True)
class History:
    """What is remembered of one deployment."""

    uid: str = ""
    """Of the deployment."""
    rollout: tuple[str, str] = ("", "")
    """Revision and start of the rollout that the series are about."""
    series: dict[SeriesKey, list[Point]] = field(default_factory=dict)
    events: deque[EventRow] = field(default_factory=lambda: deque(maxlen=MAX_EVENTS))

    def take_in(self, status: SLMDeploymentStatus) -> None:
        """Add the measurements that are new; a new rollout begins anew."""
        rollout = status.rollout
        if rollout is None:
            return
        identity = (rollout.revision, rollout.started_at)
        if identity != self.rollout:
            self.rollout, self.series = identity, {}
        for measurement in rollout.measurements:
            self._add(measurement)

    def _add(self, measurement: Measurement) -> None:
        key = (measurement.metric, measurement.variant)
        if key not in self.series and len(self.series) >= MAX_SERIES:
            return
        try:
            at = times.to_seconds(measurement.at)
        except ValueError:
            return
        points = self.series.setdefault(key, [])
        if points and points[-1].at >= at:
            return
        canary, stable = read_number(measurement.canary), read_number(measurement.stable)
        points.append(Point(at, canary, stable, measurement.verdict))
        if len(points) > MAX_POINTS:
            self.series[key] = thin(points, MAX_POINTS)

    def copy_series(self) -> dict[SeriesKey, tuple[Point, ...]]:
        """The series as they are now."""
        return {key: tuple(points) for key, points in self.series.items()}
