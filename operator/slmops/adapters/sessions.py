# SPDX-License-Identifier: Apache-2.0
"""HTTP sessions by whom they trust: a few, closed when they were idle for long."""

import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp

from slmops.ports.metrics import ProviderError

IDLE_SECONDS: Final = 600.0
MOST_SESSIONS: Final = 16


@dataclass(slots=True)
class _Entry:
    session: aiohttp.ClientSession
    users: int = 0
    used_at: float = 0.0


class SessionPool:
    """One session for each set of trusted certificates. No cookies, no shared headers."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._entries: dict[str, _Entry] = {}

    @asynccontextmanager
    async def use(self, ca: str) -> AsyncIterator[aiohttp.ClientSession]:
        """A session that trusts the PEM certificates `ca` alone; with none, what the system trusts.

        Raises ProviderError when the certificates do not parse.
        """
        entry = self._entries.get(ca)
        if entry is None:
            entry = self._entries[ca] = _Entry(_build_session(ca))
        entry.users += 1
        entry.used_at = self._now()
        try:
            await self._evict()
            yield entry.session
        finally:
            entry.users -= 1
            entry.used_at = self._now()

    async def close(self) -> None:
        """Close all of them."""
        entries, self._entries = list(self._entries.values()), {}
        for entry in entries:
            await entry.session.close()

    @property
    def size(self) -> int:
        """Sessions that are open."""
        return len(self._entries)

    async def _evict(self) -> None:
        now = self._now()
        idle = sorted((e.used_at, ca) for ca, e in self._entries.items() if not e.users)
        surplus = len(self._entries) - MOST_SESSIONS
        gone = [ca for i, (at, ca) in enumerate(idle) if i < surplus or now - at >= IDLE_SECONDS]
        # Out of the table first: closing waits, and somebody may ask meanwhile.
        for entry in [self._entries.pop(ca) for ca in gone]:
            await entry.session.close()


def _build_session(ca: str) -> aiohttp.ClientSession:
    try:
        context = ssl.create_default_context(cadata=ca or None)
    except (ssl.SSLError, ValueError) as error:
        raise ProviderError(
            "ca.crt holds no certificate that can be read: put PEM certificates in"
        ) from error
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context, limit=32),
        cookie_jar=aiohttp.DummyCookieJar(),
        # A few bytes of compressed answer could stand for gigabytes.
        headers={"User-Agent": "slmops", "Accept-Encoding": "identity"},
        auto_decompress=False,
        trust_env=True,
    )
