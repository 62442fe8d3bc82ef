# SPDX-License-Identifier: Apache-2.0
"""One HTTP(S) request for bytes of a file: redirects, credentials, ranges, errors."""

import http.client
import re
import time
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin, urlsplit

from slmfetch.answer import Answer
from slmfetch.auth import Access
from slmfetch.connect import Session, network_error, origin_of, parse_retry_after
from slmfetch.errors import FetchError, IntegrityError, TransferError
from slmfetch.log import plain_url
from slmwire.reasons import Reason

MAX_REDIRECTS: Final = 5
ERROR_SECONDS: Final = 2.0
"""Longest that the text of an error is read."""
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_OCI_BLOB: Final = re.compile(r"/v2/.+/blobs/sha256:[0-9a-f]{64}")
_S3_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_RETRYABLE: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for: bytes of a file from `start` on, if the source still has version `etag`."""

    url: str
    size: int
    """Bytes of the whole file according to the manifest."""
    base: int = 0
    """Where the file begins in what `url` names."""
    start: int = 0
    end: int = 0
    """First byte that is not wanted any more; 0 is the file's end."""
    etag: str = ""

    @property
    def span(self) -> str:
        """The Range header, "" when the answer may be all that the URL names."""
        if self.base or self.end:
            return f"bytes={self.base + self.start}-{self.base + (self.end or self.size) - 1}"
        return f"bytes={self.start}-" if self.start else ""


class Body:
    """An answer whose bytes start at `start` of the file."""

    def __init__(self, session: Session, response: Answer, *, url: str, start: int, etag: str) -> None:
        self._session, self._response, self._url = session, response, url
        self.start = start
        self.etag = etag
        """Strong validator, "" if there is none."""
        self.ranged = response.status == 206
        """Whether the source serves ranges."""

    def read_some(self, count: int) -> bytes:
        """At most `count` bytes, what has come so far; nothing at the end, expected or not.

        Waiting for a full buffer instead would lose it when we are killed on a slow link.
        """
        try:
            self._response.within(self._session.patience_seconds)
            return self._response.read1(count)
        except (OSError, http.client.HTTPException) as error:
            raise network_error(self._url, error) from error

    def close(self) -> None:
        """Done; the connection is used again if everything was read."""
        self._session.finish(self._url, self._response)


def is_content_addressed(url: str) -> bool:
    """Whether the URL itself promises that its bytes never change: a registry's blob by digest."""
    return _OCI_BLOB.fullmatch(urlsplit(url).path) is not None


def open_body(request: Request, session: Session, access: Access) -> Body:
    """Send the request and follow redirects; TransferError or IntegrityError when no bytes are to be had.

    Credentials go to the origin of the first URL only, and only its challenges are answered. A redirect
    may not leave http and https, nor go from https to http.
    """
    url = request.url
    origin = origin_of(url)
    hops, answered = 0, False
    while True:
        ours = origin_of(url) == origin
        own = access.headers(url) if ours else {}
        sent = own.get("Authorization", "")
        response = session.send(url, _headers(request) | own)
        if response.status == 401 and ours and not answered:
            challenges = response.headers.get_all("WWW-Authenticate") or []
            session.finish(url, response)
            answered = access.answer(url, challenges, sent=sent, session=session)
            if answered:
                continue
            raise _denied(plain_url(url), "401", access.refusal(sent=sent))
        if response.status not in _REDIRECTS:
            try:
                return _judge(request, url, session, response, access.refusal(sent=sent))
            except FetchError:
                session.finish(url, response)
                raise
        target = response.getheader("Location", "")
        session.finish(url, response)
        url = _redirected(url, target)
        hops += 1
        if hops > MAX_REDIRECTS:
            raise TransferError(
                Reason.SOURCE_UNAVAILABLE,
                f"{plain_url(request.url)} redirects more than {MAX_REDIRECTS} times",
                retryable=False,
            )


def _headers(request: Request) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity", "User-Agent": "slmfetch"}
    if request.span:
        headers["Range"] = request.span
        if request.etag:
            headers["If-Range"] = request.etag
    return headers


def _redirected(url: str, target: str) -> str:
    try:
        new = urljoin(url, target)
        parts = urlsplit(new)
        origin_of(new)
    except ValueError:
        new, parts = "", urlsplit("")
    safe = parts.scheme == "https" or (parts.scheme == "http" and urlsplit(url).scheme == "http")
    if not target or not safe or not parts.hostname:
        raise TransferError(
            Reason.SOURCE_UNAVAILABLE,
            f"{plain_url(url)} redirects to {plain_url(new)!r}, which is not allowed: only https, "
            "or http to http",
            retryable=False,
        )
    return new


def _judge(request: Request, url: str, session: Session, response: Answer, refusal: str) -> Body:
    where = plain_url(url)
    status = response.status
    if status not in (200, 206):
        raise _status_error(request, where, response, refusal)
    if response.getheader("Content-Encoding", "identity") not in ("", "identity"):
        raise TransferError(
            Reason.SOURCE_UNAVAILABLE,
            f"{where} sends compressed content though told not to; turn that off for these files",
            retryable=False,
        )
    etag = response.getheader("ETag", "")
    if not etag.startswith('"'):
        etag = ""  # weak validators promise nothing about bytes
    if status == 200:
        _judge_whole(request, where, response.getheader("Content-Length", ""))
        return Body(session, response, url=url, start=0, etag=etag)
    _judge_range(request, where, response.getheader("Content-Range", "").strip())
    return Body(session, response, url=url, start=request.start, etag=etag)


def _judge_whole(request: Request, where: str, length: str) -> None:
    if request.base:
        raise TransferError(
            Reason.SOURCE_UNAVAILABLE,
            f"{where} ignores ranges, and the file begins at byte {request.base} of it; the source must "
            "support Range requests, or serve the file by itself",
            retryable=False,
        )
    # As a text first: beyond some length Python makes no number of it.
    if length.isdecimal() and (len(length) > 18 or int(length) != request.size):
        raise _size_error(where, length, request.size)


def _judge_range(request: Request, where: str, text: str) -> None:
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None or int(match[1]) != request.base + request.start or not request.span:
        raise TransferError(
            Reason.SOURCE_UNAVAILABLE,
            f"{where} answers with bytes that were not asked for "
            f"(Content-Range {text[:100]!r}, asked from {request.base + request.start})",
            retryable=True,
        )
    if match[3] == "*":
        return
    total = int(match[3])
    # With a base, the total is that of the archive around the file.
    if total < request.base + request.size if request.base else total != request.size:
        raise _size_error(where, match[3], request.base + request.size)


def _size_error(where: str, actual: str, expected: int) -> IntegrityError:
    return IntegrityError(
        f"{where} has {actual[:30]} bytes, the manifest promises {expected}; "
        "the file was changed, or a proxy answers in its place"
    )


def _denied(where: str, answer: str, refusal: str) -> TransferError:
    return TransferError(Reason.ACCESS_DENIED, f"{where} answered {answer}: {refusal}", retryable=False)


def _status_error(request: Request, where: str, response: Answer, refusal: str) -> TransferError:
    status = response.status
    wait = parse_retry_after(response.getheader("Retry-After", ""), time.time())
    if status in (401, 403):
        return _denied(where, f"{status}{_s3_code(response)}", refusal)
    if status == 429:
        asked = f", asking to wait {wait:.0f} s" if wait is not None else ""
        return TransferError(
            Reason.RATE_LIMITED,
            f"{where} answered 429{asked}",
            retryable=True,
            retry_after_seconds=wait,
        )
    if status == 416:
        return TransferError(
            Reason.SOURCE_UNAVAILABLE,
            f"{where} has nothing at byte {request.base + request.start}; the file was changed",
            retryable=True,
            stale=True,
        )
    hint = f"; check the URL. Some hosts hide what is private: {refusal}" if status in (404, 410) else ""
    return TransferError(
        Reason.SOURCE_UNAVAILABLE,
        f"{where} answered {status}{hint}",
        retryable=status in _RETRYABLE,
        retry_after_seconds=wait,
    )


def _s3_code(response: Answer) -> str:
    """S3 says why in the body: RequestTimeTooSkewed is a clock's fault, not a key's."""
    try:
        response.within(ERROR_SECONDS)
        match = _S3_CODE.search(response.read(2048))
    except (OSError, http.client.HTTPException):
        match = None
    return f" ({match[1].decode()})" if match else ""
