# SPDX-License-Identifier: Apache-2.0
"""RFC 3339 timestamps in status <-> seconds since the epoch."""

from datetime import UTC, datetime


def to_text(seconds: float) -> str:
    """UTC with whole seconds, as Kubernetes writes times."""
    return datetime.fromtimestamp(int(seconds), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_seconds(text: str) -> float:
    """Seconds since the epoch; ValueError for anything but RFC 3339."""
    return datetime.fromisoformat(text).timestamp()
