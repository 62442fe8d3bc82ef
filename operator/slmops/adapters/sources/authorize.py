# SPDX-License-Identifier: Apache-2.0
"""How a request says who asks: what is added to its headers."""

import base64
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from slmops.ports.sources import SourceError
from slmwire.reasons import Reason
from slmwire.sigv4 import sign_get

Authorize = Callable[[str, str, Mapping[str, str]], Mapping[str, str]]
"""Takes method, URL and the headers that are sent anyway; gives the headers to add."""
_HEADER_BYTES: Final = range(0x21, 0x7F)


def use_bearer(token: str) -> Authorize | None:
    """A bearer token; None if it is empty. SourceError if no header can carry it."""
    token = token.strip()
    _check(token, what="token")
    return use_header(f"Bearer {token}") if token else None


def use_basic(username: str, password: str) -> Authorize:
    """User and password."""
    return use_header(basic_header(username, password))


def basic_header(username: str, password: str) -> str:
    """Value of an Authorization header for a user and password; SourceError if there can be none."""
    if ":" in username:
        raise SourceError(
            Reason.ACCESS_DENIED, "the username in the Secret holds a colon, which none can", permanent=True
        )
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def use_header(value: str) -> Authorize:
    """The same Authorization header always."""
    return lambda method, url, headers: {"Authorization": value}


def use_s3(secret: Mapping[str, str], *, region: str) -> Authorize:
    """Signatures of AWS; `secret` has accessKeyId, secretAccessKey and perhaps sessionToken."""
    access_key, secret_key = secret.get("accessKeyId", ""), secret.get("secretAccessKey", "")
    session_token = secret.get("sessionToken", "")
    if not access_key or not secret_key:
        raise SourceError(
            Reason.ACCESS_DENIED, "accessKeyId or secretAccessKey in the Secret is empty", permanent=True
        )
    _check(access_key, what="accessKeyId")
    _check(session_token, what="sessionToken")

    def sign(method: str, url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        return sign_get(
            url,
            region=region,
            access_key=access_key,
            secret_key=secret_key,
            session_token=session_token,
            now=datetime.now(UTC),
            extra_headers=headers,
            method=method,
        )

    return sign


def _check(text: str, *, what: str) -> None:
    if any(ord(character) not in _HEADER_BYTES for character in text):
        raise SourceError(
            Reason.ACCESS_DENIED,
            f"the {what} holds characters that no HTTP header may carry; put the bare {what} in the Secret",
            permanent=True,
        )
