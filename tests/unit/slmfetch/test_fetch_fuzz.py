# SPDX-License-Identifier: Apache-2.0
"""Sources that lie in ways that nobody thought of: whatever they answer, only verified bytes get a name in
the store, nothing is written beside it, and the fetch ends."""

import contextlib
import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmfetch.errors import FetchError
from slmfetch.fetch import fetch
from slmfetch.store import Store
from slmwire.manifest import Manifest, ManifestFile
from tests.unit.fuzz.budget import examples
from tests.unit.slmfetch.kit import assert_consistent, job_of, manifest_of, noise, settings_of, tree_content

DATA = noise(30_000, seed=4)
MAX_REQUESTS = 80
_RANGE = re.compile(rb"^range: *bytes=(\d+)-(\d*)", re.IGNORECASE | re.MULTILINE)
_numbers = iter(range(1 << 60))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer; the defaults are an honest one."""

    status: str = ""
    """The status line's code and text; empty: as the request asks for."""
    shift: int = 0
    """Added to where the bytes are said to begin."""
    skew: int = 0
    """Added to where they do begin."""
    total: str = ""
    """The size in Content-Range; empty: the right one."""
    length: str = ""
    """Content-Length; empty: the right one, `-`: none."""
    chunks: str = ""
    """Sent in chunks whose size is written so (`%x` for the right one); empty: not in chunks."""
    cut: int = -1
    """Bytes of body after which it hangs up."""
    extra: bytes = b""
    flips: tuple[int, ...] = ()
    headers: tuple[str, ...] = ()
    raw: bytes = b""
    """Sent in place of all else."""

    def build(self, request: bytes, content: bytes) -> bytes:
        """What is sent."""
        if self.raw:
            return self.raw
        wanted = _RANGE.search(request)
        start = min(int(wanted[1]), len(content)) if wanted else 0
        end = min(int(wanted[2]) + 1, len(content)) if wanted and wanted[2] else len(content)
        begin = max(0, start + self.skew)
        body = bytearray(content[begin : begin + max(0, end - start)])
        for flip in self.flips:
            if body:
                body[flip % len(body)] ^= 0xFF
        lines = [f"HTTP/1.1 {self.status or ('206 Partial' if wanted else '200 OK')}"]
        if wanted:
            total = self.total or str(len(content))
            lines.append(f"Content-Range: bytes {start + self.shift}-{end - 1 + self.shift}/{total}")
        if self.chunks:
            lines.append("Transfer-Encoding: chunked")
            size = self.chunks.replace("%x", f"{len(body):x}").encode()
            sent = size + b"\r\n" + bytes(body) + b"\r\n0\r\n\r\n"
        else:
            sent = bytes(body)
        if self.length != "-" and not self.chunks:
            lines.append(f"Content-Length: {self.length or len(sent)}")
        lines += ["Connection: close", *self.headers]
        sent += self.extra
        if self.cut >= 0:
            sent = sent[: self.cut]
        return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + sent


@dataclass
class Liar:
    """A server on loopback; `script` is gone through by its requests, then it begins anew."""

    port: int
    script: list[Answer] = field(default_factory=list)
    content: bytes = DATA
    requests: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def tell(self, script: list[Answer]) -> None:
        with self.lock:
            self.script, self.requests = script, 0

    def talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            request = b""
            while b"\r\n\r\n" not in request and (data := connection.recv(4096)):
                request += data
            with self.lock:
                answer = self.script[self.requests % len(self.script)]
                self.requests += 1
            connection.sendall(answer.build(request, self.content))


@pytest.fixture(scope="module")
def liar() -> Iterator[Liar]:
    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=running.talk, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        running = Liar(listener.getsockname()[1])
        threading.Thread(target=accept, daemon=True).start()
        yield running
        listener.shutdown(socket.SHUT_RDWR)


_statuses = st.sampled_from(
    ["", "", "", "200 OK", "206 P", "204 No", "304 Not", "400 B", "401 U", "403 F", "404 N", "408 T", "412 P",
     "416 R", "429 T", "500 I", "503 B", "600 x", "0 x", "-1 x", "999999999999 x", "abc", "2\u00b90 x", ""]
)  # fmt: skip
_lengths = st.sampled_from(
    [
        "",
        "",
        "-",
        "0",
        "1",
        "-1",
        "+5",
        "30001",
        "29999",
        "9" * 30,
        "9" * 5000,
        "0x10",
        "1, 2",
        "1 2",
        " ",
        "\u0661",
    ]
)
_locations = st.sampled_from(
    ["/m/model.onnx", "/other", "", "#", "?", "//", "///x", "http://", "http://[", "http://[::1",
     "http://h:x/",
     "http://127.0.0.1:1/x", "file:///etc/passwd", "ftp://h/x", "javascript:1", "\\\\h\\x", "/a b", "/\u00e9",
     "/%00", "http://u:p@127.0.0.1:1/", "http://127.0.0.1:99999/", "x" * 9000]
)  # fmt: skip
_headers = st.one_of(
    st.sampled_from(
        [
            'ETag: "a"', "ETag: ", 'ETag: W/"a"', "ETag: " + "e" * 9000, "Content-Encoding: gzip",
            "Retry-After: 0",
            "Retry-After: -1", "Retry-After: 9e99", "Retry-After: Fri, 99 Foo", "Content-Length: 5", ": x",
            "x",
            "Content-Range: bytes 0-0/1", "Content-Range: bytes */*", "Content-Range: bytes 5-1/3",
            "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: identity", "WWW-Authenticate: Bearer",
            'WWW-Authenticate: Bearer realm="http://127.0.0.1:1/t",service="x"', "WWW-Authenticate: Basic",
            "Connection: keep-alive", "X: " + "y" * 70_000, " folded: yes", "Set-Cookie: a=b",
            "X-Linked-Size: 1",
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=12),
)  # fmt: skip
_raw = st.sampled_from(
    [b"", b"\r\n", b"\x16\x03\x01", b"HTTP/1.1", b"HTTP/9.9 200 OK\r\n\r\n", b"HTTP/1.1 200\r\n\r\n" + DATA,
     b"HTTP/1.0 200 OK\r\n\r\n" + DATA, b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 3000 + b"\r\n", DATA[:500],
     b"HTTP/1.1 100 Continue\r\n\r\n" * 50 + b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"]
)  # fmt: skip
answers = st.one_of(
    st.builds(
        Answer,
        status=_statuses,
        shift=st.sampled_from([0, 0, 0, 1, -1, 5000, 10**30]),
        skew=st.sampled_from([0, 0, 0, 1, -1, 4000]),
        total=st.sampled_from(["", "", "*", "1", "30001", "9" * 5000, "x", "-5"]),
        length=_lengths,
        chunks=st.sampled_from(["", "", "%x", "%x;a=b", "1", "ffffffffffffffffff", "-1", "x", "0",
            "%x" + ";" * 9000]),
        cut=st.sampled_from([-1, -1, -1, 0, 1, 3999, 4001, 29_999]),
        extra=st.sampled_from([b"", b"", b"x", b"x" * 5000, b"HTTP/1.1 200 OK\r\n\r\n"]),
        flips=st.lists(st.integers(0, 30_000), max_size=2).map(tuple),
        headers=st.lists(_headers, max_size=2).map(tuple),
    ),
    st.builds(
        Answer, status=st.sampled_from(["301 M", "302 F", "303 S", "307 T", "308 P"]),
        headers=_locations.map(lambda where: (f"Location: {where}",)),
    ),
    st.builds(Answer, raw=_raw),
    st.just(Answer()),
)  # fmt: skip


def _folders(folder: Path) -> tuple[Store, Path]:
    """A store among other things, that must stay as they are."""
    around = folder / f"case-{next(_numbers)}"
    (around / "etc").mkdir(parents=True)
    (around / "etc" / "passwd").write_text("root")
    store = Store(around / "store")
    store.prepare()
    return store, around


def assert_blobs_match(store: Store) -> None:
    for path in store.blobs.iterdir():
        if path.is_file() and not path.is_symlink():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def _run(store: Store, around: Path, manifest: Manifest, **changes: Any) -> FetchError | None:
    settings = settings_of(store, stall_timeout_seconds=0.2, attempts=2, timeout_seconds=10, **changes)
    problem: FetchError | None = None
    try:
        fetch(store, job_of(manifest), settings)
    except FetchError as error:
        assert error.message and len(error.message) < 2000
        problem = error
    else:
        assert tree_content(store, manifest) == {file.path: DATA for file in manifest.files}
        assert_consistent(store)
    assert_blobs_match(store)
    outside = sorted(path for path in around.rglob("*") if store.root not in (path, *path.parents))
    assert outside == [around / "etc", around / "etc" / "passwd"]
    assert (around / "etc" / "passwd").read_text() == "root"
    return problem


@examples(60)
@given(script=st.lists(answers, min_size=1, max_size=5), connections=st.sampled_from([1, 3]))
def test_whatever_a_source_answers_only_verified_bytes_are_stored(
    liar: Liar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: list[Answer], connections: int
) -> None:
    monkeypatch.setattr("slmfetch.tactics.PIECE_BYTES", 8_000)
    monkeypatch.setattr("slmfetch.tactics.PROBE_BYTES", 4_000)
    store, around = _folders(tmp_path)
    manifest = manifest_of({"model.onnx": DATA}, f"{liar.url}/m")
    liar.tell(script)
    _run(store, around, manifest, connections=connections)
    assert liar.requests <= MAX_REQUESTS
    # What is left of that does not stop an honest source, or says until when it does.
    liar.tell([Answer()])
    problem = _run(store, around, manifest, connections=connections)
    assert problem is None or problem.message


_urls = st.one_of(
    st.sampled_from(
        ["", "x", "http://", "http://[", "http://:80/", "//h/x", "file:///etc/passwd", "file://h/etc/passwd",
         "file:..", "ftp://127.0.0.1/x", "oci://127.0.0.1:1/a", "pvc://a/b", "s3://b/k",
         "https://127.0.0.1:1/",
         "http://127.0.0.1:1/%", "http://127.0.0.1:99999/", "http://127.0.0.1:1/\r\nX: y", "http://a b/",
         "HTTP://127.0.0.1:1/x", "http://xn--/", "http://" + "a" * 300 + "/", "http://\u2488/"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]),
    max_size=20).map(lambda text: f"http://127.0.0.1:1/{text}"),
)  # fmt: skip


@examples(40)
@given(url=_urls, offset=st.sampled_from([0, 1, 1 << 50]))
def test_any_address_in_a_manifest_is_fetched_or_refused(tmp_path: Path, url: str, offset: int) -> None:
    store, around = _folders(tmp_path)
    [sound] = manifest_of({"model.onnx": DATA}, "http://h").files
    file = ManifestFile(path=sound.path, size=sound.size, sha256=sound.sha256, url=url, offset=offset)
    assert _run(store, around, Manifest(files=(file,))) is not None


_odd_files = st.sampled_from(
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"digest": 5}',
        b"[" * 50_000,
        b'{"synced": 1e999}',
        b'{"until": "x"}',
    ]
)


@examples(40)
@given(data=st.data())
def test_files_of_the_store_that_somebody_changed_are_used_only_when_they_are_right(
    liar: Liar, tmp_path: Path, data: st.DataObject
) -> None:
    """Names as the store uses them, contents as a failing disk leaves them."""
    store, around = _folders(tmp_path)
    manifest = manifest_of({"model.onnx": DATA}, f"{liar.url}/m")
    sha256 = manifest.files[0].sha256
    names = [
        store.partial / f"{sha256}.part", store.partial / f"{sha256}.json",
        store.quarantine / f"{sha256}.json", store.refs / "shop.orders" / "r1.json", store.refs / "x",
        store.tree(manifest.digest) / "model.onnx", store.tree(manifest.digest),
    ]  # fmt: skip
    for path in data.draw(st.lists(st.sampled_from(names), max_size=4, unique=True)):
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() or path.is_symlink() or not path.parent.is_dir():
            continue
        match data.draw(st.sampled_from(["odd", "data", "part", "link", "folder"])):
            case "odd":
                path.write_bytes(data.draw(_odd_files))
            case "data":
                path.write_bytes(DATA)
            case "part":
                path.write_bytes(DATA[:9_000] + b"?" + DATA[9_001:12_000])
            case "link":
                path.symlink_to(around / "etc" / "passwd")
            case _:
                path.mkdir()
    liar.tell([Answer()])
    _run(store, around, manifest)
