# SPDX-License-Identifier: Apache-2.0
"""How fast bytes are taken from the source, as the operator may change it meanwhile."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from slmfetch.log import log
from slmwire.distribution import Distribution, parse_distribution

LOOK_SECONDS: Final = 3.0
BURST_SECONDS: Final = 0.25
"""How long nothing may be taken before what was not used is lost."""
MAX_PAUSE_SECONDS: Final = 1.0
MIN_READ_BYTES: Final = 4096
READS_PER_SECOND: Final = 10


@dataclass(slots=True)
class DistributionFile:
    """The distribution file, looked at again every few seconds; several threads may ask.

    No file means no limit and no peers. One that cannot be read changes nothing.
    """

    path: Path | None
    clock: Callable[[], float] = time.monotonic
    _known: Distribution = field(default_factory=Distribution)
    _looked_at: float = float("-inf")
    _problem: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def current(self) -> Distribution:
        """What holds now."""
        with self._lock:
            now = self.clock()
            if self.path is not None and now - self._looked_at >= LOOK_SECONDS:
                self._looked_at = now
                self._look(self.path)
            return self._known

    def _look(self, path: Path) -> None:
        problem = ""
        try:
            self._known = parse_distribution(path.read_bytes())
        except FileNotFoundError:
            self._known = Distribution()
        except (OSError, ValueError, RecursionError) as error:
            problem = f"{path}: {error}"
        if problem and problem != self._problem:
            log("limits and peers cannot be read, they stay as they were", level="warning", why=problem)
        self._problem = problem


@dataclass(slots=True)
class Pace:
    """Token bucket over all connections of a run; bytes per second of 0 are no limit.

    Bytes are taken first and paid for after: a process that is killed while it waits loses none.
    """

    rate: Callable[[], int]
    clock: Callable[[], float] = time.monotonic
    _free_at: float = float("-inf")
    """When all that was taken is paid for."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read_bytes(self, most: int) -> int:
        """How much to take at once: little enough that connections take turns."""
        rate = self.rate()
        return min(most, max(rate // READS_PER_SECOND, MIN_READ_BYTES)) if rate else most

    def pay(self, count: int, wait: Callable[[float], object]) -> None:
        """Note `count` bytes; calls `wait` with seconds, until they are paid for or it returns True.

        The wait is cut into pieces, and a new rate holds from the next one on.
        """
        rate = self.rate()
        if not rate:
            return
        with self._lock:
            self._free_at = max(self._free_at, self.clock() - BURST_SECONDS) + count / rate
            due = self._free_at
        while (left := due - self.clock()) > 0:
            if wait(min(left, MAX_PAUSE_SECONDS)) is True:
                return
            if self.rate() != rate:
                with self._lock:
                    self._free_at = min(self._free_at, self.clock())
                return
