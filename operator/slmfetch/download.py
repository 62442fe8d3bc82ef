# SPDX-License-Identifier: Apache-2.0
"""Brings one file into the store: waits for others, resumes, retries, verifies, publishes."""

import hashlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from slmfetch.config import Settings
from slmfetch.errors import FetchError, IntegrityError, TransferError
from slmfetch.log import Progress, log, plain_url
from slmfetch.partial import MAX_RETRY_AFTER_SECONDS, Partial, open_partial
from slmfetch.quarantine import SAMPLE_BYTES, add_record, clear_record, read_record
from slmfetch.store import CHUNK_BYTES, Store, wait_for_lock
from slmwire.manifest import ManifestFile
from slmwire.reasons import Reason

if TYPE_CHECKING:
    from slmfetch.network import Network

BACKOFF_SECONDS: Final = 0.5
MAX_BACKOFF_SECONDS: Final = 30.0
PROGRESS_BYTES: Final = 64 << 10
"""An attempt that brought this much (or the rest of the file) counts as progress."""
EMPTY_SHA256: Final = hashlib.sha256().hexdigest()


@dataclass(slots=True, kw_only=True)
class Downloader:
    """Downloads into one store within one run's bounds."""

    store: Store
    settings: Settings
    deadline: float
    """`time.monotonic()` at which the run gives up."""
    bytes_downloaded: int = 0
    sleep: Callable[[float], None] = field(default=time.sleep)
    _network: "Network | None" = None

    def obtain(self, file: ManifestFile) -> None:
        """Make the file a verified blob; does nothing if it is one. Raises FetchError."""
        while not self.store.check_blob(file):
            partial = self._claim(file)
            if partial is None:
                continue  # another fetch finished it meanwhile
            try:
                if not self.store.check_blob(file):
                    self._fill(file, partial)
            finally:
                partial.close()

    def _claim(self, file: ManifestFile) -> Partial | None:
        claimed: list[Partial] = []

        def attempt() -> bool:
            partial = open_partial(self.store, file)
            if partial is not None:
                claimed.append(partial)
                return True
            return self.store.blob(file.sha256).exists()

        wait_for_lock(attempt, deadline=self.deadline, what=file.path)
        return claimed[0] if claimed else None

    def _fill(self, file: ManifestFile, partial: Partial) -> None:
        self._check_hold_off(file)
        partial.restore()
        for again in (True, False):
            if file.url.startswith("file:"):
                self._copy(file, partial)
            elif file.size:
                self._download(file, partial)
            actual = partial.publish()
            if not actual:
                clear_record(self.store, file.sha256)
                log("fetched and verified", file=file.path, bytes=file.size, sha256=file.sha256)
                return
            log(
                "bytes do not match, they are deleted",
                level="warning",
                file=file.path,
                expected=file.sha256,
                actual=actual,
                again=again,
            )
            sample = partial.sample(SAMPLE_BYTES)
            partial.reset()
        partial.remove()
        record = add_record(self.store, file, actual_sha256=actual, sample=sample)
        raise IntegrityError(_mismatch(file, actual, record.failures))

    def _check_hold_off(self, file: ManifestFile) -> None:
        record = read_record(self.store, file.sha256)
        wait = record.hold_off_seconds(file, time.time()) if record else 0.0
        if record is not None and wait > 0:
            raise IntegrityError(
                _mismatch(file, record.actual_sha256, record.failures) + f"; tried again in {wait:.0f} s"
            )

    def _copy(self, file: ManifestFile, partial: Partial) -> None:
        from slmfetch.localfile import open_local

        partial.reset()
        fd = open_local(file.url, size=file.size, offset=file.offset, roots=self.settings.file_roots)
        try:
            buffer = bytearray(CHUNK_BYTES)
            view = memoryview(buffer)
            progress = Progress(file=file.path, total_bytes=file.size, start_bytes=0)
            # Only so many: with an offset, the file goes on behind.
            while count := os.readv(fd, [view[: file.size - partial.offset]]):
                partial.write(view[:count])
                self.bytes_downloaded += count
                progress.update(partial.offset)
        except OSError as error:
            raise FetchError(Reason.SOURCE_UNAVAILABLE, f"{plain_url(file.url)}: {error.strerror}") from error
        finally:
            os.close(fd)

    def _download(self, file: ManifestFile, partial: Partial) -> None:
        """Until the partial has the file's size; its bytes are not verified yet."""
        wait = partial.hold_off_seconds(_identity(file.url), time.time())
        if wait > 0:
            asked = TransferError(
                Reason.RATE_LIMITED,
                f"{plain_url(file.url)} asked not to be called for another {wait:.0f} s",
                retryable=True,
                retry_after_seconds=wait,
            )
            self._wait(file, partial, asked, failures=1)
        failures, best = 0, partial.offset
        while partial.offset < file.size:
            try:
                self._attempt(file, partial)
            except TransferError as error:
                if not error.retryable:
                    raise TransferError(
                        error.reason, f"{file.path}: {error.message}", retryable=False
                    ) from error
                if partial.offset >= min(best + PROGRESS_BYTES, file.size):
                    failures, best = 0, partial.offset
                failures += 1
                self._wait(file, partial, error, failures=failures)

    def _attempt(self, file: ManifestFile, partial: Partial) -> None:
        from slmfetch.transfer import Request, open_body

        network = self._connect()
        origin = _identity(file.url)
        same = partial.origin == origin
        request = Request(
            url=file.url,
            size=file.size,
            base=file.offset,
            start=partial.offset,
            etag=partial.etag if same else "",
        )
        try:
            body = open_body(request, network.session, network.access)
        except TransferError as error:
            if error.stale:
                partial.reset()
            raise
        try:
            changed = bool(body.start and same and partial.etag and body.etag and body.etag != partial.etag)
            if changed:
                partial.reset()
                raise TransferError(
                    Reason.SOURCE_UNAVAILABLE,
                    f"{plain_url(file.url)} changed while it was fetched",
                    retryable=True,
                )
            if body.start != partial.offset:
                log("the source starts over", level="warning", file=file.path, had=partial.offset)
                partial.reset()
            partial.describe(etag=body.etag, origin=origin)
            self._receive(file, partial, body.read_some)
        finally:
            body.close()
        if partial.offset < file.size:
            raise TransferError(
                Reason.SOURCE_UNAVAILABLE,
                f"{plain_url(file.url)} hung up after {partial.offset} of {file.size} bytes",
                retryable=True,
            )

    def _connect(self) -> "Network":
        """Made when it is needed first: a cached model starts without the modules behind it."""
        if self._network is None:
            from slmfetch.network import Network

            self._network = Network(self.settings)
        return self._network

    def _receive(self, file: ManifestFile, partial: Partial, read_some: Callable[[int], bytes]) -> None:
        progress = Progress(file=file.path, total_bytes=file.size, start_bytes=partial.offset)
        while data := read_some(CHUNK_BYTES):
            partial.write(memoryview(data))
            self.bytes_downloaded += len(data)
            progress.update(partial.offset)
            if time.monotonic() >= self.deadline and partial.offset < file.size:
                raise self._out_of_time(file, partial, "the source is too slow")

    def _wait(self, file: ManifestFile, partial: Partial, error: TransferError, *, failures: int) -> None:
        """Sleep before the next attempt, or give up with a message that says how far we got."""
        if failures >= self.settings.attempts:
            raise FetchError(
                error.reason,
                f"{file.path}: gave up after {failures} attempts without progress at {partial.offset} of "
                f"{file.size} bytes: {error.message}; what is here is kept and resumed",
            )
        ceiling = min(BACKOFF_SECONDS * 2.0 ** (failures - 1), MAX_BACKOFF_SECONDS)
        # Jitter, so that a site's nodes do not all come back at the same moment.
        delay = ceiling * random.uniform(0.5, 1.0)
        if error.retry_after_seconds is not None:
            asked = min(error.retry_after_seconds, MAX_RETRY_AFTER_SECONDS)
            delay = asked + random.uniform(0.0, 1.0) * min(ceiling, 2.0)
            partial.hold_off(time.time() + delay, origin=_identity(file.url))
            if delay > self.settings.max_wait_seconds:
                raise FetchError(error.reason, f"{file.path}: {error.message}; it is not called before that")
        if time.monotonic() + delay >= self.deadline:
            raise self._out_of_time(file, partial, error.message, reason=error.reason)
        log(
            "trying again",
            level="warning",
            file=file.path,
            bytes=partial.offset,
            total=file.size,
            seconds=round(delay, 1),
            why=error.message,
        )
        self.sleep(delay)

    def _out_of_time(
        self, file: ManifestFile, partial: Partial, why: str, *, reason: Reason = Reason.SOURCE_UNAVAILABLE
    ) -> FetchError:
        return FetchError(
            reason,
            f"{file.path}: not done within {self.settings.timeout_seconds:.0f} s, {partial.offset} of "
            f"{file.size} bytes are here and kept: {why}",
        )


def _identity(url: str) -> str:
    """Tells sources apart without storing the URL, which may hold a signature."""
    return hashlib.sha256(url.partition("?")[0].encode()).hexdigest()[:16]


def _mismatch(file: ManifestFile, actual: str, failures: int) -> str:
    return (
        f"{file.path} from {plain_url(file.url)}: sha256 is {actual}, the manifest promises {file.sha256} "
        f"({file.size} bytes; failed {failures} times); it is not used; repair the source or pin what it has"
    )
