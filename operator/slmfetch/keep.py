# SPDX-License-Identifier: Apache-2.0
"""Puts an adapter that was trained on this node into its store, where no revision names it yet.

Its pins are apart from those of revisions. The two latest of a deployment stay: the one before may still
serve, or be served again. They go when its server keeps no examples any more: the site was taken out.
"""

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from slmfetch.collect import collect
from slmfetch.config import Owner, Settings
from slmfetch.errors import FetchError, IntegrityError
from slmfetch.log import log
from slmfetch.refs import (
    Ref,
    UnreadableRef,
    adapters_of,
    explain_pin,
    new_ref,
    next_stamp,
    read_refs,
    remove_ref,
    write_ref,
)
from slmfetch.room import find_shortage
from slmfetch.store import BLOB_MODE, CHUNK_BYTES, NO_SPACE, TEMP_PREFIX, Store, discard, fsync_dir
from slmwire.jobs import ADAPTER_FILE
from slmwire.manifest import MAX_BYTES, Manifest, ManifestFile
from slmwire.reasons import Reason

KEPT_ADAPTERS: Final = 2
_DIGITS: Final = 16
"""Of a blob's hash in the name of its pin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is in the store now."""

    sha256: str
    size_bytes: int


def keep(store: Store, owner: Owner, path: Path, settings: Settings) -> Kept:
    """Make the file at `path` a pinned blob. FetchError says what is wrong with it, or with the store.

    A link is not followed: whoever wrote the file must not choose what else is given to other nodes.
    Interrupted at any point it may be called again; what was kept before stays as it was until the end.
    """
    store.prepare()
    with _opened(path) as fd:
        size = os.fstat(fd).st_size
        file = ManifestFile(path=Path(ADAPTER_FILE).name, size=size, sha256=_hash(fd))
        if store.check_blob(file):
            with store.locked():
                # Looked for again: without a pin it may have been collected meanwhile.
                if store.check_blob(file):
                    _pin(store, owner, file)
                    return Kept(sha256=file.sha256, size_bytes=size)
        _make_room(store, file, settings)
        _add(store, owner, file, fd)
    return Kept(sha256=file.sha256, size_bytes=size)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise FetchError(
            Reason.UNFIT,
            f"--file {path}: cannot be opened ({error.strerror}); it must be a file, no link, that "
            f"uid {os.geteuid()} may read without capabilities",
        ) from error
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or not 0 < info.st_size <= MAX_BYTES:
            raise FetchError(Reason.UNFIT, f"--file {path}: is not a regular file with something in it")
        yield fd
    finally:
        os.close(fd)


def _read(fd: int) -> Iterator[bytes]:
    os.lseek(fd, 0, os.SEEK_SET)
    while data := os.read(fd, CHUNK_BYTES):
        yield data


def _hash(fd: int) -> str:
    hasher = hashlib.sha256()
    for data in _read(fd):
        hasher.update(data)
    return hasher.hexdigest()


def _make_room(store: Store, file: ManifestFile, settings: Settings) -> None:
    if not find_shortage(store, settings, [file]):
        return
    with store.locked():
        collect(store)
    shortage = find_shortage(store, settings, [file])
    if shortage:
        raise FetchError(
            Reason.INSUFFICIENT_CAPACITY,
            f"the adapter ({file.size} bytes) does not fit this node: {shortage}",
        )


def _add(store: Store, owner: Owner, file: ManifestFile, source: int) -> None:
    """Copy, then make it a blob and pin it in one section that no collection can come into."""
    # Not a .part, though that could be resumed: a fetch that waits for this file to appear holds its lock.
    try:
        fd, name = tempfile.mkstemp(dir=store.partial, prefix=f"{TEMP_PREFIX}keep-")
    except OSError as error:
        raise _explain(store, error) from error
    temp = Path(name)
    try:
        try:
            actual = _copy(source, fd)
        finally:
            os.close(fd)
        if actual != file.sha256:
            raise IntegrityError(f"{file.path} changed while it was copied; nothing of it is kept")
        with store.locked():
            if not store.check_blob(file):
                temp.rename(store.blob(file.sha256))
                fsync_dir(store.blobs)
            _pin(store, owner, file)
    except OSError as error:
        raise _explain(store, error) from error
    finally:
        with suppress(OSError):
            temp.unlink(missing_ok=True)


def _copy(source: int, target: int) -> str:
    """Durable, with the mode of a blob; returns the sha256 of what was written."""
    hasher = hashlib.sha256()
    for data in _read(source):
        hasher.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(target, rest) :]
    os.fchmod(target, BLOB_MODE)
    os.fsync(target)
    return hasher.hexdigest()


def _pin(store: Store, owner: Owner, file: ManifestFile) -> None:
    """Pin it as the latest, and let go of all but the one before. The caller holds the store's lock."""
    pins = adapters_of(owner)
    try:
        refs = read_refs(store, pins.key)
    except UnreadableRef as error:
        raise FetchError(
            Reason.INTERNAL_ERROR, f"a pin of an adapter is unreadable, remove it: {error}"
        ) from error
    ref = new_ref(f"adapter-{file.sha256[:_DIGITS]}", Manifest(files=(file,)))
    ref = replace(ref, complete=True, fetched_at=next_stamp(refs.values()))
    try:
        write_ref(store, pins, ref)
    except OSError as error:
        raise explain_pin(store, error) from error
    for name in superseded(refs | {ref.revision: ref}):
        remove_ref(store, pins, name)
    log("adapter is in the store", deployment=owner.key, sha256=file.sha256, bytes=file.size)


def forget(store: Store, owner: Owner) -> None:
    """Drop the pins of a deployment's adapters; those that its revisions name stay as long as these.

    What cannot be removed is logged.
    """
    pins = store.refs / adapters_of(owner).key
    if not pins.is_dir():
        return
    try:
        with store.locked():
            discard(pins)
            done = collect(store)
    except (OSError, FetchError) as error:
        log("pins of adapters cannot be removed", level="error", deployment=owner.key, why=str(error))
        return
    log("adapters that were trained here are let go", deployment=owner.key, bytes=done.bytes)


def superseded(refs: dict[str, Ref]) -> tuple[str, ...]:
    """Of the pins of one deployment's adapters, those that are not among the latest."""
    by_age = sorted(refs.values(), key=lambda ref: (ref.fetched_at, ref.revision), reverse=True)
    return tuple(ref.revision for ref in by_age[KEPT_ADAPTERS:])


def _explain(store: Store, error: OSError) -> FetchError:
    if error.errno in NO_SPACE:
        return FetchError(
            Reason.INSUFFICIENT_CAPACITY,
            f"the disk filled up; nothing of the adapter is kept; free space in {store.root} on the node",
        )
    return FetchError(Reason.INTERNAL_ERROR, f"cannot write to the store {store.root}: {error}")
