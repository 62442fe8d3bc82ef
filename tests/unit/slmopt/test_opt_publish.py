# SPDX-License-Identifier: Apache-2.0
"""Publishing to servers on loopback, read back as the operator reads its sources."""

import base64
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from model_signing import verifying

from slmops.adapters.signatures import SignatureError, verify_signature
from slmops.adapters.sources import build_resolver
from slmops.adapters.sources.addresses import AddressPolicy
from slmops.api.source import Source
from slmopt.errors import OptimizeError
from slmopt.job import OciTarget, PvcTarget, S3Target, Target
from slmopt.model_dir import build_manifest
from slmopt.publish import publish_model
from slmopt.push_s3 import S3Login, push_s3
from slmopt.web import Web, origin_of
from slmwire.jobs import PublishReport
from slmwire.manifest import parse_manifest
from slmwire.reasons import Reason
from tests.unit.slmopt.kit import ORDERS
from tests.unit.slmopt.push_servers import PushRegistry, PushStore, serve_push_registry, serve_push_store
from tests.unit.sources.serving import AnsweringHandler, serve


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of this machine between us and loopback."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def registry() -> Iterator[PushRegistry]:
    with serve_push_registry() as running:
        yield running


@pytest.fixture
def store() -> Iterator[PushStore]:
    with serve_push_store() as running:
        yield running


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    return folder


class Waits:
    """Takes the place of sleeping."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def publish(
    target: Target, tmp_path: Path, *, key: Path | None = None, source: Path = ORDERS, web: Web | None = None
) -> PublishReport:
    scratch = tmp_path / f"scratch-{len(list(tmp_path.iterdir()))}"
    scratch.mkdir()
    secrets = tmp_path / "secrets"
    return publish_model(
        source, target, scratch=scratch, secrets=secrets, web=web or Web(wait=Waits()), key=key
    )


def oci(registry: PushRegistry) -> OciTarget:
    return OciTarget(host=registry.host, repository="team/orders", tag="v1", plain_http=True)


def write_login(secrets: Path, host: str, password: str = "pass") -> None:  # noqa: S107
    auth = base64.b64encode(f"edge:{password}".encode()).decode()
    (secrets / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))


def make_key(folder: Path) -> tuple[Path, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    path = folder / "key.pem"
    plain = serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return path, public.decode()


async def test_an_artifact_that_the_operator_resolves(
    registry: PushRegistry, tmp_path: Path, secrets: Path
) -> None:
    report = publish(oci(registry), tmp_path)
    source = {"oci": {"image": f"{registry.host}/team/orders:v1", "plainHttp": True}}
    resolved = await build_resolver(AddressPolicy(allow_loopback=True)).resolve(Source.model_validate(source))
    assert resolved.manifest.digest == report.digest == build_manifest(ORDERS).digest
    assert report.reference == f"oci://{resolved.reference}"
    assert (report.files, report.size_bytes, report.signed) == (7, resolved.manifest.size_bytes, False)
    for file in resolved.manifest.files:
        assert registry.blobs[f"sha256:{file.sha256}"] == (ORDERS / file.path).read_bytes()


def test_the_same_bytes_are_not_sent_twice(registry: PushRegistry, tmp_path: Path, secrets: Path) -> None:
    first = publish(oci(registry), tmp_path)
    sent = registry.count("PUT")
    assert sent == 7 + 1 + 1  # files, config, manifest
    registry.redirects = True
    assert publish(oci(registry), tmp_path) == first
    assert (registry.count("PUT"), registry.count("POST")) == (sent, 8)


def test_an_upload_that_fails_is_tried_again(registry: PushRegistry, tmp_path: Path, secrets: Path) -> None:
    waits = Waits()
    registry.failures = [503, 500]
    publish(oci(registry), tmp_path, web=Web(wait=waits))
    assert waits.seconds == [1, 2]
    assert "v1" in registry.manifests
    registry.failures = [503] * 5
    registry.blobs.clear()
    with pytest.raises(OptimizeError, match="the server answered 503") as caught:
        publish(oci(registry), tmp_path)
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE


@pytest.mark.parametrize("auth", ["bearer", "basic"])
def test_logins(registry: PushRegistry, tmp_path: Path, secrets: Path, auth: str) -> None:
    registry.auth = auth
    with pytest.raises(OptimizeError, match="login that may push") as caught:
        publish(oci(registry), tmp_path)
    assert caught.value.reason is Reason.ACCESS_DENIED
    write_login(secrets, registry.host, password="wrong")
    with pytest.raises(OptimizeError):
        publish(oci(registry), tmp_path)
    write_login(secrets, registry.host)
    assert publish(oci(registry), tmp_path).files == 7
    assert all("pass" not in path for _, path in registry.seen)


def test_a_login_follows_to_no_other_host(registry: PushRegistry, tmp_path: Path, secrets: Path) -> None:
    registry.auth = "basic"
    write_login(secrets, registry.host)
    with serve_push_registry() as other:
        registry.upload_host = f"http://{other.host}"
        with pytest.raises(OptimizeError, match="blob unknown"):
            publish(oci(registry), tmp_path)
        assert len(other.blobs) == 8 and not other.logins
    for scheme, words in (("file://", "neither http:// nor https://"), ("ftp://", "neither http:// nor")):
        registry.upload_host = f"{scheme}{registry.host}"
        with pytest.raises(OptimizeError, match=words):
            publish(oci(registry), tmp_path)


def test_https_and_http_of_one_host_are_two_places() -> None:
    assert origin_of("https://reg.example/v2/x") != origin_of("http://reg.example/v2/x")
    assert origin_of("https://reg.example:5000/v2/x") == origin_of("https://reg.example:5000/token?a=b")


def test_a_tag_that_names_another_model_is_not_moved(
    registry: PushRegistry, tmp_path: Path, secrets: Path
) -> None:
    publish(oci(registry), tmp_path)
    before = registry.manifests["v1"]
    with pytest.raises(
        OptimizeError, match=r"publish\.oci\.image: tag v1 of .* names another model"
    ) as caught:
        publish(oci(registry), tmp_path, source=ORDERS.parent / "v1-int4")
    assert caught.value.reason is Reason.UNFIT
    assert registry.manifests["v1"] == before


class _Garbled(AnsweringHandler):
    """A proxy that speaks no HTTP, or hangs up in the middle of an answer."""

    answer: bytes

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.wfile.write(self.answer)


@pytest.mark.parametrize(
    "answer", [b"\x00\x01 hello\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"]
)
def test_answers_that_are_cut_or_no_http_are_tried_again(answer: bytes) -> None:
    waits = Waits()
    with (
        serve(_Garbled, answer=answer) as port,
        pytest.raises(OptimizeError, match="check the address") as caught,
    ):
        Web(wait=waits).send("GET", f"http://127.0.0.1:{port}/x", headers=dict)
    assert (caught.value.reason, len(waits.seconds)) == (Reason.SOURCE_UNAVAILABLE, 4)


def test_a_login_that_is_no_header_is_not_quoted() -> None:
    with pytest.raises(OptimizeError, match="correct the Secret") as caught:
        Web(wait=Waits()).send(
            "GET", "http://127.0.0.1:1/x", headers=lambda: {"Authorization": "Bearer se\ncret"}
        )
    assert "cret" not in str(caught.value).replace("Secret", "")


def test_nobody_at_the_address(tmp_path: Path, secrets: Path) -> None:
    target = OciTarget(host="127.0.0.1:1", repository="team/orders", tag="v1", plain_http=True)
    with pytest.raises(OptimizeError, match="check the address") as caught:
        publish(target, tmp_path)
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
    (secrets / "config.json").write_text("token")
    with pytest.raises(OptimizeError, match="not a Docker configuration"):
        publish(target, tmp_path)


def s3(store: PushStore) -> S3Target:
    return S3Target(endpoint=store.url, region="eu-1", bucket="models", prefix="orders/v1/")


def write_keys(secrets: Path, secret: str = "shh") -> None:  # noqa: S107
    (secrets / "accessKeyId").write_text("AKEDGE\n")
    (secrets / "secretAccessKey").write_text(f"{secret}\n")


def test_objects_in_a_bucket_and_their_manifest_last(store: PushStore, tmp_path: Path, secrets: Path) -> None:
    write_keys(secrets)
    report = publish(s3(store), tmp_path)
    assert report.reference == "s3://models/orders/v1/"
    listed = parse_manifest(store.objects["orders/v1/slm-manifest.json"])
    assert listed.digest == report.digest
    for file in listed.files:
        assert store.objects[f"orders/v1/{file.path}"] == (ORDERS / file.path).read_bytes()
    assert [path for verb, path in store.seen if verb == "PUT"][-1].endswith("/slm-manifest.json")
    sent = store.count("PUT")
    assert publish(s3(store), tmp_path) == report
    assert store.count("PUT") == sent


def test_a_prefix_with_another_model_is_left_alone(store: PushStore, tmp_path: Path, secrets: Path) -> None:
    write_keys(secrets)
    publish(s3(store), tmp_path)
    before = dict(store.objects)
    with pytest.raises(
        OptimizeError, match=r"publish\.s3\.prefix: orders/v1/ in bucket models has another model"
    ):
        publish(s3(store), tmp_path, source=ORDERS.parent / "v1-int4")
    assert store.objects == before
    del store.objects["orders/v1/slm-manifest.json"]  # an attempt that was never finished
    publish(s3(store), tmp_path, source=ORDERS.parent / "v1-int4")


def test_parts_are_taken_back_when_the_process_is_stopped(
    store: PushStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(os.urandom(10_500))
    hashes = iter([hashlib.sha256((folder / "weights.bin").read_bytes()[:4000]).hexdigest()])
    monkeypatch.setattr("slmopt.push_s3._hash_part", lambda part: next(hashes, None) or sys.exit(143))
    login = S3Login(access_key="AKEDGE", secret_key="shh")
    with pytest.raises(SystemExit):
        push_s3(folder, build_manifest(folder), s3(store), Web(wait=Waits()), login=login, part_bytes=4000)
    assert store.parts == {} and store.count("DELETE") == 1


def test_wrong_keys_and_buckets(store: PushStore, tmp_path: Path, secrets: Path) -> None:
    write_keys(secrets, secret="other")
    with pytest.raises(OptimizeError, match="needs accessKeyId and secretAccessKey") as caught:
        publish(s3(store), tmp_path)
    assert caught.value.reason is Reason.ACCESS_DENIED
    write_keys(secrets)
    target = S3Target(endpoint=store.url, region="eu-1", bucket="other")
    with pytest.raises(OptimizeError, match="NoSuchBucket"):
        publish(target, tmp_path)


def test_large_files_go_in_parts(store: PushStore, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(os.urandom(10_500))
    login = S3Login(access_key="AKEDGE", secret_key="shh")

    def push() -> None:
        web = Web(wait=Waits())
        push_s3(folder, build_manifest(folder), s3(store), web, login=login, part_bytes=4000)

    store.broken_part = 2
    with pytest.raises(OptimizeError, match=r"put part 2 of weights\.bin"):
        push()
    assert store.parts == {}  # what came of it was taken back
    assert "orders/v1/slm-manifest.json" not in store.objects
    store.broken_part = 0
    push()
    assert store.objects["orders/v1/weights.bin"] == (folder / "weights.bin").read_bytes()
    puts = store.count("PUT")
    push()
    assert store.count("PUT") == puts


def test_a_folder_of_a_volume(tmp_path: Path, secrets: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    target = PvcTarget(claim="models", path="orders/v1", mount_path=str(volume))
    (volume / "orders" / ".v1~killed").mkdir(parents=True)
    (volume / "orders" / ".v1-small~running").mkdir()
    report = publish(target, tmp_path)
    assert report.reference == "pvc://models/orders/v1"
    assert build_manifest(volume / "orders" / "v1").digest == report.digest
    assert publish(target, tmp_path) == report
    assert sorted(path.name for path in (volume / "orders").iterdir()) == [".v1-small~running", "v1"]
    other = ORDERS.parent / "v1-int4"
    with pytest.raises(OptimizeError, match=r"publish\.pvc\.path: orders/v1 exists with other files"):
        publish(target, tmp_path, source=other)
    assert build_manifest(volume / "orders" / "v1").digest == report.digest


def test_a_signature_that_the_operator_and_the_library_verify(tmp_path: Path, secrets: Path) -> None:
    key, public = make_key(tmp_path)
    volume = tmp_path / "volume"
    first = publish(PvcTarget(claim="m", path="a", mount_path=str(volume)), tmp_path, key=key)
    folder = volume / "a"
    assert first.signed
    manifest = parse_manifest((folder / "slm-manifest.json").read_bytes())
    text = (folder / "model.sig").read_text()
    verify_signature(text, manifest=manifest, file="model.sig", public_keys=[public])
    (tmp_path / "public.pem").write_text(public)
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "public.pem")
    verifier.verify(folder, folder / "model.sig")
    (folder / "golden.jsonl").write_text("{}")
    with pytest.raises(SignatureError, match=r"golden\.jsonl has other content"):
        verify_signature(text, manifest=build_manifest(folder), file="model.sig", public_keys=[public])
    # The same bytes and key make the same signature, so publishing again is nothing new.
    assert (
        publish(PvcTarget(claim="m", path="b", mount_path=str(volume)), tmp_path, key=key).digest
        == first.digest
    )


def test_keys_that_cannot_sign(tmp_path: Path, secrets: Path) -> None:
    target = PvcTarget(claim="m", path="a", mount_path=str(tmp_path / "volume"))
    with pytest.raises(OptimizeError, match="cannot be read") as caught:
        publish(target, tmp_path, key=tmp_path / "absent.pem")
    assert caught.value.reason is Reason.SIGNATURE_INVALID
    plain = serialization.NoEncryption()
    form: Any = serialization.PrivateFormat.PKCS8
    other = ed25519.Ed25519PrivateKey.generate().private_bytes(serialization.Encoding.PEM, form, plain)
    (tmp_path / "other.pem").write_bytes(other)
    with pytest.raises(OptimizeError, match="no elliptic-curve private key in PEM"):
        publish(target, tmp_path, key=tmp_path / "other.pem")
    assert not (tmp_path / "volume").exists()
