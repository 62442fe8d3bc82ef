# SPDX-License-Identifier: Apache-2.0
"""The store: damage, full disks, local files, crashes at every step, locks of running servers."""

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from slmfetch.errors import FetchError
from slmfetch.fetch import Purpose, fetch, release
from slmfetch.partial import open_partial
from slmfetch.refs import read_refs
from slmfetch.store import Store, scan
from slmwire.manifest import Manifest
from slmwire.reasons import Reason
from tests.unit.slmfetch.kit import (
    OWNER,
    assert_consistent,
    environment,
    job_of,
    manifest_of,
    noise,
    settings_of,
    tree_content,
)
from tests.unit.slmfetch.origin import Origin


def local(folder: Path, files: dict[str, bytes]) -> Manifest:
    """Files on the node with a manifest of file:// URLs."""
    folder.mkdir(exist_ok=True)
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return manifest_of(files, f"file://{folder}")


def put(store: Store, folder: Path, files: dict[str, bytes], revision: str, **changes: object) -> Manifest:
    """Fetch local files as a revision."""
    manifest = local(folder, files)
    settings = {k: changes.pop(k) for k in ("keep_previous", "size_limit_bytes") if k in changes}
    fetch(store, job_of(manifest, revision, **changes), settings_of(store, file_roots=(folder,), **settings))
    return manifest


def test_model_that_cannot_fit_is_refused_before_any_byte(origin: Origin, small_store: Store) -> None:
    data = noise(5 << 20, 20)
    origin.files["/m/model.onnx"] = data
    manifest = manifest_of({"model.onnx": data}, f"{origin.url}/m")
    with pytest.raises(FetchError) as caught:
        fetch(small_store, job_of(manifest), settings_of(small_store))
    assert caught.value.reason is Reason.INSUFFICIENT_CAPACITY
    assert str(5 << 20) in caught.value.message and "free" in caught.value.message
    assert origin.seen == []


def test_reserve_is_left_for_the_node(small_store: Store, tmp_path: Path) -> None:
    manifest = local(tmp_path / "src", {"f": noise(2 << 20, 21)})
    settings = settings_of(small_store, file_roots=(tmp_path / "src",), reserve_bytes=3 << 20)
    with pytest.raises(FetchError) as caught:
        fetch(small_store, job_of(manifest), settings)
    assert str(3 << 20) in caught.value.message


def test_disk_that_fills_up_midway_leaves_what_serves_alone(
    origin: Origin, small_store: Store, tmp_path: Path
) -> None:
    serving = put(small_store, tmp_path / "src", {"old": noise(100_000, 22)}, "r0")
    data = noise(2 << 20, 23)
    origin.files["/m/model.onnx"] = data
    origin.bytes_per_second = 4_000_000
    manifest = manifest_of({"model.onnx": data}, f"{origin.url}/m")

    def fill() -> None:
        while origin.bytes_sent < 300_000:
            time.sleep(0.005)
        with (small_store.root / "ballast").open("wb") as stream:
            try:
                while True:
                    stream.write(b"x" * 65536)
                    stream.flush()
            except OSError:
                pass

    filler = threading.Thread(target=fill)
    filler.start()
    with pytest.raises(FetchError) as caught:
        fetch(small_store, job_of(manifest), settings_of(small_store))
    filler.join()
    assert caught.value.reason is Reason.INSUFFICIENT_CAPACITY
    assert str(2 << 20) in caught.value.message
    assert scan(small_store.partial) == [], "no partial is left"
    assert tree_content(small_store, serving) == {"old": noise(100_000, 22)}
    assert_consistent(small_store)
    (small_store.root / "ballast").unlink()
    fetch(small_store, job_of(manifest), settings_of(small_store))
    assert tree_content(small_store, manifest) == {"model.onnx": data}


def test_cached_model_starts_on_a_full_disk(small_store: Store, tmp_path: Path) -> None:
    manifest = put(small_store, tmp_path / "src", {"f": b"bytes"}, "r1")
    with (
        (small_store.root / "ballast").open("wb", buffering=0) as stream,
        pytest.raises(OSError, match="space"),
    ):
        while True:
            stream.write(b"x" * 4096)
    outcome = fetch(small_store, job_of(manifest), settings_of(small_store))
    assert outcome.bytes_reused == 5


def test_cached_model_starts_on_a_read_only_store(small_store: Store, tmp_path: Path) -> None:
    manifest = put(small_store, tmp_path / "src", {"f": b"bytes"}, "r1")
    subprocess.run(["mount", "-o", "remount,ro", str(small_store.root)], check=True)
    assert fetch(small_store, job_of(manifest), settings_of(small_store)).bytes_downloaded == 0


def test_old_versions_make_room_but_never_current_and_previous(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "src"
    sizes = {"size_limit_bytes": 3500, "keep_previous": 1}
    first = put(store, source, {"a": noise(1000, 24)}, "r1", **sizes)
    second = put(store, source, {"b": noise(1000, 25)}, "r2", **sizes)
    third = put(store, source, {"c": noise(1000, 26)}, "r3", **sizes)
    assert not store.tree(first.digest).exists()
    put(store, source, {"d": noise(1000, 27)}, "r4", purpose=Purpose.AHEAD, **sizes)
    put(store, source, {"e": noise(1000, 28)}, "r5", purpose=Purpose.AHEAD, **sizes)
    assert read_refs(store, OWNER.key).keys() == {"r2", "r3", "r5"}, "a newer one fetched ahead replaces r4"
    with pytest.raises(FetchError) as caught:
        put(store, source, {"f": noise(2000, 29)}, "r6", purpose=Purpose.AHEAD, **sizes)
    assert caught.value.reason is Reason.INSUFFICIENT_CAPACITY
    assert "at most 3500" in caught.value.message
    for kept in (second, third):
        assert store.tree(kept.digest).is_dir()


def test_serving_revision_restart_keeps_what_was_fetched_ahead(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "src"
    put(store, source, {"a": b"1"}, "stable", keep_previous=0)
    ahead = put(store, source, {"b": b"2"}, "next", purpose=Purpose.AHEAD, keep_previous=0)
    put(store, source, {"a": b"1"}, "stable", keep_previous=0)
    assert store.tree(ahead.digest).is_dir()


def test_tree_that_a_server_holds_is_never_collected(store: Store, tmp_path: Path) -> None:
    """Two canaries in a row came and went while the stable server ran on: by time of last start it
    would be third."""
    source = tmp_path / "src"
    stable = put(store, source, {"a": b"1"}, "stable")
    fd = os.open(store.tree(stable.digest), os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    for name in ("canary1", "canary2", "canary3"):
        put(store, source, {"a": name.encode()}, name, keep_previous=0)
    os.close(fd)  # the server crashed; its container is restarted without the init container
    put(store, source, {"a": b"next"}, "canary4", purpose=Purpose.AHEAD, keep_previous=1)
    assert tree_content(store, stable) == {"a": b"1"}


def test_order_survives_a_clock_that_went_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "src"
    put(store, source, {"a": b"1"}, "r1")
    monkeypatch.setattr("slmfetch.refs.time.time", lambda: 1000.0)
    put(store, source, {"a": b"2"}, "r2")
    put(store, source, {"a": b"3"}, "r3")
    assert read_refs(store, OWNER.key).keys() == {"r2", "r3"}


def test_truncated_blob_is_fetched_again_and_the_mounted_tree_repaired(store: Store, tmp_path: Path) -> None:
    source, files = tmp_path / "src", {"a": noise(5000, 30), "dir/b": b"b"}
    manifest = put(store, source, files, "r1")
    mounted = os.open(store.tree(manifest.digest), os.O_RDONLY)
    os.truncate(store.blob(manifest.files[0].sha256), 100)
    put(store, source, files, "r1")
    assert tree_content(store, manifest) == files
    fd = os.open("a", os.O_RDONLY, dir_fd=mounted)
    assert os.fstat(fd).st_size == 5000, "whoever has the tree mounted sees the repair"
    os.close(fd)
    os.close(mounted)
    assert_consistent(store)


def test_flipped_byte_is_found_by_deep_and_by_a_changed_mode(store: Store, tmp_path: Path) -> None:
    source, files = tmp_path / "src", {"a": noise(5000, 31)}
    manifest = put(store, source, files, "r1")
    blob = store.blob(manifest.files[0].sha256)

    def damage(*, mode: int) -> None:
        blob.chmod(0o644)
        with blob.open("r+b") as stream:
            stream.write(b"\0\0\0\0")
        blob.chmod(mode)

    damage(mode=0o444)
    put(store, source, files, "r1", deep=True)
    assert tree_content(store, manifest) == files
    damage(mode=0o644)
    put(store, source, files, "r1")
    assert tree_content(store, manifest) == files


def test_tree_with_foreign_or_missing_files_is_repaired(store: Store, tmp_path: Path) -> None:
    source, files = tmp_path / "src", {"a": b"1", "d/b": b"2"}
    manifest = put(store, source, files, "r1")
    root = store.tree(manifest.digest)
    (root / "d" / "b").unlink()
    (root / "extra").mkdir()
    (root / "extra" / "evil.so").write_bytes(b"evil")
    (root / "a").unlink()
    (root / "a").symlink_to("/etc/passwd")
    put(store, source, files, "r1")
    assert tree_content(store, manifest) == files
    assert not (root / "extra").exists() and not (root / "a").is_symlink()


def test_local_files_must_lie_below_an_allowed_folder(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "src"
    manifest = local(source, {"f": b"data"})
    (tmp_path / "outside").write_bytes(b"data")

    def attempt(roots: tuple[Path, ...]) -> FetchError:
        with pytest.raises(FetchError) as caught:
            fetch(store, job_of(manifest), settings_of(store, file_roots=roots))
        return caught.value

    assert attempt(()).reason is Reason.ACCESS_DENIED
    assert attempt((tmp_path / "elsewhere",)).reason is Reason.ACCESS_DENIED
    (source / "f").unlink()
    (source / "f").symlink_to(tmp_path / "outside")
    assert "outside the folders" in attempt((source,)).message
    (source / "f").unlink()
    assert attempt((source,)).reason is Reason.SOURCE_UNAVAILABLE
    os.mkfifo(source / "f")
    assert "not a regular file" in attempt((source,)).message
    (source / "f").unlink()
    (source / "f").write_bytes(b"longer data")
    assert "11 bytes" in attempt((source,)).message
    (source / "f").write_bytes(b"atad")
    assert attempt((source,)).reason is Reason.INTEGRITY_MISMATCH


def test_orphaned_partials_go_but_not_one_in_use(store: Store, tmp_path: Path) -> None:
    idle, busy = "a" * 64, "b" * 64
    for name in (idle, busy):
        (store.partial / f"{name}.part").write_bytes(b"x" * 1000)
        (store.partial / f"{name}.json").write_text("{}")
    fd = os.open(store.partial / f"{busy}.part", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    put(store, tmp_path / "src", {"f": b"1"}, "r1")
    assert [e.name for e in scan(store.partial)] == [f"{busy}.json", f"{busy}.part"]
    os.close(fd)
    put(store, tmp_path / "src", {"f": b"1"}, "r1")
    assert scan(store.partial) == []


def test_bytes_after_the_last_sync_are_not_trusted_after_a_reboot(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(300_000, 32)
    file = manifest_of({"f": data}, "http://127.0.0.1:1").files[0]
    monkeypatch.setattr("slmfetch.partial.CHECKPOINT_BYTES", 100_000)

    def reopened_offset() -> int:
        partial = open_partial(store, file)
        assert partial is not None
        partial.restore()
        partial.close()
        return partial.offset

    partial = open_partial(store, file)
    assert partial is not None
    assert open_partial(store, file) is None, "one at a time"
    partial.restore()
    partial.describe(etag='"v1"', origin="o")
    partial.write(memoryview(data)[:100_000])
    partial.write(memoryview(data)[100_000:150_000])
    partial.close()
    assert reopened_offset() == 150_000, "a dead process lost nothing"
    monkeypatch.setattr("slmfetch.partial._boot_id", lambda: "another boot")
    assert reopened_offset() == 100_000


def test_unreadable_pin_stops_collection_not_serving(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "src"
    first = put(store, source, {"a": b"1"}, "r1")
    (store.refs / OWNER.key / "r1.json").write_text("{")
    for index in range(3):
        put(store, source, {"a": f"n{index}".encode()}, f"n{index}", keep_previous=0)
    assert tree_content(store, first) == {"a": b"1"}, "nobody knows what the damaged pin protects"
    release(store, OWNER, wait_seconds=0.0)
    assert scan(store.blobs) == [] and scan(store.trees) == []


_CRASH = """
import os, sys
from pathlib import Path
from slmfetch.__main__ import main
limit = int(sys.argv.pop(1))
count = 0
WATCHED = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}
WATCHED.add("fcntl.flock")
def hook(event, args):
    global count
    if event in WATCHED or (event == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT):
        count += 1
        if count > limit:
            os._exit(77)
sys.addaudithook(hook)
for round in range(1, 10_000):
    pid = os.fork()
    if pid == 0:
        limit = round
        os._exit(main(sys.argv[1:]))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print("CHILD", code, flush=True)
    if code != 77:
        break
    sys.stdin.readline()
"""


def test_crash_before_any_change_of_the_disk_leaves_a_sound_store(store: Store, tmp_path: Path) -> None:
    """The fetcher is ended before its first, second, ... n-th change of the store, until it succeeds.

    Each life goes on from where the crash before it left the disk, one step later.
    """
    source = tmp_path / "src"
    for index in range(3):
        put(store, source, {"a": noise(3000, index), "x/b": b"shared"}, f"old{index}", keep_previous=2)
    served = put(store, source, {"a": noise(3000, 2), "x/b": b"shared"}, "old2", keep_previous=2)
    files = {"a": noise(3000, 40), "x/b": b"shared", "c": noise(2000, 41)}
    manifest = local(source, files)
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    environ = environment(store, tmp_path, SLM_REVISION="new", SLM_KEEP_PREVIOUS="1")
    options = ["fetch", "--serve", "--reserve-bytes", "0", "--file-root", str(source)]
    runner = subprocess.Popen(
        [sys.executable, "-c", _CRASH, "1000000", *options],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert runner.stdout is not None and runner.stdin is not None
    crashes = 0
    for line in runner.stdout:
        if not line.startswith("CHILD"):
            continue
        code = int(line.split()[1])
        assert_consistent(store)
        assert tree_content(store, served) == {"a": noise(3000, 2), "x/b": b"shared"}
        assert tree_content(store, manifest) in ({}, files), "all or nothing"
        if code != 77:
            break
        crashes += 1
        runner.stdin.write("\n")
        runner.stdin.flush()
    runner.communicate(timeout=30)
    assert code == 0
    assert crashes >= 15
    assert tree_content(store, manifest) == files
    assert read_refs(store, OWNER.key).keys() == {"new", "old2"}
    assert not list(store.root.rglob(".tmp-*")), "nothing of the crashes is left"
    assert scan(store.partial) == []
