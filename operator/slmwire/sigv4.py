# SPDX-License-Identifier: Apache-2.0
"""AWS Signature Version 4 for S3 requests.

After "Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)" in the Amazon
S3 API reference; the tests hold its examples. Standard library only: the fetcher signs on the nodes.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_SPACES: Final = re.compile(r" +")


def sign_get(
    url: str,
    *,
    region: str,
    access_key: str,
    secret_key: str,
    session_token: str = "",
    now: datetime,
    extra_headers: Mapping[str, str] | None = None,
    method: str = "GET",
    body_sha256: str = EMPTY_SHA256,
) -> dict[str, str]:
    """Headers to add to a request for `url` so that S3 knows who asks; by default one without a body.

    `url` is what is sent, percent-encoded; its host goes into the signature as written, without the
    scheme's default port, which is what HTTP clients send as Host. `extra_headers` are sent by the
    caller as well (Range, say) and are signed; they are not in the answer. `body_sha256` is the
    hexadecimal hash of what is sent. `now` is aware. A signature holds for about 15 minutes, so each attempt
    wants its own. ValueError if `now` has no time zone.
    """
    if now.tzinfo is None:
        raise ValueError("now needs a time zone")
    stamp = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    parts = urlsplit(url)
    added = {"x-amz-content-sha256": body_sha256, "x-amz-date": stamp}
    if session_token:
        added["x-amz-security-token"] = session_token
    signed = {"host": _host_of(url)}
    for name, value in {**(extra_headers or {}), **added}.items():
        signed[name.lower()] = _SPACES.sub(" ", value.strip())
    names = ";".join(sorted(signed))
    request = "\n".join(
        (
            method,
            quote(unquote(parts.path), safe="/-_.~") or "/",
            _canonical_query(parts.query),
            *(f"{name}:{signed[name]}" for name in sorted(signed)),
            "",
            names,
            body_sha256,
        )
    )
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    to_sign = "\n".join((_ALGORITHM, stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{secret_key}".encode()
    for step in (stamp[:8], region, "s3", "aws4_request"):
        key = hmac.digest(key, step.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    credential = f"Credential={access_key}/{scope}"
    return added | {"Authorization": f"{_ALGORITHM} {credential},SignedHeaders={names},Signature={signature}"}


def _host_of(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    if parts.port is not None and parts.port == _DEFAULT_PORTS.get(parts.scheme):
        return host.rpartition(":")[0]
    return host


def _canonical_query(query: str) -> str:
    pairs = parse_qsl(query, keep_blank_values=True)
    encoded = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in pairs)
    return "&".join(f"{name}={value}" for name, value in encoded)
