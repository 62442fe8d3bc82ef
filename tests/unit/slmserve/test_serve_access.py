# SPDX-License-Identifier: Apache-2.0
"""API keys and TLS, on a real server."""

import datetime
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from openai import OpenAI

from slmserve.access import KeyRing, parse_keys
from slmserve.config import ConfigError, TlsFiles, parse_config
from slmserve.errors import StartError
from slmserve.tls import TlsIdentity
from tests.unit.slmserve.process import ServerProcess


def _replace(path: Path, text: str) -> None:
    """As a Secret is replaced: another file takes the name."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.rename(path)


def test_a_file_of_keys() -> None:
    assert parse_keys("# keys of the shop\n\n  one \ntwo#2\n#three\n") == ["one", "two#2"]


def test_keys_are_bearer_tokens_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("alpha\nbeta\n")
    ring = KeyRing(path)
    assert ring.admits("Bearer alpha") and ring.admits("bearer  beta")
    for wrong in (
        "",
        "alpha",
        "Basic alpha",
        "Bearer",
        "Bearer ",
        "Bearer alph",
        "Bearer alphabeta",
        "Bearer é",
    ):
        assert not ring.admits(wrong)
    _replace(path, "gamma\n")
    assert ring.admits("Bearer gamma") and not ring.admits("Bearer alpha")
    path.unlink()
    assert ring.admits("Bearer gamma")
    path.write_bytes(b"\xff\xfe")
    assert ring.admits("Bearer gamma")
    _replace(path, "# nobody\n")
    assert not ring.admits("Bearer gamma") and not ring.admits("Bearer ")


def test_keys_that_cannot_be_read_are_no_way_to_fill_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    path.write_text("alpha\n")
    ring = KeyRing(path)
    for broken in (b"\xff\xfe", b"\xff\xfe\xfd"):
        path.write_bytes(broken)
        assert not any(ring.admits("Bearer wrong") for _ in range(50))
    assert ring.admits("Bearer alpha")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


@pytest.mark.parametrize("text", [None, "", "# nothing but words\n"])
def test_a_file_without_keys_ends_the_start(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StartError, match="API keys"):
        KeyRing(path)


def _issue(directory: Path, name: str) -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    files = TlsFiles(certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key")
    certificate, key = _issue(tmp_path, "first")
    files.certificate.write_text(certificate)
    files.key.write_text(key)
    return files


def _served_name(port: int) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        der = connection.getpeercert(binary_form=True)
        assert der is not None
        assert connection.version() in {"TLSv1.2", "TLSv1.3"}
    name = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    return str(name)


def test_a_bad_pair_leaves_the_one_in_use(
    files: TlsFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    identity = TlsIdentity(files)
    assert not identity.refresh()
    certificate, key = _issue(tmp_path, "second")
    _replace(files.certificate, certificate)
    assert not any(identity.refresh() for _ in range(3))
    assert len(caplog.records) == 1
    _replace(files.key, key)
    assert identity.refresh()
    assert identity.context.minimum_version == ssl.TLSVersion.TLSv1_2
    files.key.unlink()
    assert not identity.refresh()


@pytest.mark.parametrize("damage", ["missing", "no pem", "another key", "encrypted"])
def test_tls_files_that_cannot_be_used(files: TlsFiles, tmp_path: Path, damage: str) -> None:
    if damage == "missing":
        files.key.unlink()
    elif damage == "no pem":
        files.certificate.write_text("hello")
    elif damage == "another key":
        files.key.write_text(_issue(tmp_path, "other")[1])
    else:
        key = ec.generate_private_key(ec.SECP256R1())
        secret = serialization.BestAvailableEncryption(b"secret")
        data = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)
        files.key.write_bytes(data)
    with pytest.raises(StartError, match="TLS files"):
        TlsIdentity(files)


def test_one_tls_file_alone_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="both or none"):
        parse_config([], {"SLM_TLS_CERT_FILE": "/tls.crt"})


@pytest.fixture
def guarded(orders_dir: Path, tmp_path: Path, files: TlsFiles) -> Iterator[ServerProcess]:
    keys = tmp_path / "keys"
    keys.write_text("sk-edge-1\n")
    environ = {
        "SLM_API_KEYS_FILE": str(keys),
        "SLM_TLS_CERT_FILE": str(files.certificate),
        "SLM_TLS_KEY_FILE": str(files.key),
        "SLM_MODEL": "orders",
        "SLM_EVALUATE": "false",
    }
    with ServerProcess(orders_dir, tmp_path, environ=environ) as server:
        server.scheme = "https"
        server.wait_ready()
        yield server


def test_a_guarded_server(guarded: ServerProcess, files: TlsFiles, tmp_path: Path) -> None:
    assert guarded.log_file.read_text().count("sk-edge") == 0
    for path in ("/healthz", "/readyz", "/metrics"):
        assert httpx.get(guarded.url + path, verify=False).status_code == 200  # noqa: S501
    trust = ssl.create_default_context(cafile=str(files.certificate))
    base = guarded.url.replace("127.0.0.1", "localhost")
    answers = [
        httpx.post(f"{base}/v1/chat/completions", json={"model": "orders"}, headers=headers, verify=trust)
        for headers in ({}, {"Authorization": "Bearer sk-edge-2"}, {"Authorization": "Bearer sk-edge-1"})
    ]
    assert [answer.status_code for answer in answers] == [401, 401, 400]
    assert answers[0].headers["www-authenticate"] == "Bearer"
    assert answers[0].json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{base}/v1/models", verify=trust).status_code == 401
    for key, status in (("sk-edge-1", 200), ("sk-nobody", 401), ("", 401)):
        # The proxy of an API server takes Authorization off.
        assert httpx.get(f"{base}/v1/models", verify=trust, headers={"api-key": key}).status_code == status

    os.environ["SSL_CERT_FILE"] = str(files.certificate)
    try:
        with OpenAI(base_url=f"{base}/v1", api_key="sk-edge-1", max_retries=0) as client:
            assert client.completions.create(model="orders", prompt="hi", max_tokens=2).choices
        with (
            OpenAI(base_url=f"{base}/v1", api_key="sk-nobody", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
    finally:
        del os.environ["SSL_CERT_FILE"]

    assert _served_name(guarded.port) == "first"
    certificate, key = _issue(tmp_path, "second")
    _replace(files.key, key)
    _replace(files.certificate, certificate)
    guarded.wait_until(lambda: _served_name(guarded.port) == "second")
    assert "sandbox on: this server opens no connection" in guarded.log_file.read_text()
