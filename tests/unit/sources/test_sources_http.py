# SPDX-License-Identifier: Apache-2.0
"""http and file sources, and what the operator refuses to call."""

import base64
import hashlib
import json
import socket
import time
from typing import Any

import pytest

from slmops.adapters.sources import build_resolver
from slmops.adapters.sources.addresses import AddressPolicy
from slmops.adapters.sources.http_source import file_url
from slmops.adapters.sources.resolver import Resolver
from slmops.api.source import Source
from slmops.planning.times import to_text
from slmops.ports.sources import SourceError, SourceResolver
from slmwire.reasons import Reason
from tests.unit.slmfetch.origin import Fault, Origin, serve_origin

DATA = b"weights" * 100
SHA = hashlib.sha256(DATA).hexdigest()


def source_of(kind: str, **fields: Any) -> Source:
    return Source.model_validate({kind: fields})


def put_manifest(origin: Origin, rows: list[dict[str, Any]] | None = None) -> tuple[str, str]:
    """URL and hash of a manifest."""
    rows = rows if rows is not None else [{"path": "sub/model.onnx", "size": len(DATA), "sha256": SHA}]
    text = json.dumps({"files": rows}, indent=1).encode()
    origin.files["/m/v1/slm-manifest.json"] = text
    return f"{origin.url}/m/v1/slm-manifest.json", hashlib.sha256(text).hexdigest()


async def failure(resolver: SourceResolver, source: Source, token: str | None = None) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await resolver.resolve(source, secret={"token": token} if token else {})
    return caught.value


async def test_manifest_gives_files_beside_it(origin: Origin, resolver: SourceResolver) -> None:
    url, sha256 = put_manifest(origin)
    resolved = await resolver.resolve(source_of("http", url=url, sha256=sha256))
    (file,) = resolved.manifest.files
    assert (file.path, file.size, file.sha256) == ("sub/model.onnx", len(DATA), SHA)
    assert file.url == f"{origin.url}/m/v1/sub/model.onnx"
    assert resolved.reference == f"sha256:{sha256}"


async def test_manifest_with_another_hash_is_refused(origin: Origin, resolver: SourceResolver) -> None:
    url, sha256 = put_manifest(origin)
    error = await failure(resolver, source_of("http", url=url, sha256="0" * 64))
    assert error.reason is Reason.INTEGRITY_MISMATCH and error.permanent
    assert sha256 in str(error) and "0" * 64 in str(error)


async def test_urls_inside_a_manifest_are_ignored(origin: Origin, resolver: SourceResolver) -> None:
    row = {"path": "f", "size": 1, "sha256": SHA, "url": "http://169.254.169.254/latest"}
    url, _ = put_manifest(origin, [row])
    resolved = await resolver.resolve(source_of("http", url=url))
    assert resolved.manifest.files[0].url == f"{origin.url}/m/v1/f"


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b", ".hidden", "a\\b", "a//b"])
async def test_odd_paths_are_unfit(origin: Origin, resolver: SourceResolver, path: str) -> None:
    url, _ = put_manifest(origin, [{"path": path, "size": 1, "sha256": SHA}])
    error = await failure(resolver, source_of("http", url=url))
    assert error.reason is Reason.UNFIT and error.permanent
    assert repr(path) in str(error)


async def test_listed_files_are_measured(origin: Origin, resolver: SourceResolver) -> None:
    origin.files |= {"/m/a": DATA, "/m/b": b"12345"}
    files = [{"path": "a", "sha256": SHA}, {"path": "b", "sha256": SHA, "size": 9}]
    resolved = await resolver.resolve(source_of("http", url=f"{origin.url}/m/", files=files))
    assert [(f.path, f.size) for f in resolved.manifest.files] == [("a", len(DATA)), ("b", 9)]
    assert len(origin.seen) == 1, "what the spec says is not asked for"


async def test_size_without_head(origin: Origin, resolver: SourceResolver) -> None:
    origin.files["/m/a"] = DATA
    origin.faults["/m/a"] = [
        Fault(status=405),
        Fault(status=206, headers=(("Content-Range", "bytes 0-0/77"),)),
    ]
    files = [{"path": "a", "sha256": SHA}]
    resolved = await resolver.resolve(source_of("http", url=f"{origin.url}/m/", files=files))
    assert resolved.manifest.files[0].size == 77


async def test_size_that_nobody_tells(origin: Origin, resolver: SourceResolver) -> None:
    origin.files["/m/a"] = DATA
    origin.faults["/m/a"] = [Fault(no_length=True)] * 2
    origin.rangeless.add("/m/a")
    files = [{"path": "a", "sha256": SHA}]
    error = await failure(resolver, source_of("http", url=f"{origin.url}/m/", files=files))
    assert "files[].size" in str(error) and error.permanent


@pytest.mark.parametrize(
    ("status", "reason", "permanent"),
    [
        (401, Reason.ACCESS_DENIED, False),
        (403, Reason.ACCESS_DENIED, False),
        (404, Reason.SOURCE_UNAVAILABLE, True),
        (418, Reason.SOURCE_UNAVAILABLE, True),
        (429, Reason.RATE_LIMITED, False),
        (503, Reason.SOURCE_UNAVAILABLE, False),
    ],
)
async def test_statuses(
    origin: Origin, resolver: SourceResolver, status: int, reason: Reason, permanent: bool
) -> None:
    url, _ = put_manifest(origin)
    fault = Fault(status=status, headers=(("Retry-After", "17"),))
    origin.faults["/m/v1/slm-manifest.json"] = [fault]
    error = await failure(resolver, source_of("http", url=url + "?sig=s1gn4ture"))
    assert (error.reason, error.permanent) == (reason, permanent)
    assert str(status) in str(error) and "slm-manifest.json" in str(error)
    assert "s1gn4ture" not in str(error)
    if status in (429, 503):
        assert error.retry_after_seconds == 17.0


async def test_refused_token_is_permanent(origin: Origin, resolver: SourceResolver) -> None:
    url, _ = put_manifest(origin)
    origin.tokens["/m/v1/slm-manifest.json"] = "right"
    error = await failure(resolver, source_of("http", url=url), token="wrong")
    assert error.reason is Reason.ACCESS_DENIED and error.permanent
    assert (await resolver.resolve(source_of("http", url=url), secret={"token": "right"})).manifest.files
    assert (await failure(resolver, source_of("http", url=url), token="a\nb")).permanent


async def test_basic_authentication_and_a_small_file(origin: Origin, resolver: SourceResolver) -> None:
    url, _ = put_manifest(origin)
    source = source_of("http", url=url, basicAuthRef={"name": "login"})
    secret = {"username": "edge", "password": "p:ß"}
    (file,) = (await resolver.resolve(source, secret=secret)).manifest.files
    expected = "Basic " + base64.b64encode("edge:p:ß".encode()).decode()
    assert origin.seen[-1].headers["authorization"] == expected
    origin.files["/m/v1/sub/model.onnx"] = DATA
    assert await resolver.read_file(source, file, secret=secret) == DATA
    assert origin.seen[-1].headers["authorization"] == expected
    with pytest.raises(SourceError, match="colon"):
        await resolver.resolve(source, secret={"username": "a:b", "password": "p"})


async def test_token_stays_with_its_origin(origin: Origin, resolver: SourceResolver) -> None:
    url, _ = put_manifest(origin)
    with serve_origin() as other:
        other.files["/moved"] = origin.files["/m/v1/slm-manifest.json"]
        origin.faults["/m/v1/slm-manifest.json"] = [Fault(redirect=f"{other.url}/moved")]
        resolved = await resolver.resolve(source_of("http", url=url), secret={"token": "t"})
        assert origin.seen[0].headers["authorization"] == "Bearer t"
        assert "authorization" not in other.seen[0].headers
    assert resolved.manifest.files[0].url.startswith(origin.url), "nodes begin where the spec says"


async def test_huge_manifest_is_cut_off(origin: Origin, resolver: SourceResolver) -> None:
    url, _ = put_manifest(origin)
    origin.files["/m/v1/slm-manifest.json"] = b" " * (3 << 20)
    error = await failure(resolver, source_of("http", url=url))
    assert error.reason is Reason.UNFIT and "larger than 1048576" in str(error)
    assert origin.bytes_sent < 3 << 20


async def test_silent_server_is_given_up(origin: Origin) -> None:
    url, _ = put_manifest(origin)
    origin.faults["/m/v1/slm-manifest.json"] = [Fault(hang_seconds=2.0)]
    impatient = Resolver(AddressPolicy(allow_loopback=True), timeout_seconds=0.2)
    error = await failure(impatient, source_of("http", url=url))
    assert error.reason is Reason.SOURCE_UNAVAILABLE and "in time" in str(error)


async def test_unreachable_and_unresolvable_hosts(resolver: SourceResolver) -> None:
    error = await failure(resolver, source_of("http", url="http://127.0.0.1:1/x"))
    assert error.reason is Reason.SOURCE_UNAVAILABLE and not error.permanent
    assert "cannot connect" in str(error)
    error = await failure(resolver, source_of("http", url="http://nowhere.invalid/x"))
    assert "does not resolve" in str(error) and not error.permanent


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::a9fe:a9fe]",
        "169.254.169.254",
        "[fe80::1]",
        "0.0.0.0",
        "100.100.100.200",
        "[fd00:ec2::254]",
    ],
)
async def test_addresses_off_limits(origin: Origin, host: str) -> None:
    put_manifest(origin)
    url = f"http://{host}:{origin.port}/m/v1/slm-manifest.json"
    error = await failure(build_resolver(), source_of("http", url=url))
    assert error.reason is Reason.ACCESS_DENIED and error.permanent
    assert origin.seen == []


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f000001"])
async def test_numbers_that_pass_for_names_lead_nowhere(
    origin: Origin, resolver: SourceResolver, host: str
) -> None:
    put_manifest(origin)
    url = f"http://{host}:{origin.port}/m/v1/slm-manifest.json"
    error = await failure(build_resolver(), source_of("http", url=url))
    assert error.reason in (Reason.ACCESS_DENIED, Reason.UNFIT) and error.permanent
    assert origin.seen == []


async def test_link_local_stays_off_limits_where_loopback_is_allowed(resolver: SourceResolver) -> None:
    error = await failure(resolver, source_of("http", url="http://169.254.169.254/latest/meta-data"))
    assert error.reason is Reason.ACCESS_DENIED


async def test_redirect_to_metadata_is_refused(origin: Origin, resolver: SourceResolver) -> None:
    url, _ = put_manifest(origin)
    origin.faults["/m/v1/slm-manifest.json"] = [Fault(redirect="http://169.254.169.254/latest")]
    error = await failure(resolver, source_of("http", url=url))
    assert error.reason is Reason.ACCESS_DENIED
    origin.faults["/m/v1/slm-manifest.json"] = [Fault(redirect="file:///etc/passwd")]
    assert "not allowed" in str(await failure(resolver, source_of("http", url=url)))


async def test_name_that_resolves_to_metadata_is_refused(
    resolver: SourceResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lookup(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    error = await failure(resolver, source_of("http", url="http://models.example/x"))
    assert error.reason is Reason.ACCESS_DENIED and "models.example" in str(error)


async def test_file_source_needs_no_reading(resolver: SourceResolver) -> None:
    files = [{"path": "a-b", "sha256": SHA, "size": 3}]
    resolved = await resolver.resolve(source_of("file", path="/opt/models/v_1", files=files))
    assert resolved.manifest.files[0].url == "file:///opt/models/v_1/a-b"
    assert resolved.reference == resolved.manifest.digest


async def test_file_source_without_size_or_with_dots(resolver: SourceResolver) -> None:
    error = await failure(resolver, source_of("file", path="/m", files=[{"path": "f", "sha256": SHA}]))
    assert error.reason is Reason.UNFIT and "size" in str(error)
    files = [{"path": "f", "sha256": SHA, "size": 1}]
    assert "without .." in str(await failure(resolver, source_of("file", path="/m/../etc", files=files)))


@pytest.mark.parametrize(
    ("base", "path", "url"),
    [
        ("https://h/m/slm-manifest.json?sig=1#x", "a/b.onnx", "https://h/m/a/b.onnx"),
        ("https://h", "a", "https://h/a"),
        ("http://h:81/m/", "a+b@c", "http://h:81/m/a+b@c"),
    ],
)
def test_file_urls(base: str, path: str, url: str) -> None:
    assert file_url(base, path) == url


@pytest.mark.parametrize("asked", ["99999999999999", "9" * 400])
async def test_whatever_a_source_asks_for_it_is_tried_once_a_day(
    origin: Origin, resolver: SourceResolver, asked: str
) -> None:
    """A time beyond the calendar, in a condition's message, would stop the whole deployment's planning."""
    url, _ = put_manifest(origin)
    fault = Fault(status=503, headers=(("Retry-After", asked),))
    origin.faults["/m/v1/slm-manifest.json"] = [fault]
    error = await failure(resolver, source_of("http", url=url))
    assert error.retry_after_seconds == 86_400.0
    assert to_text(time.time() + error.retry_after_seconds)
