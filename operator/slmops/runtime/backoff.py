# SPDX-License-Identifier: Apache-2.0
"""Exponential back-off with jitter."""

import random
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Backoff:
    """Delays that double up to a limit; jitter keeps many waiters from coming back at once."""

    first_seconds: float = 0.5
    limit_seconds: float = 60.0
    failures: int = 0

    def fail(self) -> float:
        """Count a failure; seconds to wait before the next try, 75 to 100 % of the full delay."""
        delay = min(self.limit_seconds, self.first_seconds * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return delay * random.uniform(0.75, 1.0)

    def reset(self) -> None:
        """It worked."""
        self.failures = 0
