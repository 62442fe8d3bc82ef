# SPDX-License-Identifier: Apache-2.0
"""The folder of examples: what users corrected, redacted, in files whose names say when they expire.

Each file takes the examples of one stretch of time and expires `retention` after its begin, so nothing is
kept for longer than that. Pods of two revisions may share the folder for a while: every operation holds a
lock on it and looks at what is there. For one thread at a time; everything here may wait for a disk.
"""

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from slmserve.redact import Redactor
from slmwire.examples import ExampleSettings, expiry_of, file_name

_FILES: Final = 48
"""Stretches of time in a retention."""
_MOST_BYTES: Final = 64 << 20
_LARGE_BYTES: Final = 1 << 20
"""A file from which a sixteenth goes at least: it is written anew, and flash wears out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """Examples that went, by why."""

    expired: int = 0
    over_limit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    path: Path
    expires_at: float
    size: int
    lines: int


class ExampleStore:
    """Appends and removes; `count` is how many examples there were after the last operation.

    A damaged line counts as an example until it goes.
    """

    def __init__(
        self, folder: Path, settings: ExampleSettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Raises ValueError for settings that cannot be followed."""
        self._folder, self._settings, self._clock = folder, settings, clock
        self._redactor = Redactor(settings)
        self._known: dict[str, tuple[int, int, int]] = {}
        """Name -> (inode, size, lines), so that only files that changed are read again."""
        self.count = 0

    def add(self, messages: Sequence[Mapping[str, str]], expected: str) -> Removed:
        """Redact and append one example (`messages` with `role` and `content`).

        Raises redact.RedactionError or OSError, and then nothing of it is kept.
        """
        *contents, answer = self._redactor.apply([*(m["content"] for m in messages), expected])
        cleaned = [
            {"role": m["role"], "content": content} for m, content in zip(messages, contents, strict=True)
        ]
        now = self._clock()
        row = {"messages": cleaned, "expected": answer, "at": round(now, 3)}
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
        with self._locked():
            expired = self._remove_expired(now)
            dropped = self._make_room(lines=1, size=len(line))
            self._append(now, line)
            self.count = sum(file.lines for file in self._survey())
        return Removed(expired=expired, over_limit=dropped)

    def tidy(self) -> Removed:
        """Remove what has expired, or what newer settings forbid; raises OSError."""
        now = self._clock()
        with self._locked():
            expired = self._remove_expired(now) + self._shorten(now)
            dropped = self._make_room(lines=0, size=0)
            self.count = sum(file.lines for file in self._survey())
        return Removed(expired=expired, over_limit=dropped)

    @property
    def retention_seconds(self) -> int:
        """How long an example may be kept."""
        return self._settings.retention_seconds

    @property
    def _width(self) -> int:
        """Seconds whose examples share a file."""
        return max(2, self._settings.retention_seconds // _FILES)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _survey(self) -> list[_File]:
        """All files of examples, the first to expire first."""
        found, known = [], {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                # Whoever looks after the store removes what has expired, and holds no lock.
                with contextlib.suppress(FileNotFoundError):
                    expires_at = expiry_of(entry.name)
                    info = entry.stat(follow_symlinks=False)
                    if expires_at is None or not stat.S_ISREG(info.st_mode):
                        continue
                    before = self._known.get(entry.name)
                    if before is None or before[:2] != (info.st_ino, info.st_size):
                        before = info.st_ino, info.st_size, len(_lines(Path(entry.path)))
                    known[entry.name] = before
                    path, lines = Path(entry.path), before[2]
                    found.append(_File(path=path, expires_at=expires_at, size=info.st_size, lines=lines))
        self._known = known
        return sorted(found, key=lambda file: file.expires_at)

    def _remove_expired(self, now: float) -> int:
        gone = [file for file in self._survey() if file.expires_at <= now]
        for file in gone:
            file.path.unlink(missing_ok=True)
        return sum(file.lines for file in gone)

    def _shorten(self, now: float) -> int:
        """Sort again what a longer retention, or a clock that was wrong, has given too much time."""
        gone = 0
        for file in self._survey():
            if file.expires_at <= now + self._settings.retention_seconds:
                continue
            lines = _lines(file.path)
            file.path.unlink(missing_ok=True)
            for line in lines:
                at = _time_of(line)
                if at is not None and now - self._settings.retention_seconds < at <= now + self._width:
                    self._append(min(at, now), line + b"\n")
                else:
                    gone += 1
        return gone

    def _make_room(self, *, lines: int, size: int) -> int:
        """Remove the oldest until there is room for `lines` more; returns how many went."""
        gone = 0
        while files := self._survey():
            over = sum(file.lines for file in files) + lines - self._settings.max_examples
            if sum(file.size for file in files) + size > _MOST_BYTES:
                over = max(over, 1 + files[0].lines // 2)
            if over <= 0:
                break
            if files[0].size > _LARGE_BYTES:
                over = max(over, files[0].lines // 16)
            gone += self._drop(files[0], over)
        return gone

    def _drop(self, file: _File, most: int) -> int:
        """Remove the first lines of a file, at most `most`; what is left appears as a whole."""
        lines = _lines(file.path)
        if len(lines) <= most:
            file.path.unlink()
            return len(lines)
        # A name of the same kind: should the process end here, it is removed in time as any other.
        rest = self._folder / file_name(file.expires_at - 1)
        rest.unlink(missing_ok=True)
        _write(rest, b"".join(line + b"\n" for line in lines[most:]))
        rest.rename(file.path)
        return most

    def _append(self, at: float, line: bytes) -> None:
        begin = at // self._width * self._width
        _write(self._folder / file_name(begin + self._settings.retention_seconds), line)


def _write(path: Path, data: bytes) -> None:
    """Append all or nothing, readable for this user only; raises OSError."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data  # behind a line that was cut off
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
                if not size:
                    path.unlink()
            raise
    finally:
        os.close(descriptor)


def _lines(path: Path) -> list[bytes]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        return [line for line in file.read().split(b"\n") if line]


def _time_of(line: bytes) -> float | None:
    try:
        body: Any = json.loads(line)
        return float(body["at"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
