# SPDX-License-Identifier: Apache-2.0
"""Crashes at the worst instant, sources that mean harm, disks that fill up under a fetch."""

import contextlib
import errno
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slmfetch.config import Owner
from slmfetch.connect import Session
from slmfetch.errors import FetchError
from slmfetch.fetch import fetch
from slmfetch.network import Network
from slmfetch.partial import _boot_id, open_partial, trusted_bytes
from slmfetch.refs import new_ref, write_ref
from slmfetch.store import Store, scan, write_json
from slmwire.distribution import parse_distribution
from slmwire.manifest import Manifest, ManifestError, parse_manifest
from slmwire.reasons import Reason
from slmwire.registry import parse_challenges
from tests.unit.slmfetch.kit import assert_consistent, environment, job_of, manifest_of, noise, settings_of
from tests.unit.slmfetch.origin import Origin, Reply, Seen

DATA = noise(300_000, seed=8)

# As in its container: root without any capability, who may not write to a file of mode 0444.
_WITHOUT_CAPABILITIES = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
{then}
from slmfetch.__main__ import main
sys.exit(main(["fetch", "--serve", "--reserve-bytes", "0"]))
"""
_DIE = """
import os, signal
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
os.{call} = die
"""
_PAUSE = """
import os, time
fsync = os.fsync
def slowly(fd):
    if os.readlink(f"/proc/self/fd/{fd}").endswith(".part"):
        print("syncing", flush=True)
        time.sleep(1)
    fsync(fd)
os.fsync = slowly
"""


def _manifest(origin: Origin) -> Manifest:
    origin.files["/m/model.onnx"] = DATA
    return manifest_of({"model.onnx": DATA}, f"{origin.url}/m")


def _start(store: Store, folder: Path, manifest: Manifest, then: str = "") -> subprocess.Popen[str]:
    (folder / "manifest.json").write_text(manifest.to_json())
    return subprocess.Popen(
        [sys.executable, "-c", _WITHOUT_CAPABILITIES.replace("{then}", then)],
        env=environment(store, folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_kill_between_verification_and_rename_does_not_block_the_store(
    origin: Origin, store: Store, tmp_path: Path
) -> None:
    manifest = _manifest(origin)
    for call in ("rename", "fchmod"):
        died = _start(store, tmp_path, manifest, _DIE.replace("{call}", call))
        died.communicate(timeout=20)
        assert died.returncode == -signal.SIGKILL
        again = _start(store, tmp_path, manifest)
        output, _ = again.communicate(timeout=20)
        assert again.returncode == 0, output
        assert_consistent(store)
        store.blob(manifest.files[0].sha256).unlink()


def test_a_second_fetch_waits_while_the_first_puts_the_file_on_disk(
    origin: Origin, store: Store, tmp_path: Path
) -> None:
    manifest = _manifest(origin)
    first = _start(store, tmp_path, manifest, _PAUSE)
    assert first.stdout is not None
    while "syncing" not in (line := first.stdout.readline()):
        assert line, "the fetch ended"
    second = _start(store, tmp_path, manifest)
    output, _ = second.communicate(timeout=20)
    assert second.returncode == 0, output
    first.communicate(timeout=20)
    assert first.returncode == 0
    assert_consistent(store)


@contextlib.contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """URL of something that reads a request and then sends what it likes."""

    def talk(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(10)
            while b"\r\n\r\n" not in connection.recv(4096):
                pass
            answer(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def _fail(store: Store, url: str) -> FetchError:
    began = time.monotonic()
    settings = settings_of(store, stall_timeout_seconds=0.3, attempts=2, timeout_seconds=60)
    with pytest.raises(FetchError) as caught:
        fetch(store, job_of(manifest_of({"model.onnx": DATA}, url)), settings)
    assert time.monotonic() - began < 20
    return caught.value


def _drip(connection: socket.socket, data: bytes) -> None:
    for _ in range(2000):
        connection.sendall(data)
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("begin", "data"),
    [
        (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 60000\r\n\r\n", b"x"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 60000\r\n\r\n", b"x"),
        (b"HTTP/1.1 302 Found\r\nLocation: /m/other\r\nContent-Length: 60000\r\n\r\n", b"x"),
    ],
)
def test_a_source_that_only_drips_is_given_up(store: Store, begin: bytes, data: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(begin)
        _drip(connection, data)

    with raw_server(answer) as url:
        assert _fail(store, url).reason in (Reason.SOURCE_UNAVAILABLE, Reason.ACCESS_DENIED)


@pytest.mark.parametrize(
    "header",
    [
        b"200 OK\r\nContent-Length: " + b"9" * 5000,
        b"206 Partial Content\r\nContent-Range: bytes 0-1/" + b"9" * 5000,
        b"206 Partial Content\r\nContent-Range: bytes " + b"9" * 5000 + b"-1/2",
        b"503 Busy\r\nRetry-After: " + b"9" * 5000,
    ],
)
def test_absurd_numbers_from_a_source_are_no_internal_error(store: Store, header: bytes) -> None:
    with raw_server(lambda connection: connection.sendall(b"HTTP/1.1 " + header + b"\r\n\r\n")) as url:
        error = _fail(store, url)
    assert error.reason in (Reason.SOURCE_UNAVAILABLE, Reason.INTEGRITY_MISMATCH)
    assert len(error.message) < 600


def test_a_challenge_without_sense_costs_no_time() -> None:
    began = time.monotonic()
    parse_challenges(["A" * 60_000])
    assert time.monotonic() - began < 8
    assert parse_challenges(['Bearer realm="https://r/t",service=s'])["bearer"]["service"] == "s"


def _fill_disk(monkeypatch: pytest.MonkeyPatch, free: list[int]) -> None:
    monkeypatch.setattr(Store, "free_bytes", lambda store: (free[0], 1000_000))


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("settled", [True, False])
def test_a_disk_that_others_fill_meanwhile_is_not_filled_further(
    origin: Origin, store: Store, monkeypatch: pytest.MonkeyPatch, connections: int, settled: bool
) -> None:
    """A kubelet evicts what serves before the disk is full: ENOSPC would come too late."""
    monkeypatch.setattr("slmfetch.room.WATCH_BYTES", 10_000)
    monkeypatch.setattr("slmfetch.tactics.PIECE_BYTES", 40_000)
    monkeypatch.setattr("slmfetch.tactics.PROBE_BYTES", 20_000)
    free = [900_000]
    _fill_disk(monkeypatch, free)
    other = manifest_of({"other.onnx": DATA[:5000]}, "http://127.0.0.1:1")
    rival = open_partial(store, other.files[0])
    assert rival is not None
    if not settled:
        write_ref(store, Owner(namespace="a", deployment="b"), new_ref("r9", other))

    def fill(_: Seen) -> Reply | None:
        free[0] = 100_000
        return None

    origin.services["/m"] = fill
    settings = settings_of(store, high_watermark_percent=80, reserve_bytes=None, connections=connections)
    with pytest.raises(FetchError) as caught:
        fetch(store, job_of(_manifest(origin)), settings)
    assert caught.value.reason is Reason.INSUFFICIENT_CAPACITY
    assert "100000 of 1000000" in caught.value.message
    part = store.partial / f"{_manifest(origin).files[0].sha256}.part"
    assert part.exists() is settled, "it makes room for a fetch that is under way, and else keeps what it has"
    rival.close()


def test_two_fetches_that_do_not_fit_together_do_not_both_begin(
    origin: Origin, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill_disk(monkeypatch, [700_000])
    other = manifest_of({"other.onnx": noise(400_000, 9)}, "http://127.0.0.1:1")
    write_ref(store, Owner(namespace="a", deployment="b"), new_ref("r9", other))
    rival = open_partial(store, other.files[0])
    assert rival is not None
    settings = settings_of(store, high_watermark_percent=95, reserve_bytes=None)
    with pytest.raises(FetchError) as caught:
        fetch(store, job_of(_manifest(origin)), settings)
    assert caught.value.reason is Reason.INSUFFICIENT_CAPACITY
    assert "400000 of them for other fetches" in caught.value.message
    assert origin.seen == []
    rival.close()  # a fetch that died promises nothing
    fetch(store, job_of(_manifest(origin)), settings)
    assert_consistent(store)
    assert scan(store.partial) != []


def _limits(folder: Path, text: str) -> Path:
    path = folder / "distribution.json"
    path.write_text(text)
    return path


@pytest.mark.parametrize("rate", [1 << 60, 10**400])
def test_a_rate_beyond_all_links_is_no_limit(origin: Origin, store: Store, tmp_path: Path, rate: int) -> None:
    sites = '{"s":{"n1":"127.0.2.1","n2":"127.0.2.2"}}'
    path = _limits(tmp_path, f'{{"rateLimitBytesPerSecond":{rate},"peerPort":1,"sites":{sites}}}')
    fetch(store, job_of(_manifest(origin)), settings_of(store, distribution_file=path, node="n1"))
    assert_consistent(store)
    with pytest.raises(ValueError, match="peerPort"):
        parse_distribution('{"peerPort":65536}')


def test_a_byte_a_second_does_not_outlast_the_deadline(origin: Origin, store: Store, tmp_path: Path) -> None:
    path = _limits(tmp_path, '{"rateLimitBytesPerSecond":1}')
    began = time.monotonic()
    with pytest.raises(FetchError, match="not done within"):
        fetch(
            store, job_of(_manifest(origin)), settings_of(store, distribution_file=path, timeout_seconds=0.5)
        )
    assert time.monotonic() - began < 20


def test_a_clock_that_jumps_back_does_not_lengthen_what_a_source_asked_for(
    origin: Origin, store: Store
) -> None:
    manifest = _manifest(origin)
    partial = open_partial(store, manifest.files[0])
    assert partial is not None
    now = time.time()
    partial.hold_off(now + 60, origin="o")
    partial.close()
    partial = open_partial(store, manifest.files[0])
    assert partial is not None
    partial.restore()
    assert 55 < partial.hold_off_seconds("o", now) <= 62
    assert 0 < partial.hold_off_seconds("o", now - 86_400) <= 62
    assert partial.hold_off_seconds("o", now + 100) == 0
    partial.close()


def test_bytes_that_were_thrown_away_do_not_count_as_synced(origin: Origin, store: Store) -> None:
    manifest = _manifest(origin)
    partial = open_partial(store, manifest.files[0])
    assert partial is not None
    partial.restore()
    meta = store.partial / f"{manifest.files[0].sha256}.json"
    meta.write_text(json.dumps({"synced": 5000, "bootId": _boot_id()}))
    partial.write(memoryview(DATA)[:9000])
    partial.close()
    partial = open_partial(store, manifest.files[0])
    assert partial is not None
    partial.restore()
    partial.reset()
    partial.describe(etag="", origin="")
    partial.write(memoryview(DATA)[:7000])
    # A power cut now: nothing of these bytes was synced.
    assert trusted_bytes(json.loads(meta.read_text()) | {"bootId": "before"}, 7000) == 0
    partial.close()


def test_a_full_disk_does_not_hide_that_bytes_are_wrong(
    origin: Origin, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("slmfetch.quarantine.write_json", full)
    manifest = _manifest(origin)
    origin.files["/m/model.onnx"] = noise(len(DATA), 99)
    with pytest.raises(FetchError, match="the manifest promises") as caught:
        fetch(store, job_of(manifest), settings_of(store))
    assert caught.value.reason is Reason.INTEGRITY_MISMATCH


def test_a_url_that_is_no_text_is_refused(origin: Origin) -> None:
    (row,) = json.loads(_manifest(origin).to_json())["files"]
    with pytest.raises(ManifestError, match=r"url"):
        parse_manifest(json.dumps({"files": [row | {"url": "http://h/\ud800"}]}))


def test_a_disk_that_fills_up_at_the_very_last_byte_is_told_as_such(
    origin: Origin, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmfetch.tactics.PIECE_BYTES", 40_000)
    monkeypatch.setattr("slmfetch.tactics.PROBE_BYTES", 20_000)
    monkeypatch.setattr("slmfetch.partial.CHECKPOINT_BYTES", 1)

    def write(path: Path, body: dict[str, object]) -> None:
        if body.get("synced") == len(DATA):
            raise OSError(errno.ENOSPC, "full")
        write_json(path, body)

    monkeypatch.setattr("slmfetch.partial.write_json", write)
    manifest = _manifest(origin)
    origin.etags["/m/model.onnx"] = '"v1"'
    with pytest.raises(FetchError) as caught:
        fetch(store, job_of(manifest), settings_of(store))
    assert len(origin.seen) > 2, "over several connections"
    assert caught.value.reason is Reason.INSUFFICIENT_CAPACITY, caught.value.message
    assert scan(store.partial) == []


@pytest.mark.parametrize("key", ["size", "offset"])
def test_no_file_has_more_bytes_than_sums_can_hold(origin: Origin, key: str) -> None:
    (row,) = json.loads(_manifest(origin).to_json())["files"]
    parse_manifest(json.dumps({"files": [row | {key: 1 << 50}]}))
    for value in ((1 << 50) + 1, int("9" * 4000)):
        with pytest.raises(ManifestError, match=f"files.0..{key}") as caught:
            parse_manifest(json.dumps({"files": [row | {key: value}]}))
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("rate", "sessions"), [(60_000, 2), (4_000_000, 5)])
def test_under_a_low_limit_one_connection_does(
    origin: Origin, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int, sessions: int
) -> None:
    monkeypatch.setattr("slmfetch.tactics.PIECE_BYTES", 20_000)
    monkeypatch.setattr("slmfetch.tactics.PROBE_BYTES", 10_000)
    opened: list[Session] = []
    open_session = Network.open_session

    def count(network: Network) -> Session:
        opened.append(open_session(network))
        return opened[-1]

    monkeypatch.setattr(Network, "open_session", count)
    origin.files["/m/model.onnx"], origin.etags["/m/model.onnx"] = DATA[:90_000], '"v1"'
    manifest = manifest_of({"model.onnx": DATA[:90_000]}, f"{origin.url}/m")
    path = _limits(tmp_path, f'{{"rateLimitBytesPerSecond":{rate}}}')
    fetch(store, job_of(manifest), settings_of(store, distribution_file=path, stall_timeout_seconds=5.0))
    assert len(opened) == sessions, "one of them for the first piece"
    assert_consistent(store)
