# SPDX-License-Identifier: Apache-2.0
"""Documents, each made once per change however many look, and never for more than a share of the time."""

import asyncio
import gzip
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_DOCUMENTS: Final = 16
REST_FACTOR: Final = 9.0
"""Rest owed for a document, in multiples of its CPU time: a tenth of one CPU in the long run."""
BURST_SECONDS: Final = 5.0
"""Rest that may be owed, so that somebody who looks around does not wait."""
MAX_DEBT_SECONDS: Final = 10.0
"""More is forgiven: nobody waits for longer than the difference."""
_GZIP_FROM: Final = 1024
_GZIP_LEVEL: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A document as it is sent. `version` is that of the feed before it was made."""

    version: int
    etag: str
    body: bytes
    zipped: bytes
    """Empty for a small one."""


Take = Callable[[], Callable[[], bytes] | None]
"""Takes a snapshot, at once; what it returns makes the document of it, in another thread. None: there is
no such thing."""


def finish(version: int, body: bytes) -> Made:
    """The document of a body."""
    return Made(
        version=version,
        etag=f'"{hashlib.sha256(body).hexdigest()[:24]}"',
        body=body,
        zipped=gzip.compress(body, _GZIP_LEVEL, mtime=0) if len(body) >= _GZIP_FROM else b"",
    )


def _finish_timed(version: int, build: Callable[[], bytes]) -> tuple[Made, float]:
    """The document, and the CPU seconds that it took: on a busy machine time alone says little."""
    started = time.thread_time()
    made = finish(version, build())
    return made, time.thread_time() - started


class Documents:
    """Keeps the documents that were asked for last."""

    def __init__(self, *, rest_factor: float = REST_FACTOR) -> None:
        self._rest_factor = rest_factor
        self._made: OrderedDict[str, Made] = OrderedDict()
        self._lock = asyncio.Lock()
        self._free_at = 0.0

    async def get(self, name: str, *, version: Callable[[], int], take: Take) -> Made | None:
        """The document, no older than `version()` when it was asked for; None when there is no such thing.

        Who comes while it is made, or while the maker rests, shares one with the others.
        """
        wanted = version()
        made = self._find(name, wanted)
        if made is not None:
            return made
        async with self._lock:
            made = self._find(name, wanted)
            if made is not None:
                return made
            await asyncio.sleep(max(0.0, self._free_at - time.monotonic() - BURST_SECONDS))
            return await self._make(name, version(), take)

    def _find(self, name: str, version: int) -> Made | None:
        made = self._made.get(name)
        if made is None or made.version < version:
            return None
        self._made.move_to_end(name)
        return made

    async def _make(self, name: str, version: int, take: Take) -> Made | None:
        started = time.thread_time()
        build = take()
        if build is None:
            self._made.pop(name, None)
            return None
        took = time.thread_time() - started
        made, seconds = await asyncio.to_thread(lambda: _finish_timed(version, build))
        took += seconds
        now = time.monotonic()
        owed = max(0.0, self._free_at - now) + took * self._rest_factor
        self._free_at = now + min(MAX_DEBT_SECONDS, owed)
        self._made[name] = made
        self._made.move_to_end(name)
        while len(self._made) > MAX_DOCUMENTS:
            self._made.popitem(last=False)
        return made
