# SPDX-License-Identifier: Apache-2.0
"""Port to the clock."""

from typing import Protocol


class Clock(Protocol):
    """Wall-clock time; timers live in status and must survive a restart, so not monotonic."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...
