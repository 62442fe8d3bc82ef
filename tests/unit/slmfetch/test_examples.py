# SPDX-License-Identifier: Apache-2.0
"""Folders of examples: made for the server alone, emptied of what has expired, removed when not wanted."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmfetch.agent import find_stores
from slmfetch.config import Owner
from slmfetch.errors import FetchError, Stopped
from slmfetch.examples import (
    Wanted,
    expire_examples,
    make_folder,
    remove_examples,
    settle_examples,
)
from slmfetch.fetch import release
from slmfetch.inventory import observe_store
from slmfetch.keep import keep
from slmfetch.store import Store, scan
from slmwire.examples import SERVER_GROUP, file_name
from slmwire.manifest import STORE_URL, Manifest, ManifestFile
from slmwire.paths import examples_subpath
from tests.unit.slmfetch.agents import serve_agent, start_agent
from tests.unit.slmfetch.kit import (
    OWNER,
    environment,
    finish,
    manifest_of,
    settings_of,
    start_fetcher,
    wait_until,
)

OTHER = Owner(namespace="shop", deployment="other")
SECRET = "what somebody wrote"


def folder_of(store: Store, owner: Owner = OWNER) -> Path:
    return store.root / examples_subpath(owner.namespace, owner.deployment)


def add(store: Store, name: str, owner: Owner = OWNER) -> Path:
    make_folder(store, owner)
    path = folder_of(store, owner) / name
    path.write_text(SECRET)
    return path


def listing(store: Store) -> set[str]:
    return {entry.name for entry in scan(folder_of(store))}


def mode_of(path: Path) -> tuple[int, int, int]:
    info = path.lstat()
    return info.st_mode & 0o7777, info.st_uid, info.st_gid


def cached(store: Store, folder: Path) -> Manifest:
    """A manifest whose one file needs no network."""
    source = folder / "src"
    source.mkdir(exist_ok=True)
    (source / "m").write_bytes(b"model")
    return manifest_of({"m": b"model"}, f"file://{source}")


def run(store: Store, folder: Path, *command: str, **extra: str) -> tuple[int, str]:
    manifest = cached(store, folder)
    arguments = [*command, "--reserve-bytes", "0", "--file-root", str(folder / "src")]
    return finish(start_fetcher(arguments, store, folder, manifest, **extra))


def test_a_fetch_makes_the_folder_for_the_server_alone(store: Store, tmp_path: Path) -> None:
    code, output = run(store, tmp_path, "fetch", "--serve", SLM_EXAMPLES_DIR="/examples")
    assert code == 0, output
    folder = folder_of(store)
    assert mode_of(folder) == (0o770, os.geteuid(), SERVER_GROUP)
    for above in (folder.parent, folder.parent.parent):
        assert mode_of(above)[:2] == (0o711, os.geteuid())


def test_what_is_in_it_stays_while_it_is_wanted(store: Store, tmp_path: Path) -> None:
    path = add(store, file_name(time.time() + 60))
    assert run(store, tmp_path, "fetch", "--serve", SLM_EXAMPLES_DIR="/examples")[0] == 0
    assert path.read_text() == SECRET


def test_only_the_fetch_of_a_server_that_keeps_none_removes_it(store: Store, tmp_path: Path) -> None:
    mine = add(store, file_name(time.time() + 60))
    other = add(store, file_name(time.time() + 60), OTHER)
    assert run(store, tmp_path, "fetch")[0] == 0
    assert mine.exists(), "a revision without examples that is fetched ahead, beside one that serves"
    process = start_fetcher(
        ["hold", "--reserve-bytes", "0", "--file-root", str(tmp_path / "src")],
        store,
        tmp_path,
        cached(store, tmp_path),
    )
    wait_until((tmp_path / "ready").exists)
    process.terminate()
    finish(process)
    assert mine.exists()
    assert run(store, tmp_path, "fetch", "--serve", SLM_EXAMPLES_DIR="")[0] == 0
    assert not mine.parent.exists()
    assert other.read_text() == SECRET


def test_it_goes_even_when_the_model_does_not_come(store: Store, tmp_path: Path) -> None:
    mine = add(store, file_name(time.time() + 60))
    trained = _trained(store, tmp_path, OWNER)
    manifest = manifest_of({"m": b"model"}, f"file://{tmp_path}/none")
    code, _ = finish(start_fetcher(["fetch", "--serve"], store, tmp_path, manifest))
    assert code == 1
    assert not mine.parent.exists()
    assert not store.blob(trained).exists()


def _trained(store: Store, folder: Path, owner: Owner) -> str:
    path = folder / f"{owner.deployment}.onnx_adapter"
    path.write_bytes(owner.key.encode())
    return keep(store, owner, path, settings_of(store)).sha256


def test_what_was_trained_on_them_goes_with_them(store: Store, tmp_path: Path) -> None:
    mine, other = (_trained(store, tmp_path, owner) for owner in (OWNER, OTHER))
    run(store, tmp_path, "fetch", "--serve", SLM_EXAMPLES_DIR="/examples")
    run(store, tmp_path, "fetch")
    assert store.blob(mine).exists(), "while they are wanted, and by a fetch ahead of need"
    code, output = run(store, tmp_path, "fetch", "--serve")
    assert code == 0, output
    assert [store.blob(sha256).exists() for sha256 in (mine, other)] == [False, True]
    assert run(store, tmp_path, "fetch", "--serve")[0] == 0


def test_an_adapter_that_is_served_stays_without_them(store: Store, tmp_path: Path) -> None:
    trained = _trained(store, tmp_path, OWNER)
    size = store.blob(trained).stat().st_size
    file = ManifestFile(path="adapters/local.onnx_adapter", size=size, sha256=trained, url=STORE_URL)
    served = Manifest(files=(*cached(store, tmp_path).files, file))
    arguments = ["fetch", "--serve", "--reserve-bytes", "0", "--file-root", str(tmp_path / "src")]
    for _ in range(2):
        code, output = finish(start_fetcher(arguments, store, tmp_path, served))
        assert code == 0, output
        assert store.blob(trained).exists()


def test_a_release_that_keeps_models_removes_examples_alone(store: Store, tmp_path: Path) -> None:
    code, output = run(store, tmp_path, "fetch", "--serve", SLM_EXAMPLES_DIR="/examples")
    assert code == 0, output
    mine, other = (add(store, file_name(time.time() + 60), owner) for owner in (OWNER, OTHER))
    trained = _trained(store, tmp_path, OWNER)
    before = {entry.name for entry in scan(store.blobs)}
    release = start_fetcher(["release", "--once", "--keep-models"], store, tmp_path, cached(store, tmp_path))
    assert finish(release)[0] == 0
    assert not mine.exists() and other.exists()
    assert {entry.name for entry in scan(store.blobs)} == before - {trained}


def test_a_release_removes_it_and_the_folders_above_when_they_are_empty(store: Store) -> None:
    add(store, "until-nonsense")
    add(store, file_name(time.time() + 60), OTHER)
    release(store, OWNER, wait_seconds=0.0)
    assert [entry.name for entry in scan(store.examples / "shop")] == ["other"]
    release(store, OTHER, wait_seconds=0.0)
    assert scan(store.examples) == []


def test_a_release_removes_it_from_a_store_that_holds_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.root.mkdir()
    add(store, file_name(time.time() + 60))
    release(store, OWNER, wait_seconds=0.0)
    assert not folder_of(store).exists()


def test_expired_files_of_all_deployments_go_and_others_stay(store: Store) -> None:
    now = time.time()
    gone = [add(store, file_name(now - 1), owner) for owner in (OWNER, OTHER)]
    stays = [add(store, file_name(now + 60), owner) for owner in (OWNER, OTHER)]
    assert expire_examples(store) == 2
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in stays)


@pytest.mark.parametrize(("days", "stays"), [(0.0, True), (0.9, True), (1.1, False), (-1.1, False)])
def test_what_has_another_name_goes_after_a_day(store: Store, days: float, stays: bool) -> None:
    path = add(store, ".tmp-1")
    folder = folder_of(store) / "folder"
    folder.mkdir()
    (folder / "file").write_text(SECRET)
    link = folder_of(store) / "link"
    link.symlink_to(store.root)
    then = time.time() - days * 86_400
    for entry in (path, folder, link):
        os.utime(entry, (then, then), follow_symlinks=False)
    assert expire_examples(store) == (0 if stays else 3)
    assert [os.path.lexists(entry) for entry in (path, folder, link)] == [stays] * 3
    assert store.blobs.is_dir()


@pytest.mark.parametrize("command", [("fetch",), ("fetch", "--serve")])
def test_every_fetch_removes_what_has_expired(store: Store, tmp_path: Path, command: tuple[str, ...]) -> None:
    path = add(store, file_name(time.time() - 1), OTHER)
    assert run(store, tmp_path, *command, SLM_EXAMPLES_DIR="/examples")[0] == 0
    assert not path.exists()


def test_one_that_holds_removes_it_now_and_then(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slmfetch import __main__ as program

    path = add(store, file_name(time.time() - 1))
    rounds: list[float] = []

    def sleep(seconds: float) -> None:
        rounds.append(seconds)
        if len(rounds) == 2:
            raise Stopped

    monkeypatch.setenv("SLM_READY_FILE", str(tmp_path / "ready"))
    monkeypatch.setattr("slmfetch.__main__.time.sleep", sleep)
    assert program._hold(store) == 0
    assert rounds == [program.EXPIRE_SECONDS] * 2
    assert not path.exists()


def test_the_agent_removes_it_where_nothing_was_ever_fetched_and_in_stores_below(
    tmp_path: Path, store: Store
) -> None:
    bare = Store(tmp_path / "bare")
    bare.root.mkdir()
    below = Store(bare.root / "team")
    below.prepare()
    paths = [add(one, file_name(time.time() - 1)) for one in (bare, below)]
    with socket.create_server(("127.0.4.77", 0)) as free:
        port = free.getsockname()[1]
    process = start_agent(bare, tmp_path, address="127.0.4.77", port=port)
    try:
        wait_until(lambda: not any(path.exists() for path in paths))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def test_the_agent_neither_serves_nor_counts_them_however_they_are_called(store: Store) -> None:
    """Namespaces and a name that make the folder of examples look like a store."""
    name = "a" * 64
    path = add(store, name, Owner(namespace="blobs", deployment="sha256"))
    for namespace in ("partial", "refs", "trees", "quarantine"):
        add(store, "x", Owner(namespace=namespace, deployment="d"))
    assert [one.root for one in find_stores(store.root)] == [store.root]
    observed = observe_store(store)
    assert (observed["bytes"], observed["blobs"], observed["pins"]) == (0, 0, [])
    with serve_agent(store) as agent:
        assert agent.blob(name).status == 404
        assert agent.get(f"/examples/blobs/sha256/{name}").status == 404
        for page in ("/v1/store", "/metrics"):
            assert b"examples" not in agent.get(page).body
        agent.agent.collect()
    assert path.exists()


def _link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def _file(path: Path, _target: Path) -> None:
    path.write_text("no folder")


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("make", [_link, _file])
def test_a_link_on_the_way_is_refused_and_never_followed(
    store: Store, tmp_path: Path, depth: int, make: Callable[[Path, Path], None]
) -> None:
    target = tmp_path / "elsewhere"
    inside = target / Path(*["shop", "orders"][depth:])
    inside.mkdir(parents=True)
    precious = inside / file_name(time.time() - 1)
    precious.write_text("not ours")
    before = mode_of(inside)
    path = [store.examples, store.examples / "shop", folder_of(store)][depth]
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path, target)
    with pytest.raises(FetchError, match="remove it on the node"):
        make_folder(store, OWNER)
    expire_examples(store)
    remove_examples(store, OWNER)
    assert precious.read_text() == "not ours"
    assert mode_of(inside) == before


def test_a_folder_of_somebody_else_is_refused(store: Store) -> None:
    folder_of(store).mkdir(parents=True)
    os.chown(folder_of(store), 65532, SERVER_GROUP)
    with pytest.raises(FetchError, match="belongs to uid 65532"):
        make_folder(store, OWNER)


def test_a_folder_that_the_kubelet_made_is_put_right(store: Store) -> None:
    folder_of(store).mkdir(parents=True, mode=0o750)
    settle_examples(store, OWNER, Wanted.KEPT)
    assert mode_of(folder_of(store))[::2] == (0o770, SERVER_GROUP)
    before = folder_of(store).stat().st_ctime_ns
    settle_examples(store, OWNER, Wanted.KEPT)
    assert folder_of(store).stat().st_ctime_ns == before, "what is right is not written to"


# As in its container: root without any capability, with the pod's supplemental groups.
_CONFINED = """
import ctypes, os, sys
os.setgroups([int(group) for group in sys.argv[1].split(",") if group])
libc = ctypes.CDLL(None, use_errno=True)
assert libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
from slmfetch.__main__ import main
sys.exit(main(sys.argv[2:]))
"""
# The server: another user, in the group.
_SERVER = """
import os, sys
os.chdir(sys.argv[1])  # in its container a mount, whatever is above
os.setgroups([]); os.setgid(65532); os.setuid(65532); os.umask(0o077)
for name in sys.argv[2:]:
    if name.endswith("/"):
        os.mkdir(name)
        name += "inside"
    open(name, "w").write("what somebody wrote")
"""


def confined(store: Store, folder: Path, groups: str, *arguments: str, **extra: str) -> tuple[int, str]:
    (folder / "manifest.json").write_text(cached(store, folder).to_json())
    options = ["--reserve-bytes", "0", "--file-root", str(folder / "src")]
    done = subprocess.run(
        [sys.executable, "-c", _CONFINED, groups, *arguments, *options],
        env=environment(store, folder, **extra),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def as_server(store: Store, *names: str) -> None:
    subprocess.run([sys.executable, "-c", _SERVER, str(folder_of(store)), *names], check=True, timeout=60)


def test_root_without_capabilities_makes_it_and_removes_what_the_server_wrote(
    store: Store, tmp_path: Path
) -> None:
    code, output = confined(store, tmp_path, "65532", "fetch", "--serve", SLM_EXAMPLES_DIR="/examples")
    assert code == 0, output
    expired, fresh = file_name(time.time() - 1), file_name(time.time() + 60)
    as_server(store, expired, fresh)
    assert mode_of(folder_of(store) / fresh) == (0o600, 65532, 65532)
    # The agent's pod is in no group.
    code, output = confined(store, tmp_path, "", "fetch")
    assert code == 0, output
    assert listing(store) == {fresh}
    code, output = confined(store, tmp_path, "", "fetch", "--serve")
    assert code == 0, output
    assert not folder_of(store).exists()


def test_without_the_group_it_says_what_the_pod_lacks(store: Store, tmp_path: Path) -> None:
    code, output = confined(store, tmp_path, "", "fetch", "--serve", SLM_EXAMPLES_DIR="/examples")
    assert code == 1
    assert "securityContext.supplementalGroups must have 65532" in output


def test_what_a_hostile_server_leaves_is_named_by_number_and_stops_nothing(
    store: Store, tmp_path: Path
) -> None:
    confined(store, tmp_path, "65532", "fetch", "--serve", SLM_EXAMPLES_DIR="/examples")
    as_server(store, "my-own-words/", file_name(time.time() + 60))
    code, output = confined(store, tmp_path, "65532", "fetch", "--serve")
    assert code == 0, output
    assert '"entries": 1' in output and "do so on the node" in output
    assert "my-own-words" not in output, "a server may choose names"
    assert listing(store) == {"my-own-words"}
    assert mode_of(folder_of(store))[0] == 0o700, "the server gets nothing more into it"


def test_a_read_only_disk_is_no_obstacle_to_what_is_there(store: Store, tmp_path: Path) -> None:
    assert run(store, tmp_path, "fetch", "--serve", SLM_EXAMPLES_DIR="/examples")[0] == 0
    path = add(store, file_name(time.time() - 1))
    subprocess.run(["mount", "--bind", str(store.root), str(store.root)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(store.root)], check=True)
        code, output = run(store, tmp_path, "fetch", "--serve", SLM_EXAMPLES_DIR="/examples")
        assert code == 0, output
        code, output = run(store, tmp_path, "fetch", "--serve")
        assert code == 0, output
        assert "cannot be removed" in output
    finally:
        subprocess.run(["umount", "-l", str(store.root)], check=True)
    assert path.exists()


NAMES = st.one_of(
    st.builds(file_name, st.floats(0, 4e9)),
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20).filter(
        lambda name: name not in (".", "..") and len(name.encode()) < 200
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(NAMES, max_size=6), now=st.floats(0, 4e9))
def test_whatever_files_are_called_expiry_goes_by_it_and_never_fails(
    store: Store, names: set[str], now: float
) -> None:
    from slmwire.examples import expiry_of

    remove_examples(store, OWNER)
    for name in names:
        os.utime(add(store, name), (now, now))
    expire_examples(store, clock=lambda: now)
    stay = {name for name in names if (until := expiry_of(name)) is None or until > now}
    assert listing(store) == stay
    remove_examples(store, OWNER)
    assert not folder_of(store).exists()
