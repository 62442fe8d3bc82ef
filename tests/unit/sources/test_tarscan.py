# SPDX-License-Identifier: Apache-2.0
"""Reading through tar archives, against archives that tarfile makes."""

import gzip
import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.adapters.sources.tarscan import (
    MAX_EXTENDED_BYTES,
    MAX_KEPT_BYTES,
    MAX_PATH_CHARACTERS,
    TarError,
    TarScanner,
    gunzip,
)
from tests.unit.sources.fake_registry import tar_of

names = st.lists(st.text("abcé-_.", min_size=1, max_size=70).filter(lambda s: set(s) != {"."}), min_size=1)
names_of_files = names.map("/".join).filter(lambda name: not any(p.startswith(".") for p in name.split("/")))


def scan(data: bytes, *, step: int = 0) -> TarScanner:
    scanner = TarScanner(wants=lambda path: True)
    for start in range(0, len(data), step or len(data) or 1):
        scanner.feed(data[start : start + (step or len(data))])
    scanner.finish()
    return scanner


@given(
    st.dictionaries(names_of_files, st.binary(max_size=1500), max_size=5),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(1, 2000),
)
def test_offsets_and_hashes_are_those_of_the_bytes(files: dict[str, bytes], form: int, step: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    body = buffer.getvalue()
    scanner = scan(body, step=step)
    assert set(scanner.files) == set(files)
    for path, found in scanner.files.items():
        assert body[found.offset : found.offset + found.size] == files[path]
        assert found.sha256 == hashlib.sha256(files[path]).hexdigest()


@given(st.binary(max_size=3000), st.integers(1, 700))
def test_nonsense_is_refused_or_empty(data: bytes, step: int) -> None:
    try:
        scanner = scan(data, step=step)
    except TarError:
        return
    assert not scanner.files


@given(st.integers(0, 8000), st.integers(0, 255))
def test_a_flipped_byte_never_gives_a_path_outside(position: int, value: int) -> None:
    body = bytearray(tar_of({"a/b": b"x" * 600, "c" * 150: b"y" * 5}))
    body[position % len(body)] = value
    try:
        scanner = scan(bytes(body))
    except TarError:
        return
    for path, found in scanner.files.items():
        assert ".." not in path.split("/") and not path.startswith("/")
        assert found.offset >= 0 and found.offset + found.size <= len(body)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "a/.."])
def test_a_path_that_leads_out_is_refused_even_unwanted(name: str) -> None:
    scanner = TarScanner(wants=lambda path: False)
    with pytest.raises(TarError, match="leads out"):
        scanner.feed(tar_of({name: b"x"}))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"]
)
def test_links_devices_and_what_is_unknown_are_refused_where_wanted(kind: bytes) -> None:
    info = tarfile.TarInfo("model.bin")
    info.type, info.linkname = kind, "/etc/shadow"
    body = tar_of({"a": b"x"}, members=(info,))
    with pytest.raises(TarError, match=r"model\.bin is "):
        scan(body)
    other = TarScanner(wants=lambda path: path == "a")
    other.feed(body)
    assert list(other.files) == ["a"]


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **changes: bytes) -> bytes:
    """One header; `changes` are bytes to be written at the offset that the keyword `at_<number>` names."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    for place, value in changes.items():
        start = int(place.removeprefix("at_"))
        block[start : start + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extended(kind: bytes, body: bytes) -> bytes:
    return header("extended", kind, len(body)) + body.ljust(512, b"\0")


_SECRET = header("models/model.bin", size=4) + b"evil".ljust(512, b"\0")
_PAX_ELSEWHERE = extended(tarfile.XHDTYPE, b"13 path=else\n")


@pytest.mark.parametrize(
    "kind", [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_what_has_no_content_hides_none(kind: bytes) -> None:
    scanner = TarScanner(wants=lambda path: path.startswith("models/"))
    scanner.feed(header("else", kind, len(_SECRET)) + _SECRET)
    assert list(scanner.files) == ["models/model.bin"], "runtimes read on right behind the header"


def test_a_global_header_ends_what_came_before_it_for_one_file() -> None:
    scanner = TarScanner(wants=lambda path: path.startswith("models/"))
    scanner.feed(_PAX_ELSEWHERE + extended(tarfile.XGLTYPE, b"13 comment=x\n") + _SECRET)
    assert list(scanner.files) == ["models/model.bin"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            _PAX_ELSEWHERE + extended(tarfile.GNUTYPE_LONGNAME, b"models/model.bin\0") + _SECRET,
            "two long names",
        ),
        (extended(tarfile.XHDTYPE, b"36 GNU.sparse.name=models/model.bin\n") + header("else"), "sparse"),
        (header("else", tarfile.GNUTYPE_SPARSE), "sparse"),
        (header("model.bin", at_257=bytes(8), at_345=b"else"), "neither of the formats"),
        (header("model.bin", at_257=b"ustar  \0", at_345=b"else"), "neither of the formats"),
        (header("model.bin", at_508=b"tar\0"), "neither of the formats"),
        (header("else", at_124=b"\x0000000001000"), "damaged header"),
        (header("else", at_124=b"0_00_0001000"), "damaged header"),
        (header("else/", tarfile.AREGTYPE, 600) + _SECRET, "folder that has content"),
        (_PAX_ELSEWHERE + header("else/", tarfile.AREGTYPE, 600) + _SECRET, "folder that has content"),
    ],
)
def test_what_runtimes_may_read_in_another_way_is_refused_even_unwanted(data: bytes, words: str) -> None:
    scanner = TarScanner(wants=lambda path: False)
    with pytest.raises(TarError, match=words):
        scanner.feed(data)


def test_an_endless_path_is_refused() -> None:
    info = tarfile.TarInfo("a/" * 3000 + "b")
    with pytest.raises(TarError, match="6001 characters"):
        scan(tar_of({}, members=(info,)))


def test_links_above_the_folder_are_told() -> None:
    scanner = TarScanner(wants=lambda path: False, folder="models/chat")
    for name in ("models", "models/chat", "models/cha", "models/chat/a", "bin"):
        scanner.feed(header(name, tarfile.SYMTYPE))
    assert scanner.links == {"models", "models/chat"}


@pytest.mark.parametrize("whiteout", ["", ".wh."])
def test_names_that_would_fill_the_memory_are_refused(whiteout: str) -> None:
    scanner, name = TarScanner(wants=lambda path: True), "a" * 200 + "/"
    with pytest.raises(TarError, match="the names of its files take"):
        for index in range(1 + MAX_KEPT_BYTES // 4000):
            long = f"{name * 19}{whiteout}{index:0>180}".encode()
            scanner.feed(extended(tarfile.GNUTYPE_LONGNAME, long.ljust(4096, b"\0")) + header("x"))


@pytest.mark.parametrize("size", ["-5", "1" * 30, "x"])
def test_an_absurd_size_is_refused(size: str) -> None:
    info = tarfile.TarInfo("model.bin")
    info.pax_headers = {"size": size}
    with pytest.raises(TarError, match=r"model\.bin says"):
        scan(tar_of({}, members=(info,)))


def test_a_huge_extended_header_is_refused() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, MAX_EXTENDED_BYTES + 1
    with pytest.raises(TarError, match="extended header"):
        scan(info.tobuf())


def test_an_archive_that_is_cut_off_is_refused() -> None:
    body = tar_of({"a": b"x" * 5000})
    for end in (100, 600, 3000, 512 + 5000 + 10):
        with pytest.raises(TarError, match="ends in the middle"):
            scan(body[:end])


def test_whiteouts_are_told() -> None:
    scanner = scan(tar_of({"a/.wh.b": b"", "c/.wh..wh..opq": b"", ".wh.d": b"", "e": b"1"}))
    assert scanner.removed == {"a/b", "c/", "d"} and list(scanner.files) == ["e"]


@given(st.lists(st.binary(max_size=4000), min_size=1, max_size=3), st.integers(1, 500))
def test_gzip_members_one_after_the_other_are_one_stream(parts: list[bytes], step: int) -> None:
    packed = b"".join(gzip.compress(part) for part in parts)
    unpack = gunzip(1 << 20)
    pieces = [packed[start : start + step] for start in range(0, len(packed), step)]
    assert b"".join(b"".join(unpack(piece)) for piece in pieces) == b"".join(parts)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    packed = gzip.compress(bytes(50 << 20))
    unpack = gunzip(8 << 20)
    seen = 0
    with pytest.raises(TarError, match="more than"):
        for piece in unpack(packed):
            seen += len(piece)
    assert seen <= 8 << 20


def test_gzip_data_behind_the_padding_is_refused() -> None:
    unpack = gunzip(1000)
    assert b"".join(unpack(gzip.compress(b"a"))) == b"a" and not list(unpack(bytes(20)))
    with pytest.raises(TarError, match="goes on after its end"):
        list(unpack(gzip.compress(b"b")))


def test_damaged_gzip_is_refused() -> None:
    with pytest.raises(TarError, match="damaged"):
        list(gunzip(100)(b"not gzip at all"))


def _extended(records: bytes, path: str = "y", kind: bytes = tarfile.XHDTYPE) -> bytes:
    head = tarfile.TarInfo("x")
    head.type, head.size = kind, len(records)
    member = tarfile.TarInfo(path).tobuf(tarfile.USTAR_FORMAT)
    return head.tobuf(tarfile.USTAR_FORMAT) + records + b"\0" * (-len(records) % 512) + member


def _record(key: str, value: str) -> bytes:
    text = f" {key}={value}\n"
    length = len(text) + 1
    while len(str(length)) + len(text) != length:
        length += 1
    return f"{length}{text}".encode()


@pytest.mark.timeout(30)
def test_many_short_records_do_not_take_for_ever() -> None:
    scanner = TarScanner(wants=lambda path: True)
    scanner.feed(_extended(b"5 a=\n" * (MAX_EXTENDED_BYTES // 5)))
    assert not scanner.is_at_start


@pytest.mark.parametrize("prefix", [".wh.", ".wh..wh..opq/", "a/"])
def test_long_names_take_no_memory(prefix: str) -> None:
    scanner = TarScanner(wants=lambda path: True)
    with pytest.raises(TarError, match="characters"):
        scanner.feed(_extended(_record("path", prefix + "n" * MAX_PATH_CHARACTERS)))


def test_names_that_are_kept_are_bounded_together() -> None:
    scanner = TarScanner(wants=lambda path: True)
    with pytest.raises(TarError, match="names"):
        for number in range(5000):
            scanner.feed(_extended(_record("path", f".wh.{number}" + "n" * 4000)))
    assert sum(map(len, scanner.removed)) < 10 << 20


@pytest.mark.parametrize(
    "records", [b"x a=b\n", b"6 a=b", b"60 a=b\n", b"0 a=b\n", b"6  a=b\n"[:6], b"-6 a=b\n"]
)
def test_damaged_records_are_refused(records: bytes) -> None:
    with pytest.raises(TarError, match="damaged"):
        TarScanner(wants=lambda path: True).feed(_extended(records))


def test_a_layer_of_countless_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmops.adapters.sources.tarscan.MAX_GZIP_MEMBERS", 100)
    assert b"".join(gunzip(1000)(gzip.compress(b"a") * 99)) == b"a" * 99
    with pytest.raises(TarError, match="100 parts"):
        list(gunzip(1000)(gzip.compress(b"") * 101))
