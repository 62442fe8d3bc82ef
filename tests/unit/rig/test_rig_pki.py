# SPDX-License-Identifier: Apache-2.0
"""Certificates that a TLS client accepts for what they name, and for nothing else."""

import socket
import ssl
import threading
from pathlib import Path

import pytest

from e2e.rig.pki import Authority, KeyPair


def _serve_once(pair: KeyPair) -> tuple[int, threading.Thread]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with listener, listener.accept()[0] as connection:
            try:
                with context.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(1)
            except OSError:
                return  # the client refused the certificate, as a test wants it to

    thread = threading.Thread(target=run)
    thread.start()
    return int(listener.getsockname()[1]), thread


@pytest.mark.parametrize(
    ("name", "accepted"), [("localhost", True), ("127.0.0.1", True), ("other.test", False)]
)
def test_a_client_verifies_the_name(tmp_path: Path, name: str, accepted: bool) -> None:
    authority = Authority(tmp_path / "pki")
    authority.create()
    pair = authority.issue("server", common_name="x", dns_names=["localhost"], addresses=["127.0.0.1"])
    port, thread = _serve_once(pair)
    context = ssl.create_default_context(cafile=str(authority.pair.certificate))
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        if accepted:
            with context.wrap_socket(plain, server_hostname=name) as secured:
                assert secured.version() is not None
        else:
            with pytest.raises(ssl.SSLCertVerificationError):
                context.wrap_socket(plain, server_hostname=name)
    thread.join()


def test_what_exists_is_kept_and_keys_are_private(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    authority.create()
    first = authority.issue("node", common_name="system:node:a", organization="system:nodes")
    before = {path.name: path.read_bytes() for path in authority.directory.iterdir()}
    authority.create()
    assert authority.issue("node", common_name="system:node:a") == first
    assert {path.name: path.read_bytes() for path in authority.directory.iterdir()} == before
    assert {path.stat().st_mode & 0o077 for path in authority.directory.glob("*.key")} == {0}
