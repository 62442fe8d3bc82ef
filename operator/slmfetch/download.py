# SPDX-License-Identifier: Apache-2.0
"""Brings one file into the store: waits for others, resumes, retries, verifies, publishes."""

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from slmfetch.config import Settings
from slmfetch.errors import FetchError, IntegrityError, TransferError
from slmfetch.log import log, plain_url
from slmfetch.pace import DistributionFile, Pace
from slmfetch.partial import MAX_RETRY_AFTER_SECONDS, Partial, open_partial
from slmfetch.peers import Peers
from slmfetch.progress import From, Reporter, Tally
from slmfetch.quarantine import SAMPLE_BYTES, add_record, clear_record, read_record
from slmfetch.room import NoRoom, RoomWatch, promised_bytes
from slmfetch.store import CHUNK_BYTES, Store, wait_for_lock
from slmfetch.tactics import PROGRESS_BYTES, Tactics, identity_of
from slmwire.manifest import STORE_URL, ManifestFile
from slmwire.reasons import Reason

if TYPE_CHECKING:
    from slmfetch.network import Network

BACKOFF_SECONDS: Final = 0.5
MAX_BACKOFF_SECONDS: Final = 30.0


@dataclass(slots=True, kw_only=True)
class Downloader:
    """Downloads into one store within one run's bounds."""

    store: Store
    settings: Settings
    deadline: float
    """`time.monotonic()` at which the run gives up."""
    tally: Tally
    reporter: Reporter
    sleep: Callable[[float], None] = field(default=time.sleep)
    _network: "Network | None" = None
    distribution: DistributionFile = field(init=False)
    """Limits and peers as they are now."""
    _pace: Pace = field(init=False)
    _peers: Peers = field(init=False)
    _room: RoomWatch = field(init=False)
    _connections: int = field(init=False)
    """For the files to come; fewer once a source could not bear so many."""

    def __post_init__(self) -> None:
        self._connections = self.settings.connections
        self._room = RoomWatch(self.store, self.settings)
        self.distribution = DistributionFile(self.settings.distribution_file)
        self._pace = Pace(lambda: self.distribution.current().rate_limit_bytes_per_second)
        self._peers = Peers(
            store=self.store,
            node=self.settings.node,
            distribution=self.distribution.current,
            deadline=self.deadline,
            received=self._count_from_peers,
            sleep=self.sleep,
        )

    def close(self) -> None:
        """Hang up."""
        if self._network is not None:
            self._network.session.close()

    def obtain(self, file: ManifestFile) -> None:
        """Make the file a verified blob; does nothing if it is one. Raises FetchError."""
        while not self.store.check_blob(file):
            partial = self._claim(file)
            if partial is None:
                continue  # another fetch finished it meanwhile
            try:
                if not self.store.check_blob(file):
                    self._fill(file, partial)
            except NoRoom:
                # Of two that do not fit together, one makes room; it comes back when the other is done.
                if promised_bytes(self.store, except_for={file.sha256}):
                    partial.remove()
                raise
            finally:
                partial.close()
        self.reporter.end(file)

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
        self.reporter.begin(file, partial.have)
        if file.url == STORE_URL:
            self._search(file, partial)
            return
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
            self._peers.blame(file)
            sample = partial.sample(SAMPLE_BYTES)
            partial.reset()
        partial.remove()
        record = add_record(self.store, file, actual_sha256=actual, sample=sample)
        raise IntegrityError(_mismatch(file, actual, record.failures))

    def _search(self, file: ManifestFile, partial: Partial) -> None:
        """No connection but to store agents: nothing else has the file."""
        from slmfetch.search import search_site

        search_site(
            file,
            partial,
            store=self.store,
            peers=self._peers,
            pause=lambda error, failures: self._wait(file, partial, error, failures=failures),
        )

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
            # Only so many: with an offset, the file goes on behind.
            while count := os.readv(fd, [view[: file.size - partial.offset]]):
                partial.write(view[:count])
                self._count(count)
                self.reporter.update(partial.offset, From.SOURCE)
        except OSError as error:
            raise FetchError(Reason.SOURCE_UNAVAILABLE, f"{plain_url(file.url)}: {error.strerror}") from error
        finally:
            os.close(fd)

    def _download(self, file: ManifestFile, partial: Partial) -> None:
        """Until the partial has the file's size; its bytes are not verified yet."""
        self._peers.fill(file, partial)
        if partial.offset >= file.size:
            return
        wait = partial.hold_off_seconds(identity_of(file.url), time.time())
        if wait > 0:
            asked = TransferError(
                Reason.RATE_LIMITED,
                f"{plain_url(file.url)} asked not to be called for another {wait:.0f} s",
                retryable=True,
                retry_after_seconds=wait,
            )
            self._wait(file, partial, asked, failures=1)
        tactics = Tactics(connections=self._connections)
        failures, best = 0, partial.have
        while partial.offset < file.size:
            try:
                if tactics.may_split(file, partial):
                    self._attempt_split(file, partial, tactics)
                else:
                    self._attempt(file, partial, tactics)
            except TransferError as error:
                if not error.retryable:
                    raise TransferError(
                        error.reason, f"{file.path}: {error.message}", retryable=False
                    ) from error
                have = partial.have
                if have >= min(best + PROGRESS_BYTES, file.size):
                    failures, best = 0, have
                failures += 1
                self._wait(file, partial, error, failures=failures)
                self._peers.fill(file, partial)

    def _attempt(self, file: ManifestFile, partial: Partial, tactics: Tactics) -> None:
        """One connection for the rest; for a first piece, where others may help after that."""
        from slmfetch.transfer import Request, is_content_addressed, open_body

        network = self._connect()
        origin = identity_of(file.url)
        same = partial.origin == origin
        end = tactics.probe_end(file, partial)
        partial.discard_ahead()
        request = Request(
            url=file.url,
            size=file.size,
            base=file.offset,
            start=partial.offset,
            end=end,
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
            # A registry's digest says more than any validator, and its mirrors may each have their own.
            fixed = is_content_addressed(file.url)
            partial.describe(etag="" if fixed else body.etag, origin=origin)
            if end and body.ranged and (fixed or body.etag):
                partial.allow_splits()
            stop = end if end and body.ranged else file.size
            self._receive(file, partial, body.read_some, stop=stop)
        finally:
            body.close()
        if partial.offset < stop:
            raise TransferError(
                Reason.SOURCE_UNAVAILABLE,
                f"{plain_url(file.url)} hung up after {partial.offset} of {file.size} bytes",
                retryable=True,
            )

    def _attempt_split(self, file: ManifestFile, partial: Partial, tactics: Tactics) -> None:
        """Several connections for the rest."""
        from slmfetch.parallel import Crew
        from slmfetch.pieces import Pieces

        pieces = Pieces(partial, file.size, tactics.piece_bytes)
        crew = Crew(
            file=file,
            pieces=pieces,
            etag=partial.etag,
            network=self._connect(),
            size=tactics.connections,
            count=self._count,
        )

        def look() -> None:
            self.reporter.update(pieces.have, From.SOURCE)
            if time.monotonic() >= self.deadline and not pieces.complete:
                raise self._out_of_time(file, partial, "the source is too slow")

        try:
            crew.run(look)
        except TransferError as error:
            tactics.learn(error)
            self._connections = tactics.connections
            if error.stale:
                partial.reset()
            raise

    def _pause(self, seconds: float) -> bool:
        """Whether time is up: at a byte a second a single read is paid for over an hour."""
        self.sleep(seconds)
        return time.monotonic() >= self.deadline

    def _count(self, count: int) -> None:
        self.tally.add(count, From.SOURCE)
        self._room.count(count)

    def _count_from_peers(self, count: int) -> None:
        self.tally.add(count, From.PEERS)
        self.reporter.advance(count, From.PEERS)
        self._room.count(count)

    def _connect(self) -> "Network":
        """Made when it is needed first: a cached model starts without the modules behind it."""
        if self._network is None:
            from slmfetch.network import Network

            self._network = Network(self.settings, self._pace)
        return self._network

    def _receive(
        self, file: ManifestFile, partial: Partial, read_some: Callable[[int], bytes], *, stop: int
    ) -> None:
        pace = self._pace
        # Where the file is all that the URL names, up to the end of the answer: too much is an error.
        whole = stop == file.size and not file.offset
        while whole or partial.offset < stop:
            most = CHUNK_BYTES if whole else min(CHUNK_BYTES, stop - partial.offset)
            if not (data := read_some(pace.read_bytes(most))):
                break
            partial.write(memoryview(data))
            self._count(len(data))
            self.reporter.update(partial.offset, From.SOURCE)
            pace.pay(len(data), self._pause)
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
            partial.hold_off(time.time() + delay, origin=identity_of(file.url))
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


def _mismatch(file: ManifestFile, actual: str, failures: int) -> str:
    return (
        f"{file.path} from {plain_url(file.url)}: sha256 is {actual}, the manifest promises {file.sha256} "
        f"({file.size} bytes; failed {failures} times); it is not used; repair the source or pin what it has"
    )
