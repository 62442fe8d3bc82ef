# SPDX-License-Identifier: Apache-2.0
"""One node among peers that are well, dead, silent, slow, lying or busy; the source counts its bytes."""

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmfetch.agent_http import FileSpan, Limits, Reply, Request, Server
from slmfetch.fetch import Outcome, fetch
from slmfetch.partial import Partial, open_partial
from slmfetch.peers import Peers, rank
from slmfetch.store import Store, scan
from slmwire.distribution import Distribution
from slmwire.manifest import Manifest
from tests.unit.slmfetch.agents import RunningAgent, serve_agent
from tests.unit.slmfetch.kit import job_of, manifest_of, noise, settings_of, tree_content
from tests.unit.slmfetch.origin import Origin

DATA = noise(3_000_000, 11)
SHA = hashlib.sha256(DATA).hexdigest()
NODES = rank(SHA, ["a", "b", "c", "d"])
"""The first of them is the one that goes to the source."""


@dataclass(slots=True, kw_only=True)
class Node:
    """The node under test: the second in rank."""

    store: Store
    manifest: Manifest
    origin: Origin
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    port: int
    sites: dict[str, str] = field(default_factory=dict)
    """Neighbour -> address."""

    def tell(self, **addresses: str) -> None:
        self.sites = addresses
        distribution = Distribution(
            peer_port=self.port,
            sites={"s": {NODES[1]: "127.0.2.1", **addresses}, "other": {"x": "127.0.2.9"}},
        )
        (self.folder / "distribution.json").write_text(distribution.to_json())

    def fetch(self, **changes: object) -> Outcome:
        path = self.folder / "distribution.json"
        settings = settings_of(self.store, distribution_file=path, node=NODES[1], **changes)
        outcome = fetch(self.store, job_of(self.manifest), settings)
        assert tree_content(self.store, self.manifest)["m.onnx"] == DATA
        assert scan(self.store.partial) == []
        return outcome

    def neighbour(self, name: str) -> Store:
        store = Store(self.folder / f"store-{name}")
        store.prepare()
        return store


@pytest.fixture
def node(store: Store, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr("slmfetch.peers.GRACE_SECONDS", 0.3)
    monkeypatch.setattr("slmfetch.peers.PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr("slmfetch.peer_link.WAIT_SECONDS", 1)
    origin.files["/m/m.onnx"] = DATA
    manifest = manifest_of({"m.onnx": DATA}, f"{origin.url}/m")
    with socket.create_server(("127.0.2.1", 0)) as free:
        port = free.getsockname()[1]
    return Node(
        store=store, manifest=manifest, origin=origin, folder=tmp_path, monkeypatch=monkeypatch, port=port
    )


def put(store: Store, data: bytes, sha256: str = SHA) -> None:
    store.blob(sha256).write_bytes(data)
    store.blob(sha256).chmod(0o444)


def begin(store: Store, manifest: Manifest, count: int) -> Partial:
    partial = open_partial(store, manifest.files[0])
    assert partial is not None
    partial.restore()
    partial.describe(etag="", origin="")
    partial.write(memoryview(DATA)[:count])
    return partial


def messages(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@contextlib.contextmanager
def agent_of(node: Node, store: Store, last: int, limits: Limits | None = None) -> Iterator[RunningAgent]:
    with serve_agent(store, address=f"127.0.2.{last}", port=node.port, limits=limits) as running:
        yield running


@contextlib.contextmanager
def answering(node: Node, last: int, answer: Callable[[Request], Reply]) -> Iterator[Server]:
    """Something on the agent's port that answers as it likes."""
    server = Server(address=f"127.0.2.{last}", port=node.port, answer=answer)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join(5)


def test_a_blob_that_a_peer_has_is_not_taken_from_the_source(node: Node) -> None:
    other = node.neighbour("a")
    put(other, DATA)
    node.tell(**{NODES[3]: "127.0.2.4"})
    node.origin.files.clear()
    with agent_of(node, other, 4):
        outcome = node.fetch()
    assert (outcome.bytes_downloaded, outcome.bytes_from_peers) == (len(DATA), len(DATA))
    assert node.origin.seen == []


def test_what_is_here_already_is_not_taken_again(node: Node) -> None:
    other = node.neighbour("a")
    put(other, DATA)
    begin(node.store, node.manifest, 1_000_000).close()
    node.tell(**{NODES[3]: "127.0.2.4"})
    with agent_of(node, other, 4):
        assert node.fetch().bytes_from_peers == len(DATA) - 1_000_000
    assert node.origin.seen == []


def test_without_peers_or_a_site_of_our_own_the_source_gives_all(node: Node) -> None:
    node.tell()
    assert node.fetch().bytes_from_peers == 0
    assert node.origin.bytes_sent == len(DATA)


def test_a_name_is_never_looked_up(node: Node) -> None:
    node.tell(**{NODES[0]: "localhost"})
    put(node.neighbour("a"), DATA)
    with agent_of(node, node.neighbour("a"), 4):
        assert node.fetch().bytes_from_peers == 0


def test_dead_peers_are_passed_over(node: Node) -> None:
    node.tell(**{NODES[0]: "127.0.2.2", NODES[2]: "127.0.2.3"})
    node.monkeypatch.setattr("slmfetch.peers.GRACE_SECONDS", 3600.0)
    node.monkeypatch.setattr("slmfetch.peers.GRACE_BUDGET_SECONDS", 3600.0)
    assert node.fetch().bytes_from_peers == 0
    assert node.origin.bytes_sent == len(DATA)


def test_black_holes_are_asked_once_and_at_the_same_time(node: Node) -> None:
    accepted: list[socket.socket] = []
    stop = threading.Event()

    def swallow(listener: socket.socket) -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                accepted.append(listener.accept()[0])

    with contextlib.ExitStack() as stack:
        # One takes the connection and says nothing; the other, its queue full, drops even the SYN.
        mute = stack.enter_context(socket.create_server(("127.0.2.2", node.port)))
        mute.settimeout(0.1)
        full = stack.enter_context(socket.create_server(("127.0.2.3", node.port), backlog=0))
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.2.3", node.port))
        assert full.fileno() >= 0
        thread = threading.Thread(target=swallow, args=(mute,))
        thread.start()
        try:
            node.tell(**{NODES[0]: "127.0.2.2", NODES[2]: "127.0.2.3"})
            assert node.fetch().bytes_from_peers == 0
        finally:
            stop.set()
            thread.join()
            for connection in accepted:
                connection.close()
    assert len(accepted) == 1
    assert node.origin.bytes_sent == len(DATA)


def test_a_leader_that_lives_but_does_not_begin_is_waited_for_in_vain(
    node: Node, capfd: pytest.CaptureFixture[str]
) -> None:
    node.tell(**{NODES[0]: "127.0.2.2"})
    with agent_of(node, node.neighbour("a"), 2):
        assert node.fetch().bytes_from_peers == 0
    assert node.origin.bytes_sent == len(DATA)


def test_the_first_in_rank_does_not_wait(node: Node) -> None:
    node.tell(**{NODES[2]: "127.0.2.3", NODES[3]: "127.0.2.4"})
    node.monkeypatch.setattr("slmfetch.peers.GRACE_SECONDS", 3600.0)
    with agent_of(node, node.neighbour("a"), 3), agent_of(node, node.neighbour("b"), 4):
        node.fetch()
    assert node.origin.bytes_sent == len(DATA)


def test_a_small_file_is_not_waited_for(node: Node) -> None:
    data = noise(1000, 5)
    node.manifest = manifest_of({"m.onnx": DATA, "small.json": data}, f"{node.origin.url}/m")
    node.origin.files["/m/small.json"] = data
    put(node.store, DATA)
    other = node.neighbour("a")
    begun = open_partial(other, node.manifest.files[1])
    assert begun is not None
    node.monkeypatch.setattr("slmfetch.peers.PATIENCE_SECONDS", 3600.0)
    node.monkeypatch.setattr("slmfetch.peers.GRACE_SECONDS", 3600.0)
    node.tell(**{NODES[0]: "127.0.2.2", NODES[2]: "127.0.2.3"})
    with agent_of(node, other, 2), agent_of(node, other, 3):
        node.fetch()
    assert node.origin.bytes_sent == len(data)
    begun.close()


def test_bytes_are_taken_while_the_leader_gets_them(node: Node) -> None:
    other = node.neighbour("a")
    partial = begin(other, node.manifest, 500_000)

    def grow() -> None:
        for start in range(500_000, len(DATA), 500_000):
            time.sleep(0.1)
            partial.write(memoryview(DATA)[start : start + 500_000])
        assert partial.publish() == ""

    node.tell(**{NODES[0]: "127.0.2.2"})
    thread = threading.Thread(target=grow)
    with agent_of(node, other, 2):
        thread.start()
        assert node.fetch().bytes_from_peers == len(DATA)
        thread.join()
    assert node.origin.seen == []
    partial.close()


def test_a_leader_whose_fetch_dies_is_left_at_the_same_offset(node: Node) -> None:
    other = node.neighbour("a")
    partial = begin(other, node.manifest, 1_200_000)
    node.tell(**{NODES[0]: "127.0.2.2"})
    with agent_of(node, other, 2):
        threading.Timer(0.3, partial.close).start()
        assert node.fetch().bytes_from_peers == 1_200_000
    assert [seen.start for seen in node.origin.seen] == [1_200_000]
    assert node.origin.bytes_sent == len(DATA) - 1_200_000


def test_a_leader_that_gets_nothing_is_left(node: Node) -> None:
    other = node.neighbour("a")
    partial = begin(other, node.manifest, 1_200_000)
    node.tell(**{NODES[0]: "127.0.2.2"})
    with agent_of(node, other, 2):
        assert node.fetch().bytes_from_peers == 1_200_000
    assert node.origin.bytes_sent == len(DATA) - 1_200_000
    partial.close()


def test_a_leader_that_creeps_is_left(node: Node) -> None:
    other = node.neighbour("a")
    partial = begin(other, node.manifest, 1000)
    stop = threading.Event()

    def creep() -> None:
        at = 1000
        while not stop.wait(0.05):
            partial.write(memoryview(DATA)[at : at + 10])
            at += 10

    node.monkeypatch.setattr("slmfetch.peers.PATIENCE_SECONDS", 3600.0)
    node.monkeypatch.setattr("slmfetch.peer_link.CREEP_SECONDS", 0.5)
    node.tell(**{NODES[0]: "127.0.2.2"})
    thread = threading.Thread(target=creep)
    thread.start()
    try:
        with agent_of(node, other, 2):
            assert 1000 < node.fetch().bytes_from_peers < 100_000
    finally:
        stop.set()
        thread.join()
    assert node.origin.seen[0].start > 1000
    partial.close()


def test_a_leader_behind_us_that_gets_bytes_is_waited_for(node: Node) -> None:
    other = node.neighbour("a")
    partial = begin(other, node.manifest, 1000)
    begin(node.store, node.manifest, 2_000_000).close()

    def grow() -> None:
        for at in range(1000, len(DATA), 100_000):
            time.sleep(0.04)
            partial.write(memoryview(DATA)[at : at + 100_000])
        assert partial.publish() == ""

    node.monkeypatch.setattr("slmfetch.peer_link.CREEP_SECONDS", 0.3)
    node.tell(**{NODES[0]: "127.0.2.2"})
    thread = threading.Thread(target=grow)
    with agent_of(node, other, 2):
        thread.start()
        assert node.fetch().bytes_from_peers == len(DATA) - 2_000_000
        thread.join()
    assert node.origin.seen == []
    partial.close()


def test_nobody_waits_for_a_node_that_waits_itself(node: Node) -> None:
    other = node.neighbour("a")
    partial = begin(other, node.manifest, 1000)
    (other.partial / f"{SHA}.peers").touch()
    node.monkeypatch.setattr("slmfetch.peers.PATIENCE_SECONDS", 3600.0)
    node.tell(**{NODES[2]: "127.0.2.3"})
    with agent_of(node, other, 3):
        assert node.fetch().bytes_from_peers == 1000
    partial.close()


def test_a_failed_attempt_at_the_source_looks_at_the_peers_again(node: Node) -> None:
    other = node.neighbour("a")
    node.origin.files.clear()
    node.tell(**{NODES[2]: "127.0.2.3"})
    with agent_of(node, other, 3), contextlib.closing(socket.socket()) as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/m"
        node.manifest = manifest_of({"m.onnx": DATA}, url)
        threading.Timer(0.5, lambda: put(other, DATA)).start()
        assert node.fetch(attempts=12).bytes_from_peers == len(DATA)


def _corrupt(at: int) -> bytes:
    data = bytearray(DATA)
    data[at] ^= 0xFF
    return bytes(data)


def test_a_lying_peer_costs_one_copy_and_is_named(node: Node, capfd: pytest.CaptureFixture[str]) -> None:
    other = node.neighbour("a")
    put(other, _corrupt(2_000_000))
    node.tell(**{NODES[2]: "127.0.2.3"})
    with agent_of(node, other, 3) as agent:
        outcome = node.fetch()
        assert agent.agent.server.bytes_sent == len(DATA)
    assert outcome.bytes_from_peers == len(DATA)
    assert node.origin.bytes_sent == len(DATA)
    blamed = [line for line in messages(capfd.readouterr().out) if "peers" in line]
    assert [line["peers"] for line in blamed] == [{NODES[2]: len(DATA)}]
    assert scan(node.store.quarantine) == [], "the source is not to blame"


def test_a_liar_among_honest_ones_does_not_spoil_the_next_file(node: Node) -> None:
    second = noise(2_500_000, 12)
    node.manifest = manifest_of({"m.onnx": DATA, "n.bin": second}, f"{node.origin.url}/m")
    node.origin.files["/m/n.bin"] = second
    liar, honest = node.neighbour("a"), node.neighbour("b")
    put(liar, _corrupt(5))
    put(liar, bytes(len(second)), node.manifest.files[1].sha256)
    put(honest, second, node.manifest.files[1].sha256)
    node.tell(**{NODES[2]: "127.0.2.3", NODES[3]: "127.0.2.4"})
    with agent_of(node, liar, 3), agent_of(node, honest, 4):
        outcome = node.fetch()
    assert outcome.bytes_from_peers == len(DATA) + len(second)
    assert node.origin.bytes_sent == len(DATA)


def test_a_blob_of_another_size_is_not_touched(node: Node) -> None:
    other = node.neighbour("a")
    put(other, DATA + b"more")
    node.tell(**{NODES[2]: "127.0.2.3"})
    with agent_of(node, other, 3) as agent:
        assert node.fetch().bytes_from_peers == 0
        assert agent.agent.server.bytes_sent == 0


NONSENSE = {
    "plain": Reply(status=200, body=b"hello"),
    "wrong state": Reply(status=206, headers={"X-Slm-State": "great", "X-Slm-Have": "3000000"}),
    "negative": Reply(status=200, headers={"X-Slm-State": "whole", "X-Slm-Have": "-1"}),
    "error": Reply(status=500),
    "redirect": Reply(status=302, headers={"Location": "http://127.0.2.9/"}),
    "other range": Reply(
        status=206,
        headers={"X-Slm-State": "whole", "X-Slm-Have": "3000000", "Content-Range": "bytes 7-9/3000000"},
        body=b"abc",
    ),
    "empty": Reply(
        status=206,
        headers={"X-Slm-State": "whole", "X-Slm-Have": "3000000", "Content-Range": "bytes 0-9/3000000"},
    ),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_on_the_port_is_passed_over(node: Node, name: str) -> None:
    head = Reply(status=200, headers={"X-Slm-State": "whole", "X-Slm-Have": str(len(DATA))})
    ranged = name in ("other range", "empty")

    def answer(request: Request) -> Reply:
        return head if ranged and request.method == "HEAD" else NONSENSE[name]

    node.tell(**{NODES[2]: "127.0.2.3"})
    with answering(node, 3, answer):
        assert node.fetch().bytes_from_peers == 0
    assert node.origin.bytes_sent == len(DATA)


def _trickle(node: Node, last: int, stop: threading.Event) -> threading.Thread:
    """A peer that has all and gives it drop by drop."""
    listener = socket.create_server((f"127.0.2.{last}", node.port))
    headers = f"X-Slm-State: whole\r\nX-Slm-Have: {len(DATA)}\r\n"

    def converse(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while request := connection.recv(4096):
                if request.startswith(b"HEAD"):
                    connection.sendall(f"HTTP/1.1 200 OK\r\n{headers}Content-Length: 3\r\n\r\n".encode())
                    continue
                start = int(request.partition(b"bytes=")[2].partition(b"-")[0])
                spans = f"Content-Range: bytes {start}-{len(DATA) - 1}/{len(DATA)}\r\n"
                length = f"Content-Length: {len(DATA) - start}\r\n\r\n"
                connection.sendall(f"HTTP/1.1 206 Partial Content\r\n{headers}{spans}{length}".encode())
                for at in range(start, len(DATA), 1000):
                    connection.sendall(DATA[at : at + 1000])
                    if stop.wait(0.05):
                        return

    def serve() -> None:
        with listener:
            listener.settimeout(0.1)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    threading.Thread(target=converse, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize("other", ["peer", "source"])
def test_a_slow_peer_is_left_for_another_or_the_source(node: Node, other: str) -> None:
    node.monkeypatch.setattr("slmfetch.peer_link.MEASURE_SECONDS", 0.3)
    quick = node.neighbour("a")
    # The order in which this node prefers equal peers.
    first, second = rank(f"{SHA}/{NODES[1]}", [NODES[2], NODES[3]])
    stop = threading.Event()
    thread = _trickle(node, 3, stop)
    node.tell(**{first: "127.0.2.3", second: "127.0.2.4"})
    if other == "peer":
        put(quick, DATA)
    try:
        with agent_of(node, quick, 4):
            outcome = node.fetch()
    finally:
        stop.set()
        thread.join()
    if other == "peer":
        assert outcome.bytes_from_peers == len(DATA)
        assert node.origin.seen == []
    else:
        assert 0 < outcome.bytes_from_peers < 300_000
        assert node.origin.seen[0].start == outcome.bytes_from_peers


def test_a_busy_peer_is_asked_again_later(node: Node) -> None:
    other = node.neighbour("a")
    put(other, DATA)
    node.monkeypatch.setattr("slmfetch.peers.GRACE_SECONDS", 20.0)
    node.monkeypatch.setattr("slmfetch.peers.BUSY_SECONDS", 0.1)
    seen: list[str] = []

    def answer(request: Request) -> Reply:
        seen.append(request.method)
        headers = {"X-Slm-State": "whole", "X-Slm-Have": str(len(DATA))}
        if request.method == "HEAD":
            return Reply(status=200, headers=headers)
        if seen.count("GET") == 1:
            return Reply(status=503)
        headers["Content-Range"] = f"bytes 0-{len(DATA) - 1}/{len(DATA)}"
        fd = os.open(other.blob(SHA), os.O_RDONLY)  # closed by the server
        return Reply(status=206, headers=headers, body=FileSpan(fd=fd, offset=0, length=len(DATA)))

    node.tell(**{NODES[2]: "127.0.2.3", NODES[0]: "127.0.2.2"})
    with answering(node, 3, answer), agent_of(node, node.neighbour("c"), 2):
        assert node.fetch().bytes_from_peers == len(DATA)
    assert node.origin.seen == []


def test_a_marker_that_a_killed_run_left_does_not_outlive_the_next(node: Node) -> None:
    (node.store.partial / f"{SHA}.peers").touch()
    node.tell()
    node.fetch()


NAMES = st.lists(st.text("abcdef0123456789-", min_size=1, max_size=8), min_size=1, max_size=12, unique=True)


@given(nodes=NAMES, sha256=st.text("0123456789abcdef", min_size=64, max_size=64), data=st.data())
def test_every_node_ranks_alike_and_a_loss_moves_nobody_else(
    nodes: Sequence[str], sha256: str, data: st.DataObject
) -> None:
    order = rank(sha256, nodes)
    assert sorted(order) == sorted(nodes)
    assert rank(sha256, data.draw(st.permutations(nodes))) == order
    gone = data.draw(st.sampled_from(nodes))
    assert rank(sha256, [n for n in nodes if n != gone]) == [n for n in order if n != gone]


def test_blobs_are_spread_over_the_nodes() -> None:
    nodes = [f"node-{index}" for index in range(5)]
    first = [rank(hashlib.sha256(bytes([i % 256, i // 256])).hexdigest(), nodes)[0] for i in range(1000)]
    assert all(150 < first.count(node) < 250 for node in nodes)


def test_a_deadline_ends_the_wait_for_peers(node: Node) -> None:
    other = node.neighbour("a")
    partial = begin(other, node.manifest, 1000)
    mine = open_partial(node.store, node.manifest.files[0])
    assert mine is not None
    mine.restore()
    node.monkeypatch.setattr("slmfetch.peers.PATIENCE_SECONDS", 3600.0)
    distribution = Distribution(peer_port=node.port, sites={"s": {NODES[1]: "x", NODES[0]: "127.0.2.2"}})
    peers = Peers(
        store=node.store,
        node=NODES[1],
        distribution=lambda: distribution,
        deadline=time.monotonic() + 0.5,
    )
    with agent_of(node, other, 2):
        peers.fill(node.manifest.files[0], mine)
    assert mine.offset == 1000
    mine.close()
    partial.close()
