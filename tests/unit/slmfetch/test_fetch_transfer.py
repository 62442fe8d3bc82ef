# SPDX-License-Identifier: Apache-2.0
"""Bad sources: what the fetcher does about truncated, slow, refusing, lying and changing servers."""

import time
from pathlib import Path

import pytest

from slmfetch.connect import parse_retry_after
from slmfetch.errors import FetchError, IntegrityError
from slmfetch.fetch import fetch
from slmfetch.refs import read_refs
from slmfetch.store import Store, scan
from slmwire.manifest import Manifest, ManifestFile
from slmwire.reasons import Reason
from tests.unit.slmfetch.kit import (
    OWNER,
    assert_consistent,
    job_of,
    manifest_of,
    noise,
    settings_of,
    tree_content,
)
from tests.unit.slmfetch.origin import Fault, Origin, serve_origin

SIZE = 700_000
DATA = noise(SIZE, 1)


def publish(origin: Origin, data: bytes = DATA) -> Manifest:
    origin.files["/m/model.onnx"] = data
    return manifest_of({"model.onnx": data}, f"{origin.url}/m")


def refused(store: Store, manifest: Manifest, **changes: object) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetch(store, job_of(manifest), settings_of(store, **changes))
    assert not store.tree(manifest.digest).exists()
    assert scan(store.blobs) == []
    return caught.value


def test_first_fetch_publishes_a_verified_tree(origin: Origin, store: Store) -> None:
    files = {"model.onnx": DATA, "tokenizer/vocab.json": b"{}", "empty": b"", "same.onnx": DATA}
    origin.files |= {f"/m/{path}": data for path, data in files.items()}
    manifest = manifest_of(files, f"{origin.url}/m")
    outcome = fetch(store, job_of(manifest), settings_of(store))
    assert tree_content(store, manifest) == files
    assert outcome.bytes_downloaded == SIZE + 2, "equal files are downloaded once"
    assert origin.bytes_sent == SIZE + 2
    assert_consistent(store)
    assert scan(store.partial) == []
    assert read_refs(store, OWNER.key)["r1"].complete


def test_cached_model_needs_no_network(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    fetch(store, job_of(manifest), settings_of(store))
    asked = len(origin.seen)
    nowhere = manifest_of({"model.onnx": DATA}, "http://127.0.0.1:1/gone")
    outcome = fetch(store, job_of(nowhere), settings_of(store))
    assert (outcome.bytes_downloaded, outcome.bytes_reused) == (0, SIZE)
    assert len(origin.seen) == asked


def test_truncated_body_is_resumed_where_it_ended(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    cut = SIZE * 95 // 100
    origin.faults["/m/model.onnx"] = [Fault(truncate_after=cut)]
    fetch(store, job_of(manifest), settings_of(store))
    assert [seen.start for seen in origin.seen] == [0, cut]
    assert origin.seen[1].headers["if-range"] == '"v1"'
    assert origin.bytes_sent == SIZE
    assert tree_content(store, manifest) == {"model.onnx": DATA}


def test_many_truncations_with_progress_use_up_no_attempts(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.faults["/m/model.onnx"] = [Fault(truncate_after=70_000)] * 9
    fetch(store, job_of(manifest), settings_of(store, attempts=2))
    assert origin.bytes_sent == SIZE


def test_gives_up_after_attempts_without_progress(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.faults["/m/model.onnx"] = [Fault(truncate_after=100_000)] + [Fault(truncate_after=0)] * 20
    error = refused(store, manifest)
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert "3 attempts" in error.message
    assert f"100000 of {SIZE}" in error.message
    assert "model.onnx" in error.message
    origin.faults.clear()
    origin.seen.clear()
    fetch(store, job_of(manifest), settings_of(store))
    assert [seen.start for seen in origin.seen] == [100_000], "the next run resumes"


def test_server_that_ignores_ranges_starts_over(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.faults["/m/model.onnx"] = [Fault(truncate_after=300_000), Fault(ignore_range=True)]
    fetch(store, job_of(manifest), settings_of(store))
    assert [seen.status for seen in origin.seen] == [200, 200]
    assert tree_content(store, manifest) == {"model.onnx": DATA}


def test_file_that_changes_midway_is_fetched_afresh(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.files["/m/model.onnx"] = noise(SIZE, 2)  # the wrong version first
    origin.faults["/m/model.onnx"] = [Fault(truncate_after=300_000), Fault(status=503)]
    with pytest.raises(FetchError):
        fetch(store, job_of(manifest), settings_of(store, attempts=1))
    publish(origin)
    origin.etags["/m/model.onnx"] = '"v2"'
    fetch(store, job_of(manifest), settings_of(store))
    assert origin.seen[-1].headers["if-range"] == '"v1"'
    assert origin.seen[-1].status == 200
    assert tree_content(store, manifest) == {"model.onnx": DATA}


def test_changed_etag_on_a_206_discards_what_was_there(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    path = "/m/model.onnx"
    origin.faults[path] = [
        Fault(truncate_after=300_000),
        # A server that sends a range of the new version in spite of If-Range.
        Fault(status=206, headers=(("Content-Range", f"bytes 300000-{SIZE - 1}/{SIZE}"), ("ETag", '"v2"'))),
    ]
    fetch(store, job_of(manifest), settings_of(store))
    assert [seen.start for seen in origin.seen] == [0, 0, 0]
    assert tree_content(store, manifest) == {"model.onnx": DATA}


def test_range_that_was_not_asked_for_is_refused(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    wrong = Fault(content_range=f"bytes 5-{SIZE - 1}/{SIZE}")
    origin.faults["/m/model.onnx"] = [Fault(truncate_after=300_000), wrong]
    fetch(store, job_of(manifest), settings_of(store))
    assert tree_content(store, manifest) == {"model.onnx": DATA}
    assert len(origin.seen) == 3


def test_shorter_file_at_the_source_is_found_by_416(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.faults["/m/model.onnx"] = [Fault(truncate_after=300_000), Fault(status=416)]
    fetch(store, job_of(manifest), settings_of(store))
    assert [seen.start for seen in origin.seen] == [0, 0, 0]


def test_wrong_size_is_refused_before_any_byte(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.files["/m/model.onnx"] = b"<html>please log in</html>"
    error = refused(store, manifest)
    assert error.reason is Reason.INTEGRITY_MISMATCH
    assert "26 bytes" in error.message and str(SIZE) in error.message


def test_endless_body_is_cut_off(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.faults["/m/model.onnx"] = [Fault(no_length=True, extra_bytes=3_000_000)]
    error = refused(store, manifest)
    assert error.reason is Reason.INTEGRITY_MISMATCH
    assert sum(e.stat().st_size for e in scan(store.partial) if e.name.endswith(".part")) <= SIZE


def test_retry_after_of_429_is_obeyed(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.faults["/m/model.onnx"] = [Fault(status=429, headers=(("Retry-After", "1"),))]
    began = time.monotonic()
    fetch(store, job_of(manifest), settings_of(store))
    assert time.monotonic() - began >= 1.0
    assert tree_content(store, manifest) == {"model.onnx": DATA}


def test_long_retry_after_ends_the_run_and_is_remembered(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.faults["/m/model.onnx"] = [Fault(status=429, headers=(("Retry-After", "3600"),))]
    error = refused(store, manifest)
    assert error.reason is Reason.RATE_LIMITED
    assert "3600 s" in error.message
    again = refused(store, manifest)
    assert again.reason is Reason.RATE_LIMITED
    assert len(origin.seen) == 1, "a restart does not bother the source before its time"


def test_503_without_advice_is_retried_with_back_off(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.faults["/m/model.onnx"] = [Fault(status=503), Fault(status=502)]
    fetch(store, job_of(manifest), settings_of(store))
    assert len(origin.seen) == 3


@pytest.mark.parametrize("status", [401, 403])
def test_refusal_is_final(origin: Origin, store: Store, status: int) -> None:
    manifest = publish(origin)
    origin.faults["/m/model.onnx"] = [Fault(status=status)]
    error = refused(store, manifest)
    assert error.reason is Reason.ACCESS_DENIED
    assert str(status) in error.message and "secretRef" in error.message
    assert len(origin.seen) == 1


def test_missing_file_is_final(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.files.clear()
    error = refused(store, manifest)
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert "404" in error.message and "/m/model.onnx" in error.message
    assert len(origin.seen) == 1


def test_silent_source_is_given_up(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.faults["/m/model.onnx"] = [Fault(hang_seconds=3.0)] * 2
    error = refused(store, manifest, stall_timeout_seconds=0.2, attempts=2)
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert "silent" in error.message


def test_slow_source_meets_the_deadline(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.bytes_per_second = 100_000
    began = time.monotonic()
    error = refused(store, manifest, timeout_seconds=0.7)
    assert time.monotonic() - began < 10.0
    assert error.reason is Reason.SOURCE_UNAVAILABLE and "too slow" in error.message


def test_unreachable_source_names_itself(store: Store) -> None:
    manifest = manifest_of({"model.onnx": DATA}, "http://127.0.0.1:1/m")
    error = refused(store, manifest, attempts=2)
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert "http://127.0.0.1:1/m/model.onnx" in error.message


def test_corrupt_bytes_are_fetched_once_more(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.faults["/m/model.onnx"] = [Fault(flip_byte_at=650_000)]
    fetch(store, job_of(manifest), settings_of(store))
    assert len(origin.seen) == 2
    assert tree_content(store, manifest) == {"model.onnx": DATA}


def test_mismatch_is_quarantined_never_published_and_not_retried_at_once(
    origin: Origin, store: Store
) -> None:
    manifest = publish(origin)
    origin.faults["/m/model.onnx"] = [Fault(flip_byte_at=9)] * 10
    error = refused(store, manifest)
    assert error.reason is Reason.INTEGRITY_MISMATCH
    assert manifest.files[0].sha256 in error.message
    assert len(origin.seen) == 2
    assert scan(store.partial) == [], "the bad bytes are gone"
    records = scan(store.quarantine)
    assert [e.name for e in records] == [f"{manifest.files[0].sha256}.json"]
    assert records[0].stat().st_size < 4096
    assert refused(store, manifest).reason is Reason.INTEGRITY_MISMATCH
    assert len(origin.seen) == 2, "bounded: a restart within the hold-off downloads nothing"


def test_repaired_source_is_taken_after_the_hold_off(
    origin: Origin, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmfetch.quarantine.HOLD_OFF_SECONDS", 0.0)
    manifest = publish(origin)
    origin.faults["/m/model.onnx"] = [Fault(flip_byte_at=9)] * 2
    refused(store, manifest)
    fetch(store, job_of(manifest), settings_of(store))
    assert tree_content(store, manifest) == {"model.onnx": DATA}
    assert scan(store.quarantine) == []


def test_token_is_read_afresh_for_every_attempt(origin: Origin, store: Store, tmp_path: Path) -> None:
    manifest = publish(origin)
    token = tmp_path / "token"
    token.write_text("new\n")
    origin.tokens["/m/model.onnx"] = "new"
    origin.faults["/m/model.onnx"] = [Fault(truncate_after=100)]
    fetch(store, job_of(manifest), settings_of(store, token_file=token))
    assert [s.headers["authorization"] for s in origin.seen] == ["Bearer new"] * 2


def test_token_stays_with_its_host(origin: Origin, store: Store, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret-token")
    manifest = publish(origin)
    with serve_origin() as other:
        other.files["/cdn"] = DATA
        origin.faults["/m/model.onnx"] = [Fault(redirect=f"{other.url}/cdn?sig=abc")]
        fetch(store, job_of(manifest), settings_of(store, token_file=token))
        assert origin.seen[0].headers["authorization"] == "Bearer secret-token"
        assert "authorization" not in other.seen[0].headers
        assert other.seen[0].path == "/cdn?sig=abc"


def test_redirect_within_the_host_keeps_token_and_range(origin: Origin, store: Store, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret-token")
    manifest = publish(origin)
    origin.files["/moved"] = DATA
    origin.tokens["/moved"] = "secret-token"
    origin.faults["/m/model.onnx"] = [Fault(redirect="/moved")] * 2
    origin.faults["/moved"] = [Fault(truncate_after=400_000)]
    fetch(store, job_of(manifest), settings_of(store, token_file=token))
    assert origin.seen[-1].start == 400_000


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[bad", ""])
def test_redirect_elsewhere_is_refused(origin: Origin, store: Store, target: str) -> None:
    manifest = publish(origin)
    fault = Fault(redirect=target) if target else Fault(status=302)
    origin.faults["/m/model.onnx"] = [fault]
    error = refused(store, manifest)
    assert error.reason is Reason.SOURCE_UNAVAILABLE and "redirects" in error.message


def test_redirect_loop_ends(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.faults["/m/model.onnx"] = [Fault(redirect="/m/model.onnx")] * 50
    assert "more than 5 times" in refused(store, manifest).message
    assert len(origin.seen) == 6


def test_compressed_answer_is_refused(origin: Origin, store: Store) -> None:
    manifest = publish(origin)
    origin.faults["/m/model.onnx"] = [Fault(headers=(("Content-Encoding", "gzip"),))]
    assert "compressed" in refused(store, manifest).message


def test_no_secret_gets_into_messages_or_logs(
    origin: Origin, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.write_text("secret-token")
    good = publish(origin).files[0]
    url = good.url.replace("http://", "http://user:pass-word@") + "?sig=signature"
    manifest = Manifest(files=(ManifestFile(path=good.path, size=good.size, sha256=good.sha256, url=url),))
    origin.faults["/m/model.onnx"] = [Fault(status=503)] * 9
    error = refused(store, manifest, token_file=token)
    output = capsys.readouterr().out + error.message
    assert "trying again" in output
    token.write_text("bad\ntoken secret-token")
    output += refused(store, manifest, token_file=token).message
    for secret in ("secret-token", "pass-word", "signature"):
        assert secret not in output


def test_proxy_from_the_environment_is_used(
    origin: Origin, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The origin plays the proxy: it gets the absolute URL of a host that does not exist."""
    origin.files["/m/model.onnx"] = DATA
    monkeypatch.setenv("http_proxy", f"http://user:pw@127.0.0.1:{origin.port}")
    manifest = manifest_of({"model.onnx": DATA}, "http://models.invalid/m")
    fetch(store, job_of(manifest), settings_of(store))
    assert origin.seen[0].path == "http://models.invalid/m/model.onnx"
    assert origin.seen[0].headers["proxy-authorization"] == "Basic dXNlcjpwdw=="
    assert origin.seen[0].headers["host"] == "models.invalid"


def test_retry_after_forms() -> None:
    assert parse_retry_after("7", 0.0) == 7.0
    assert parse_retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 40.0) == 60.0
    assert parse_retry_after("Thu, 01 Jan 1970 00:00:00 GMT", 40.0) == 0.0
    assert parse_retry_after("soon", 0.0) is None
    assert parse_retry_after("", 0.0) is None


def test_url_that_is_none_is_unfit(store: Store) -> None:
    for url in ("", "s3://bucket/key", "http://", "http://host:port/x", "/etc/passwd"):
        file = ManifestFile(path="f", size=3, sha256="0" * 64, url=url)
        error = refused(store, Manifest(files=(file,)))
        assert error.reason is Reason.UNFIT, url
        assert not isinstance(error, IntegrityError)
