# SPDX-License-Identifier: Apache-2.0
"""Registries: a Docker configuration, and the token service that a challenge names.

After the "Docker Registry v2 authentication" and "OAuth2 token authentication" specifications of
distribution/distribution.
"""

import http.client
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from slmfetch.answer import Answer
from slmfetch.auth import basic
from slmfetch.connect import Session, network_error, origin_of, parse_retry_after
from slmfetch.errors import FetchError, TransferError
from slmfetch.log import plain_url
from slmwire.reasons import Reason
from slmwire.registry import REPOSITORY, Login, LoginError, find_login, parse_challenges

CONFIG_FILE: Final = "config.json"
DEFAULT_TOKEN_SECONDS: Final = 60.0
"""What the specification says when a token service does not."""
MAX_TOKEN_BYTES: Final = 256 << 10
CLIENT_ID: Final = "slmfetch"


@dataclass(slots=True, kw_only=True)
class _Token:
    header: str
    good_until: float
    """`time.monotonic()`."""


@dataclass(slots=True)
class Oci:
    """Access to registries, with the tokens of this run."""

    folder: Path
    _tokens: dict[tuple[Any, ...], _Token] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def headers(self, url: str) -> dict[str, str]:
        """The token that is known for the repository, if there is one."""
        with self._lock:
            token = self._tokens.get(_key(url))
            if token is None or time.monotonic() >= token.good_until:
                return {}
            return {"Authorization": token.header}

    def answer(self, url: str, challenges: Sequence[str], *, sent: str, session: Session) -> bool:
        """Log in as the challenge says. One thread asks, the others then use what it got."""
        with self._lock:
            token = self._tokens.get(_key(url))
            if token is not None and token.header != sent and time.monotonic() < token.good_until:
                return True
            self._tokens.pop(_key(url), None)
            login = self._login(url)
            offered = parse_challenges(challenges)
            if "bearer" in offered:
                new = self._bearer(url, offered["bearer"], login, session)
            elif "basic" in offered and login.username:
                new = _Token(header=basic(login.username, login.password), good_until=float("inf"))
            else:
                return False
            if new.header == sent:
                return False
            self._tokens[_key(url)] = new
            return True

    def refusal(self, *, sent: str) -> str:
        what = "the credentials were refused" if sent else "no credentials for this registry were given"
        return f"{what}; name a Secret of type kubernetes.io/dockerconfigjson that may pull in pullSecretRef"

    def _login(self, url: str) -> Login:
        path = self.folder / CONFIG_FILE
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return Login()
        except OSError as error:
            raise FetchError(
                Reason.ACCESS_DENIED, f"the pull secret cannot be read: {error.strerror}"
            ) from error
        try:
            return find_login(text, url)
        except LoginError as error:
            raise FetchError(Reason.ACCESS_DENIED, str(error)) from error

    def _bearer(self, url: str, challenge: Mapping[str, str], login: Login, session: Session) -> _Token:
        if login.registry_token:
            return _Token(header=f"Bearer {login.registry_token}", good_until=float("inf"))
        realm = challenge.get("realm", "")
        _check_realm(url, realm)
        fields = {"service": challenge.get("service", ""), "scope": challenge.get("scope", "")}
        if not fields["scope"] and (match := REPOSITORY.search(urlsplit(url).path)):
            fields["scope"] = f"repository:{match[1]}:pull"
        fields = {name: value for name, value in fields.items() if value}
        body = _ask_realm(realm, fields, login, session)
        token = body.get("token") or body.get("access_token")
        if not isinstance(token, str) or not all(0x21 <= ord(char) <= 0x7E for char in token):
            raise TransferError(
                Reason.ACCESS_DENIED, f"{plain_url(realm)} answered without a token", retryable=False
            )
        seconds = body.get("expires_in")
        valid = isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds > 0
        # Renewed before it ends, at nine tenths; how long ago it was issued is not known exactly.
        lifetime = float(seconds) if valid and seconds is not None else DEFAULT_TOKEN_SECONDS
        return _Token(header=f"Bearer {token}", good_until=time.monotonic() + lifetime * 0.9)


def _check_realm(url: str, realm: str) -> None:
    try:
        parts = urlsplit(realm)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        realm, valid = "", False
    if not valid or (parts.scheme == "http" and urlsplit(url).scheme == "https"):
        raise TransferError(
            Reason.ACCESS_DENIED,
            f"{plain_url(url)} names {plain_url(realm)!r} for tokens, which is not allowed: only https, or "
            "http where the registry is on http too",
            retryable=False,
        )


def _ask_realm(realm: str, fields: Mapping[str, str], login: Login, session: Session) -> dict[str, Any]:
    headers = {"Accept": "application/json", "User-Agent": CLIENT_ID}
    url, form = realm, None
    if login.identity_token:
        grant = {"grant_type": "refresh_token", "refresh_token": login.identity_token}
        form = urlencode({**grant, "client_id": CLIENT_ID, **fields}).encode()
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    else:
        url += ("&" if urlsplit(realm).query else "?") + urlencode(fields, quote_via=quote, safe=":/,")
        if login.username:
            headers["Authorization"] = basic(login.username, login.password)
    response = session.send(url, headers, form=form)
    try:
        if response.status != 200:
            raise _realm_error(realm, response, login)
        response.within(session.patience_seconds)
        text = response.read(MAX_TOKEN_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise network_error(realm, error) from error
    finally:
        session.finish(url, response)
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    return body if isinstance(body, dict) else {}


def _realm_error(realm: str, response: Answer, login: Login) -> TransferError:
    where, status = plain_url(realm), response.status
    wait = parse_retry_after(response.getheader("Retry-After", ""), time.time())
    if status == 429 or status >= 500:
        reason = Reason.RATE_LIMITED if status == 429 else Reason.SOURCE_UNAVAILABLE
        return TransferError(
            reason,
            f"the token service {where} answered {status}",
            retryable=True,
            retry_after_seconds=wait,
        )
    known = login != Login()
    what = "the credentials were refused" if known else "there are none for this registry in the pull secret"
    return TransferError(
        Reason.ACCESS_DENIED,
        f"the token service {where} answered {status}: {what}; name a Secret of type "
        "kubernetes.io/dockerconfigjson that may pull in pullSecretRef",
        retryable=False,
    )


def _key(url: str) -> tuple[Any, ...]:
    match = REPOSITORY.search(urlsplit(url).path)
    return (*origin_of(url), match[1] if match else "")
