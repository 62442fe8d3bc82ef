# SPDX-License-Identifier: Apache-2.0
"""Signatures made by the model-signing library, verified against manifests alone."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from model_signing import hashing, signing

from slmops.adapters.signatures import SignatureError, fingerprint_of, verify_signature
from slmwire.manifest import Manifest, ManifestFile

FILES = {"model.onnx": b"weights", "onnx/tokenizer.json": b"{}"}
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def public_pem(key: PrivateKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Signs folders as a publisher does."""

    folder: Path
    key: ec.EllipticCurvePrivateKey

    @property
    def public_key(self) -> str:
        return public_pem(self.key)

    def sign(self, files: dict[str, bytes], config: hashing.Config | None = None) -> str:
        model = self.folder / "model"
        for path, data in files.items():
            (model / path).parent.mkdir(parents=True, exist_ok=True)
            (model / path).write_bytes(data)
        private = self.folder / "key.pem"
        form = serialization.PrivateFormat.PKCS8
        plain = serialization.NoEncryption()
        private.write_bytes(self.key.private_bytes(serialization.Encoding.PEM, form, plain))
        signer = signing.Config().use_elliptic_key_signer(private_key=private)
        if config is not None:
            signer = signer.set_hashing_config(config)
        signer.sign(model, self.folder / "model.sig")
        return (self.folder / "model.sig").read_text()


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(folder=tmp_path, key=ec.generate_private_key(ec.SECP256R1()))


def manifest_of(files: dict[str, bytes]) -> Manifest:
    rows = [
        ManifestFile(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in sorted(files.items())
    ]
    return Manifest(files=tuple(rows))


def verify(text: str, files: dict[str, bytes], *keys: str) -> str:
    return verify_signature(text, manifest=manifest_of(files), file="model.sig", public_keys=keys)


def test_a_signature_of_exactly_these_files_holds(signer: Signer) -> None:
    text = signer.sign(FILES)
    found = verify(text, FILES | {"model.sig": text.encode()}, signer.public_key)
    assert found == fingerprint_of(signer.public_key)
    assert verify(text, FILES, signer.public_key) == found, "inline, the signature is none of the files"


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_other_curves(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    signer = Signer(folder=tmp_path, key=ec.generate_private_key(curve))
    assert verify(signer.sign(FILES), FILES, signer.public_key)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (FILES | {"model.onnx": b"Weights"}, "model.onnx has other content"),
        (FILES | {"extra.py": b"import os"}, "extra.py is not signed"),
        ({"model.onnx": b"weights"}, "onnx/tokenizer.json is signed and missing"),
    ],
)
def test_other_files_are_named(signer: Signer, files: dict[str, bytes], words: str) -> None:
    text = signer.sign(FILES)
    with pytest.raises(SignatureError, match=words):
        verify(text, files, signer.public_key)


def test_one_of_several_keys_is_enough(signer: Signer, tmp_path: Path) -> None:
    text = signer.sign(FILES)
    other = public_pem(ec.generate_private_key(ec.SECP256R1()))
    assert verify(text, FILES, other, signer.public_key) == fingerprint_of(signer.public_key)
    with pytest.raises(SignatureError, match=r"none of the 1 key\(s\)"):
        verify(text, FILES, other)


def test_a_forged_hint_or_payload_does_not_help(signer: Signer) -> None:
    text = signer.sign(FILES)
    other = ec.generate_private_key(ec.SECP256R1())
    bundle = json.loads(text)
    bundle["verificationMaterial"]["publicKey"]["hint"] = hashlib.sha256(
        public_pem(other).encode()
    ).hexdigest()
    with pytest.raises(SignatureError, match="none of the 1 key"):
        verify(json.dumps(bundle), FILES, public_pem(other))
    bundle = json.loads(text)
    payload = bundle["dsseEnvelope"]["payload"]
    bundle["dsseEnvelope"]["payload"] = payload[:40] + ("A" if payload[40] != "A" else "B") + payload[41:]
    with pytest.raises(SignatureError):
        verify(json.dumps(bundle), FILES, signer.public_key)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "not json", '{"verificationMaterial": 1}', "[" * 9999]
)
def test_what_is_no_signature(signer: Signer, text: str) -> None:
    with pytest.raises(SignatureError, match="cannot be read"):
        verify(text, FILES, signer.public_key)


def test_what_is_no_key_is_named(signer: Signer) -> None:
    text = signer.sign(FILES)
    edwards = public_pem(ed25519.Ed25519PrivateKey.generate())
    pem = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"
    for key in (edwards, pem, public_pem(ec.generate_private_key(ec.SECP256K1()))):
        with pytest.raises(SignatureError, match=r"publicKeys\[0\] is no elliptic-curve key"):
            verify(text, FILES, key)


def test_shards_and_other_hashes_are_refused_with_the_cure(signer: Signer) -> None:
    for config in (
        hashing.Config().use_shard_serialization(),
        hashing.Config().use_file_serialization(hashing_algorithm="blake2"),
    ):
        with pytest.raises(SignatureError, match="by whole files with sha256"):
            verify(signer.sign(FILES, config), FILES, signer.public_key)


def test_a_huge_signature_is_not_parsed(signer: Signer) -> None:
    with pytest.raises(SignatureError, match="larger than"):
        verify(" " * 140_000, FILES, signer.public_key)
