# SPDX-License-Identifier: Apache-2.0
"""Adapters trained on a node go into its store: pinned apart from revisions, whatever is killed meanwhile."""

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmfetch.collect import collect
from slmfetch.config import Owner
from slmfetch.errors import FetchError
from slmfetch.fetch import fetch, release
from slmfetch.housekeeping import tidy
from slmfetch.inventory import observe_store
from slmfetch.keep import keep
from slmfetch.refs import adapters_of, owner_of, read_refs
from slmfetch.store import Store, scan
from slmwire.manifest import STORE_URL, Manifest, ManifestFile
from slmwire.reasons import Reason, parse_termination
from tests.unit.slmfetch.agents import serve_agent
from tests.unit.slmfetch.kit import (
    OWNER,
    assert_consistent,
    environment,
    finish,
    job_of,
    noise,
    settings_of,
    start_fetcher,
    wait_until,
)

OTHER = Owner(namespace="shop", deployment="other")
ADAPTERS = [noise(5_000 + number, 40 + number) for number in range(4)]
HASHES = [hashlib.sha256(data).hexdigest() for data in ADAPTERS]


def written(folder: Path, data: bytes) -> Path:
    path = folder / "adapter.onnx_adapter"
    path.write_bytes(data)
    return path


def keep_data(store: Store, data: bytes, *, owner: Owner = OWNER, **changes: object) -> str:
    path = written(store.root.parent, data)
    return keep(store, owner, path, settings_of(store, **changes)).sha256


def revision_with(number: int) -> Manifest:
    file = ManifestFile(
        path="adapters/local.onnx_adapter",
        size=len(ADAPTERS[number]),
        sha256=HASHES[number],
        url=STORE_URL,
    )
    return Manifest(files=(file,))


def blobs(store: Store) -> set[str]:
    return {entry.name for entry in scan(store.blobs)}


def pinned(store: Store, owner: Owner = OWNER) -> set[str]:
    return {f.sha256 for ref in read_refs(store, adapters_of(owner).key).values() for f in ref.files}


def test_it_says_the_hash_and_outlives_housekeeping_and_is_given_to_others(
    store: Store, tmp_path: Path
) -> None:
    path = written(tmp_path, ADAPTERS[0])
    code, output = finish(start_fetcher(["keep", "--file", str(path)], store, tmp_path))
    assert code == 0, output
    said = parse_termination((tmp_path / "termination").read_text())
    assert said is not None
    assert (said.reason, said.digest) == ("", f"sha256:{HASHES[0]}")
    tidy(store)
    assert blobs(store) == {HASHES[0]}
    assert store.blob(HASHES[0]).stat().st_mode & 0o777 == 0o444
    assert scan(store.partial) == []
    with serve_agent(store) as agent:
        assert agent.blob(HASHES[0]).body == ADAPTERS[0]
        assert HASHES[0] not in agent.get("/v1/store").body.decode()


def test_the_two_latest_stay(store: Store) -> None:
    for number in (0, 1, 2):
        assert keep_data(store, ADAPTERS[number]) == HASHES[number]
    assert pinned(store) == {HASHES[1], HASHES[2]}
    keep_data(store, ADAPTERS[1])  # again the latest
    keep_data(store, ADAPTERS[3])
    assert pinned(store) == {HASHES[1], HASHES[3]}
    collect(store)
    assert blobs(store) == {HASHES[1], HASHES[3]}


def test_the_same_twice_is_one(store: Store) -> None:
    for _ in range(3):
        keep_data(store, ADAPTERS[0])
    assert len(scan(store.refs / adapters_of(OWNER).key)) == 1


def test_what_a_revision_names_stays_without_its_own_pin(store: Store) -> None:
    keep_data(store, ADAPTERS[0])
    fetch(store, job_of(revision_with(0)), settings_of(store))
    for number in (1, 2, 3):
        keep_data(store, ADAPTERS[number])
    tidy(store)
    assert blobs(store) == set(HASHES) - {HASHES[1]}


def test_revisions_and_adapters_do_not_push_each_other_out(store: Store) -> None:
    for number in (0, 1):
        keep_data(store, ADAPTERS[number])
        fetch(store, job_of(revision_with(number), f"r{number}"), settings_of(store, keep_previous=1))
    keep_data(store, ADAPTERS[2])
    keep_data(store, ADAPTERS[3])
    fetch(store, job_of(revision_with(1), "r1"), settings_of(store, keep_previous=1))
    assert set(read_refs(store, OWNER.key)) == {"r0", "r1"}
    assert pinned(store) == {HASHES[2], HASHES[3]}
    assert blobs(store) == set(HASHES)


def test_a_release_drops_them_and_no_other_deployment_s(store: Store) -> None:
    keep_data(store, ADAPTERS[0])
    keep_data(store, ADAPTERS[1], owner=OTHER)
    fetch(store, job_of(revision_with(0)), settings_of(store))
    release(store, OWNER, wait_seconds=0.0)
    assert blobs(store) == {HASHES[1]}
    assert (pinned(store), pinned(store, OTHER)) == (set(), {HASHES[1]})
    assert [entry.name for entry in scan(store.refs)] == [adapters_of(OTHER).key]


def test_what_was_kept_after_a_release_goes_after_a_day(store: Store) -> None:
    keep_data(store, ADAPTERS[0])
    keep_data(store, ADAPTERS[1], owner=OTHER)
    fetch(store, job_of(revision_with(1), owner=OTHER), settings_of(store))
    tidy(store, clock=lambda: time.time() + 80_000)
    assert blobs(store) == {HASHES[0], HASHES[1]}
    tidy(store, clock=lambda: time.time() + 90_000)
    assert blobs(store) == {HASHES[1]}
    assert pinned(store, OTHER) == {HASHES[1]}


def test_the_inventory_shows_them_with_their_deployment(store: Store) -> None:
    keep_data(store, ADAPTERS[0])
    [pin] = observe_store(store)["pins"]
    assert (pin["namespace"], pin["deployment"]) == ("shop", "orders")
    assert (pin["revision"], pin["bytes"]) == (f"adapter-{HASHES[0][:16]}", 5_000)
    assert observe_store(store)["reclaimableBytes"] == 0


@given(
    namespace=st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True),
    name=st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True),
)
def test_pins_of_adapters_lead_back_to_their_deployment(namespace: str, name: str) -> None:
    owner = Owner(namespace=namespace, deployment=name)
    assert owner_of(owner.key) == owner
    assert owner_of(adapters_of(owner).key) == owner
    assert adapters_of(owner).key != owner.key


def test_what_does_not_fit_is_refused_and_old_files_make_room(store: Store) -> None:
    keep_data(store, ADAPTERS[0])
    with pytest.raises(FetchError, match=r"cache\.sizeLimit") as caught:
        keep_data(store, ADAPTERS[1], size_limit_bytes=9_000)
    assert caught.value.reason == Reason.INSUFFICIENT_CAPACITY
    store.blob("a" * 64).write_bytes(bytes(4_000))
    store.blob(HASHES[0]).chmod(0o444)
    keep_data(store, ADAPTERS[1], size_limit_bytes=11_000)
    assert blobs(store) == {HASHES[0], HASHES[1]}
    assert keep_data(store, ADAPTERS[1], size_limit_bytes=1) == HASHES[1], "it is here already"


def test_a_full_disk_leaves_nothing_behind(
    small_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(3_500_000, 50)
    path = written(tmp_path, data)
    # What is looked at beforehand says that there is room: something else fills the disk meanwhile.
    monkeypatch.setattr(
        "slmfetch.keep._make_room",
        lambda *_: (small_store.root / "filler").write_bytes(bytes(1_000_000)),
    )
    with pytest.raises(FetchError) as caught:
        keep(small_store, OWNER, path, settings_of(small_store))
    assert caught.value.reason == Reason.INSUFFICIENT_CAPACITY
    assert (blobs(small_store), scan(small_store.partial)) == (set(), [])


def test_a_damaged_blob_is_replaced(store: Store) -> None:
    keep_data(store, ADAPTERS[0])
    store.blob(HASHES[0]).chmod(0o644)
    store.blob(HASHES[0]).write_bytes(b"x" * 5_000)
    keep_data(store, ADAPTERS[0])
    assert_consistent(store)


@pytest.mark.parametrize("kind", ["missing", "link", "folder", "fifo", "empty"])
def test_only_a_regular_file_is_taken(store: Store, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "adapter.onnx_adapter"
    if kind == "link":
        secret = tmp_path / "secret"
        secret.write_text("of another deployment")
        path.symlink_to(secret)
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    with pytest.raises(FetchError, match="--file") as caught:
        keep(store, OWNER, path, settings_of(store))
    assert caught.value.reason == Reason.UNFIT
    assert blobs(store) == set()


def test_a_file_that_changes_while_it_is_copied_is_not_kept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, ADAPTERS[0])
    monkeypatch.setattr("slmfetch.keep._make_room", lambda *_: path.write_bytes(b"y" * 5_000))
    with pytest.raises(FetchError, match="changed") as caught:
        keep(store, OWNER, path, settings_of(store))
    assert caught.value.reason == Reason.INTEGRITY_MISMATCH
    assert (blobs(store), scan(store.partial)) == (set(), [])


def test_a_missing_name_is_refused(store: Store, tmp_path: Path) -> None:
    path = written(tmp_path, ADAPTERS[0])
    for name in ("SLM_DEPLOYMENT", "SLM_NAMESPACE"):
        code, output = finish(
            start_fetcher(["keep", "--file", str(path)], store, tmp_path, None, **{name: "../../etc"})
        )
        assert code == 2 and name in output


_KILLED = """
import os, signal, sys
calls = {"left": int(sys.argv[1])}
def wrap(module, name):
    real = getattr(module, name)
    def call(*args, **kwargs):
        if calls["left"] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        calls["left"] -= 1
        return real(*args, **kwargs)
    setattr(module, name, call)
for name in ("write", "fsync", "rename", "replace", "unlink", "fchmod", "mkdir"):
    wrap(os, name)
from slmfetch.__main__ import main
sys.exit(main(["keep", "--reserve-bytes", "0", "--file", sys.argv[2]]))
"""


def test_a_kill_at_any_step_loses_nothing_that_was_kept(store: Store, tmp_path: Path) -> None:
    keep_data(store, ADAPTERS[0])
    keep_data(store, ADAPTERS[1])
    path = written(tmp_path, ADAPTERS[2])
    for step in range(40):
        process = subprocess.run(
            [sys.executable, "-c", _KILLED, str(step), str(path)],
            env=environment(store, tmp_path),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert_consistent(store)
        collect(store)
        assert pinned(store) <= blobs(store)
        assert HASHES[1] in pinned(store), "the one before may serve"
        if process.returncode == 0:
            break
        assert process.returncode == -9, process.stdout
    else:
        pytest.fail("it does not end")
    assert step > 5, "there are as many places to be killed at"
    assert pinned(store) == {HASHES[1], HASHES[2]}
    tidy(store, clock=lambda: time.time() + 7_200)
    assert [entry.name for entry in scan(store.partial)] == [], "what the killed ones left"


def test_processes_that_keep_fetch_and_collect_at_once_do_not_harm_each_other(store: Store) -> None:
    names = [f"d{number}" for number in range(3)]
    random.Random(3).shuffle(names)
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(name: str) -> None:
        owner = Owner(namespace="shop", deployment=name)
        path = store.root.parent / f"{name}.onnx_adapter"
        try:
            for number in (0, 1, 2, 3, 1, 0):
                path.write_bytes(ADAPTERS[number])
                keep(store, owner, path, settings_of(store))
                fetch(store, job_of(revision_with(number), f"r{number}", owner=owner), settings_of(store))
        except BaseException as error:
            failures.append(error)

    def tidy_up() -> None:
        while not stop.is_set():
            tidy(store)

    cleaner = threading.Thread(target=tidy_up)
    workers = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in (cleaner, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    cleaner.join()
    assert failures == []
    for name in names:
        owner = Owner(namespace="shop", deployment=name)
        assert pinned(store, owner) == {HASHES[0], HASHES[1]}
        assert "r0" in read_refs(store, owner.key)
    assert_consistent(store)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_the_two_latest_of_any_order_stay(store: Store, order: list[int]) -> None:
    release(store, OWNER, wait_seconds=0.0)
    for number in order:
        keep_data(store, ADAPTERS[number])
    collect(store)
    latest = list(dict.fromkeys(reversed(order)))[:2]
    assert pinned(store) == blobs(store) == {HASHES[number] for number in latest}


def test_it_waits_for_no_fetch_that_looks_for_the_same_file(store: Store, tmp_path: Path) -> None:
    process = start_fetcher(["hold", "--attempts", "50"], store, tmp_path, revision_with(0))
    try:
        wait_until((store.partial / f"{HASHES[0]}.part").exists)
        keep_data(store, ADAPTERS[0])
        wait_until((tmp_path / "ready").exists)
    finally:
        process.terminate()
        assert finish(process)[0] in (0, 143)
    assert scan(store.partial) == []
