# SPDX-License-Identifier: Apache-2.0
"""s3 sources against a store on loopback that checks signatures; pvc sources, which ask nobody."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from slmops.adapters.sources import build_resolver, s3_source
from slmops.api.source import Source
from slmops.ports.sources import SourceError, SourceResolver
from slmwire.reasons import Reason
from tests.unit.sources.fake_s3 import FakeS3, serve_s3

DATA = b"weights" * 100
SHA = hashlib.sha256(DATA).hexdigest()
KEYS = {"accessKeyId": "AKEDGE", "secretAccessKey": "shh"}


@pytest.fixture
def store() -> Iterator[FakeS3]:
    with serve_s3() as running:
        yield running


def source_of(store: FakeS3, **fields: Any) -> Source:
    body = {"endpoint": store.url, "region": "eu-1", "bucket": "models"} | fields
    return Source.model_validate({"s3": body})


async def failure(resolver: SourceResolver, source: Source, **secret: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await resolver.resolve(source, **secret)
    return caught.value


async def test_objects_below_a_prefix_by_their_checksums(store: FakeS3, resolver: SourceResolver) -> None:
    store.put("chat/1.0/onnx/model.onnx", DATA)
    store.put("chat/1.0/a b+c@é.bin".replace(" ", "_").replace("é", "e"), b"12")
    store.put("chat/1.0/", b"")
    store.put("chat/1.00/other", b"")
    store.page = 2
    resolved = await resolver.resolve(source_of(store, prefix="chat/1.0/"))
    first, second = resolved.manifest.files
    assert (first.path, first.size) == ("a_b+c@e.bin", 2)
    assert first.url == f"{store.url}/models/chat/1.0/a_b%2Bc%40e.bin"
    assert (second.path, second.size, second.sha256) == ("onnx/model.onnx", len(DATA), SHA)
    assert resolved.reference == resolved.manifest.digest
    assert not any(method == "GET" and "?" not in path for method, path in store.seen), "nothing is read"


async def test_small_objects_without_a_checksum_are_read(
    store: FakeS3, resolver: SourceResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.objects["m/a"] = DATA
    store.put("m/b", DATA, part_count=3)
    resolved = await resolver.resolve(source_of(store, prefix="m/"))
    assert {file.sha256 for file in resolved.manifest.files} == {SHA}
    monkeypatch.setattr(s3_source, "MAX_SMALL_FILE_BYTES", 100)
    error = await failure(resolver, source_of(store, prefix="m/"))
    assert error.reason is Reason.UNFIT and error.permanent and "--checksum-algorithm SHA256" in str(error)
    monkeypatch.undo()
    monkeypatch.setattr(s3_source, "MAX_SMALL_TOTAL_BYTES", len(DATA) + 5)
    assert (await failure(resolver, source_of(store, prefix="m/"))).permanent


async def test_a_manifest_and_the_files_beside_it(store: FakeS3, resolver: SourceResolver) -> None:
    row = {"path": "sub/model.onnx", "size": 7, "sha256": SHA, "url": "http://169.254.169.254/"}
    text = json.dumps({"files": [row]}).encode()
    store.put("chat/v1/manifest.json", text)
    source = source_of(store, prefix="chat/", manifest="v1/manifest.json")
    resolved = await resolver.resolve(source)
    assert resolved.manifest.files[0].url == f"{store.url}/models/chat/v1/sub/model.onnx"
    assert resolved.reference == "sha256:" + hashlib.sha256(text).hexdigest()
    pinned = source_of(store, prefix="chat/", manifest="v1/manifest.json", sha256="0" * 64)
    assert (await failure(resolver, pinned)).reason is Reason.INTEGRITY_MISMATCH
    store.put("chat/v1/manifest.json", b"[]")
    assert (await failure(resolver, source)).reason is Reason.UNFIT


async def test_listed_files_are_measured(store: FakeS3, resolver: SourceResolver) -> None:
    store.put("m/a", DATA)
    files = [{"path": "a", "sha256": SHA}, {"path": "b", "sha256": SHA, "size": 9}]
    resolved = await resolver.resolve(source_of(store, prefix="m/", files=files))
    assert [(f.path, f.size) for f in resolved.manifest.files] == [("a", len(DATA)), ("b", 9)]
    assert store.seen == [("HEAD", "/models/m/a")]


async def test_a_small_object_is_read(store: FakeS3, resolver: SourceResolver) -> None:
    store.private = True
    store.put("m/model.sig", b"signature")
    source = source_of(store, prefix="m/")
    (file,) = (await resolver.resolve(source, secret=KEYS)).manifest.files
    assert await resolver.read_file(source, file, secret=KEYS) == b"signature"
    store.put("m/model.sig", b"Signature")
    with pytest.raises(SourceError, match="no longer what"):
        await resolver.read_file(source, file, secret=KEYS)


async def test_every_request_is_signed(store: FakeS3, resolver: SourceResolver) -> None:
    store.private = True
    store.put("m n/a+b", DATA)
    store.objects["m n/c@d"] = b"1"
    error = await failure(resolver, source_of(store, prefix="m n/"))
    assert error.reason is Reason.ACCESS_DENIED and "secretRef" in str(error)
    error = await failure(
        resolver, source_of(store, prefix="m n/"), secret=KEYS | {"secretAccessKey": "other"}
    )
    assert error.reason is Reason.ACCESS_DENIED and "check the Secret" in str(error)
    assert "other" not in str(error)
    resolved = await resolver.resolve(source_of(store, prefix="m n/"), secret=KEYS)
    assert [file.path for file in resolved.manifest.files] == ["a+b", "c@d"]


@pytest.mark.parametrize(
    "secret", [KEYS | {"accessKeyId": ""}, KEYS | {"accessKeyId": "a\nb"}, {"accessKeyId": "a"}]
)
async def test_an_unfit_secret_is_refused(
    store: FakeS3, resolver: SourceResolver, secret: dict[str, str]
) -> None:
    error = await failure(resolver, source_of(store, prefix="m/"), secret=secret)
    assert error.reason is Reason.ACCESS_DENIED and error.permanent
    assert store.seen == []


async def test_nothing_there(store: FakeS3, resolver: SourceResolver) -> None:
    error = await failure(resolver, source_of(store, prefix="m/"))
    assert error.permanent and "no object" in str(error)


async def test_a_prefix_stays_in_its_bucket(store: FakeS3, resolver: SourceResolver) -> None:
    error = await failure(resolver, source_of(store, prefix="../other/"))
    assert error.permanent and "without" in str(error) and store.seen == []


async def test_odd_keys_are_refused(store: FakeS3, resolver: SourceResolver) -> None:
    for key in ("m/../x", "m/.hidden", "m//x"):
        store.objects = {}
        store.put(key, b"")
        error = await failure(resolver, source_of(store, prefix="m/"))
        assert error.reason is Reason.UNFIT and error.permanent, key


async def test_too_many_objects_are_refused(store: FakeS3, resolver: SourceResolver) -> None:
    for index in range(501):
        store.objects[f"m/{index}"] = b""
    error = await failure(resolver, source_of(store, prefix="m/"))
    assert "more than 500" in str(error) and len(store.seen) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b'<!DOCTYPE x [<!ENTITY a "b">]><ListBucketResult/>',
        '<!DOCTYPE x [<!ENTITY a "b">]><ListBucketResult/>'.encode("utf-16"),
        b'<?xml version="1.0" encoding="cp037"?>'
        + '<!DOCTYPE x [<!ENTITY a "b">]><ListBucketResult><Contents><Key>m/&a;</Key><Size>1</Size>'
        "</Contents></ListBucketResult>".encode("cp037"),
        b"<ListBucketResult><Contents><Key>m/a</Key><Size>x</Size></Contents></ListBucketResult>",
    ],
)
async def test_an_endpoint_that_is_no_store(store: FakeS3, resolver: SourceResolver, body: bytes) -> None:
    store.listing = body
    error = await failure(resolver, source_of(store, prefix="m/"))
    assert error.reason is Reason.SOURCE_UNAVAILABLE and "no listing" in str(error)


async def test_metadata_services_and_loopback_are_no_endpoint(
    store: FakeS3, resolver: SourceResolver
) -> None:
    error = await failure(resolver, source_of(store, endpoint="http://169.254.169.254", prefix="m/"))
    assert error.reason is Reason.ACCESS_DENIED and error.permanent
    error = await failure(build_resolver(), source_of(store, prefix="m/"))
    assert "loopback" in str(error) and store.seen == []


def test_the_default_endpoint_is_that_of_the_region() -> None:
    source = Source.model_validate({"s3": {"region": "eu-west-1", "bucket": "models", "prefix": "m/"}})
    assert source.s3 is not None
    assert s3_source.bucket_url(source.s3) == "https://s3.eu-west-1.amazonaws.com/models"


async def test_a_claim_is_taken_at_its_word(resolver: SourceResolver) -> None:
    files = [{"path": "sub/model.onnx", "size": 7, "sha256": SHA}]
    body = {"claimName": "models", "path": "chat/v1", "files": files}
    resolved = await resolver.resolve(Source.model_validate({"pvc": body}))
    (file,) = resolved.manifest.files
    assert file.url == "file:///mnt/slmops-source/chat/v1/sub/model.onnx"
    assert resolved.reference == resolved.manifest.digest
    files[0].pop("size")
    assert "need a size" in str(await failure(resolver, Source.model_validate({"pvc": body})))
