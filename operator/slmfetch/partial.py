# SPDX-License-Identifier: Apache-2.0
"""A download in progress: bytes on disk, running hash, and what is needed to resume it."""

import errno
import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from slmfetch.errors import FetchError, IntegrityError
from slmfetch.store import (
    BLOB_MODE,
    CHUNK_BYTES,
    NO_SPACE,
    TEMP_PREFIX,
    Store,
    discard,
    fsync_dir,
    read_json,
    scan,
    try_lock,
    write_json,
)
from slmwire.manifest import ManifestFile
from slmwire.reasons import Reason

CHECKPOINT_BYTES: Final = 32 << 20
MAX_RETRY_AFTER_SECONDS: Final = 86_400.0
"""Whatever a source asks for, it is tried once a day."""
AHEAD: Final = ".ahead-"
"""Between a blob's name and where it begins: bytes that came before their turn, see `pieces`."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Partial:
    """The .part file of one blob, locked for us; use `open_partial`.

    Bytes written survive the death of the process, but not a power cut: after a reboot only what
    was synced at the last checkpoint is trusted. The hash is recomputed from disk on resume, since
    hashlib cannot save its state.

    The .part file has no holes and only grows, but for `reset`: its length is what has come.
    """

    def __init__(self, store: Store, file: ManifestFile, fd: int) -> None:
        self._store, self._file, self._fd = store, file, fd
        self._path = store.partial / f"{file.sha256}.part"
        self._meta = self._path.with_suffix(".json")
        self._hasher = hashlib.sha256()
        self._synced = 0
        self.offset = 0
        """Bytes that are here and hashed."""
        self.etag = ""
        """Strong validator of the source the bytes came from, empty if it gave none."""
        self.origin = ""
        """Identity of that source; a validator means nothing to another one."""
        self.not_before = 0.0
        """Seconds since the epoch before which the source `_held_by` asked not to be bothered."""
        self._held_by, self._held_seconds = "", 0.0
        self.splits = False
        """Whether that source serves ranges of what cannot change unnoticed."""
        self._recorded = False
        """Whether what is on disk beside the bytes was written since the machine started."""

    def close(self) -> None:
        """Give up the lock; the bytes stay."""
        os.close(self._fd)

    def restore(self) -> None:
        """Take over what an earlier process left, as far as it can be trusted."""
        for entry in scan(self._store.partial):
            if entry.name.startswith(TEMP_PREFIX) and entry.name.endswith(f"-{self._meta.name}"):
                discard(Path(entry.path))  # a crash came before its rename, and nobody else writes it
        meta = read_json(self._meta) or {}
        size = os.fstat(self._fd).st_size
        usable = trusted_bytes(meta, size)
        self._recorded = meta.get("bootId") == _boot_id()
        if not self._recorded:
            self.discard_ahead()
        if not 0 < usable <= self._file.size:
            usable = 0
        os.ftruncate(self._fd, usable)
        self.etag = str(meta.get("etag", ""))
        self.origin = str(meta.get("origin", ""))
        self.splits = meta.get("splits") is True
        self.not_before = float(_number(meta.get("notBefore")))
        self._held_by = str(meta.get("heldBy", ""))
        self._held_seconds = float(_number(meta.get("heldSeconds")))
        self._rehash(usable)
        self._synced = min(_number(meta.get("synced")), usable)

    def reset(self) -> None:
        """Start over with an empty file."""
        self.discard_ahead()
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hasher = hashlib.sha256()
        self.offset = self._synced = 0
        self.etag = self.origin = ""
        self.splits = False
        self._recorded = False  # on disk, it still says how much of the old bytes was synced

    def describe(self, *, etag: str, origin: str) -> None:
        """Record where the bytes that follow come from, before the first of them is written."""
        if (etag, origin) != (self.etag, self.origin):
            self.etag, self.origin, self._recorded = etag, origin, False
        if not self._recorded:
            self._write_meta()

    def allow_splits(self) -> None:
        """Record, for runs to come too, that several connections may bring the file from this source."""
        if not self.splits:
            self.splits = True
            self._write_meta()

    def ahead_path(self, start: int) -> Path:
        """File for bytes of the blob from `start` on that come before their turn."""
        return self._path.with_name(f"{self._file.sha256}{AHEAD}{start}")

    @property
    def have(self) -> int:
        """Bytes of the blob that are here, in order or ahead."""
        return self.offset + sum(path.stat().st_size for path in self.list_ahead().values())

    def list_ahead(self) -> dict[int, Path]:
        """Start -> file of what has come before its turn."""
        return list_ahead(self._store, self._file.sha256)

    def discard_ahead(self) -> None:
        """Forget what has come before its turn."""
        for path in self.list_ahead().values():
            path.unlink(missing_ok=True)

    def hold_off(self, until: float, *, origin: str) -> None:
        """Remember, for runs to come too, not to ask the source `origin` before `until`."""
        self.not_before, self._held_by = until, origin
        self._held_seconds = max(until - time.time(), 0.0)
        self._write_meta()

    def hold_off_seconds(self, origin: str, now: float) -> float:
        """Seconds to wait before asking `origin`, never more than it asked for: clocks jump back."""
        wait = min(self.not_before - now, self._held_seconds + 1.0)
        return wait if origin == self._held_by and 0 < wait <= 2 * MAX_RETRY_AFTER_SECONDS else 0.0

    def write(self, data: memoryview) -> None:
        """Append bytes; IntegrityError beyond the expected size, FetchError when the disk is full."""
        if self.offset + len(data) > self._file.size:
            raise IntegrityError(
                f"{self._file.path}: the source sends more than the {self._file.size} bytes the manifest "
                "promises; publish a new manifest if the file was changed"
            )
        if not self._recorded:
            self._write_meta()
        self._hasher.update(data)
        try:
            rest = data
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            self.offset += len(data)
            if self.offset - self._synced >= CHECKPOINT_BYTES:
                os.fdatasync(self._fd)
                self._synced = self.offset
                self._write_meta()
        except OSError as error:
            raise self.explain(error) from error

    def publish(self) -> str:
        """Make the complete, verified file a blob; returns "" or, on mismatch, the actual hash."""
        actual = self._hasher.hexdigest()
        if actual != self._file.sha256:
            return actual
        try:
            os.fsync(self._fd)
            self._path.rename(self._store.blob(self._file.sha256))
            # Not before: without capabilities nobody could open a read-only .part again, be it another
            # fetch while we sync or the next one after a crash. A blob that missed this is mended.
            os.fchmod(self._fd, BLOB_MODE)
            fsync_dir(self._store.blobs)
            self.discard_ahead()
            self._meta.unlink(missing_ok=True)
        except OSError as error:
            raise self.explain(error) from error
        return ""

    def remove(self) -> None:
        """Delete bytes and state while holding the lock."""
        self.discard_ahead()
        self._path.unlink(missing_ok=True)
        self._meta.unlink(missing_ok=True)

    def sample(self, count: int) -> bytes:
        """The first bytes, for a person to see what came (an error page, say)."""
        return os.pread(self._fd, count, 0)

    def _rehash(self, size: int) -> None:
        self._hasher = hashlib.sha256()
        os.lseek(self._fd, 0, os.SEEK_SET)
        buffer = bytearray(min(CHUNK_BYTES, size))
        left = size
        while left:
            count = os.readv(self._fd, [memoryview(buffer)[: min(len(buffer), left)]])
            if count == 0:
                raise FetchError(Reason.INTERNAL_ERROR, f"{self._path} shrank while it was read")
            self._hasher.update(memoryview(buffer)[:count])
            left -= count
        self.offset = size

    def _write_meta(self) -> None:
        body = {
            "etag": self.etag,
            "origin": self.origin,
            "synced": self._synced,
            "bootId": _boot_id(),
            "notBefore": self.not_before,
            "heldBy": self._held_by,
            "heldSeconds": self._held_seconds,
            "splits": self.splits,
        }
        try:
            write_json(self._meta, body)
            self._recorded = True
        except OSError as error:
            raise self.explain(error) from error

    def explain(self, error: OSError) -> FetchError:
        """What an error of the disk means; a full one costs the partial, so that others can live."""
        if error.errno not in NO_SPACE:
            return FetchError(
                Reason.INTERNAL_ERROR, f"{self._file.path}: cannot write to the store: {error.strerror}"
            )
        had = self.offset
        self.remove()
        return FetchError(
            Reason.INSUFFICIENT_CAPACITY,
            f"{self._file.path}: the disk filled up after {had} of {self._file.size} bytes; what was fetched "
            f"of it is removed, nothing else is touched; free space in {self._store.root} on the node",
        )


def open_partial(store: Store, file: ManifestFile) -> Partial | None:
    """Open and lock the .part file; None while somebody else downloads it."""
    path = store.partial / f"{file.sha256}.part"
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            reason = Reason.INSUFFICIENT_CAPACITY if error.errno in NO_SPACE else Reason.INTERNAL_ERROR
            raise FetchError(reason, f"{file.path}: cannot create {path}: {error.strerror}") from error
        if not try_lock(fd):
            os.close(fd)
            return None
        # Whoever held the lock may have renamed or removed the file that we opened.
        try:
            same = path.stat().st_ino == os.fstat(fd).st_ino
        except FileNotFoundError:
            same = False
        if same:
            return Partial(store, file, fd)
        os.close(fd)


def trusted_bytes(meta: Mapping[str, object], size: int) -> int:
    """Of the `size` bytes on disk, those that a power cut since cannot have spoilt."""
    return size if meta.get("bootId") == _boot_id() else min(size, _number(meta.get("synced")))


def list_ahead(store: Store, sha256: str) -> dict[int, Path]:
    """Start -> file of the bytes of a blob that came before their turn."""
    prefix = f"{sha256}{AHEAD}"
    names = {entry.name.removeprefix(prefix): entry for entry in scan(store.partial) if prefix in entry.name}
    return {int(start): Path(entry.path) for start, entry in names.items() if start.isdecimal()}


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES):
            raise
        return ""


def _number(value: object) -> int:
    return int(value) if isinstance(value, int | float) and 0 <= value < float("inf") else 0
