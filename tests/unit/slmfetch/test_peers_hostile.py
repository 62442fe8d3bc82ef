# SPDX-License-Identifier: Apache-2.0
"""Peers that mean harm: whatever they answer, the fetch goes on soon and within its memory."""

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from slmfetch.peer_link import look
from tests.unit.slmfetch import test_peers
from tests.unit.slmfetch.kit import manifest_of
from tests.unit.slmfetch.test_peers import DATA, NODES, Node

Send = Callable[[bytes], object]
ALL = len(DATA)
node = test_peers.node  # a fixture


def head(status: str, *, state: str, have: int, length: int = 0, more: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nX-Slm-State: {state}\r\nX-Slm-Have: {have}\r\n"
        f"Content-Length: {length}\r\n{more}\r\n"
    ).encode()


WHOLE = head("206 Partial Content", state="whole", have=ALL)


@contextlib.contextmanager
def rogue(node: Node, answer: Callable[[int, Send], None], *, view: bytes = WHOLE) -> Iterator[None]:
    """A peer that answers HEAD with `view`, and GET from an offset by what `answer` sends."""
    node.tell(**{NODES[0]: "127.0.2.2"})
    stop = threading.Event()
    began = time.monotonic()

    def talk(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError):
            while not stop.is_set():
                request = b""
                while b"\r\n\r\n" not in request:
                    piece = connection.recv(4096)
                    if not piece:
                        return
                    request += piece
                if request.startswith(b"HEAD"):
                    connection.sendall(view)
                    continue
                offset = int(request.partition(b"bytes=")[2].partition(b"-")[0])

                def send(data: bytes) -> None:
                    if stop.is_set() or time.monotonic() > began + 20:
                        raise OSError
                    connection.sendall(data)

                answer(offset, send)

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.2.2", node.port)) as listener:
        thread = threading.Thread(target=accept, args=(listener,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def piece(offset: int, data: bytes, *, state: str = "whole", have: int = ALL) -> bytes:
    span = f"Content-Range: bytes {offset}-{offset + len(data) - 1}/*\r\n"
    return head("206 Partial Content", state=state, have=have, length=len(data), more=span) + data


def fetched_within(node: Node, seconds: float) -> int:
    """Bytes from peers. A busy machine may take three times as long; what is guarded against, minutes."""
    began = time.monotonic()
    outcome = node.fetch()
    assert time.monotonic() - began < 3 * seconds
    return outcome.bytes_from_peers


@pytest.mark.parametrize("digits", ["9" * 5000, "9" * 16])
def test_a_range_of_absurd_numbers_is_no_answer(node: Node, digits: str) -> None:
    def answer(offset: int, send: Send) -> None:
        span = f"Content-Range: bytes {digits}-{digits}/{digits}\r\n"
        send(head("206 Partial Content", state="whole", have=ALL, length=1, more=span) + b"x")

    with rogue(node, answer):
        assert fetched_within(node, 5) == 0


def test_one_that_has_all_and_gives_single_bytes_is_left(node: Node) -> None:
    def answer(offset: int, send: Send) -> None:
        time.sleep(0.02)
        send(piece(offset, DATA[offset : offset + 1]))

    with rogue(node, answer):
        assert fetched_within(node, 5) < 10


@pytest.mark.parametrize("state", ["idle", "peers"])
def test_one_that_always_has_one_byte_more_is_left(
    node: Node, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr("slmfetch.peers.TRIAL_SECONDS", 0.5)
    given: set[int] = set()

    def answer(offset: int, send: Send) -> None:
        if offset in given:
            send(head("204 No Content", state=state, have=offset))
            return
        given.add(offset + 1)
        send(piece(offset, DATA[offset : offset + 1], state=state, have=offset + 1))

    view = head("206 Partial Content", state=state, have=ALL - 1)
    with rogue(node, answer, view=view):
        fetched_within(node, 8)


def test_one_that_says_it_gets_bytes_and_gives_none_is_left(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmfetch.peers.PATIENCE_SECONDS", 3600.0)
    claimed = 0

    def answer(offset: int, send: Send) -> None:
        nonlocal claimed
        claimed += 1_000_000
        send(head("204 No Content", state="source", have=claimed))

    with rogue(node, answer, view=head("206 Partial Content", state="source", have=0)):
        assert fetched_within(node, 5) == 0
    assert claimed <= 3_000_000


def test_one_that_stays_behind_us_is_not_waited_for_without_end(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmfetch.peers.PATIENCE_SECONDS", 3600.0)
    monkeypatch.setattr("slmfetch.peer_link.BEHIND_SECONDS", 1.0)
    asked = 0

    def answer(offset: int, send: Send) -> None:
        nonlocal asked
        asked += 1
        if not offset:
            send(piece(0, DATA[:1_000_000], state="source", have=1_000_000))
            return
        send(head("204 No Content", state="source", have=asked))

    with rogue(node, answer, view=head("206 Partial Content", state="source", have=1_000_000)):
        fetched_within(node, 8)
    assert asked < 30, "asked again and again without a pause"


@pytest.mark.parametrize("drip", [b"X", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_headers_that_do_not_end_are_not_waited_for(
    node: Node, monkeypatch: pytest.MonkeyPatch, drip: bytes
) -> None:
    monkeypatch.setattr("slmfetch.peer_link.HEAD_SECONDS", 1.0)

    def answer(offset: int, send: Send) -> None:
        send(b"" if len(drip) > 1 else b"HTTP/1.1 206 Partial Content\r\nX: ")
        while True:
            send(drip)
            time.sleep(0.01)

    with rogue(node, answer):
        assert fetched_within(node, 5) == 0


def test_a_flood_of_headers_costs_little_memory(node: Node) -> None:
    bomb = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 60_000) for number in range(99))

    def answer(offset: int, send: Send) -> None:
        send(b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with rogue(node, answer, view=b"HTTP/1.1 206 Partial Content\r\n" + bomb + b"\r\n"):
        views, refused, _ = look(node.manifest.files[0], {"n": "127.0.2.2"}, port=node.port)
        assert not views and set(refused) == {"n"}
        assert fetched_within(node, 5) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_chunks_are_not_taken(node: Node) -> None:
    """An agent sends none, and their ends may be followed by trailers without end."""

    def answer(offset: int, send: Send) -> None:
        span = f"Content-Range: bytes {offset}-{ALL - 1}/{ALL}\r\nTransfer-Encoding: chunked\r\n\r\n"
        send(b"HTTP/1.1 206 Partial Content\r\n" + span.encode() + b"1\r\nx\r\n0\r\n")
        while True:
            send(b"X-Trailer: 1\r\n")
            time.sleep(0.01)

    with rogue(node, answer):
        assert fetched_within(node, 5) == 0


def test_an_address_that_is_none_is_passed_over(node: Node) -> None:
    node.tell(**{NODES[0]: "127.0.2.2\0", NODES[2]: "\ud800"})
    assert fetched_within(node, 5) == 0


def test_one_that_only_says_to_be_at_the_source_does_not_delay_each_file(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmfetch.peers.TRIAL_SECONDS", 0.8)
    files = {f"f{number}": DATA[number : number + 100_000] for number in range(12)}
    node.origin.files |= {f"/m/{path}": data for path, data in files.items()}
    manifest = manifest_of({"m.onnx": DATA, **files}, f"{node.origin.url}/m")
    node.manifest = manifest

    def answer(offset: int, send: Send) -> None:
        time.sleep(0.1)
        send(head("204 No Content", state="source", have=0))

    with rogue(node, answer, view=head("204 No Content", state="source", have=0)):
        assert fetched_within(node, 4) == 0
