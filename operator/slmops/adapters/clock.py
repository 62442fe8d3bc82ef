# SPDX-License-Identifier: Apache-2.0
"""The real clock."""

import time


class SystemClock:
    """Implements `ports.clock.Clock`."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()
