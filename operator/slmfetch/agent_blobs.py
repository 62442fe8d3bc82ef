# SPDX-License-Identifier: Apache-2.0
"""Answers about one blob: whole from blobs/, or from partial/ as far as it has come."""

import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from slmfetch.agent_http import FileSpan, Reply, Request
from slmfetch.exchange import HAVE_HEADER, HEX, MARKER_SUFFIX, MAX_WAIT_SECONDS, STATE_HEADER, State
from slmfetch.partial import trusted_bytes
from slmfetch.store import Store, read_json, try_lock
from slmwire.paths import AGENT_BLOBS

_RANGE: Final = re.compile(r"bytes=(\d{1,15})-(\d{1,15})?")
_WAIT: Final = re.compile(r"(?:^|[,;\s])wait=(\d{1,4})\b")
POLL_SECONDS: Final = 0.05


def answer_blob(
    stores: Sequence[Store],
    request: Request,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Reply:
    """GET or HEAD of `/v1/blobs/sha256/<hex>`, from whichever store has most of it.

    A whole blob: 200, or 206 to one range. A partial: 206 with `Content-Range: bytes a-b/*` and what
    has come from `a` on, or 204 when that is nothing; with `Prefer: wait=N` a GET waits up to N
    seconds for more while a fetch is under way. X-Slm-State and X-Slm-Have are always there.
    """
    sha256 = request.path.removeprefix(AGENT_BLOBS)
    if not HEX.fullmatch(sha256):
        return Reply(status=400, body=b"name a blob by 64 lower-case hexadecimal digits\n")
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    start = int(wanted[1]) if wanted else 0
    end = int(wanted[2]) + 1 if wanted and wanted[2] else None
    waits = _WAIT.search(request.headers.get("prefer", "")) if request.method == "GET" else None
    deadline = clock() + (min(float(waits[1]), MAX_WAIT_SECONDS) if waits else 0.0)
    while True:
        found = _find(stores, sha256)
        if found is None:
            return Reply(status=404)
        if found.state is State.WHOLE:
            return _whole(found.fd, sha256, start=start, end=end, ranged=wanted is not None)
        if found.have > start or found.state is State.IDLE or clock() >= deadline:
            return _partial(found, start=start, end=end)
        os.close(found.fd)
        sleep(POLL_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A file that holds `have` bytes of the blob, open as `fd`."""

    fd: int
    state: State
    have: int


def _find(stores: Sequence[Store], sha256: str) -> _Found | None:
    """The whole blob, or the best partial."""
    partials: list[_Found] = []
    try:
        for store in stores:
            fd = _open_regular(store.partial / f"{sha256}.part")
            if fd is not None:
                state = observe_partial(store, sha256, fd)
                have = _arrived_bytes(store, sha256, fd, state)
                partials.append(_Found(fd=fd, state=state, have=have))
        # After the partials: a fetch that ends renames the one to the other.
        for store in stores:
            fd = _open_regular(store.blob(sha256))
            if fd is not None:
                return _Found(fd=fd, state=State.WHOLE, have=os.fstat(fd).st_size)
        if not partials:
            return None
        best = max(partials, key=lambda found: (found.state is State.SOURCE, found.have))
        partials.remove(best)
        return best
    finally:
        for found in partials:
            os.close(found.fd)


def observe_partial(store: Store, sha256: str, fd: int) -> State:
    """Who works on a partial, `fd` being its open .part file."""
    # Shared and for an instant only: a fetch that begins just now tries again.
    if try_lock(fd, fcntl.LOCK_SH):
        fcntl.flock(fd, fcntl.LOCK_UN)
        return State.IDLE
    taking = (store.partial / f"{sha256}{MARKER_SUFFIX}").exists()
    return State.PEERS if taking else State.SOURCE


def _arrived_bytes(store: Store, sha256: str, fd: int, state: State) -> int:
    """Bytes from the beginning on that can be given away."""
    size = os.fstat(fd).st_size
    if state is not State.IDLE:
        return size
    # After a power cut only what was synced is what it was; the fetch that resumes cuts off the rest.
    return min(size, trusted_bytes(read_json(store.partial / f"{sha256}.json") or {}, size))


def _open_regular(path: os.PathLike[str]) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _whole(fd: int, sha256: str, *, start: int, end: int | None, ranged: bool) -> Reply:
    size = os.fstat(fd).st_size
    headers = {
        STATE_HEADER: State.WHOLE,
        HAVE_HEADER: str(size),
        "ETag": f'"{sha256}"',
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    if not ranged:
        return Reply(status=200, headers=headers, body=FileSpan(fd=fd, offset=0, length=size))
    stop = min(size if end is None else end, size)
    if start >= stop:
        os.close(fd)
        return Reply(status=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Reply(status=206, headers=headers, body=FileSpan(fd=fd, offset=start, length=stop - start))


def _partial(found: _Found, *, start: int, end: int | None) -> Reply:
    headers = {STATE_HEADER: found.state, HAVE_HEADER: str(found.have), "Accept-Ranges": "bytes"}
    stop = found.have if end is None else min(end, found.have)
    if start >= stop:
        os.close(found.fd)
        return Reply(status=204, headers=headers)
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/*"
    return Reply(status=206, headers=headers, body=FileSpan(fd=found.fd, offset=start, length=stop - start))
