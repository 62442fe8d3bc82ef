# SPDX-License-Identifier: Apache-2.0
"""How much the counters of pods grew since a moment, from looks at them: what `increase` is in PromQL.

A counter that falls began anew. A pod's count is kept when the pod is gone, until the window has passed
it: an error stays an error. Everything is bounded; nothing survives the process.
"""

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from slmops.adapters.exposition import (
    BUCKETS_AT,
    CHECKED_AT,
    ERRORS_AT,
    JUDGED_COUNT_AT,
    JUDGED_SUM_AT,
    REFUSED_AT,
    REQUESTS_AT,
    SECONDS_AT,
    TOKENS_AT,
    Exposition,
    Layout,
)

MAX_MARKS: Final = 8
MAX_PINS: Final = 16
"""Beginnings of windows that are remembered: of a wave, and of the rules that look on afterwards."""
MAX_GONE: Final = 60
RESTART_SECONDS: Final = 2.0
"""A process start that moved by more is another process; by less, a clock that was set."""


class Mark(NamedTuple):
    """What a pod had counted in all its lives at a moment."""

    at: float
    total: "array[float]"


class PodCounts:
    """The counters of one pod over its restarts.

    A few marks are kept, the pinned ones exactly: a window that begins at the same moment at each
    look has the same baseline at each look, so its counts never fall.
    """

    __slots__ = ("_marks", "_offset", "_pins", "_raw", "_started", "last_at", "layout")

    def __init__(self, seen: Exposition, *, at: float, began_at: float) -> None:
        """First look at a pod whose counters were zero at `began_at`."""
        zero = array("d", bytes(8 * len(seen.counters)))
        self.layout = seen.layout
        self.last_at = at
        self._offset, self._raw = zero, seen.counters
        self._started = seen.process_started_at
        self._marks = [Mark(min(began_at, at), zero), Mark(at, seen.counters)]
        self._pins: dict[float, Mark] = {}

    def observe(self, seen: Exposition, *, at: float) -> None:
        """Another look, later than the last one and with the same layout."""
        if self._restarted(seen):
            self._offset = self._total()
        self._raw, self._started, self.last_at = seen.counters, seen.process_started_at, at
        self._marks.append(Mark(at, self._total()))
        if len(self._marks) > MAX_MARKS:
            self._marks = self._marks[:-1:2] + self._marks[-1:]

    def increase(self, since: float) -> "array[float] | None":
        """Growth since the first mark at or after `since`; None when there was no look since then."""
        if self.last_at < since:
            return None
        base = self._pins.pop(since, None) or next(mark for mark in self._marks if mark.at >= since)
        self._pins[since] = base
        if len(self._pins) > MAX_PINS:
            del self._pins[next(iter(self._pins))]
        total = self._total()
        return array("d", (now - then for now, then in zip(total, base.total, strict=True)))

    def _restarted(self, seen: Exposition) -> bool:
        new_process = (
            seen.process_started_at is not None
            and self._started is not None
            and abs(seen.process_started_at - self._started) > RESTART_SECONDS
        )
        return new_process or any(new < old for new, old in zip(seen.counters, self._raw, strict=True))

    def _total(self) -> "array[float]":
        return array("d", (a + b for a, b in zip(self._offset, self._raw, strict=True)))


@dataclass(slots=True)
class Growth:
    """Counts of several pods added up."""

    requests: float = 0.0
    errors: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    judged_sum: float = 0.0
    judged_count: float = 0.0
    checked: float = 0.0
    refused: float = 0.0
    latency: dict[float, float] = field(default_factory=dict)
    """Upper bound in seconds to requests up to it, cumulative."""
    first_token: dict[float, float] = field(default_factory=dict)


class Increases:
    """The pods of one revision, each with its variant."""

    def __init__(self) -> None:
        self._pods: dict[str, tuple[str, PodCounts]] = {}
        self._layouts: dict[Layout, Layout] = {}
        self._sinces: dict[float, None] = {}

    def __len__(self) -> int:
        return len(self._pods)

    def observe(self, pod: str, seen: Exposition, *, variant: str, at: float, began_at: float) -> None:
        """A look at a pod whose counters were zero at `began_at`, at the earliest moment that is sure."""
        known = self._pods.get(pod)
        if known is None or known[1].layout != seen.layout or known[0] != variant:
            # Pods of one image share one layout object: the bounds are the larger part of a mark.
            shared = self._layouts.setdefault(seen.layout, seen.layout)
            counts = PodCounts(seen, at=at, began_at=began_at)
            counts.layout = shared
            self._pods[pod] = (variant, counts)
        elif at > known[1].last_at:
            known[1].observe(seen, at=at)

    def growth(self, since: float) -> Mapping[str, Growth]:
        """By variant, of all pods that were looked at since then."""
        self._sinces.pop(since, None)
        self._sinces[since] = None
        if len(self._sinces) > MAX_PINS:
            del self._sinces[next(iter(self._sinces))]
        parts: dict[str, list[tuple[Layout, array[float]]]] = {}
        for variant, counts in self._pods.values():
            grown = counts.increase(since)
            if grown is not None:
                parts.setdefault(variant, []).append((counts.layout, grown))
        return {variant: _add_up(found) for variant, found in parts.items()}

    def forget_gone(self, present: Iterable[str]) -> None:
        """Drop pods that are not present once every window has passed them, and the oldest of too many."""
        names = set(present)
        before = min(self._sinces, default=math.inf)
        gone = sorted((counts.last_at, pod) for pod, (_, counts) in self._pods.items() if pod not in names)
        surplus = len(gone) - MAX_GONE
        for i, (last_at, pod) in enumerate(gone):
            if i < surplus or last_at < before:
                del self._pods[pod]
        used = {counts.layout for _, counts in self._pods.values()}
        self._layouts = {layout: layout for layout in self._layouts if layout in used}


def _add_up(parts: list[tuple[Layout, "array[float]"]]) -> Growth:
    growth = Growth()
    # Only bounds that all pods have can be added; +Inf is always one of them.
    latency = _common([layout.latency for layout, _ in parts])
    first_token = _common([layout.first_token for layout, _ in parts])
    for layout, grown in parts:
        growth.requests += grown[REQUESTS_AT]
        growth.errors += grown[ERRORS_AT]
        growth.tokens += grown[TOKENS_AT]
        growth.seconds += grown[SECONDS_AT]
        growth.judged_sum += grown[JUDGED_SUM_AT]
        growth.judged_count += grown[JUDGED_COUNT_AT]
        growth.checked += grown[CHECKED_AT]
        growth.refused += grown[REFUSED_AT]
        _add(growth.latency, latency, layout.latency, grown, BUCKETS_AT)
        _add(growth.first_token, first_token, layout.first_token, grown, BUCKETS_AT + len(layout.latency))
    return growth


def _common(bounds: list[tuple[float, ...]]) -> frozenset[float]:
    with_any = [frozenset(found) for found in bounds if found]
    return frozenset.intersection(*with_any) if with_any else frozenset()


def _add(
    into: dict[float, float],
    wanted: frozenset[float],
    bounds: tuple[float, ...],
    grown: "array[float]",
    offset: int,
) -> None:
    for at, bound in enumerate(bounds, start=offset):
        if bound in wanted:
            into[bound] = into.get(bound, 0.0) + grown[at]


def latest_start(
    *, created_at: float, process_started_at: float | None, node_time: float | None, now: float
) -> float:
    """When a pod's counters were surely zero, by our clock.

    A process starts after its pod was made. Nodes without a clock of their own may be years off, so the
    process's start counts by its age, and only where the answer says what time the node thinks it is.
    """
    if process_started_at is None or node_time is None:
        return created_at
    age = node_time - process_started_at
    if not math.isfinite(age) or age < 0:
        return created_at
    return max(created_at, now - age)
