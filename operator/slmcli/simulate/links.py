# SPDX-License-Identifier: Apache-2.0
"""Links that downloads share evenly (processor sharing), in O(log n) for each begin and end."""

import heapq
from typing import Any


class Link:
    """One link. `service` is how many bytes each download has got since the link's begin.

    A download of n bytes that begins at service s ends at service s + n, whoever else comes and goes.
    """

    __slots__ = ("_heap", "_number", "active", "bytes_carried", "bytes_per_second", "service", "since")

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second
        self.service = 0.0
        self.since = 0.0
        self.active: dict[int, float] = {}
        """Number of each download -> service at which it ends."""
        self.bytes_carried = 0.0
        self._heap: list[tuple[float, int, Any]] = []
        self._number = 0

    def advance(self, now: float) -> None:
        """Carry bytes until `now`, in seconds."""
        if self.active:
            share = (now - self.since) * self.bytes_per_second / len(self.active)
            self.service += share
            self.bytes_carried += share * len(self.active)
        self.since = now

    def begin(self, size_bytes: float, owner: Any, now: float) -> int:
        """Start a download; its number."""
        self.advance(now)
        self._number += 1
        self.active[self._number] = self.service + size_bytes
        heapq.heappush(self._heap, (self.service + size_bytes, self._number, owner))
        return self._number

    def stop(self, number: int, now: float) -> float:
        """Take a download off; the bytes that are left of it."""
        self.advance(now)
        return max(0.0, self.active.pop(number) - self.service)

    def next_end(self) -> float | None:
        """When the next download ends if nothing changes."""
        while self._heap and self._heap[0][1] not in self.active:
            heapq.heappop(self._heap)
        if not self._heap:
            return None
        left = max(0.0, self._heap[0][0] - self.service)
        return self.since + left * len(self.active) / self.bytes_per_second

    def take_ended(self, now: float) -> list[Any]:
        """Owners of the downloads that have ended by `now`."""
        self.advance(now)
        ended = []
        # What a link carries in a microsecond: times since the epoch are not exact to less.
        slack = 1.0 + self.bytes_per_second * 1e-6
        while self._heap and (
            self._heap[0][1] not in self.active or self._heap[0][0] <= self.service + slack
        ):
            _, number, owner = heapq.heappop(self._heap)
            if self.active.pop(number, None) is not None:
                ended.append(owner)
        return ended
