# SPDX-License-Identifier: Apache-2.0
"""How far a fetch is, in a file that the node's agent shows; also one line in the log now and then."""

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from slmfetch.config import Owner
from slmfetch.log import Progress
from slmfetch.store import TEMP_PREFIX, Store, discard, scan
from slmwire.manifest import ManifestFile

WRITE_SECONDS: Final = 2.0
SPEED_SECONDS: Final = 20.0
"""What the speed is the mean of."""


class From(StrEnum):
    """Who gives the bytes just now."""

    SOURCE = "source"
    PEERS = "peers"


def progress_path(store: Store, owner: Owner, revision: str) -> Path:
    """Where a fetch says how far it is."""
    return store.root / "progress" / f"{owner.key}.{revision}.json"


def clear_progress(path: Path) -> None:
    """Nothing is under way any more; what an earlier process left goes too."""
    with suppress(OSError):
        for entry in scan(path.parent):
            temp = entry.name.startswith(TEMP_PREFIX) and entry.name.endswith(f"-{path.name}")
            if temp or entry.name == path.name:
                discard(Path(entry.path))


@dataclass(slots=True, kw_only=True)
class Tally:
    """Bytes that a run has moved; several threads may add to it."""

    from_source: int = 0
    from_peers: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, count: int, origin: From) -> None:
        """Note bytes that came."""
        with self._lock:
            if origin is From.PEERS:
                self.from_peers += count
            else:
                self.from_source += count

    @property
    def downloaded(self) -> int:
        """Bytes from wherever."""
        return self.from_source + self.from_peers


@dataclass(slots=True, kw_only=True)
class Reporter:
    """Writes the file at most every 2 s; `clear_progress` removes it.

    `bytes` and `total` in it are those of all the model's files that were missing when the fetch began;
    `bytesPerSecond` is the mean of the last 20 s, `secondsLeft` null while nothing comes.
    """

    path: Path | None
    """None writes nothing."""
    total_bytes: int
    tally: Tally
    clock: Callable[[], float] = time.monotonic
    _done_bytes: int = 0
    """Of files that are finished."""
    _file: ManifestFile | None = None
    _line: Progress | None = None
    _have: int = 0
    _written_at: float = float("-inf")
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._samples.append((self.clock(), self.tally.downloaded))

    def begin(self, file: ManifestFile, have: int) -> None:
        """The file that comes next, of which `have` bytes are here."""
        self._file = file
        self._line = Progress(file=file.path, total_bytes=file.size, start_bytes=have, clock=self.clock)
        self.update(have, From.SOURCE)

    def update(self, have: int, origin: From) -> None:
        """`have` bytes of the file are here; `origin` is who gives them. Cheap to call often."""
        if self._file is None or self._line is None:
            return
        self._have = have
        self._line.update(have)
        now = self.clock()
        if now - self._written_at >= WRITE_SECONDS:
            self._written_at = now
            self._write(self._file, have, origin, now)

    def advance(self, count: int, origin: From) -> None:
        """`count` more bytes of the file are here."""
        self.update(self._have + count, origin)

    def end(self, file: ManifestFile) -> None:
        """The file is complete, whoever brought it."""
        self._done_bytes += file.size
        self._file = None

    def _write(self, file: ManifestFile, have: int, origin: From, now: float) -> None:
        if self.path is None:
            return
        done = self._done_bytes + have
        samples = self._samples
        samples.append((now, self.tally.downloaded))
        while len(samples) > 2 and now - samples[0][0] > SPEED_SECONDS:
            samples.popleft()
        seconds = now - samples[0][0]
        speed = (samples[-1][1] - samples[0][1]) / seconds if seconds > 0 else 0.0
        body = {
            "file": file.path,
            "bytes": done,
            "total": self.total_bytes,
            "bytesPerSecond": round(speed),
            "secondsLeft": round((self.total_bytes - done) / speed) if speed > 0 else None,
            "from": origin.value,
            "bytesFromSource": self.tally.from_source,
            "bytesFromPeers": self.tally.from_peers,
            "at": time.time(),
        }
        temp = self.path.with_name(f"{TEMP_PREFIX}{os.getpid()}-{self.path.name}")
        # Not synced, and no reason to fail: after a crash it says nothing any more.
        try:
            self.path.parent.mkdir(mode=0o755, exist_ok=True)
            temp.write_text(json.dumps(body, separators=(",", ":")))
            temp.replace(self.path)
        except OSError:
            with suppress(OSError):
                temp.unlink()
