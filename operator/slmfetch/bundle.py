# SPDX-License-Identifier: Apache-2.0
"""Models for nodes without a network: a folder or an uncompressed tar of a manifest and its files.

Nothing in a bundle is trusted. Only what the manifest lists is read, no more bytes of it than the
manifest says, and only regular files; a blob appears once its hash matched.
"""

import os
import stat
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial as bind
from pathlib import Path
from typing import BinaryIO, Final

from slmfetch.collect import collect
from slmfetch.errors import FetchError, IntegrityError
from slmfetch.log import log
from slmfetch.partial import Partial, open_partial
from slmfetch.refs import (
    IMPORTER,
    Ref,
    UnreadableRef,
    new_ref,
    next_stamp,
    read_refs,
    remove_ref,
    write_ref,
)
from slmfetch.store import CHUNK_BYTES, Store, default_reserve_bytes, wait_for_lock
from slmwire.manifest import Manifest, ManifestError, ManifestFile, parse_manifest
from slmwire.paths import MODEL_MANIFEST_FILE
from slmwire.reasons import Reason

MANIFEST_NAMES: Final = ("manifest.json", MODEL_MANIFEST_FILE)
MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_FOLDERS: Final = 2000
MAX_EXTENDED_BYTES: Final = 64 << 10
LOCK_SECONDS: Final = 600.0
Read = Callable[[int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import did."""

    digest: str
    files: int
    bytes_added: int
    bytes_reused: int


def import_bundle(store: Store, source: Path | BinaryIO) -> Imported:
    """Put the files of a folder, a tar file or a stream of a tar into the store, verified and pinned.

    FetchError says what is wrong with the bundle. What was imported before a failure stays pinned, and
    the next try goes on after it.
    """
    if not isinstance(source, Path):
        return _import_tar(store, source)
    if source.is_dir():
        return _import_folder(store, source)
    try:
        with source.open("rb") as stream:
            return _import_tar(store, stream)
    except OSError as error:
        raise FetchError(
            Reason.SOURCE_UNAVAILABLE, f"{source} cannot be read: {error.strerror or error}"
        ) from error


def forget_imports(store: Store, digest: str) -> int:
    """Drop the pins of imports of `digest` (`sha256:<hex>`), or of `all`, and collect; returns how many."""
    with store.locked():
        refs = _import_refs(store)
        doomed = [ref for ref in refs.values() if digest in ("all", ref.digest)]
        for ref in doomed:
            remove_ref(store, IMPORTER, ref.revision)
        collect(store)
    return len(doomed)


class _Import:
    """One import under way; files may come in any order, each at most once."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store, self._manifest = store, manifest
        self._left = {file.path: file for file in manifest.files}
        self.bytes_added = self.bytes_reused = 0
        store.prepare()
        _check_space(store, manifest)
        with store.locked():
            self._pin(complete=False)

    def file(self, path: str) -> ManifestFile:
        """What the manifest says of a path that comes now."""
        file = self._left.pop(path, None)
        if file is None:
            raise FetchError(
                Reason.UNFIT, f"the bundle holds {path!r}, which its manifest does not list, or twice"
            )
        return file

    def paths(self) -> list[str]:
        """Paths that have not come yet."""
        return sorted(self._left)

    def add(self, file: ManifestFile, *, size: int, read: Read) -> None:
        """Bring one file in; `read(n)` gives at most n bytes."""
        if size != file.size:
            raise IntegrityError(
                f"{file.path} has {size} bytes, the manifest says {file.size}; make the bundle anew"
            )
        if self._store.check_blob(file):
            self.bytes_reused += size
            return
        with _claimed(self._store, file) as partial:
            if partial is None:  # a fetch brought it meanwhile
                self.bytes_reused += size
                return
            partial.reset()
            partial.describe(etag="", origin="")
            while partial.offset < size:
                data = read(min(CHUNK_BYTES, size - partial.offset))
                if not data:
                    partial.remove()
                    raise IntegrityError(f"{file.path} ends after {partial.offset} of {size} bytes")
                partial.write(memoryview(data))
            actual = partial.publish()
            if actual:
                partial.remove()
                raise IntegrityError(
                    f"{file.path}: sha256 is {actual}, the manifest says {file.sha256}; it is not used"
                )
            self.bytes_added += size

    def finish(self) -> Imported:
        """All files must have come."""
        if self._left:
            missing = ", ".join(sorted(self._left)[:5])
            raise FetchError(Reason.UNFIT, f"the bundle lacks {len(self._left)} files: {missing}")
        with self._store.locked():
            self._pin(complete=True)
        return Imported(
            digest=self._manifest.digest,
            files=len(self._manifest.files),
            bytes_added=self.bytes_added,
            bytes_reused=self.bytes_reused,
        )

    def _pin(self, *, complete: bool) -> None:
        name = self._manifest.digest.removeprefix("sha256:")[:16]
        ref = new_ref(name, self._manifest)
        stamp = next_stamp(_import_refs(self._store).values())
        write_ref(self._store, IMPORTER, replace(ref, complete=complete, fetched_at=stamp))


def _import_refs(store: Store) -> dict[str, Ref]:
    try:
        return read_refs(store, IMPORTER.key)
    except UnreadableRef as error:
        raise FetchError(
            Reason.INTERNAL_ERROR, f"a pin of an earlier import is unreadable, remove it: {error}"
        ) from error


def _check_space(store: Store, manifest: Manifest) -> None:
    unique = {file.sha256: file for file in manifest.files}
    needed = sum(file.size for file in unique.values() if not store.check_blob(file))
    free, total = store.free_bytes()
    reserve = default_reserve_bytes(total)
    if needed > max(free - reserve, 0):
        raise FetchError(
            Reason.INSUFFICIENT_CAPACITY,
            f"{needed} bytes are missing, {free} of {total} are free on the file system of {store.root}, and "
            f"{reserve} of them are left for the node; free space there",
        )


@contextmanager
def _claimed(store: Store, file: ManifestFile) -> Iterator[Partial | None]:
    """The partial, locked; None when the blob is there by the time it is free."""
    claimed: list[Partial] = []

    def attempt() -> bool:
        partial = open_partial(store, file)
        if partial is not None:
            claimed.append(partial)
        return partial is not None

    wait_for_lock(attempt, deadline=time.monotonic() + LOCK_SECONDS, what=file.path)
    partial = claimed[0]
    try:
        if store.check_blob(file):
            partial.remove()
            yield None
        else:
            yield partial
    finally:
        partial.close()


def _parse(data: bytes) -> Manifest:
    try:
        return parse_manifest(data)
    except ManifestError as error:
        raise FetchError(Reason.UNFIT, f"the bundle's manifest: {error}") from error


def _import_folder(store: Store, root: Path) -> Imported:
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in MANIFEST_NAMES:
            if (root / name).exists():
                break
        else:
            raise FetchError(Reason.UNFIT, f"{root} has no {MANIFEST_NAMES[0]}")
        with _opened(root_fd, name) as fd:
            if os.fstat(fd).st_size > MAX_MANIFEST_BYTES:
                raise FetchError(Reason.UNFIT, f"{name} is larger than {MAX_MANIFEST_BYTES} bytes")
            manifest = _parse(os.read(fd, MAX_MANIFEST_BYTES))
        running = _Import(store, manifest)
        for path in running.paths():
            with _opened(root_fd, path) as fd:
                size = os.fstat(fd).st_size
                running.add(running.file(path), size=size, read=bind(os.read, fd))
        return running.finish()
    finally:
        os.close(root_fd)


@contextmanager
def _opened(root_fd: int, path: str) -> Iterator[int]:
    """A regular file below the folder, no link on the way."""
    *folders, name = path.split("/")
    fds: list[int] = []
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        current = root_fd
        for folder in folders:
            current = os.open(folder, flags | os.O_DIRECTORY, dir_fd=current)
            fds.append(current)
        # Without O_NONBLOCK, opening a FIFO would wait for a writer.
        fds.append(os.open(name, flags | os.O_NONBLOCK, dir_fd=current))
        if not stat.S_ISREG(os.fstat(fds[-1]).st_mode):
            raise FetchError(Reason.UNFIT, f"{path} in the bundle is not a regular file")
    except FetchError:
        _close(fds)
        raise
    except OSError as error:
        _close(fds)
        raise FetchError(
            Reason.UNFIT, f"{path} in the bundle cannot be read ({error.strerror}); links are not followed"
        ) from error
    try:
        yield fds[-1]
    finally:
        _close(fds)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


class _Member(tarfile.TarInfo):
    """A member whose extended headers, which are read into memory, are bounded.

    Maps of sparse files are not: they are refused before they are read.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if self.type in (*extended, tarfile.SOLARIS_XHDTYPE) and self.size > MAX_EXTENDED_BYTES:
            raise tarfile.ReadError("an extended header is too large")
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._refuse_sparse()
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]

    def _refuse_sparse(self, *_: object) -> None:
        raise FetchError(
            Reason.UNFIT,
            f"{self.name[:200]!r} in the bundle is not a regular file but a sparse one; leave --sparse out",
        )

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


def _import_tar(store: Store, stream: BinaryIO) -> Imported:
    running: _Import | None = None
    folders = 0
    try:
        # A stream: no seeking, so that a pipe will do, and one pass over the bytes.
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member, bufsize=CHUNK_BYTES) as archive:
            for member in archive:
                # It would keep them all, with their records.
                archive.members.clear()  # type: ignore[attr-defined]
                archive.pax_headers = {}
                name = member.name.removeprefix("./")
                if member.isdir():
                    folders += 1
                    if folders > MAX_FOLDERS:
                        raise FetchError(Reason.UNFIT, f"the bundle holds more than {MAX_FOLDERS} folders")
                    continue  # none is made
                body = _body(archive, member, name)
                if running is None:
                    running = _Import(store, _tar_manifest(name, member.size, body.read))
                else:
                    running.add(running.file(name), size=member.size, read=body.read)
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise FetchError(
            Reason.UNFIT,
            f"the bundle is not a readable uncompressed tar: {error}; unpack what is compressed first",
        ) from error
    if running is None:
        raise FetchError(Reason.UNFIT, "the bundle is empty")
    return running.finish()


def _tar_manifest(name: str, size: int, read: Read) -> Manifest:
    if name not in MANIFEST_NAMES:
        raise FetchError(
            Reason.UNFIT,
            f"the bundle begins with {name!r}; put {MANIFEST_NAMES[0]} first: tar cf bundle.tar "
            f"{MANIFEST_NAMES[0]} FILES...",
        )
    if size > MAX_MANIFEST_BYTES:
        raise FetchError(Reason.UNFIT, f"{name} is larger than {MAX_MANIFEST_BYTES} bytes")
    return _parse(read(size))


def _body(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> BinaryIO:
    body = None
    # `isreg` counts sparse files in, whose size says nothing about the bytes that they hold.
    if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and member.sparse is None:
        body = archive.extractfile(member)
    if body is None:
        raise FetchError(
            Reason.UNFIT, f"{name!r} in the bundle is not a regular file; links and devices are refused"
        )
    return body  # type: ignore[return-value]


def log_import(done: Imported) -> None:
    """Say what was imported."""
    log(
        "bundle is in the store",
        digest=done.digest,
        files=done.files,
        bytesAdded=done.bytes_added,
        bytesReused=done.bytes_reused,
    )
