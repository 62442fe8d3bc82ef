# SPDX-License-Identifier: Apache-2.0
"""Paths, locks and durable writes of the store."""

import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from slmfetch.errors import FetchError
from slmfetch.log import log
from slmwire.manifest import ManifestFile
from slmwire.reasons import Reason

BLOB_MODE: Final = 0o444
TEMP_PREFIX: Final = ".tmp-"
CHUNK_BYTES: Final = 1 << 18
RESERVE_SHARE: Final = 0.05
RESERVE_MAX_BYTES: Final = 4 << 30
NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
LOCK_POLL_SECONDS: Final = 0.1


def default_reserve_bytes(total_bytes: int) -> int:
    """Free space to leave: 5 % of the file system, at most 4 GiB.

    The kubelet evicts pods when its file system runs low (K3s: below 5 %); a fetch that triggers
    that would take down what serves.
    """
    return min(int(total_bytes * RESERVE_SHARE), RESERVE_MAX_BYTES)


class Store:
    """A store rooted at a directory. Opening creates what is missing; it reads nothing else."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs" / "sha256"
        self.partial = root / "partial"
        self.trees = root / "trees"
        self.refs = root / "refs"
        self.quarantine = root / "quarantine"
        self.examples = root / "examples"
        """Not made by `prepare`: see slmfetch.examples."""

    def prepare(self) -> None:
        """Make the folders; FetchError if the store cannot be used."""
        try:
            for folder in (self.blobs, self.partial, self.trees, self.refs, self.quarantine):
                if not folder.is_dir():
                    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise FetchError(
                    Reason.INSUFFICIENT_CAPACITY, f"the file system of the store {self.root} is full"
                ) from error
            raise FetchError(
                Reason.INTERNAL_ERROR,
                f"cannot use the store {self.root}: {error}; the folder must be writable for uid "
                f"{os.geteuid()}",
            ) from error

    def blob(self, sha256: str) -> Path:
        """Where the verified file lies."""
        return self.blobs / sha256

    def tree(self, digest: str) -> Path:
        """Where the tree of a manifest lies; `digest` is `sha256:<hex>`."""
        return self.trees / digest.removeprefix("sha256:")

    @contextmanager
    def locked(self, *, timeout_seconds: float = 60.0) -> Iterator[None]:
        """Hold the store's lock; it dies with the process. For short sections only."""
        fd = _open_lock(self.root / "lock")
        try:
            wait_for_lock(
                lambda: try_lock(fd), deadline=time.monotonic() + timeout_seconds, what="the store's lock"
            )
            yield
        finally:
            os.close(fd)

    def free_bytes(self) -> tuple[int, int]:
        """(available to us, size) of the store's file system, in bytes."""
        info = os.statvfs(self.root)
        return info.f_bavail * info.f_frsize, info.f_blocks * info.f_frsize

    def held_bytes(self) -> int:
        """Bytes of blobs and partials; trees are hard links and cost nothing."""
        held = 0
        for folder in (self.blobs, self.partial):
            for entry in scan(folder):
                with suppress(FileNotFoundError):  # another fetch moved it meanwhile
                    held += entry.stat(follow_symlinks=False).st_size
        return held

    def check_blob(self, file: ManifestFile, *, deep: bool = False) -> bool:
        """Whether the file's bytes are here, verified; a damaged blob is moved out of the way.

        Only verified bytes are ever renamed into blobs/, so presence, size and mode tell; a blob
        whose mode was changed, or any with `deep`, is hashed again. FetchError (Unfit) when the
        blob is sound and the manifest has its size wrong: others may be serving it.
        """
        path = self.blob(file.sha256)
        try:
            info = path.lstat()
        except FileNotFoundError:
            return False
        if stat.S_ISREG(info.st_mode):
            untouched = stat.S_IMODE(info.st_mode) == BLOB_MODE
            if info.st_size == file.size and untouched and not deep:
                return True
            actual = hash_file(path)
            if actual == file.sha256:
                if info.st_size != file.size:
                    raise FetchError(
                        Reason.UNFIT,
                        f"{file.path}: the manifest says {file.size} bytes, the file with its sha256 has "
                        f"{info.st_size}; correct the manifest",
                    )
                if not untouched:
                    path.chmod(BLOB_MODE)
                return True
            problem = f"it has {info.st_size} of {file.size} bytes, its sha256 is {actual}"
        else:
            problem = "it is no file"
        log("cached file is damaged, it is fetched again", level="warning", file=file.path, problem=problem)
        discard(path)
        return False


def try_lock(fd: int, mode: int = fcntl.LOCK_EX) -> bool:
    """Take a flock without waiting; False if somebody else holds it."""
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(attempt: Callable[[], bool], *, deadline: float, what: str) -> None:
    """Poll until `attempt` succeeds, saying now and then that we wait; FetchError at the deadline."""
    began = said = time.monotonic()
    while not attempt():
        now = time.monotonic()
        if now >= deadline:
            raise FetchError(
                Reason.SOURCE_UNAVAILABLE,
                f"waited {now - began:.0f} s for {what}, which another fetch on this node holds",
            )
        if now - said >= 5.0:
            said = now
            log("waiting for another fetch on this node", what=what, seconds=round(now - began))
        time.sleep(LOCK_POLL_SECONDS)


def is_tree_in_use(tree: Path) -> bool:
    """Whether a server holds a shared lock on the tree's directory."""
    try:
        fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not try_lock(fd)
    finally:
        os.close(fd)


def hash_file(path: Path) -> str:
    """sha256 of a whole file as lower-case hex."""
    hasher = hashlib.sha256()
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            hasher.update(view[:count])
    return hasher.hexdigest()


def fsync_dir(path: Path) -> None:
    """Make renames and links in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Path, body: Mapping[str, Any]) -> None:
    """Replace a file as a whole, durably; a crash leaves the old or the new one."""
    temp = path.with_name(f"{TEMP_PREFIX}{os.getpid()}-{path.name}")
    try:
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        try:
            data = json.dumps(body, separators=(",", ":"), sort_keys=True).encode()
            while data:
                data = data[os.write(fd, data) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        temp.replace(path)
    except OSError:
        temp.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None if it is missing or not one."""
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder sorted by name; none if it is missing."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def discard(path: Path) -> None:
    """Remove a file, a link or a whole folder; what is gone already is fine. Follows no link."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(info.st_mode):
        import shutil

        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        # Full or read-only: a cached model must still start, and an existing lock file is enough.
        if error.errno not in NO_SPACE | {errno.EROFS, errno.EACCES}:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
