# SPDX-License-Identifier: Apache-2.0
"""Several connections that bring one large file."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from slmfetch.connect import Session
from slmfetch.errors import TransferError
from slmfetch.network import Network
from slmfetch.pieces import Closed, Piece, Pieces
from slmfetch.store import CHUNK_BYTES
from slmfetch.transfer import Request, open_body
from slmwire.manifest import ManifestFile
from slmwire.reasons import Reason

PROGRESS_BYTES: Final = 64 << 10
RETRY_SECONDS: Final = 0.2
LOOK_SECONDS: Final = 0.5
END_SECONDS: Final = 5.0
LEAST_RATE: Final = 64 << 10
"""Under a lower limit one connection does: several would wait so long for their turn that each piece looked
stuck and was asked for again, and what the kernel had taken of it came twice."""


@dataclass(slots=True, kw_only=True)
class Crew:
    """Threads that take pieces until there are none, each with its own connection.

    A thread whose connection breaks after some progress goes on; one that gets nowhere ends, so what a
    source cannot bear it gets less of. What went wrong is told when the last has ended. When a source
    asks to wait, pieces that are on their way come in and no others are begun.
    """

    file: ManifestFile
    pieces: Pieces
    etag: str
    network: Network
    size: int
    """Threads."""
    count: Callable[[int], None]
    """Told of bytes that came, by any thread."""
    _errors: list[Exception] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)
    _working: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)
    _sessions: list[Session] = field(default_factory=list)

    def run(self, look: Callable[[], None]) -> None:
        """Until all is here, or nobody goes on: then the error that weighs most. `look` is called now and
        then and may raise to end it all."""
        threads = []
        rate = self.network.pace.rate()
        for _ in range(1 if 0 < rate < LEAST_RATE else self.size):
            session = self.network.open_session()
            self._sessions.append(session)
            threads.append(threading.Thread(target=self._work, args=(session,), daemon=True))
        self._working = len(threads)
        try:
            for thread in threads:
                thread.start()
            while self._working and not self.pieces.complete:
                self._ended.wait(LOOK_SECONDS)
                self._ended.clear()
                look()
        finally:
            self._end(threads)
        if not self.pieces.complete:
            raise self._worst()

    def _end(self, threads: list[threading.Thread]) -> None:
        self._stopping.set()
        self.pieces.close()
        for session in self._sessions:
            session.abort()
        deadline = time.monotonic() + END_SECONDS
        for thread in threads:
            # One that still connects cannot be woken; it finds the pieces closed.
            thread.join(max(deadline - time.monotonic(), 0.0))

    def _work(self, session: Session) -> None:
        try:
            while (piece := self.pieces.take()) is not None:
                try:
                    self._bring(piece, session)
                finally:
                    self.pieces.release(piece)
        except Closed:
            pass
        except TransferError as error:
            self._note(error)
            if not error.retryable or error.stale or error.retry_after_seconds is not None:
                self.pieces.stop_taking()
            if not error.retryable or error.stale:
                self._stop()
        except Exception as error:
            self._note(error)
            self._stop()
        finally:
            session.close()
            with self._counting:
                self._working -= 1
            self._ended.set()

    def _note(self, error: Exception) -> None:
        # What a connection says that we hang up ourselves is no news.
        if not self._stopping.is_set():
            self._errors.append(error)

    def _stop(self) -> None:
        self._stopping.set()
        self.pieces.close()
        for session in self._sessions:
            session.abort()

    def _bring(self, piece: Piece, session: Session) -> None:
        while piece.at < piece.end:
            before = piece.at
            try:
                self._receive(piece, session)
            except TransferError as error:
                gained = piece.at - before >= PROGRESS_BYTES
                if not error.retryable or error.retry_after_seconds is not None or not gained:
                    raise
                # Jitter, so that the connections do not come back at the same moment.
                if self._stopping.wait(RETRY_SECONDS * random.uniform(0.5, 1.0)):
                    raise

    def _receive(self, piece: Piece, session: Session) -> None:
        request = Request(
            url=self.file.url,
            size=self.file.size,
            base=self.file.offset,
            start=piece.at,
            end=piece.end,
            etag=self.etag,
        )
        body = open_body(request, session, self.network.access)
        try:
            if not body.ranged or (self.etag and body.etag and body.etag != self.etag):
                raise TransferError(
                    Reason.SOURCE_UNAVAILABLE,
                    f"{self.file.path} changed at its source while it was fetched",
                    retryable=True,
                    stale=True,
                )
            while (most := min(CHUNK_BYTES, piece.end - piece.at)) > 0:
                data = body.read_some(self.network.pace.read_bytes(most))
                if not data:
                    raise TransferError(
                        Reason.SOURCE_UNAVAILABLE,
                        f"the source of {self.file.path} hung up at byte {piece.at}",
                        retryable=True,
                    )
                self.pieces.write(piece, memoryview(data))
                self.count(len(data))
                self.network.pace.pay(len(data), self._stopping.wait)
        finally:
            body.close()

    def _worst(self) -> Exception:
        """What is not of the network, then what is final, then what asks for the longest wait."""

        def weight(error: Exception) -> tuple[bool, bool, float]:
            if not isinstance(error, TransferError):
                return True, True, 0.0
            return False, not error.retryable or error.stale, error.retry_after_seconds or 0.0

        if not self._errors:
            return TransferError(Reason.SOURCE_UNAVAILABLE, f"{self.file.path} did not come", retryable=True)
        return max(self._errors, key=weight)
