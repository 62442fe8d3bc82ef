# SPDX-License-Identifier: Apache-2.0
"""Large files over several connections: order, resume, refusing and changing sources, memory."""

import hashlib
import random
import ssl
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from slmfetch.errors import FetchError
from slmfetch.fetch import fetch
from slmfetch.partial import open_partial
from slmfetch.pieces import Closed, Piece, Pieces
from slmfetch.store import Store, scan
from slmwire.manifest import Manifest, ManifestFile
from slmwire.reasons import Reason
from tests.unit.slmfetch.kit import (
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
from tests.unit.slmfetch.origin import Fault, Origin, Reply, Seen, serve_origin

PIECE = 100_000
SIZE = 1_230_000
DATA = noise(SIZE, 60)
PATH = "/m/model.onnx"


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmfetch.tactics.PIECE_BYTES", PIECE)
    monkeypatch.setattr("slmfetch.parallel.RETRY_SECONDS", 0.02)


def publish(origin: Origin, data: bytes = DATA) -> Manifest:
    origin.files[PATH] = data
    return manifest_of({"model.onnx": data}, f"{origin.url}/m")


def run(store: Store, manifest: Manifest, **changes: object) -> None:
    fetch(store, job_of(manifest), settings_of(store, **changes))
    assert tree_content(store, manifest) == {"model.onnx": DATA}
    assert scan(store.partial) == []


def ranges(origin: Origin) -> list[str]:
    return sorted(seen.headers.get("range", "") for seen in origin.seen)


@pytest.mark.parametrize("keep_alive", [True, False])
def test_large_file_comes_in_pieces_over_several_connections(
    origin: Origin, store: Store, keep_alive: bool
) -> None:
    manifest = publish(origin)
    origin.keep_alive = keep_alive
    origin.bytes_per_second = 300_000
    began = time.monotonic()
    run(store, manifest)
    assert time.monotonic() - began < 3.5, "one connection would need 4.1 s"
    assert origin.bytes_sent == SIZE
    assert len(origin.seen) == 13
    assert all(seen.headers["if-range"] == '"v1"' for seen in origin.seen[1:])


def test_one_connection_when_told_so(origin: Origin, store: Store) -> None:
    run(store, publish(origin), connections=1)
    assert ranges(origin) == [""]


def test_source_without_strong_validator_gets_one_connection(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.etags[PATH] = 'W/"v1"'
    run(store, manifest)
    assert ranges(origin) == [f"bytes=0-{PIECE - 1}", f"bytes={PIECE}-"]
    assert origin.bytes_sent == SIZE


def test_source_without_ranges_gets_one_request(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.rangeless.add(PATH)
    run(store, manifest)
    assert len(origin.seen) == 1


def test_registry_blob_needs_no_validator(origin: Origin, store: Store) -> None:
    sha = hashlib.sha256(DATA).hexdigest()
    path = f"/v2/a/blobs/sha256:{sha}"
    origin.files[path] = DATA
    origin.etags[path] = ""
    file = ManifestFile(path="model.onnx", size=SIZE, sha256=sha, url=f"{origin.url}{path}")
    run(store, Manifest(files=(file,)))
    assert len(origin.seen) == 13
    assert all("if-range" not in seen.headers for seen in origin.seen)


def test_large_file_inside_a_layer(origin: Origin, store: Store) -> None:
    sha = hashlib.sha256(DATA).hexdigest()
    path = f"/v2/a/blobs/sha256:{'a' * 64}"
    origin.files[path] = noise(512, 61) + DATA + noise(1024, 62)
    file = ManifestFile(path="model.onnx", size=SIZE, sha256=sha, url=f"{origin.url}{path}", offset=512)
    run(store, Manifest(files=(file,)))
    assert len(origin.seen) == 13 and origin.bytes_sent == SIZE


def test_broken_connections_cost_no_byte(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.faults[PATH] = [Fault(), *[Fault(truncate_after=70_000)] * 6]
    run(store, manifest)
    assert origin.bytes_sent == SIZE


def test_connection_that_hangs_does_not_hold_up_the_others(
    origin: Origin, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmfetch.pieces.STALE_SECONDS", 0.3)
    manifest = publish(origin)
    origin.faults[PATH] = [Fault(), Fault(hang_seconds=12.0)]
    began = time.monotonic()
    run(store, manifest, stall_timeout_seconds=15.0)
    assert time.monotonic() - began < 10.0, "its piece was taken over"
    starts = [seen.start for seen in origin.seen]
    assert len(starts) == 14, "one piece was asked for twice"


def test_piece_that_fails_is_brought_by_the_next_round(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.faults[PATH] = [Fault(), *[Fault(status=503)] * 5]
    run(store, manifest, attempts=5)
    assert origin.bytes_sent == SIZE


def test_retry_after_of_a_piece_is_obeyed_by_all(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    times: list[float] = []

    def watch(_seen: Seen) -> Reply | None:
        times.append(time.monotonic())
        if len(times) == 4:
            return Reply(status=429, headers=(("Retry-After", "1"),))
        return None

    origin.services[PATH] = watch
    run(store, manifest)
    assert max(after - before for before, after in pairwise(times)) >= 0.9
    assert origin.bytes_sent == SIZE, "what was on its way came in"


def test_source_that_changes_midway_is_taken_afresh(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    asked = 0

    def change(_seen: Seen) -> Reply | None:
        nonlocal asked
        asked += 1
        if asked == 6:
            origin.etags[PATH] = '"v2"'
        return None

    origin.services[PATH] = change
    run(store, manifest)


def test_refusal_of_a_piece_ends_all_and_keeps_what_came(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    asked = 0

    def refuse(_seen: Seen) -> Reply | None:
        nonlocal asked
        asked += 1
        return Reply(status=403) if asked >= 6 else None

    origin.services[PATH] = refuse
    with pytest.raises(FetchError) as caught:
        fetch(store, job_of(manifest), settings_of(store))
    assert caught.value.reason is Reason.ACCESS_DENIED
    sent = origin.bytes_sent
    assert sent >= PIECE
    origin.services.clear()
    run(store, manifest)
    assert origin.bytes_sent - SIZE <= 4 * 100_000, "only what the refusal cut short"


def test_corrupt_piece_is_found_by_the_whole_files_hash(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.faults[PATH] = [Fault(flip_byte_at=250_000)] * 13
    run(store, manifest)
    assert origin.bytes_sent == 2 * SIZE


def test_deadline_ends_a_slow_source(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.bytes_per_second = 50_000
    began = time.monotonic()
    with pytest.raises(FetchError) as caught:
        fetch(store, job_of(manifest), settings_of(store, timeout_seconds=1.0, stall_timeout_seconds=10.0))
    assert time.monotonic() - began < 6.0
    assert "kept" in caught.value.message


@pytest.fixture
def tls_origin(tmp_path: Path) -> Iterator[Origin]:
    """An origin with a certificate of its own; `authority.pem` is what to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "origin")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "authority.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "authority.pem", tmp_path / "key.pem")
    with serve_origin(context) as running:
        yield running


def test_pieces_come_over_tls_and_an_untrusted_server_is_refused(
    tls_origin: Origin, store: Store, tmp_path: Path
) -> None:
    manifest = publish(tls_origin)
    tls_origin.keep_alive = True
    with pytest.raises(FetchError) as caught:
        fetch(store, job_of(manifest), settings_of(store))
    assert "not trusted" in caught.value.message and "SLM_CA_FILE" in caught.value.message
    run(store, manifest, ca_file=tmp_path / "authority.pem")
    assert len(tls_origin.seen) == 13


def test_refusal_over_tls_is_told_though_the_others_are_hung_up(
    tls_origin: Origin, store: Store, tmp_path: Path
) -> None:
    manifest = publish(tls_origin)
    tls_origin.bytes_per_second = 50_000
    asked = 0

    def refuse(_seen: Seen) -> Reply | None:
        nonlocal asked
        asked += 1
        return Reply(status=403) if asked == 4 else None

    tls_origin.services[PATH] = refuse
    began = time.monotonic()
    with pytest.raises(FetchError) as caught:
        fetch(
            store,
            job_of(manifest),
            settings_of(store, ca_file=tmp_path / "authority.pem", stall_timeout_seconds=9.0),
        )
    assert caught.value.reason is Reason.ACCESS_DENIED
    assert time.monotonic() - began < 8.0


class _Kill(Exception):
    pass


@settings(max_examples=25, deadline=None)
@given(data=st.data(), size=st.integers(1, 5000), piece=st.integers(50, 900))
def test_any_order_with_kills_at_any_byte_gives_the_file_and_loses_nothing(
    data: st.DataObject, size: int, piece: int
) -> None:
    """Invariants: .part is always a prefix of the file; no byte is asked for twice; the hash matches."""
    content = noise(size, 63)
    file = manifest_of({"f": content}, "http://127.0.0.1:1").files[0]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.prepare()
        written, published = 0, False
        while not published:
            partial = open_partial(store, file)
            assert partial is not None
            partial.restore()
            partial.describe(etag='"v1"', origin="o")
            assert partial.have == written
            pieces = Pieces(partial, size, piece)
            busy: list[Piece] = []
            steps = data.draw(st.integers(1, 40))
            for _ in range(steps):
                if len(busy) < 3 and (new := _take_now(pieces, busy)) is not None:
                    busy.append(new)
                if not busy:
                    break
                chosen = data.draw(st.sampled_from(busy))
                count = min(data.draw(st.integers(1, 400)), chosen.end - chosen.at)
                pieces.write(chosen, memoryview(content)[chosen.at : chosen.at + count])
                written += count
                assert (store.partial / f"{file.sha256}.part").read_bytes() == content[: partial.offset]
                if chosen.at == chosen.end:
                    pieces.release(chosen)
                    busy.remove(chosen)
            for left in busy:
                pieces.release(left)  # as its descriptor goes with the process
            pieces.close()
            if pieces.complete:
                assert partial.publish() == ""
                published = True
            partial.close()
        assert written == size
        assert store.blob(file.sha256).read_bytes() == content
        assert scan(store.partial) == []


def _take_now(pieces: Pieces, busy: list[Piece]) -> Piece | None:
    window = pieces.piece_bytes * 8
    first = pieces._todo[0] if pieces._todo else None
    return pieces.take() if first and first.at < pieces.partial.offset + window else None


def test_kill_while_a_run_moves_into_the_partial_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = noise(3000, 64)
    file = manifest_of({"f": content}, "http://127.0.0.1:1").files[0]
    partial = open_partial(store, file)
    assert partial is not None
    partial.restore()
    partial.describe(etag='"v1"', origin="o")
    pieces = Pieces(partial, 3000, 1000)
    first, second = pieces.take(), pieces.take()
    assert first is not None and second is not None
    pieces.write(second, memoryview(content)[1000:2000])
    real, calls = partial.write, 0

    def dies(data: memoryview) -> None:
        nonlocal calls
        calls += 1
        real(data[:400] if calls == 2 else data)
        if calls == 2:
            raise _Kill

    monkeypatch.setattr(partial, "write", dies)
    with pytest.raises(_Kill):
        pieces.write(first, memoryview(content)[:1000])
    partial.close()
    again = open_partial(store, file)
    assert again is not None
    again.restore()
    assert again.offset == 1400
    resumed = Pieces(again, 3000, 1000)
    assert again.offset == 2000
    last = resumed.take()
    assert last is not None and (last.at, last.end) == (2000, 3000)
    again.close()


@pytest.mark.parametrize("victim_index", [0, 1])
def test_piece_that_is_taken_over_comes_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, victim_index: int
) -> None:
    monkeypatch.setattr("slmfetch.pieces.STALE_SECONDS", 0.0)
    content = noise(2000, 68)
    file = manifest_of({"f": content}, "http://127.0.0.1:1").files[0]
    partial = open_partial(store, file)
    assert partial is not None
    partial.restore()
    pieces = Pieces(partial, 2000, 1000)
    first, second = pieces.take(), pieces.take()
    assert first is not None and second is not None
    victim, other = (first, second) if victim_index == 0 else (second, first)
    for piece in (victim, other):
        pieces.write(piece, memoryview(content)[piece.at : piece.at + 300])
    taken = pieces.take()
    assert taken is not None and taken.at == victim.at == victim_index * 1000 + 300
    pieces.write(victim, memoryview(content)[victim.at : victim.at + 100])
    assert pieces.have == 600, "who lost the piece adds nothing"
    pieces.release(victim)
    for piece in (taken, other):
        pieces.write(piece, memoryview(content)[piece.at : piece.end])
        pieces.release(piece)
    assert pieces.complete and pieces.take() is None
    assert partial.publish() == ""
    partial.close()
    assert store.blob(file.sha256).read_bytes() == content


def test_what_is_ahead_is_not_trusted_after_a_reboot(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    content = noise(3000, 65)
    file = manifest_of({"f": content}, "http://127.0.0.1:1").files[0]
    partial = open_partial(store, file)
    assert partial is not None
    partial.restore()
    partial.describe(etag='"v1"', origin="o")
    pieces = Pieces(partial, 3000, 1000)
    _first, second = pieces.take(), pieces.take()
    assert second is not None
    pieces.write(second, memoryview(content)[1000:1500])
    assert partial.have == 500
    pieces.close()
    with pytest.raises(Closed):
        pieces.write(second, memoryview(content)[1500:1600])
    partial.close()
    monkeypatch.setattr("slmfetch.partial._boot_id", lambda: "another boot")
    again = open_partial(store, file)
    assert again is not None
    again.restore()
    assert again.have == 0 and again.list_ahead() == {}
    again.close()


def big_file(origin: Origin, mebibytes: int) -> Manifest:
    """Repeats with a prime period, so that no piece can pass for another."""
    block = noise((1 << 20) + 7, 66)
    data = (block * (mebibytes + 1))[: mebibytes << 20]
    origin.files[PATH] = data
    return manifest_of({"model.onnx": data}, f"{origin.url}/m")


def test_ten_kills_of_a_large_download_cost_at_most_two_percent(
    origin: Origin, store: Store, tmp_path: Path
) -> None:
    manifest = big_file(origin, 256)
    size = manifest.size_bytes
    origin.keep_alive = True
    origin.bytes_per_second = 50_000_000
    for point in sorted(random.Random(67).sample(range(1_000_000, size - 10_000_000), 10)):
        process = start_fetcher(["fetch", "--serve"], store, tmp_path, manifest)
        wait_until(lambda point=point: origin.bytes_sent >= point)  # type: ignore[misc]
        process.kill()
        finish(process)
        assert scan(store.trees) == [] and scan(store.blobs) == []
    code, output = finish(start_fetcher(["fetch", "--serve"], store, tmp_path, manifest))
    assert code == 0, output
    assert (origin.bytes_sent - size) / size <= 0.02
    assert max(seen.start for seen in origin.seen[:8]) > 8 << 20, "it was parallel"
    assert_consistent(store)
    assert scan(store.partial) == []


def test_a_large_file_takes_64_mb_of_memory(origin: Origin, store: Store, tmp_path: Path) -> None:
    manifest = big_file(origin, 256)
    origin.keep_alive = True
    process = start_fetcher(["hold"], store, tmp_path, manifest, SLM_FETCH_CONNECTIONS="8")
    wait_until((tmp_path / "ready").exists)
    # Not ru_maxrss of the child: it counts what this process held before it became a fetcher.
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    process.terminate()
    assert finish(process)[0] == 0
    assert len(origin.seen) == 33
    assert peak_kib <= 64 * 1024


def test_sigterm_ends_all_connections_and_keeps_what_came(
    origin: Origin, store: Store, tmp_path: Path
) -> None:
    manifest = big_file(origin, 64)
    origin.bytes_per_second = 5_000_000
    process = start_fetcher(["fetch"], store, tmp_path, manifest)
    wait_until(lambda: origin.bytes_sent > 30_000_000)
    began = time.monotonic()
    process.terminate()
    assert finish(process)[0] == 143
    assert time.monotonic() - began < 6.0
    assert sum(e.stat().st_size for e in scan(store.partial)) > 29_000_000
