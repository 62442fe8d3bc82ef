# SPDX-License-Identifier: Apache-2.0
"""The token server of the guarded registry: what it grants, and that its signature holds."""

import base64
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from e2e.rig.pki import Authority
from e2e.rig.token_server import parse_scopes, sign_token


def decode(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def test_scopes_grant_pulling_and_nothing_else() -> None:
    assert parse_scopes(["repository:models/orders:pull,push repository:a:delete"]) == [
        {"type": "repository", "name": "models/orders", "actions": ["pull"]},
        {"type": "repository", "name": "a", "actions": []},
    ]
    assert parse_scopes([]) == []
    with pytest.raises(ValueError, match="registry:catalog"):
        parse_scopes(["registry:catalog:*"])


def test_a_token_is_signed_by_the_certificate_that_it_carries(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.create()
    pair = authority.issue("tokens", common_name="tokens")
    token = sign_token({"sub": "e2e"}, certificate=pair.certificate.read_bytes(), key=pair.key.read_bytes())
    header, claims, signature = token.split(".")
    assert json.loads(decode(claims)) == {"sub": "e2e"}
    said = json.loads(decode(header))
    assert said["alg"] == "ES256"
    certificate = x509.load_der_x509_certificate(base64.b64decode(said["x5c"][0]))
    public = certificate.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    raw = decode(signature)
    both = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    public.verify(both, f"{header}.{claims}".encode(), ec.ECDSA(hashes.SHA256()))
