# SPDX-License-Identifier: Apache-2.0
"""Resolution in the background: which Secret goes to the resolver, and when signatures are checked."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import signing

from slmops.adapters.kube import KubeClient
from slmops.adapters.resources import SECRETS
from slmops.api.signature import Signature
from slmops.api.source import Source
from slmops.model.observed import Resolved, ResolveFailure, SignatureCheck
from slmops.model.plan import ResolveRequest
from slmops.ports.sources import SourceError
from slmops.runtime.resolve import Resolutions
from slmwire.manifest import Manifest, ManifestFile
from slmwire.reasons import Reason
from tests.unit.runtime.fakes import NAMESPACE, FakeClock, FakeKube

MODEL = b"weights"


@dataclass(slots=True)
class Publisher:
    """Stands in for a source; signs what it publishes."""

    folder: Path
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    content: bytes = MODEL
    reads: int = 0
    resolves: int = 0
    secrets: list[Mapping[str, str]] = field(default_factory=list)
    outage: Callable[[], SourceError | None] = lambda: None

    @property
    def public_key(self) -> str:
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self.key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()

    def sign(self) -> str:
        model = self.folder / "model"
        model.mkdir(exist_ok=True)
        (model / "model.onnx").write_bytes(MODEL)
        private = self.folder / "key.pem"
        form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        private.write_bytes(self.key.private_bytes(serialization.Encoding.PEM, form, plain))
        signing.Config().use_elliptic_key_signer(private_key=private).sign(model, self.folder / "model.sig")
        return (self.folder / "model.sig").read_text()

    def manifest(self, signature: str = "") -> Manifest:
        files = {"model.onnx": self.content} | ({"model.sig": signature.encode()} if signature else {})
        return Manifest(
            files=tuple(
                ManifestFile(
                    path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest(), url="http://x"
                )
                for path, data in files.items()
            )
        )

    async def resolve(self, source: Source, *, secret: Mapping[str, str] | None = None) -> Resolved:
        self.resolves += 1
        self.secrets.append(secret or {})
        return Resolved(manifest=self.manifest(self.text()), reference="r")

    async def read_file(
        self, source: Source, file: ManifestFile, *, secret: Mapping[str, str] | None = None
    ) -> bytes:
        error = self.outage()
        if error is not None:
            raise error
        self.reads += 1
        return self.text().encode()

    def text(self) -> str:
        path = self.folder / "model.sig"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(folder=tmp_path)


async def ask(publisher: Publisher, request: ResolveRequest, kube: FakeKube | None = None) -> Any:
    done = asyncio.Event()
    resolutions = Resolutions(
        publisher,
        cast(KubeClient, kube or FakeKube()),
        namespace=NAMESPACE,
        clock=FakeClock(),
        slots=asyncio.Semaphore(1),
        long_slots=asyncio.Semaphore(1),
        on_outcome=done.set,
    )
    resolutions.request([request])
    await done.wait()
    return resolutions.outcomes[request.source_hash]


def request_of(
    publisher: Publisher,
    *,
    source: dict[str, Any] | None = None,
    known: Resolved | None = None,
    **fields: Any,
) -> ResolveRequest:
    body = {"publicKeys": [publisher.public_key]} | fields
    return ResolveRequest(
        source_hash="0" * 16,
        variant="int4",
        source=Source.model_validate(source or {"http": {"url": "http://x/m.json"}}),
        signature=Signature.model_validate(body),
        known=known,
    )


async def test_a_signature_is_read_and_holds(publisher: Publisher) -> None:
    text = publisher.sign()
    outcome = await ask(publisher, request_of(publisher))
    assert outcome.signature.text == text and not outcome.signature.error
    assert outcome.signature.key.startswith("sha256:") and publisher.reads == 1


async def test_what_is_known_is_checked_without_the_source(publisher: Publisher) -> None:
    text = publisher.sign()
    known = Resolved(manifest=publisher.manifest(text), reference="r", signature=SignatureCheck(text=text))
    source = {"http": {"url": "http://x/m.json", "secretRef": {"name": "gone"}}}
    outcome = await ask(publisher, request_of(publisher, known=known, source=source))
    assert outcome.signature.key and publisher.reads == publisher.resolves == 0


async def test_a_text_kept_from_another_file_is_not_used(publisher: Publisher) -> None:
    text = publisher.sign()
    known = Resolved(manifest=publisher.manifest(text), reference="r", signature=SignatureCheck(text="old"))
    outcome = await ask(publisher, request_of(publisher, known=known))
    assert outcome.signature.text == text and publisher.reads == 1


@pytest.mark.parametrize("policy", ["Require", "Warn"])
async def test_no_signature_among_the_files(publisher: Publisher, policy: str) -> None:
    outcome = await ask(publisher, request_of(publisher, policy=policy))
    if policy == "Require":
        assert isinstance(outcome, ResolveFailure) and outcome.reason is Reason.SIGNATURE_INVALID
        assert "there is no model.sig" in outcome.message
    else:
        assert "there is no model.sig" in outcome.signature.error


async def test_altered_files_are_refused_with_their_names(publisher: Publisher) -> None:
    publisher.sign()
    publisher.content = b"other"
    outcome = await ask(publisher, request_of(publisher))
    assert outcome.reason is Reason.SIGNATURE_INVALID and "model.onnx has other content" in outcome.message
    assert outcome.retry_at >= FakeClock().now() + 600, "the source may have better files some day"


async def test_a_revoked_key_on_known_files_is_an_answer_and_no_failure(publisher: Publisher) -> None:
    text = publisher.sign()
    known = Resolved(manifest=publisher.manifest(text), reference="r", signature=SignatureCheck(text=text))
    publisher.key = ec.generate_private_key(ec.SECP256R1())
    outcome = await ask(publisher, request_of(publisher, known=known))
    assert isinstance(outcome, Resolved) and outcome.signature is not None
    assert "none of the 1 key(s)" in outcome.signature.error


async def test_an_inline_signature_needs_no_file(publisher: Publisher) -> None:
    text = publisher.sign()
    (publisher.folder / "model.sig").unlink()
    outcome = await ask(publisher, request_of(publisher, inline=["{}", text]))
    assert outcome.signature.key and outcome.signature.text == text and publisher.reads == 0
    publisher.content = b"other"
    outcome = await ask(publisher, request_of(publisher, inline=["{}", text], policy="Warn"))
    assert "cannot be read" in outcome.signature.error and "other 1 signatures" in outcome.signature.error


async def test_a_source_that_cannot_be_read_for_the_signature(publisher: Publisher) -> None:
    publisher.sign()
    publisher.outage = lambda: SourceError(Reason.SOURCE_UNAVAILABLE, "away")
    outcome = await ask(publisher, request_of(publisher))
    assert outcome.reason is Reason.SOURCE_UNAVAILABLE, "tried again, no verdict"
    publisher.outage = lambda: SourceError(Reason.UNFIT, "only nodes can read it", permanent=True)
    outcome = await ask(publisher, request_of(publisher))
    assert outcome.reason is Reason.SIGNATURE_INVALID and "signature.inline" in outcome.message


async def test_images_that_are_read_through_keep_no_quick_question_waiting(publisher: Publisher) -> None:
    asked: list[str] = []
    released, quick_done = asyncio.Event(), asyncio.Event()

    class Slow(Publisher):
        async def resolve(self, source: Source, *, secret: Mapping[str, str] | None = None) -> Resolved:
            asked.append("oci" if source.oci else "http")
            if source.oci:
                await released.wait()
            return Resolved(manifest=self.manifest(), reference="r")

    resolutions = Resolutions(
        Slow(folder=publisher.folder),
        cast(KubeClient, FakeKube()),
        namespace=NAMESPACE,
        clock=FakeClock(),
        slots=asyncio.Semaphore(1),
        long_slots=asyncio.Semaphore(1),
        on_outcome=quick_done.set,
    )
    image = {"oci": {"image": "r.example/chat:1"}}
    long = [
        replace(request_of(publisher, source=image), signature=None, source_hash=str(i)) for i in range(2)
    ]
    quick = replace(request_of(publisher), signature=None)
    resolutions.request([*long, quick])
    await quick_done.wait()
    assert asked == ["oci", "http"] and list(resolutions.outcomes) == [quick.source_hash]
    resolutions.stop()


def encoded(data: Mapping[str, str]) -> dict[str, str]:
    return {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}


S3 = {"s3": {"bucket": "models", "prefix": "m/", "secretRef": {"name": "s"}}}
OCI = {"oci": {"image": "r.example/chat:1", "pullSecretRef": {"name": "s"}}}
BASIC = {"http": {"url": "http://x/m.json", "basicAuthRef": {"name": "s"}}}


@pytest.mark.parametrize(
    ("source", "data", "expected"),
    [
        (
            S3,
            {"accessKeyId": "a\n", "secretAccessKey": "b"},
            {"accessKeyId": "a", "secretAccessKey": "b"},
        ),
        (OCI, {".dockerconfigjson": json.dumps({"auths": {}})}, {"config.json": '{"auths": {}}'}),
        (BASIC, {"username": "u", "password": "p", "more": "x"}, {"username": "u", "password": "p"}),
    ],
)
async def test_secrets_by_the_names_that_the_resolver_knows(
    publisher: Publisher, source: dict[str, Any], data: dict[str, str], expected: dict[str, str]
) -> None:
    kube = FakeKube()
    kube.add(SECRETS, {"metadata": {"name": "s", "namespace": NAMESPACE}, "data": encoded(data)})
    await ask(publisher, request_of(publisher, source=source, policy="Warn"), kube)
    assert publisher.secrets == [expected]


async def test_a_secret_without_its_key_is_named(publisher: Publisher) -> None:
    kube = FakeKube()
    kube.add(
        SECRETS, {"metadata": {"name": "s", "namespace": NAMESPACE}, "data": encoded({"accessKeyId": "a"})}
    )
    outcome = await ask(publisher, request_of(publisher, source=S3), kube)
    assert outcome.reason is Reason.ACCESS_DENIED
    assert outcome.message == "Secret s has no key secretAccessKey" and publisher.resolves == 0
