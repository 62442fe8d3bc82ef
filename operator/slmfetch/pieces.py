# SPDX-License-Identifier: Apache-2.0
"""Parts of one file that several connections bring at once, put in order."""

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from slmfetch.partial import Partial
from slmfetch.store import CHUNK_BYTES, discard

WINDOW_PIECES: Final = 8
"""How many pieces ahead of the first missing byte may be fetched."""
STALE_SECONDS: Final = 5.0
"""A piece that has not moved for so long is taken over by who has nothing to do."""


class Closed(Exception):
    """Nothing is written any more; other threads hear it when the main one has given up."""


@dataclass(slots=True, kw_only=True)
class Piece:
    """Bytes [at, end) of the file are still to come."""

    at: int
    end: int
    moved_at: float
    """`time.monotonic()` of the last byte, or of when somebody began."""
    run: "Run | None" = None
    fd: int = -1


@dataclass(slots=True, kw_only=True)
class Run:
    """Bytes on disk ahead of the partial: `length` of them, behind `skip` that are not needed."""

    path: Path
    length: int = 0
    skip: int = 0


@dataclass(slots=True)
class Pieces:
    """What comes in order goes straight into the partial. What comes ahead of it goes into a file of its
    own beside it, named by where it begins, so that a killed process loses no byte that it had read; it
    moves into the partial when its turn comes, mostly before the kernel has put it on disk.

    So the partial's own file has no holes: its length says how far the blob has come.
    """

    partial: Partial
    size: int
    piece_bytes: int
    _todo: list[Piece] = field(default_factory=list)
    _busy: list[Piece] = field(default_factory=list)
    _runs: dict[int, Run] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _taking: bool = True
    _open: bool = True
    _failed: bool = False

    def __post_init__(self) -> None:
        with self._changed:
            self._restore()
            self._drain()
            position = self.partial.offset
            for start in sorted(self._runs):
                self._plan(position, start)
                position = start + self._runs[start].length
            self._plan(position, self.size)

    @property
    def have(self) -> int:
        """Bytes of the file that are here, in order or ahead."""
        with self._changed:
            return self.partial.offset + sum(run.length for run in self._runs.values())

    @property
    def complete(self) -> bool:
        """Whether the partial has the file's size, and all of it could be written."""
        return self.partial.offset >= self.size and not self._failed

    def take(self) -> Piece | None:
        """The first piece that nobody brings, or one that does not move; None when that is it.

        Waits while others bring all there is, or what is left is too far ahead.
        """
        window = self.piece_bytes * WINDOW_PIECES
        with self._changed:
            while self._taking:
                if self._todo and self._todo[0].at < self.partial.offset + window:
                    return self._begin(self._todo.pop(0))
                if not self._busy or self.complete:
                    return None
                oldest = min(self._busy, key=lambda piece: piece.moved_at)
                idle = time.monotonic() - oldest.moved_at
                if idle >= STALE_SECONDS:
                    # Whoever brings it finds it complete when its connection moves again, or ends.
                    rest = Piece(at=oldest.at, end=oldest.end, moved_at=0.0)
                    oldest.end, oldest.moved_at = oldest.at, float("inf")
                    return self._begin(rest)
                self._changed.wait(max(min(STALE_SECONDS - idle, STALE_SECONDS), 0.0))
            return None

    def _begin(self, piece: Piece) -> Piece:
        piece.moved_at = time.monotonic()
        self._busy.append(piece)
        return piece

    def write(self, piece: Piece, data: memoryview) -> None:
        """Add bytes at `piece.at`, at most up to its end. Closed after `close`; FetchError by the disk."""
        with self._changed:
            if not self._open:
                raise Closed
            data = data[: piece.end - piece.at]
            if not data:
                return
            piece.moved_at = time.monotonic()
            try:
                self._write(piece, data)
            except BaseException:
                # Nobody writes after that: a full disk has cost the partial, and nothing may be left.
                self._taking = self._open = False
                self._failed = True
                self._changed.notify_all()
                raise

    def release(self, piece: Piece) -> None:
        """Done with a piece; what is missing of it is for somebody else."""
        with self._changed:
            if piece.fd >= 0:
                os.close(piece.fd)
            self._busy = [other for other in self._busy if other is not piece]
            if piece.at < piece.end:
                self._todo.append(Piece(at=piece.at, end=piece.end, moved_at=0.0))
                self._todo.sort(key=lambda other: other.at)
            self._changed.notify_all()

    def stop_taking(self) -> None:
        """Let pieces that are on their way come in, and begin no others."""
        with self._changed:
            self._taking = False
            self._changed.notify_all()

    def close(self) -> None:
        """After this nothing touches the disk."""
        with self._changed:
            self._taking = self._open = False
            self._changed.notify_all()

    def _plan(self, start: int, end: int) -> None:
        for position in range(start, end, self.piece_bytes):
            stop = min(position + self.piece_bytes, end)
            self._todo.append(Piece(at=position, end=stop, moved_at=0.0))

    def _restore(self) -> None:
        position = self.partial.offset
        for start, path in sorted(self.partial.list_ahead().items()):
            length = path.lstat().st_size
            # An earlier life may have been killed while it moved this run into the partial.
            skip = max(position - start, 0) if not self._runs else 0
            if length <= skip or start + skip < position or start + length > self.size:
                discard(path)
                continue
            self._runs[start + skip] = Run(path=path, length=length - skip, skip=skip)
            position = start + length

    def _write(self, piece: Piece, data: memoryview) -> None:
        if piece.at == self.partial.offset:
            self.partial.write(data)
            piece.at += len(data)
            self._drain()
            self._changed.notify_all()
            return
        try:
            self._write_ahead(piece, data)
        except OSError as error:
            raise self.partial.explain(error) from error

    def _write_ahead(self, piece: Piece, data: memoryview) -> None:
        if piece.run is None:
            path = self.partial.ahead_path(piece.at)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            piece.fd = os.open(path, flags, 0o600)
            piece.run = self._runs[piece.at] = Run(path=path)
        while data:
            count = os.write(piece.fd, data)
            piece.run.length += count
            piece.at += count
            data = data[count:]

    def _drain(self) -> None:
        """Move what has become the next bytes of the file."""
        while (run := self._runs.pop(self.partial.offset, None)) is not None:
            fd = os.open(run.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.lseek(fd, run.skip, os.SEEK_SET)
                buffer = bytearray(min(CHUNK_BYTES, run.length))
                view = memoryview(buffer)
                left = run.length
                while left and (count := os.readv(fd, [view[: min(len(view), left)]])):
                    self.partial.write(view[:count])
                    left -= count
            finally:
                os.close(fd)
            with suppress(FileNotFoundError):
                run.path.unlink()
