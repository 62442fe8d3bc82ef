# SPDX-License-Identifier: Apache-2.0
"""Times as people read them: ages and spans against a moment that is handed in."""

from datetime import UTC, datetime


def seconds_of(text: str | None) -> float | None:
    """Seconds since the epoch of an RFC 3339 time; None for none or for anything else."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def stamp(seconds: float) -> str:
    """UTC with milliseconds: `2026-03-01T12:00:00.250Z`."""
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock_text(seconds: float) -> str:
    """UTC with whole seconds, as Kubernetes writes times."""
    return datetime.fromtimestamp(int(seconds), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def span_text(seconds: float) -> str:
    """A span the way kubectl writes ages: 45s, 3m20s, 25m, 2h5m, 3d4h, 120d."""
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 120:
        return f"{whole}s"
    if minutes < 10:
        return _two(minutes, "m", whole % 60, "s")
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _two(days, "d", hours % 24, "h")
    return f"{days}d"


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large}{large_unit}{small}{small_unit}" if small else f"{large}{large_unit}"


def age_text(text: str | None, now: float) -> str:
    """Age of an RFC 3339 time; `-` when there is none. A clock that runs behind gives 0s."""
    seconds = seconds_of(text)
    return "-" if seconds is None else span_text(now - seconds)
