# SPDX-License-Identifier: Apache-2.0
"""Answers over HTTP whose headers are bounded in size and time.

http.client takes 6 MiB of headers for one answer, any number of answers 100, and as long as a byte comes
before each timeout: whoever sends so could hold a fetch for days, or cost it more memory than it has.
"""

import http.client
import io
import math
import socket
import time
from typing import Any, Final

MAX_HEAD_BYTES: Final = 64 << 10


class Answer(http.client.HTTPResponse):
    """`head_seconds` bounds the time until the headers are here. `within` bounds reading of the body."""

    def __init__(self, sock: socket.socket, *arguments: Any, head_seconds: float, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self._head_seconds = head_seconds
        self._watched = _Watched(self.fp.detach())
        self.fp = io.BufferedReader(self._watched)

    def begin(self) -> None:
        """Read the headers; HTTPException or TimeoutError when they are too much or too slow."""
        self._watched.left = MAX_HEAD_BYTES
        self.within(self._head_seconds)
        super().begin()
        self._watched.left, self._watched.until = math.inf, math.inf

    def within(self, seconds: float) -> None:
        """From now on, let reading raise TimeoutError after so long, though bytes may trickle in."""
        self._watched.until = time.monotonic() + seconds


class _Watched(io.RawIOBase):
    """What comes over a socket, as long and as much as is allowed."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self.until: float = math.inf
        self.left: float = math.inf

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() >= self.until:
            raise TimeoutError("it takes too long")
        if self.left <= 0:
            raise http.client.HTTPException(f"headers of more than {MAX_HEAD_BYTES} bytes")
        count = self._raw.readinto(buffer)
        self.left -= count or 0
        return count

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()
