# SPDX-License-Identifier: Apache-2.0
"""Reads through a tar archive as it comes in: where each file lies, and its hash. Keeps no content.

A container runtime reads the same archive by its own lights. What the two could take for different things
is refused, or else an image could show us files that were signed and the node others.
"""

import hashlib
import re
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
MAX_GZIP_MEMBERS: Final = 200_000
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_REGULAR: Final = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_EXTENDED: Final = (tarfile.XHDTYPE, tarfile.XGLTYPE)
_BODYLESS: Final = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
"""No content follows their header, whatever size that gives."""
_USTAR, _GNU = b"ustar\x0000", b"ustar  \0"
_NUMBER: Final = re.compile(rb" *[0-7]*[ \0]*|[\x80\xff].*", re.DOTALL)
MAX_KEPT_BYTES: Final = 8 << 20
"""Most that the names of one archive's files and whiteouts may take: the names pack well, memory does not."""
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
    path in the place of an earlier one; `removed` the paths that a layer takes away from those below it;
    `links` the symbolic links in the place of `folder` or above it.

    `wants` is asked with the path of each member; links, devices and sparse files that it wants are
    refused. A path that leaves the archive's folder is refused whether wanted or not.
    """

    def __init__(self, *, wants: Callable[[str], bool], folder: str = "") -> None:
        self._wants = wants
        self._folder = f"{folder}/"
        self._kept_bytes = 0
        self.files: dict[str, TarFile] = {}
        self.removed: set[str] = set()
        """Paths; those that end in / are emptied folders."""
        self.links: set[str] = set()
        self._position = 0
        self._pending = bytearray()
        self._steps = self._run()
        self._needed = next(self._steps)
        self._over = False

    @property
    def is_at_start(self) -> bool:
        """Nothing has come yet."""
        return not (self._position or self._pending)

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
                elif member.type == tarfile.XHDTYPE:
                    records = _parse_pax(body)
                elif member.type == tarfile.XGLTYPE:
                    name, records = "", {}  # runtimes forget what came before it
                continue
            full_name = records.get("path") or name or member.name
            path = _clean(full_name)
            _refuse_two_readings(block, full_name, path, long_name=name, records=records)
            size = 0 if member.type in _BODYLESS else _size_of(records, member.size, path)
            name, records = "", {}
            if member.issym() and self._folder.startswith(f"{path}/"):
                self.links.add(path)
            wanted = self._judge(path, member)
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

    def _keep(self, path: str) -> None:
        self._kept_bytes += len(path)
        if self._kept_bytes > MAX_KEPT_BYTES:
            raise TarError(f"the names of its files take more than {MAX_KEPT_BYTES} bytes")

    def _judge(self, path: str, member: tarfile.TarInfo) -> bool:
        """Whether the member is a file to take; notes what a whiteout takes away."""
        folder, _, base = path.rpartition("/")
        if base.startswith(_WHITEOUT):
            self._keep(path)
        if base == _OPAQUE:
            self.removed.add(f"{folder}/" if folder else "/")
            return False
        if base.startswith(_WHITEOUT):
            self.removed.add(f"{folder}/{base[4:]}".lstrip("/"))
            return False
        if member.isdir() or not path or not self._wants(path):
            return False
        if member.type not in _REGULAR:
            raise TarError(
                f"{path} is {_kind(member)}; only regular files are taken: put the file itself there, or "
                "leave it out with path or files"
            )
        return True


def _parse_header(block: bytes) -> tarfile.TarInfo:
    magic = block[257:265]
    if magic not in (_USTAR, _GNU) or (magic == _GNU and block[345]) or block[508:] == b"tar\0":
        # The place of the name's first part is used for something else in other formats.
        raise TarError(
            "a header that is neither of the formats ustar and pax nor plainly of GNU tar; pack it afresh "
            "with one of these formats"
        )
    if not _NUMBER.fullmatch(block[124:136]):
        raise TarError(f"a damaged header (size {block[124:136]!r})")
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise TarError(f"a damaged header ({error})") from error


def _refuse_two_readings(
    header: bytes | memoryview, name: str, path: str, *, long_name: str, records: dict[str, str]
) -> None:
    """Refuse, wanted or not, a member that programs read in different ways. `name` is the path as written."""
    kind = bytes(header[156:157])
    if kind == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in records):
        raise TarError(f"{path} is a sparse file; pack it without --sparse")
    if long_name and records.get("path"):
        raise TarError(f"{path} has two long names; pack it with one format, ustar, pax or gnu")
    is_folder = name.endswith("/") or bytes(header[:100]).rstrip(b"\0").endswith(b"/")
    if kind == tarfile.AREGTYPE and is_folder and bytes(header[124:136]).strip(b"0 \0"):
        raise TarError(f"{path} is a folder that has content")


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
    return "of an unknown type"


def gunzip(limit_bytes: int) -> Callable[[bytes], Iterator[bytes]]:
    """A function that takes gzip data piece by piece and gives what it unpacks to, in pieces of at most
    1 MiB; TarError beyond `limit_bytes` in all, or when the data is damaged."""
    unpacker = zlib.decompressobj(wbits=31)
    total, members = 0, 1
    padded = False

    def unpack(data: bytes) -> Iterator[bytes]:
        nonlocal unpacker, total, members, padded
        while data:
            if unpacker.eof:  # several members one after the other, as seekable layers have
                if not data.strip(b"\0"):
                    padded = True
                    return
                if padded:  # some programs end there, others go on
                    raise TarError("the compressed layer is damaged (it goes on after its end)")
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
