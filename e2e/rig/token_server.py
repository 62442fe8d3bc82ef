# SPDX-License-Identifier: Apache-2.0
"""Token server of the rig's guarded registry: `GET /token?service=...&scope=repository:NAME:pull`.

Whoever shows the one user's name and password (Basic) gets a token for what is asked, for five minutes,
signed with a certificate that the registry trusts; others get 401. See the token specification of
github.com/distribution/distribution (JWT with `x5c`).
"""

import argparse
import base64
import http.server
import json
import secrets
import sys
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

ISSUER: Final = "slmops-rig"
TOKEN_SECONDS: Final = 300


def parse_scopes(scopes: Sequence[str]) -> list[dict[str, Any]]:
    """`repository:NAME:pull,push` -> what a token grants; only pulling is. ValueError for anything else."""
    granted = []
    for scope in " ".join(scopes).split():
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        if kind != "repository" or not name:
            raise ValueError(f"scope {scope!r} is not repository:NAME:ACTIONS")
        allowed = [action for action in actions.split(",") if action == "pull"]
        granted.append({"type": kind, "name": name, "actions": allowed})
    return granted


def sign_token(claims: Mapping[str, Any], *, certificate: bytes, key: bytes) -> str:
    """A JWT (ES256) with its certificate inside; both are PEM."""
    private = serialization.load_pem_private_key(key, password=None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise TypeError("the key is not an elliptic-curve key")
    der = x509.load_pem_x509_certificate(certificate).public_bytes(serialization.Encoding.DER)
    header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
    signed = f"{_encode(json.dumps(header).encode())}.{_encode(json.dumps(claims).encode())}"
    r, s = decode_dss_signature(private.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{_encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one request."""

    protocol_version = "HTTP/1.1"
    credentials: ClassVar[str]
    certificate: ClassVar[bytes]
    key: ClassVar[bytes]

    def do_GET(self) -> None:
        """Answer with a token."""
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        if url.path == "/healthz":
            self._answer(200, {})
        elif url.path != "/token":
            self._answer(404, {"details": "there is /token only"})
        elif self.headers.get("Authorization") != f"Basic {self.credentials}":
            self._answer(401, {"details": "wrong user or password"})
        else:
            try:
                access = parse_scopes(query.get("scope", []))
            except ValueError as error:
                self._answer(400, {"details": str(error)})
                return
            now = int(time.time())
            claims = {
                "iss": ISSUER, "sub": "e2e", "aud": query.get("service", [""])[0], "iat": now,
                "nbf": now - 60, "exp": now + TOKEN_SECONDS, "jti": secrets.token_hex(8), "access": access,
            }  # fmt: skip
            token = sign_token(claims, certificate=self.certificate, key=self.key)
            self._answer(200, {"token": token, "access_token": token, "expires_in": TOKEN_SECONDS})

    def log_message(self, format: str, *args: Any) -> None:
        """One line per request, without the query's values of credentials (there are none)."""
        sys.stderr.write(f"{time.time():.3f} {self.client_address[0]} {format % args}\n")
        sys.stderr.flush()

    def _answer(self, status: int, body: Mapping[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="slmops-rig"')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m e2e.rig.token_server", description=__doc__)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--password", required=True)
    parser.add_argument("--certificate", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    options = parser.parse_args()
    fields = {
        "credentials": base64.b64encode(f"{options.user}:{options.password}".encode()).decode(),
        "certificate": options.certificate.read_bytes(),
        "key": options.key.read_bytes(),
    }
    handler = type("BoundHandler", (Handler,), fields)
    http.server.ThreadingHTTPServer((options.address, options.port), handler).serve_forever()


if __name__ == "__main__":
    main()
