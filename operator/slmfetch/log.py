# SPDX-License-Identifier: Apache-2.0
"""JSON lines on standard output. Never a credential, never a query string of a URL."""

import json
import sys
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

PROGRESS_SECONDS: Final = 5.0
PROGRESS_SHARE: Final = 0.1


def log(message: str, *, level: str = "info", **fields: object) -> None:
    """Write one line; a closed pipe is not worth failing for."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    line = json.dumps({"ts": stamp, "level": level, "msg": message, **fields}, default=str)
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        pass


def plain_url(url: str) -> str:
    """The URL without user info, query and fragment: fit for a log or a message."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    try:
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        port = ""
    return f"{parts.scheme}://{host}{port}{parts.path}"


class Progress:
    """Says how far a transfer is, at most once per 5 s, and at every 10 %.

    Lines at each 10 % are held back to one a second, or a fast transfer would log ten at once.
    """

    def __init__(
        self, *, file: str, total_bytes: int, start_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file, self._total = file, total_bytes
        self._clock = clock
        self._began_at = self._said_at = clock()
        self._began_bytes = start_bytes
        self._said_bytes = start_bytes

    def update(self, done_bytes: int) -> None:
        """Note that `done_bytes` of the file are here."""
        now = self._clock()
        silent = now - self._said_at
        moved = (done_bytes - self._said_bytes) / self._total if self._total else 0.0
        if silent < PROGRESS_SECONDS and not (moved >= PROGRESS_SHARE and silent >= 1.0):
            return
        self._said_at, self._said_bytes = now, done_bytes
        elapsed = max(now - self._began_at, 1e-9)
        speed = (done_bytes - self._began_bytes) / elapsed
        left = round((self._total - done_bytes) / speed) if speed > 0 else None
        log(
            "fetching",
            file=self._file,
            bytes=done_bytes,
            total=self._total,
            bytesPerSecond=round(speed),
            secondsLeft=left,
        )
