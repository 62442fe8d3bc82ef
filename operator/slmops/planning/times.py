# SPDX-License-Identifier: Apache-2.0
"""RFC 3339 timestamps in status <-> seconds since the epoch."""

from datetime import UTC, datetime
from typing import Final

_LATEST_SECONDS: Final = 253_402_300_799
"""The last second of the year 9999, after which a time has no text."""


def to_text(seconds: float) -> str:
    """UTC with whole seconds, as Kubernetes writes times; within the years 1970 and 9999."""
    return datetime.fromtimestamp(int(min(max(seconds, 0), _LATEST_SECONDS)), tz=UTC).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )


def to_seconds(text: str) -> float:
    """Seconds since the epoch; ValueError for anything but RFC 3339."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except OverflowError as error:
        raise ValueError(f"{text!r} is beyond all clocks") from error
