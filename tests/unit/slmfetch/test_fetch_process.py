# SPDX-License-Identifier: Apache-2.0
"""The real program: killed at random bytes, run twice at once, held, released, out of memory's reach."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from slmfetch.fetch import fetch
from slmfetch.refs import read_refs
from slmfetch.store import Store, scan
from slmwire.reasons import Reason, parse_termination
from tests.unit.slmfetch.kit import (
    OWNER,
    assert_consistent,
    finish,
    job_of,
    manifest_of,
    noise,
    settings_of,
    start_fetcher,
    tree_content,
    wait_until,
)
from tests.unit.slmfetch.origin import Fault, Origin


def test_sigkill_at_random_bytes_costs_next_to_nothing(origin: Origin, store: Store, tmp_path: Path) -> None:
    size, kills = 20_000_000, 8
    data = noise(size, 7)
    origin.files["/m/model.onnx"] = data
    origin.bytes_per_second = 20_000_000
    manifest = manifest_of({"model.onnx": data}, f"{origin.url}/m")
    points = sorted(random.Random(7).sample(range(200_000, size - 200_000), kills))
    for point in points:
        process = start_fetcher(["fetch", "--serve"], store, tmp_path, manifest, SLM_FETCH_CONNECTIONS="1")
        wait_until(lambda point=point: origin.bytes_sent >= point)  # type: ignore[misc]
        process.kill()
        finish(process)
        assert_consistent(store)
        assert scan(store.trees) == []
    code, output = finish(start_fetcher(["fetch", "--serve"], store, tmp_path, manifest))
    assert code == 0, output
    assert tree_content(store, manifest) == {"model.onnx": data}
    assert all(seen.start for seen in origin.seen[1:]), "every later run resumed"
    assert origin.bytes_sent - size <= size * 0.02
    assert scan(store.partial) == []


def test_two_fetchers_share_one_download(origin: Origin, store: Store, tmp_path: Path) -> None:
    data = noise(3_000_000, 8)
    origin.files["/m/model.onnx"] = data
    origin.bytes_per_second = 3_000_000
    manifest = manifest_of({"model.onnx": data}, f"{origin.url}/m")
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    running = [
        start_fetcher(["fetch", "--serve"], store, folder, manifest, SLM_REVISION=f"r{index}")
        for index, folder in enumerate(folders)
    ]
    for process in running:
        code, output = finish(process)
        assert code == 0, output
    assert origin.bytes_sent == len(data)
    texts = [(folder / "termination").read_text() for folder in folders]
    endings = [ending for text in texts if (ending := parse_termination(text)) is not None]
    assert sorted(e.bytes_downloaded for e in endings) == [0, len(data)]
    assert {e.digest for e in endings} == {manifest.digest}
    assert_consistent(store)


def test_second_fetcher_takes_over_when_the_first_is_killed(
    origin: Origin, store: Store, tmp_path: Path
) -> None:
    data = noise(3_000_000, 9)
    origin.files["/m/model.onnx"] = data
    origin.bytes_per_second = 2_000_000
    manifest = manifest_of({"model.onnx": data}, f"{origin.url}/m")
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    first = start_fetcher(["fetch"], store, folders[0], manifest)
    wait_until(lambda: origin.bytes_sent > 500_000)
    second = start_fetcher(["fetch"], store, folders[1], manifest)
    wait_until(lambda: origin.bytes_sent > 1_500_000)
    first.kill()
    finish(first)
    code, output = finish(second)
    assert code == 0, output
    assert len(origin.seen) == 2
    assert origin.seen[1].start >= 1_000_000
    assert tree_content(store, manifest) == {"model.onnx": data}


def test_failure_is_reported_in_the_termination_log(origin: Origin, store: Store, tmp_path: Path) -> None:
    manifest = manifest_of({"model.onnx": b"abc"}, f"{origin.url}/m")
    origin.faults["/m/model.onnx"] = [Fault(status=403)]
    code, output = finish(start_fetcher(["fetch", "--serve"], store, tmp_path, manifest))
    assert code == 1
    ending = parse_termination((tmp_path / "termination").read_text())
    assert ending is not None
    assert ending.reason == Reason.ACCESS_DENIED
    assert ending.digest == manifest.digest
    lines = [json.loads(line) for line in output.splitlines()]
    assert lines[-1]["reason"] == "AccessDenied"
    assert {"ts", "level", "msg"} <= lines[-1].keys()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"files": []}', "has no files"),
        ('{"files": [{"path": "../evil", "size": 1, "sha256": "%s"}]}' % ("0" * 64), "../evil"),
        ("not json", "not JSON"),
    ],
)
def test_bad_manifest_is_refused(store: Store, tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    code, _ = finish(start_fetcher(["fetch"], store, tmp_path))
    assert code == 2
    ending = parse_termination((tmp_path / "termination").read_text())
    assert ending is not None and named in ending.message and ending.reason == Reason.UNFIT


def test_hold_says_ready_only_when_verified_and_ends_at_sigterm(
    origin: Origin, store: Store, tmp_path: Path
) -> None:
    data = noise(1_000_000, 10)
    origin.files["/m/model.onnx"] = data
    origin.faults["/m/model.onnx"] = [Fault(hang_seconds=0.5)]
    manifest = manifest_of({"model.onnx": data}, f"{origin.url}/m")
    (tmp_path / "ready").touch()  # left by the container's earlier life
    process = start_fetcher(["hold"], store, tmp_path, manifest)
    wait_until(lambda: len(origin.seen) == 1)
    assert finish(start_fetcher(["ready"], store, tmp_path))[0] == 1
    wait_until((tmp_path / "ready").exists)
    assert finish(start_fetcher(["ready"], store, tmp_path))[0] == 0
    assert tree_content(store, manifest) == {"model.onnx": data}
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 0
    assert time.monotonic() - began < 10.0
    ref = read_refs(store, OWNER.key)["r1"]
    assert ref.complete and ref.served_at == 0.0, "fetched ahead is not served"


def test_sigterm_during_a_download_keeps_what_came(origin: Origin, store: Store, tmp_path: Path) -> None:
    data = noise(3_000_000, 11)
    origin.files["/m/model.onnx"] = data
    origin.bytes_per_second = 2_000_000
    manifest = manifest_of({"model.onnx": data}, f"{origin.url}/m")
    process = start_fetcher(["hold"], store, tmp_path, manifest)
    wait_until(lambda: origin.bytes_sent > 1_000_000)
    process.terminate()
    assert finish(process)[0] == 143
    assert sum(e.stat().st_size for e in scan(store.partial)) > 900_000


def test_release_drops_pins_and_bytes_then_holds(origin: Origin, store: Store, tmp_path: Path) -> None:
    shared, own = noise(1000, 12), noise(1000, 13)
    origin.files |= {"/m/shared": shared, "/m/own": own}
    mine = manifest_of({"shared": shared, "own": own}, f"{origin.url}/m")
    theirs = manifest_of({"shared": shared}, f"{origin.url}/m")
    other = type(OWNER)(namespace="shop", deployment="other")
    fetch(store, job_of(mine), settings_of(store))
    fetch(store, job_of(theirs, owner=other), settings_of(store))
    process = start_fetcher(["release"], store, tmp_path)
    wait_until((tmp_path / "ready").exists)
    process.terminate()
    assert finish(process)[0] == 0
    assert not store.tree(mine.digest).exists()
    assert tree_content(store, theirs) == {"shared": shared}
    assert len(scan(store.blobs)) == 1
    assert [e.name for e in scan(store.refs)] == ["shop.other"]


def test_release_where_nothing_ever_was(tmp_path: Path) -> None:
    code, output = finish(start_fetcher(["release", "--once"], Store(tmp_path / "none"), tmp_path))
    assert code == 0, output


def test_list_shows_pins_and_what_could_go(origin: Origin, store: Store, tmp_path: Path) -> None:
    data = noise(5000, 14)
    origin.files["/m/f"] = data
    manifest = manifest_of({"f": data}, f"{origin.url}/m")
    fetch(store, job_of(manifest), settings_of(store))
    (store.partial / f"{'a' * 64}.part").write_bytes(b"x" * 77)
    code, output = finish(start_fetcher(["list"], store, tmp_path))
    assert code == 0
    body = json.loads(output)
    assert body["bytes"] == 5077 and body["reclaimableBytes"] == 77
    assert body["pins"][0]["digest"] == manifest.digest
    assert body["pins"][0]["namespace"] == "shop" and body["pins"][0]["deployment"] == "orders"


def test_memory_stays_flat(origin: Origin, store: Store, tmp_path: Path) -> None:
    data = noise(1 << 20, 15) * 48
    origin.files["/m/model.onnx"] = data
    manifest = manifest_of({"model.onnx": data}, f"{origin.url}/m")
    process = start_fetcher(["hold"], store, tmp_path, manifest)
    wait_until((tmp_path / "ready").exists)
    # Not ru_maxrss: it counts what this process held before it became a fetcher.
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    process.terminate()
    assert finish(process)[0] == 0
    assert peak_kib < len(data) // 1024, "less than the file, let alone the 64 MiB allowed"


@pytest.mark.parametrize("name", ["SLM_DEPLOYMENT", "SLM_REVISION", "SLM_NAMESPACE"])
def test_names_cannot_leave_the_store(store: Store, tmp_path: Path, name: str) -> None:
    manifest = manifest_of({"f": b"1"}, "http://127.0.0.1:1")
    extra = {name: "../../etc"}
    code, output = finish(start_fetcher(["fetch"], store, tmp_path, manifest, **extra))
    assert code == 2 and name in output
