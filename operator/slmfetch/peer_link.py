# SPDX-License-Identifier: Apache-2.0
"""Asks the store agents of other nodes; every call is bounded in time and none raises."""

import http.client
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final, cast

from slmfetch.answer import Answer
from slmfetch.exchange import HAVE_HEADER, STATE_HEADER, State
from slmfetch.store import CHUNK_BYTES
from slmwire.manifest import ManifestFile
from slmwire.paths import AGENT_BLOBS

CONNECT_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 1.5
"""Longest that a look at all peers together takes."""
SILENT_SECONDS: Final = 4.0
"""Longest silence within an answer; an agent that waits for bytes says so before that."""
HEAD_SECONDS: Final = 8.0
"""Longest that the headers of an answer take, however they trickle in."""
WAIT_SECONDS: Final = 2
"""How long an agent is asked to wait for bytes that are not there yet."""
MEASURE_SECONDS: Final = 5.0
MEASURE_BYTES: Final = 1 << 20
"""Speed is judged after so long, or so much."""
LOWEST_BYTES_PER_SECOND: Final = 64 << 10
BEST_SHARE: Final = 1 / 16
CREEP_SECONDS: Final = 60.0
"""Over so long a node that is at the source must get the lowest speed that its followers put up with."""
BEHIND_SECONDS: Final = 600.0
"""How long a node that gets bytes may give us none because we are ahead of it."""
PAUSE_SECONDS: Final = 0.25
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How one peer stands to a blob; `state` is None when it has nothing of it."""

    name: str
    state: State | None = None
    have: int = 0


class End(StrEnum):
    """Why taking from a peer ended."""

    DONE = "done"
    """The file is complete."""
    NO_MORE = "no more"
    """It has nothing further, and does not expect it from the source."""
    BUSY = "busy"
    SLOW = "slow"
    SILENT = "silent"
    """It waits for its source longer than we are willing to."""
    GONE = "gone"
    """It refuses or breaks connections, or answers nonsense."""
    TIMEOUT = "timeout"
    """It says nothing at all."""
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Limits of taking from one peer; times as of `time.monotonic()`."""

    deadline: float
    patience_seconds: float
    """Longest wait without a sign that the peer itself gets bytes."""
    best_bytes_per_second: float
    """Best speed that a peer has shown in this run."""
    creep_bytes_per_second: float
    """A node that gets less than this from the source over CREEP_SECONDS is as good as silent."""

    def is_slow(self, count: int, seconds: float) -> bool:
        """Whether `count` bytes in `seconds` is much less than it should be."""
        if seconds < MEASURE_SECONDS and (count < MEASURE_BYTES or seconds <= 0):
            return False
        floor = max(LOWEST_BYTES_PER_SECOND, self.best_bytes_per_second * BEST_SHARE)
        return count / seconds < floor


class Link:
    """A connection to the agent of one peer."""

    def __init__(self, *, name: str, address: str, port: int) -> None:
        self._name = name
        self._connection = http.client.HTTPConnection(address, port, timeout=CONNECT_SECONDS)
        self._connection.response_class = partial(Answer, head_seconds=HEAD_SECONDS)  # type: ignore[assignment]
        self.bytes_taken = 0
        self.best_bytes_per_second = 0.0

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def view(self, file: ManifestFile) -> View:
        """What the peer has; OSError or HTTPException if it does not answer properly."""
        response = self._ask("HEAD", file, {})
        response.read()
        if response.status not in (200, 204, 206):
            return View(name=self._name)
        state, have = _describe(response)
        if have > file.size or (state is State.WHOLE and have != file.size):
            return View(name=self._name)  # not the bytes of our manifest
        return View(name=self._name, state=state, have=have)

    def take(
        self, file: ManifestFile, *, start: int, sink: Callable[[memoryview], None], bounds: Bounds
    ) -> End:
        """Hand the bytes from `start` on to `sink` as they come, until there is a reason to stop.

        What `sink` raises goes through.
        """
        offset, alive, have = start, time.monotonic(), 0
        marked_at, mark, given_at = alive, start, alive
        while offset < file.size:
            now = time.monotonic()
            if now >= bounds.deadline:
                return End.DEADLINE
            if now - alive > bounds.patience_seconds or now - given_at > BEHIND_SECONDS:
                return End.SILENT
            if now - marked_at >= CREEP_SECONDS:
                # What it got counts as well as what we got: it may be behind us, or far ahead.
                if offset + have - mark < bounds.creep_bytes_per_second * (now - marked_at):
                    return End.SILENT
                marked_at, mark = now, offset + have
            try:
                response = self._ask(
                    "GET", file, {"Range": f"bytes={offset}-", "Prefer": f"wait={WAIT_SECONDS}"}
                )
                if response.status == 204:
                    response.read()
                    state, size = _describe(response)
                    if state is not State.SOURCE:
                        return End.NO_MORE
                    if size > offset:
                        return End.GONE  # it says that it has more, and gives none
                    if size > have:
                        # Behind us, but it gets bytes.
                        have, alive = size, time.monotonic()
                    if time.monotonic() - now < PAUSE_SECONDS:
                        time.sleep(PAUSE_SECONDS)  # it does not wait as it was asked to; not to spin
                    continue
            except TimeoutError:
                return End.TIMEOUT
            except (OSError, http.client.HTTPException, ValueError):
                return End.GONE
            if response.status != 206:
                return _refusal(response.status)
            if not _fits(response, file, offset):
                return End.GONE
            whole = response.getheader(STATE_HEADER) == State.WHOLE
            end, offset = self._receive(response, file, offset, sink, bounds)
            if end is not None:
                return end
            if whole and offset < file.size:
                return End.GONE  # who has all gives all at once
            alive = given_at = time.monotonic()
        return End.DONE

    def _ask(self, method: str, file: ManifestFile, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        if self._connection.sock is None:
            self._connection.connect()
            # The short timeout was for connecting only.
            cast("socket.socket", self._connection.sock).settimeout(SILENT_SECONDS)
        self._connection.request(method, f"{AGENT_BLOBS}{file.sha256}", headers=dict(headers))
        response = self._connection.getresponse()
        if response.chunked:
            raise http.client.HTTPException("an agent sends no chunks")
        return response

    def _receive(
        self,
        response: http.client.HTTPResponse,
        file: ManifestFile,
        offset: int,
        sink: Callable[[memoryview], None],
        bounds: Bounds,
    ) -> tuple[End | None, int]:
        began, count = time.monotonic(), 0
        while True:
            try:
                data = response.read1(CHUNK_BYTES)
            except TimeoutError:
                return End.TIMEOUT, offset
            except (OSError, http.client.HTTPException):
                return End.GONE, offset
            if not data:
                break
            if offset + len(data) > file.size:
                return End.GONE, offset
            sink(memoryview(data))
            offset += len(data)
            count += len(data)
            self.bytes_taken += len(data)
            now = time.monotonic()
            if offset < file.size:
                if bounds.is_slow(count, now - began):
                    return End.SLOW, offset
                if now >= bounds.deadline:
                    return End.DEADLINE, offset
        if count >= MEASURE_BYTES:
            speed = count / max(time.monotonic() - began, 1e-6)
            self.best_bytes_per_second = max(self.best_bytes_per_second, speed)
        # A short answer is a partial that started over, or a connection that broke.
        broken = count == 0 or bool(response.length)
        response.close()  # read1 does not notice the end; the connection takes the next request
        return (End.GONE if broken else None), offset


def look(
    file: ManifestFile, peers: Mapping[str, str], *, port: int
) -> tuple[list[View], frozenset[str], frozenset[str]]:
    """Ask all peers (name -> address) at once: (views, names that refuse, names that say nothing).

    It ends early once somebody has the whole blob; those not heard until then are in none of the three.
    """
    answers: queue.SimpleQueue[tuple[str, View | None, bool]] = queue.SimpleQueue()

    def ask(name: str, address: str) -> None:
        link = Link(name=name, address=address, port=port)
        try:
            answers.put((name, link.view(file), False))
        except (OSError, http.client.HTTPException, ValueError) as error:
            answers.put((name, None, isinstance(error, TimeoutError)))
        finally:
            link.close()

    views: list[View] = []
    refused: set[str] = set()
    silent: set[str] = set()
    pending = set(peers)
    for name, address in peers.items():
        threading.Thread(target=ask, args=(name, address), daemon=True).start()
    deadline = time.monotonic() + LOOK_SECONDS
    while pending:
        try:
            name, view, timed_out = answers.get(timeout=max(deadline - time.monotonic(), 0.001))
        except queue.Empty:
            break
        pending.discard(name)
        if view is not None:
            views.append(view)
            if view.state is State.WHOLE:
                return views, frozenset(refused), frozenset()
        elif timed_out:
            silent.add(name)
        else:
            refused.add(name)
    return views, frozenset(refused), frozenset(silent | pending)


def is_address(text: str) -> bool:
    """Whether it is a literal IP address: names are never looked up."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError, ValueError):
            socket.inet_pton(family, text)
            return True
    return False


def _describe(response: http.client.HTTPResponse) -> tuple[State, int]:
    """State and bytes that can be had; ValueError if it is no agent of ours that answers."""
    have = response.getheader(HAVE_HEADER, "")
    if not have.isdecimal() or len(have) > 15:
        raise ValueError(f"{HAVE_HEADER}: {have!r}")
    return State(response.getheader(STATE_HEADER, "")), int(have)


def _fits(response: http.client.HTTPResponse, file: ManifestFile, offset: int) -> bool:
    match = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range", ""))
    return match is not None and int(match[1]) == offset and match[3] in ("*", str(file.size))


def _refusal(status: int) -> End:
    if status == 503:
        return End.BUSY
    return End.NO_MORE if status in (404, 416) else End.GONE
