# SPDX-License-Identifier: Apache-2.0
"""Times of the week in which nodes may be moved: pure functions of the windows and the time.

The only thing read is the time zone database, which is data, not state.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from slmops.api.rollout import Window

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_LOOK_AHEAD_DAYS: Final = 15
"""A window of one day a week may fall into the hour that the clocks skip: the next one is a week later."""


@lru_cache(maxsize=256)
def load_zone(name: str) -> ZoneInfo | None:
    """The time zone of that name; None when there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def is_open(windows: Sequence[Window], now: float) -> bool:
    """Whether nodes may be moved at `now`; no windows mean always."""
    return not windows or any(start <= now < end for start, end in _spans(windows, now))


def next_opening(windows: Sequence[Window], now: float) -> float | None:
    """When a window opens next, in seconds since the epoch; None when none does within two weeks."""
    return next((start for start, _ in _spans(windows, now) if start > now), None)


def seconds_to_change(windows: Sequence[Window], now: float) -> float | None:
    """Seconds until it opens or closes; None when it does neither within two weeks."""
    spans = _spans(windows, now)
    for start, end in spans:
        if start <= now < end:
            return None if end - now >= 7 * 86400 else end - now
        if start > now:
            return start - now
    return None


def _spans(windows: Sequence[Window], now: float) -> list[tuple[float, float]]:
    """Times that are open from yesterday to two weeks ahead, merged and in order."""
    found = sorted(span for window in windows for span in _spans_of(window, now))
    merged: list[tuple[float, float]] = []
    for start, end in found:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _spans_of(window: Window, now: float) -> list[tuple[float, float]]:
    zone = load_zone(window.time_zone)
    if zone is None:
        return []
    today = datetime.fromtimestamp(now, tz=zone).date()
    result = []
    for offset in range(-1, _LOOK_AHEAD_DAYS + 1):
        day = today + timedelta(days=offset)
        if window.days and _DAYS[day.weekday()] not in window.days:
            continue
        # Aware arithmetic in one zone goes by the wall clock; its instants are taken in UTC.
        start = datetime.combine(day, _clock(window.start_time), tzinfo=zone)
        last = day if window.end_time > window.start_time else day + timedelta(days=1)
        if window.end_time == "24:00":
            last = day + timedelta(days=1)
        end = datetime.combine(last, _clock(window.end_time), tzinfo=zone)
        span = start.astimezone(UTC).timestamp(), end.astimezone(UTC).timestamp()
        if span[1] > span[0]:
            result.append(span)
    return result


def _clock(text: str) -> time:
    hours, minutes = text.split(":")
    return time(int(hours) % 24, int(minutes))
