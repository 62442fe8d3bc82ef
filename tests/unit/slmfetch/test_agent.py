# SPDX-License-Identifier: Apache-2.0
"""The store agent on real sockets: blobs, partials that grow, limits, inventory, metrics, orphans."""

import hashlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slmfetch.agent_http import Limits
from slmfetch.fetch import fetch, release
from slmfetch.housekeeping import tidy
from slmfetch.partial import Partial, open_partial
from slmfetch.store import Store, write_json
from slmwire.manifest import Manifest, ManifestFile
from tests.unit.slmfetch.agents import RunningAgent, ask, serve_agent, start_agent
from tests.unit.slmfetch.kit import OWNER, job_of, manifest_of, noise, settings_of
from tests.unit.slmfetch.origin import Origin

DATA = noise(300_000, 1)
SHA = hashlib.sha256(DATA).hexdigest()
FILE = ManifestFile(path="m.onnx", size=len(DATA), sha256=SHA)


@pytest.fixture
def agent(store: Store) -> Iterator[RunningAgent]:
    with serve_agent(store) as running:
        yield running


def put_blob(store: Store, data: bytes = DATA) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    store.blob(sha256).write_bytes(data)
    store.blob(sha256).chmod(0o444)
    return sha256


def begin(store: Store, count: int) -> Partial:
    partial = open_partial(store, FILE)
    assert partial is not None
    partial.restore()
    partial.describe(etag="", origin="")
    partial.write(memoryview(DATA)[:count])
    return partial


def test_a_blob_is_given_whole_and_by_range(agent: RunningAgent) -> None:
    put_blob(agent.store)
    whole = agent.blob(SHA)
    assert (whole.status, whole.body) == (200, DATA)
    assert whole.headers["x-slm-state"] == "whole"
    rest = agent.blob(SHA, headers={"Range": "bytes=299990-"})
    assert (rest.status, rest.body) == (206, DATA[299_990:])
    assert rest.headers["content-range"] == "bytes 299990-299999/300000"
    middle = agent.blob(SHA, headers={"Range": "bytes=5-9"})
    assert middle.body == DATA[5:10]
    head = agent.blob(SHA, method="HEAD")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "300000")
    beyond = agent.blob(SHA, headers={"Range": "bytes=300000-"})
    assert (beyond.status, beyond.headers["content-range"]) == (416, "bytes */300000")
    assert agent.agent.server.bytes_sent == 300_000 + 10 + 5


def test_one_connection_serves_many_requests(agent: RunningAgent) -> None:
    put_blob(agent.store)
    with socket.create_connection((agent.address, agent.port), timeout=5) as connection:
        request = f"GET /v1/blobs/sha256/{SHA} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-3\r\n\r\n".encode()
        connection.sendall(request * 3)
        received = b""
        while received.count(DATA[:4]) < 3:
            piece = connection.recv(65536)
            assert piece
            received += piece


@pytest.mark.parametrize(
    "name",
    ["", "abc", SHA.upper(), SHA + "0", f"{SHA}/..", "../../../etc/passwd", f"{SHA[:-1]}%2e", f"{SHA}?x=1"],
)
def test_a_path_is_64_hexadecimal_digits_and_nothing_else(agent: RunningAgent, name: str) -> None:
    put_blob(agent.store)
    answer = agent.blob(name)
    assert (answer.status, len(answer.body) < 100) == (400, True)


def test_a_link_or_a_folder_is_no_blob(agent: RunningAgent, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    agent.store.blob("a" * 64).symlink_to(secret)
    agent.store.blob("b" * 64).mkdir()
    os.mkfifo(agent.store.blob("c" * 64))
    (agent.store.partial / f"{'d' * 64}.part").symlink_to(secret)
    for digit in "abcde":
        assert agent.blob(digit * 64).status == 404


def test_a_partial_is_given_as_far_as_it_has_come(agent: RunningAgent) -> None:
    partial = begin(agent.store, 100_000)
    answer = agent.blob(SHA, headers={"Range": "bytes=40000-"})
    assert (answer.status, answer.body) == (206, DATA[40_000:100_000])
    assert answer.headers["content-range"] == "bytes 40000-99999/*"
    assert (answer.headers["x-slm-state"], answer.headers["x-slm-have"]) == ("source", "100000")
    nothing = agent.blob(SHA, headers={"Range": "bytes=100000-"})
    assert (nothing.status, nothing.headers["x-slm-have"]) == (204, "100000")
    (agent.store.partial / f"{SHA}.peers").touch()
    assert agent.blob(SHA, method="HEAD").headers["x-slm-state"] == "peers"
    partial.close()
    idle = agent.blob(SHA, headers={"Range": "bytes=100000-", "Prefer": "wait=10"})
    assert (idle.status, idle.headers["x-slm-state"]) == (204, "idle"), "nobody to wait for"


def test_a_request_waits_for_bytes_that_come(agent: RunningAgent) -> None:
    partial = begin(agent.store, 1000)
    threading.Timer(0.3, lambda: partial.write(memoryview(DATA)[1000:5000])).start()
    answer = agent.blob(SHA, headers={"Range": "bytes=1000-", "Prefer": "wait=10"})
    assert (answer.status, answer.body) == (206, DATA[1000:5000])

    def finish() -> None:
        partial.write(memoryview(DATA)[5000:])
        assert partial.publish() == ""

    threading.Timer(0.2, finish).start()
    answer = agent.blob(SHA, headers={"Range": "bytes=5000-", "Prefer": "wait=10"})
    assert DATA[5000:].startswith(answer.body)
    assert len(answer.body) > 0
    while not agent.store.blob(SHA).exists():
        time.sleep(0.01)
    assert agent.blob(SHA).body == DATA
    partial.close()


def test_after_a_power_cut_only_synced_bytes_of_a_partial_are_given(agent: RunningAgent) -> None:
    begin(agent.store, 100_000).close()
    meta = agent.store.partial / f"{SHA}.json"
    write_json(meta, json.loads(meta.read_text()) | {"bootId": "another boot", "synced": 4096})
    answer = agent.blob(SHA)
    assert answer.body == DATA[:4096]


def test_a_partial_that_starts_over_has_nothing_to_give(agent: RunningAgent) -> None:
    partial = begin(agent.store, 200_000)
    partial.reset()
    assert agent.blob(SHA).status == 204
    partial.close()


def test_other_methods_and_malformed_requests_are_refused(agent: RunningAgent) -> None:
    assert agent.get("/healthz", method="POST").status == 405
    assert agent.get("/v1/blobs/sha256/", method="DELETE").status == 405
    assert agent.get("/").status == 404
    for text in (
        "GET\r\n\r\n",
        "GET / SPDY/3\r\n\r\n",
        "GET / HTTP/1.1\r\nbroken\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nx: " + "a" * 20_000,
    ):
        with socket.create_connection((agent.address, agent.port), timeout=5) as connection:
            connection.sendall(text.encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 400 "), text[:40]


def test_too_many_connections_of_one_client_are_turned_away(store: Store) -> None:
    with serve_agent(store, limits=Limits(connections=10, connections_per_client=3)) as agent:
        held = [socket.create_connection((agent.address, agent.port), timeout=5) for _ in range(3)]
        for connection in held:
            connection.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        answer = agent.get("/healthz")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        other = socket.create_connection(
            (agent.address, agent.port), timeout=5, source_address=("127.0.0.9", 0)
        )
        other.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert other.recv(4096).startswith(b"HTTP/1.1 200"), "another client is not made to suffer"
        other.close()
        for connection in held:
            connection.close()
        deadline = time.monotonic() + 5
        while agent.get("/healthz").status != 200:
            assert time.monotonic() < deadline, "a place is free again"


def test_a_client_that_says_nothing_is_cut_off(store: Store) -> None:
    with (
        serve_agent(store, limits=Limits(idle_seconds=0.2)) as agent,
        socket.create_connection((agent.address, agent.port), timeout=5) as connection,
    ):
        connection.sendall(b"GET / HT")
        assert connection.recv(100) == b""


def test_without_an_address_it_listens_on_all(store: Store) -> None:
    with serve_agent(store, address="") as agent:
        for address in ("127.0.0.1", "127.0.0.7", *(["::1"] if has_ipv6() else [])):
            assert ask(address, agent.port, "/healthz").status == 200


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_store_and_metrics_say_what_is_there(agent: RunningAgent, origin: Origin) -> None:
    data = noise(50_000, 2)
    origin.files["/m/a.bin"] = data
    manifest = manifest_of({"a.bin": data}, f"{origin.url}/m")
    fetch(agent.store, job_of(manifest), settings_of(agent.store))
    begin(agent.store, 1000).close()
    folder = agent.store.root / "progress"
    folder.mkdir(exist_ok=True)
    write_json(folder / "shop.orders.r2.json", {"file": "b.bin", "bytes": 7, "total": 9, "from": "peers"})
    body = json.loads(agent.get("/v1/store").body)
    assert body["node"] == "n1"
    assert (body["bytes"], body["reclaimableBytes"]) == (51_000, 1000)
    assert body["pins"][0]["deployment"] == "orders"
    assert body["progress"] == [
        {"file": "b.bin", "bytes": 7, "total": 9, "from": "peers"}
        | {"namespace": "shop", "deployment": "orders", "revision": "r2"}
    ]
    text = agent.get("/metrics").body.decode()
    assert 'slmstore_bytes{slm_node="n1"} 51000\n' in text
    assert 'slmstore_partial_bytes{slm_node="n1"} 1000\n' in text
    labels = 'slm_node="n1",slm_namespace="shop",slm_deployment="orders",slm_revision="r2"'
    assert f"slmstore_fetch_bytes{{{labels}}} 7\n" in text
    assert re.search(r'slmstore_pin_bytes\{.*slm_revision="r1",complete="true"\} 50000\n', text)
    for line in text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+\{(\w+="[^"]*",?)*\} [0-9.e+]+', line), line


def test_orphans_go_and_what_is_pinned_or_under_way_stays(
    agent: RunningAgent, origin: Origin, tmp_path: Path
) -> None:
    store = agent.store
    data = noise(50_000, 3)
    origin.files["/m/a.bin"] = data
    manifest = manifest_of({"a.bin": data}, f"{origin.url}/m")
    fetch(store, job_of(manifest), settings_of(store))
    orphan = put_blob(store, b"nobody's")
    begin(store, 1000).close()
    (store.partial / f"{SHA}.peers").touch()
    progress = store.root / "progress"
    progress.mkdir(exist_ok=True)
    for name, age in (("shop.orders.old.json", 3600), ("shop.orders.r2.json", 5)):
        write_json(progress / name, {})
        stamp = time.time() - age
        os.utime(progress / name, (stamp, stamp))
    agent.agent.collect()
    assert not store.blob(orphan).exists()
    assert list(store.partial.iterdir()) == []
    assert [path.name for path in progress.iterdir()] == ["shop.orders.r2.json"]
    assert store.blob(manifest.files[0].sha256).read_bytes() == data
    assert 'slmstore_collected_bytes_total{slm_node="n1"} 1008\n' in agent.get("/metrics").body.decode()

    working = begin(store, 1000)
    (store.partial / f"{SHA}.peers").touch()
    agent.agent.collect()
    assert len(list(store.partial.iterdir())) == 3, "a fetch that lives keeps all it has"
    working.close()
    release(store, OWNER, wait_seconds=0)
    assert list(store.blobs.iterdir()) == []


def test_nobody_learns_from_it_what_to_ask_for(agent: RunningAgent) -> None:
    coming, bad = "ab" * 32, "cd" * 32
    for folder, name in ((agent.store.partial, f"{coming}.part"), (agent.store.quarantine, f"{bad}.json")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"123")
    for path in ("/v1/store", "/metrics"):
        text = agent.get(path).body.decode()
        assert coming[:20] not in text and bad[:20] not in text
    body = json.loads(agent.get("/v1/store").body)
    assert body["partials"] == [{"sha256": coming[:12], "bytes": 3}] and body["quarantined"] == [bad[:12]]


def test_stores_in_folders_below_are_served_and_tidied_up_too(agent: RunningAgent, tmp_path: Path) -> None:
    team = Store(agent.store.root / "team-a")
    team.prepare()
    put_blob(team)
    assert agent.blob(SHA).body == DATA
    begin(agent.store, 1000).close()
    assert agent.blob(SHA, method="HEAD").headers["x-slm-state"] == "whole"
    # No store: a link, and a folder that only looks a little like one.
    outside = Store(tmp_path / "outside")
    outside.prepare()
    other = put_blob(outside, b"secret")
    (agent.store.root / "link").symlink_to(outside.root)
    (agent.store.root / "odd" / "blobs").mkdir(parents=True)
    (agent.store.root / "odd" / "blobs" / "sha256").symlink_to(outside.blobs)
    write_json_pin(team, SHA, len(DATA))
    agent.agent.collect()
    assert [path.name for path in team.blobs.iterdir()] == [SHA]
    assert agent.blob(other).status == 404
    assert outside.blob(other).exists()
    time.sleep(1.1)  # what it said of stores and of what is in them may be a second old
    body = json.loads(agent.get("/v1/store").body)
    assert (body["bytes"], body["blobs"], len(body["pins"])) == (len(DATA), 1, 1)


def test_a_fetch_at_the_source_counts_more_than_one_that_waits(agent: RunningAgent) -> None:
    team = Store(agent.store.root / "team-a")
    team.prepare()
    waiting, working = begin(agent.store, 1000), begin(team, 500)
    (agent.store.partial / f"{SHA}.peers").touch()
    head = agent.blob(SHA, method="HEAD").headers
    assert (head["x-slm-state"], head["x-slm-have"]) == ("source", "500")
    working.close()
    assert agent.blob(SHA, method="HEAD").headers["x-slm-state"] == "peers"
    waiting.close()


def test_an_unreadable_pin_or_an_empty_folder_stops_the_collection(store: Store, tmp_path: Path) -> None:
    orphan = put_blob(store)
    (store.refs / "shop.orders").mkdir()
    (store.refs / "shop.orders" / "r1.json").write_text("{")
    assert tidy(store).blobs == 0
    assert store.blob(orphan).exists()
    empty = Store(tmp_path / "empty")
    empty.root.mkdir()
    assert tidy(empty).blobs == 0
    assert list(empty.root.iterdir()) == []


def test_a_collection_that_fails_is_counted_and_the_agent_lives(
    agent: RunningAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slmfetch.housekeeping.collect", full)
    agent.agent.collect()
    assert 'slmstore_collection_errors_total{slm_node="n1"} 1\n' in agent.get("/metrics").body.decode()


def test_the_real_agent_needs_little_memory_and_ends_at_once(store: Store, tmp_path: Path) -> None:
    data = noise(64 << 20, 4)
    sha256 = put_blob(store, data)
    write_json_pin(store, sha256, len(data))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    process = start_agent(store, tmp_path, address="127.0.0.1", port=port)
    try:
        answers: list[bytes] = []

        def take() -> None:
            answers.append(ask("127.0.0.1", port, f"/v1/blobs/sha256/{sha256}").body)

        readers = [threading.Thread(target=take) for _ in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
        for _ in range(20):
            assert ask("127.0.0.1", port, "/v1/store").status == 200
            assert ask("127.0.0.1", port, "/metrics").status == 200
        assert [answer == data for answer in answers] == [True] * 4
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak is not None
        assert int(peak[1]) < 30 * 1024, f"{peak[1]} kB"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143


def write_json_pin(store: Store, sha256: str, size: int) -> None:
    from slmfetch.refs import new_ref, write_ref

    manifest = Manifest(files=(ManifestFile(path="a", size=size, sha256=sha256),))
    write_ref(store, OWNER, new_ref("r1", manifest))
