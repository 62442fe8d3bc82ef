# SPDX-License-Identifier: Apache-2.0
"""A small HTTP client for pushing files: retries, no redirects followed, bodies from disk."""

import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit

from slmopt.errors import OptimizeError
from slmwire import env
from slmwire.reasons import Reason

MAX_ANSWER_BYTES: Final = 4 << 20
TIMEOUT_SECONDS: Final = 120.0
ATTEMPTS: Final = 5
_FIRST_WAIT_SECONDS: Final = 1.0
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_DENIED: Final = frozenset({401, 403})


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`size` bytes of a file from `offset` on; the body of a request."""

    path: Path
    offset: int
    size: int


Body = bytes | Part | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server said; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    challenges: tuple[str, ...] = field(default=())
    """All WWW-Authenticate headers."""


class _Window:
    """Reads a part of a file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the login to whatever host it names."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Web:
    """Sends requests through the proxies that the environment names.

    `wait` sleeps between attempts; it gets seconds.
    """

    def __init__(self, *, wait: Callable[[float], None] = time.sleep) -> None:
        self._wait = wait
        context = ssl.create_default_context()
        if authority := os.environ.get(env.CA_FILE):
            context.load_verify_locations(authority)
        self._opener = urllib.request.build_opener(_NoRedirects, urllib.request.HTTPSHandler(context=context))

    def send(
        self, method: str, url: str, *, headers: Callable[[], Mapping[str, str]], body: Body = None
    ) -> Answer:
        """One request; `headers` is asked afresh for each attempt. Statuses are the caller's matter.

        Raises OptimizeError (SourceUnavailable) when no attempt gets an answer.
        """
        wait, where = _FIRST_WAIT_SECONDS, plain_url(url)
        if urlsplit(url).scheme not in ("http", "https"):
            # A server may name the place of an upload; it must not be a file of ours.
            raise OptimizeError(
                Reason.SOURCE_UNAVAILABLE, f"{method} {where}: neither http:// nor https://; check the server"
            )
        for attempt in range(1, ATTEMPTS + 1):
            try:
                answer = self._send_once(method, url, headers(), body)
            except ValueError:
                # Its text may quote a header, and with it the login.
                raise OptimizeError(
                    Reason.ACCESS_DENIED,
                    f"{method} {where}: a line break or another control character in the address or the "
                    "login; correct the Secret",
                ) from None
            except (OSError, http.client.HTTPException) as error:
                if attempt == ATTEMPTS:
                    why = " ".join(str(getattr(error, "reason", error)).split())
                    raise OptimizeError(
                        Reason.SOURCE_UNAVAILABLE,
                        f"{method} {where}: {why}; check the address and the network",
                    ) from error
            else:
                if answer.status not in _PASSING or attempt == ATTEMPTS:
                    return answer
            self._wait(wait)
            wait *= 2
        raise AssertionError("unreachable")

    def _send_once(self, method: str, url: str, headers: Mapping[str, str], body: Body) -> Answer:
        request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310
        if not isinstance(body, Part):
            request.data = body
            return self._open(request)
        with body.path.open("rb") as file:
            file.seek(body.offset)
            request.data = _Window(file, body.size) if body.size else b""
            request.add_header("Content-Length", str(body.size))
            return self._open(request)

    def _open(self, request: urllib.request.Request) -> Answer:
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                body = answer.read(MAX_ANSWER_BYTES)
                if answer.length and len(body) < MAX_ANSWER_BYTES and request.get_method() != "HEAD":
                    raise http.client.IncompleteRead(body, answer.length)
                return _read(answer.status, answer.headers, body)
        except urllib.error.HTTPError as error:
            with error:
                return _read(error.code, error.headers, error.read(MAX_ANSWER_BYTES))


def _read(status: int, headers: Any, body: bytes) -> Answer:
    return Answer(
        status=status,
        headers={name.lower(): value for name, value in headers.items()},
        body=body,
        challenges=tuple(headers.get_all("WWW-Authenticate") or ()),
    )


def origin_of(url: str) -> tuple[str, str]:
    """Scheme, and host with port: a login for one is for nobody else."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def plain_url(url: str) -> str:
    """For messages: without the query, which may hold a signature, and without a login."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def refusal(answer: Answer, *, what: str, cure: str) -> OptimizeError:
    """The error for a status that was not expected; `cure` is for a refused login."""
    text = " ".join(answer.body[:300].decode("utf-8", "replace").split())
    if answer.status in _DENIED:
        return OptimizeError(Reason.ACCESS_DENIED, f"{what}: {answer.status} {text}; {cure}")
    if answer.status == 429:
        return OptimizeError(Reason.RATE_LIMITED, f"{what}: {answer.status} {text}; try again later")
    return OptimizeError(Reason.SOURCE_UNAVAILABLE, f"{what}: the server answered {answer.status} {text}")
