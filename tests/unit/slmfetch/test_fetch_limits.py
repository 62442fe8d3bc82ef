# SPDX-License-Identifier: Apache-2.0
"""Bandwidth that may change meanwhile, progress that others can read, disks that are not filled."""

import json
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmfetch.errors import FetchError
from slmfetch.fetch import fetch
from slmfetch.pace import DistributionFile, Pace
from slmfetch.progress import From, Reporter, Tally, clear_progress
from slmfetch.store import Store, scan
from slmwire.distribution import Distribution
from slmwire.manifest import Manifest
from slmwire.reasons import Reason, parse_termination
from tests.unit.slmfetch.kit import job_of, manifest_of, noise, settings_of, start_fetcher, tree_content
from tests.unit.slmfetch.origin import Fault, Origin

SIZE = 700_000
DATA = noise(SIZE, 70)


def publish(origin: Origin, data: bytes = DATA) -> Manifest:
    origin.files["/m/model.onnx"] = data
    return manifest_of({"model.onnx": data}, f"{origin.url}/m")


def limit(folder: Path, bytes_per_second: int) -> Path:
    """As the kubelet does it: a new file in place of the old one."""
    path, temp = folder / "distribution.json", folder / "new"
    temp.write_text(Distribution(rate_limit_bytes_per_second=bytes_per_second).to_json())
    temp.replace(path)
    return path


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@settings(deadline=None)
@given(rate=st.integers(10_000, 10**9), counts=st.lists(st.integers(1, 1 << 18), min_size=1, max_size=60))
def test_no_more_than_the_rate_and_a_burst_in_any_time(rate: int, counts: list[int]) -> None:
    clock = Clock()
    pace = Pace(lambda: rate, clock)
    taken = 0
    for count in counts:
        pace.pay(count, clock.wait)
        taken += count
        assert taken <= (clock.now - 1000.0 + 0.25) * rate * 1.000001


def test_connections_share_the_rate() -> None:
    pace = Pace(lambda: 1_000_000)
    began = time.monotonic()

    def take() -> None:
        for _ in range(15):
            pace.pay(10_000, time.sleep)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began >= 0.6 - 0.25 - 0.01


def test_new_rate_holds_within_a_second_of_waiting() -> None:
    clock, rates = Clock(), [1000]
    pace = Pace(lambda: rates[0], clock)

    def wait(seconds: float) -> None:
        clock.wait(seconds)
        rates[0] = 1_000_000

    pace.pay(1_000_000, wait)
    assert clock.now <= 1001.0
    pace.pay(1_000_000, clock.wait)
    assert clock.now <= 1002.1


@pytest.mark.parametrize("parallel", [False, True])
def test_source_is_read_no_faster_than_allowed(
    origin: Origin, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: bool
) -> None:
    monkeypatch.setattr("slmfetch.tactics.PIECE_BYTES", 100_000 if parallel else 1 << 30)
    manifest = publish(origin)
    began = time.monotonic()
    fetch(store, job_of(manifest), settings_of(store, distribution_file=limit(tmp_path, 400_000)))
    free = 100_000 + 4 * 40_000  # a burst, and what each connection read last
    assert time.monotonic() - began >= (SIZE - free) / 400_000
    assert tree_content(store, manifest) == {"model.onnx": DATA}
    assert len(origin.seen) == (7 if parallel else 1)


def test_limit_that_is_lifted_is_noticed_while_the_fetch_runs(
    origin: Origin, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmfetch.pace.LOOK_SECONDS", 0.05)
    manifest = publish(origin)
    timer = threading.Timer(0.3, limit, (tmp_path, 0))
    path = limit(tmp_path, 50_000)
    timer.start()
    began = time.monotonic()
    fetch(store, job_of(manifest), settings_of(store, distribution_file=path))
    assert 0.3 <= time.monotonic() - began < 5.0, "at 50 kB/s it would take 13 s"
    timer.join()


def test_limits_that_cannot_be_read_stay_as_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    path = limit(tmp_path, 5000)
    file = DistributionFile(path, clock)
    assert file.current().rate_limit_bytes_per_second == 5000
    path.write_text('{"rateLimitBytesPerSecond": "fast"}')
    for _ in range(3):
        clock.wait(4.0)
        assert file.current().rate_limit_bytes_per_second == 5000
    assert capsys.readouterr().out.count("rateLimitBytesPerSecond must be") == 1
    path.unlink()
    clock.wait(4.0)
    assert file.current() == Distribution()
    assert DistributionFile(None).current() == Distribution()


def test_progress_is_written_now_and_then_and_removed(store: Store) -> None:
    clock, tally = Clock(), Tally()
    path = store.root / "progress" / "shop.orders.r1.json"
    reporter = Reporter(path=path, total_bytes=3000, tally=tally, clock=clock)
    files = manifest_of({"a": b"x" * 1000, "b": b"y" * 2000}, "http://127.0.0.1:1").files
    reporter.begin(files[0], 0)
    first = path.stat().st_ino
    clock.wait(1.0)
    tally.add(500, From.SOURCE)
    reporter.update(500, From.SOURCE)
    assert path.stat().st_ino == first, "at most every 2 s"
    clock.wait(1.0)
    tally.add(500, From.SOURCE)
    reporter.update(1000, From.SOURCE)
    reporter.end(files[0])
    reporter.begin(files[1], 0)
    clock.wait(2.0)
    tally.add(1000, From.PEERS)
    reporter.advance(1000, From.PEERS)
    body = json.loads(path.read_text())
    assert body.pop("at") > 0
    assert body == {
        "file": "b",
        "bytes": 2000,
        "total": 3000,
        "bytesPerSecond": 500,
        "secondsLeft": 2,
        "from": "peers",
        "bytesFromSource": 1000,
        "bytesFromPeers": 1000,
    }
    assert [entry.name for entry in scan(path.parent)] == [path.name]
    (path.parent / f".tmp-1-{path.name}").touch()
    (path.parent / "shop.orders.r2.json").touch()
    clear_progress(path)
    assert [entry.name for entry in scan(path.parent)] == ["shop.orders.r2.json"]


def test_real_fetch_shows_progress_and_ends_with_the_numbers(
    origin: Origin, store: Store, tmp_path: Path
) -> None:
    manifest = publish(origin)
    origin.faults["/m/model.onnx"] = [Fault(truncate_after=300_000), Fault(hang_seconds=0.5)]
    process = start_fetcher(["fetch"], store, tmp_path, manifest)
    path = store.root / "progress" / "shop.orders.r1.json"
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    body = json.loads(path.read_text())
    assert (body["file"], body["total"], body["from"]) == ("model.onnx", SIZE, "source")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert scan(path.parent) == []
    ending = parse_termination((tmp_path / "termination").read_text())
    assert ending is not None and ending.reason == ""
    assert (ending.bytes_downloaded, ending.bytes_from_peers) == (SIZE, 0)
    assert f"{SIZE} bytes at " in ending.message and "0 of them from peers" in ending.message


def test_failed_fetch_tells_what_it_moved(origin: Origin, store: Store, tmp_path: Path) -> None:
    manifest = publish(origin)
    origin.faults["/m/model.onnx"] = [Fault(truncate_after=300_000), Fault(status=403)]
    process = start_fetcher(["fetch"], store, tmp_path, manifest)
    process.communicate(timeout=60)
    ending = parse_termination((tmp_path / "termination").read_text())
    assert ending is not None and ending.reason == Reason.ACCESS_DENIED
    assert ending.bytes_downloaded == 300_000
    assert scan(store.root / "progress") == []


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("SLM_FETCH_CONNECTIONS", "0", "between 1 and 16"),
        ("SLM_HIGH_WATERMARK_PERCENT", "101", "between 0 and 100"),
        ("SLM_SOURCE_AUTH", "kerberos", "bearer, basic, s3, oci"),
    ],
)
def test_setting_out_of_bounds_is_named(
    store: Store, tmp_path: Path, name: str, value: str, named: str
) -> None:
    manifest = manifest_of({"f": b"1"}, "http://127.0.0.1:1")
    extra = {name: value}
    process = start_fetcher(["fetch"], store, tmp_path, manifest, **extra)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert name in output and named in output


def test_file_system_is_not_filled_beyond_the_watermark(origin: Origin, small_store: Store) -> None:
    data = noise(2 << 20, 71)
    manifest = publish(origin, data)
    with pytest.raises(FetchError) as caught:
        fetch(small_store, job_of(manifest), settings_of(small_store, high_watermark_percent=45))
    assert caught.value.reason is Reason.INSUFFICIENT_CAPACITY
    for text in (str(2 << 20), "45 %", "cache.highWatermarkPercent"):
        assert text in caught.value.message
    assert origin.seen == []
    roomy = settings_of(small_store, high_watermark_percent=60, reserve_bytes=None)
    fetch(small_store, job_of(manifest), roomy)
    assert tree_content(small_store, manifest) == {"model.onnx": data}


def test_disk_that_fills_up_under_several_connections_leaves_nothing(
    origin: Origin, small_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmfetch.tactics.PIECE_BYTES", 200_000)
    data = noise(3 << 20, 72)
    manifest = publish(origin, data)
    monkeypatch.setattr("slmfetch.fetch.find_shortage", lambda *_: "")
    (small_store.root / "ballast").write_bytes(b"x" * (2 << 20))
    with pytest.raises(FetchError) as caught:
        fetch(small_store, job_of(manifest), settings_of(small_store))
    assert caught.value.reason is Reason.INSUFFICIENT_CAPACITY
    assert scan(small_store.partial) == []
