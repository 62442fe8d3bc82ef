# SPDX-License-Identifier: Apache-2.0
"""Reads through a tar archive as it comes in: where each file lies, and its hash. Keeps no content."""

import hashlib
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Final

BLOCK: Final = tarfile.BLOCKSIZE
MAX_MEMBERS: Final = 100_000
MAX_EXTENDED_BYTES: Final = 1 << 20
"""Most that an extended header (long names, PAX records) may hold."""
MAX_PATH_CHARACTERS: Final = 4096
"""As Linux has it. Packed archives can hold any number of long names in a few bytes."""
MAX_KEPT_CHARACTERS: Final = 8 << 20
"""Most that the paths together may have that are kept: of wanted files, and of what is taken away."""
MAX_GZIP_MEMBERS: Final = 200_000
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_REGULAR: Final = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_EXTENDED: Final = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_LONG: Final = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class TarError(Exception):
    """The archive is damaged or holds what is not taken; the message names the member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TarFile:
    """A regular file in the archive; `offset` is where its content begins, in bytes."""

    path: str
    offset: int
    size: int
    sha256: str


class TarScanner:
    """Takes an archive piece by piece. `files` has the wanted files in order, a later one of the same
    path in the place of an earlier one; `removed` the paths that a layer takes away from those below it.

    `wants` is asked with the path of each member; links, devices and sparse files that it wants are
    refused. A path that leaves the archive's folder is refused whether wanted or not.
    """

    def __init__(self, *, wants: Callable[[str], bool]) -> None:
        self._wants = wants
        self.files: dict[str, TarFile] = {}
        self.removed: set[str] = set()
        """Paths; those that end in / are emptied folders."""
        self._kept_characters = 0
        self._position = 0
        self._pending = bytearray()
        self._steps = self._run()
        self._needed = next(self._steps)
        self._over = False

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next piece; TarError if the archive is not acceptable."""
        view = memoryview(data)
        while view and not self._over:
            if self._needed > 0:  # a block that is read whole
                taken = view[: self._needed - len(self._pending)]
                self._pending += taken
                if len(self._pending) < self._needed:
                    return
                block, self._pending = bytes(self._pending), bytearray()
                self._position += len(block)
                view = view[len(taken) :]
                self._advance(block)
            else:  # content that is hashed as it comes
                taken = view[: -self._needed]
                self._position += len(taken)
                view = view[len(taken) :]
                self._advance(taken)

    def finish(self) -> None:
        """Say that nothing more comes; TarError if the archive is cut off."""
        # An end without the two empty blocks is common and harmless between members.
        if not self._over and (self._pending or self._needed != BLOCK):
            raise TarError(f"the archive ends in the middle of a member, after {self._position} bytes")

    def _advance(self, data: bytes | memoryview) -> None:
        try:
            self._needed = self._steps.send(data)
        except StopIteration:
            self._over = True

    def _run(self) -> Generator[int, bytes | memoryview, None]:
        """Yields how much is needed next: a positive number for a whole block of that many bytes, a
        negative one for up to that many; is sent what came."""
        name = ""
        records: dict[str, str] = {}
        for _ in range(MAX_MEMBERS):
            block = yield BLOCK
            if not any(block):
                return
            member = _parse_header(bytes(block))
            if member.type in _EXTENDED + _LONG:
                if not 0 <= member.size <= MAX_EXTENDED_BYTES:
                    raise TarError(f"an extended header of {member.size} bytes; at most {MAX_EXTENDED_BYTES}")
                body = bytes((yield _padded(member.size)) if member.size else b"")[: member.size]
                if member.type == tarfile.GNUTYPE_LONGNAME:
                    name = body.rstrip(b"\0").decode("utf-8", "surrogateescape")
                elif member.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                    records = _parse_pax(body)
                continue
            path = _clean(records.get("path") or name or member.name)
            size = _size_of(records, member.size, path)
            sparse = any(key.startswith("GNU.sparse") for key in records)
            name, records = "", {}
            wanted = self._judge(path, member, sparse=sparse)
            start, hasher, left = self._position, hashlib.sha256(), size
            while left:
                piece = yield -left
                left -= len(piece)
                if wanted:
                    hasher.update(piece)
            if wanted:
                self._keep(path)
                self.files.pop(path, None)
                self.files[path] = TarFile(path=path, offset=start, size=size, sha256=hasher.hexdigest())
            if size % BLOCK:
                yield BLOCK - size % BLOCK
        raise TarError(f"the archive has more than {MAX_MEMBERS} members")

    def _judge(self, path: str, member: tarfile.TarInfo, *, sparse: bool) -> bool:
        """Whether the member is a file to take; notes what a whiteout takes away."""
        folder, _, base = path.rpartition("/")
        if base == _OPAQUE:
            self._keep(path)
            self.removed.add(f"{folder}/" if folder else "/")
            return False
        if base.startswith(_WHITEOUT):
            self._keep(path)
            self.removed.add(f"{folder}/{base[4:]}".lstrip("/"))
            return False
        if member.isdir() or not path or not self._wants(path):
            return False
        if member.type not in _REGULAR or sparse:
            raise TarError(
                f"{path} is {_kind(member)}; only regular files are taken: put the file itself there, or "
                "leave it out with path or files"
            )
        return True

    def _keep(self, path: str) -> None:
        self._kept_characters += len(path)
        if self._kept_characters > MAX_KEPT_CHARACTERS:
            raise TarError(f"the paths in it have more than {MAX_KEPT_CHARACTERS} characters")


def _parse_header(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise TarError(f"a damaged header ({error})") from error


def _parse_pax(body: bytes) -> dict[str, str]:
    """Records "<length> <key>=<value>\\n" of a PAX header."""
    records: dict[str, str] = {}
    body = body.rstrip(b"\0")
    at = 0
    while at < len(body):
        # In place: copies of the rest would take time that grows with the square of the size.
        space = body.find(b" ", at, at + 9)
        length = body[at:space] if space > at else b""
        end = at + int(length) if length.isdigit() else 0
        key, equals, value = body[space + 1 : end].partition(b"=")
        if not space < end <= len(body) or not equals or not value.endswith(b"\n"):
            raise TarError("a damaged PAX header")
        records[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        at = end
    return records


def _size_of(records: dict[str, str], size: int, path: str) -> int:
    text = records.get("size", str(size))
    if not text.isdecimal() or len(text) > 18:
        raise TarError(f"{path} says that it has {text[:20]} bytes")
    return int(text)


def _clean(path: str) -> str:
    """The path without ./ and double slashes; TarError if it leaves the archive's folder."""
    if len(path) > MAX_PATH_CHARACTERS:
        raise TarError(f"a path of {len(path)} characters; at most {MAX_PATH_CHARACTERS} are taken")
    segments = [segment for segment in path.split("/") if segment not in ("", ".")]
    if path.startswith("/") or ".." in segments or "\0" in path:
        raise TarError(f"{path[:200]!r} leads out of the archive")
    return "/".join(segments)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "a link"
    if member.isdev():
        return "a device or pipe"
    return "a sparse file or of an unknown type"


def gunzip(limit_bytes: int) -> Callable[[bytes], Iterator[bytes]]:
    """A function that takes gzip data piece by piece and gives what it unpacks to, in pieces of at most
    1 MiB; TarError beyond `limit_bytes` in all, or when the data is damaged."""
    unpacker = zlib.decompressobj(wbits=31)
    total, members = 0, 1

    def unpack(data: bytes) -> Iterator[bytes]:
        nonlocal unpacker, total, members
        while data:
            if unpacker.eof:  # several members one after the other, as seekable layers have
                if not data.strip(b"\0"):
                    return
                members += 1
                if members > MAX_GZIP_MEMBERS:
                    raise TarError(f"the layer is packed in more than {MAX_GZIP_MEMBERS} parts")
                unpacker = zlib.decompressobj(wbits=31)
            try:
                piece = unpacker.decompress(data, 1 << 20)
            except zlib.error as error:
                raise TarError(f"the compressed layer is damaged ({error})") from error
            total += len(piece)
            if total > limit_bytes:
                raise TarError(f"the layer unpacks to more than {limit_bytes} bytes")
            if piece:
                yield piece
            data = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail

    return unpack
