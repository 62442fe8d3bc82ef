# SPDX-License-Identifier: Apache-2.0
"""One HTTP(S) request for the rest of a file: redirects, proxies, ranges, errors."""

import base64
import http.client
import re
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from slmfetch.config import Settings
from slmfetch.errors import FetchError, IntegrityError, TransferError
from slmfetch.log import plain_url
from slmwire import env
from slmwire.reasons import Reason

MAX_REDIRECTS: Final = 5
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_RETRYABLE: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for: `url` from byte `offset` on, if the source still has version `etag`."""

    url: str
    offset: int = 0
    etag: str = ""
    size: int
    """Bytes of the whole file according to the manifest."""
    token: str = ""


class Body:
    """An answer whose bytes start at `start` of the file."""

    def __init__(
        self,
        response: http.client.HTTPResponse,
        connection: http.client.HTTPConnection,
        *,
        url: str,
        start: int,
        etag: str,
    ) -> None:
        self._response, self._connection, self._url = response, connection, url
        self.start = start
        self.etag = etag

    def read_some(self, count: int) -> bytes:
        """At most `count` bytes, what has come so far; nothing at the end, expected or not.

        Waiting for a full buffer instead would lose it when we are killed on a slow link.
        """
        try:
            return self._response.read1(count)
        except (OSError, http.client.HTTPException) as error:
            raise _network_error(self._url, error) from error

    def close(self) -> None:
        """Hang up."""
        self._response.close()
        self._connection.close()


def open_body(request: Request, settings: Settings) -> Body:
    """Send the request and follow redirects; TransferError or IntegrityError when no bytes are to be had.

    The token goes to the origin of the first URL only. A redirect may not leave http and https, nor
    go from https to http.
    """
    url = request.url
    origin = _origin(urlsplit(url))
    for _ in range(MAX_REDIRECTS + 1):
        headers = {"Accept-Encoding": "identity", "User-Agent": "slmfetch"}
        if request.offset:
            headers["Range"] = f"bytes={request.offset}-"
            if request.etag:
                headers["If-Range"] = request.etag
        if request.token and _origin(urlsplit(url)) == origin:
            headers["Authorization"] = f"Bearer {request.token}"
        connection, response = _send(url, headers, settings)
        if response.status not in _REDIRECTS:
            try:
                return _judge(request, url, connection, response)
            except FetchError:
                response.close()
                connection.close()
                raise
        target = response.getheader("Location", "")
        response.close()
        connection.close()
        url = _redirected(url, target)
    raise TransferError(
        Reason.SOURCE_UNAVAILABLE,
        f"{plain_url(request.url)} redirects more than {MAX_REDIRECTS} times",
        retryable=False,
    )


def _redirected(url: str, target: str) -> str:
    try:
        new = urljoin(url, target)
        parts = urlsplit(new)
        _origin(parts)
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


def _send(
    url: str, headers: Mapping[str, str], settings: Settings
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    parts = urlsplit(url)
    connection = None
    try:
        connection, target, extra = _connect(parts, settings)
        connection.request("GET", target, headers={**headers, **extra})
        return connection, connection.getresponse()
    except (OSError, http.client.HTTPException, ValueError) as error:
        if connection is not None:
            connection.close()
        raise _network_error(url, error) from error


def _connect(
    parts: SplitResult, settings: Settings
) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """A connection (not opened yet), the request target and headers for a proxy, if there is one."""
    host, port = parts.hostname or "", parts.port
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    timeout = settings.stall_timeout_seconds
    proxy = _proxy_for(parts)
    if parts.scheme == "https":
        context = _tls(settings.ca_file)
        if proxy is None:
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=context), path, {}
        tunnel = http.client.HTTPSConnection(
            proxy.hostname or "", proxy.port, timeout=timeout, context=context
        )
        tunnel.set_tunnel(host, port or 443, headers=_proxy_auth(proxy))
        return tunnel, path, {}
    if proxy is None:
        return http.client.HTTPConnection(host, port, timeout=timeout), path, {}
    netloc = parts.netloc.rpartition("@")[2]
    via = http.client.HTTPConnection(proxy.hostname or "", proxy.port, timeout=timeout)
    return via, f"http://{netloc}{path}", _proxy_auth(proxy)


def _proxy_for(parts: SplitResult) -> SplitResult | None:
    proxies = getproxies_environment()
    text = proxies.get(parts.scheme) or proxies.get("all")
    if not text or proxy_bypass_environment(parts.netloc.rpartition("@")[2], proxies):
        return None
    return urlsplit(text if "://" in text else f"http://{text}")


def _proxy_auth(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=str(ca_file))
        except OSError as error:
            raise TransferError(
                Reason.SOURCE_UNAVAILABLE,
                f"{env.CA_FILE}={ca_file} cannot be read as PEM certificates: {error}",
                retryable=False,
            ) from error
    return context


def _network_error(url: str, error: Exception) -> TransferError:
    where = plain_url(url)
    if isinstance(error, ssl.SSLCertVerificationError):
        text = (
            f"{where}: the server's certificate is not trusted ({error.verify_message}); "
            f"the runtime image must name its authority in {env.CA_FILE}"
        )
        return TransferError(Reason.SOURCE_UNAVAILABLE, text, retryable=False)
    if isinstance(error, socket.gaierror):
        text = f"{where}: the host name does not resolve ({error.strerror}); check the URL and the node's DNS"
    elif isinstance(error, TimeoutError):
        text = f"{where}: the source went silent"
    elif isinstance(error, http.client.InvalidURL | ValueError):
        # Their own texts quote the whole URL or header, secrets included.
        return TransferError(Reason.SOURCE_UNAVAILABLE, f"{where} is not a valid URL", retryable=False)
    else:
        text = f"{where}: {error or type(error).__name__}"
    return TransferError(Reason.SOURCE_UNAVAILABLE, text, retryable=True)


def _judge(
    request: Request,
    url: str,
    connection: http.client.HTTPConnection,
    response: http.client.HTTPResponse,
) -> Body:
    where = plain_url(url)
    status = response.status
    if status not in (200, 206):
        raise _status_error(request, where, response)
    if response.getheader("Content-Encoding", "identity") not in ("", "identity"):
        raise TransferError(
            Reason.SOURCE_UNAVAILABLE,
            f"{where} sends compressed content though told not to; turn that off for these files",
            retryable=False,
        )
    etag = response.getheader("ETag", "")
    if not etag.startswith('"'):
        etag = ""  # weak validators promise nothing about bytes
    length = response.getheader("Content-Length", "")
    if status == 200:
        if length.isdecimal() and int(length) != request.size:
            raise _size_error(where, int(length), request.size)
        return Body(response, connection, url=url, start=0, etag=etag)
    match = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range", "").strip())
    if match is None or int(match[1]) != request.offset or not request.offset:
        raise TransferError(
            Reason.SOURCE_UNAVAILABLE,
            f"{where} answers with bytes that were not asked for "
            f"(Content-Range {response.getheader('Content-Range', '')!r}, asked from {request.offset})",
            retryable=True,
        )
    if match[3] != "*" and int(match[3]) != request.size:
        raise _size_error(where, int(match[3]), request.size)
    return Body(response, connection, url=url, start=request.offset, etag=etag)


def _size_error(where: str, actual: int, expected: int) -> IntegrityError:
    return IntegrityError(
        f"{where} has {actual} bytes, the manifest promises {expected}; "
        "the file was changed, or a proxy answers in its place"
    )


def _status_error(request: Request, where: str, response: http.client.HTTPResponse) -> TransferError:
    status = response.status
    wait = parse_retry_after(response.getheader("Retry-After", ""), time.time())
    if status in (401, 403):
        token = "the token was refused" if request.token else "no token was given"
        return TransferError(
            Reason.ACCESS_DENIED,
            f"{where} answered {status}: {token}; name a Secret with a valid token in secretRef",
            retryable=False,
        )
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
            f"{where} has nothing at byte {request.offset}; the file was changed",
            retryable=True,
            stale=True,
        )
    hint = ""
    if status in (404, 410):
        hint = "; check the URL" + (
            "" if request.token else ", or name a Secret: some hosts hide what is private"
        )
    return TransferError(
        Reason.SOURCE_UNAVAILABLE,
        f"{where} answered {status}{hint}",
        retryable=status in _RETRYABLE,
        retry_after_seconds=wait,
    )


def parse_retry_after(text: str, now: float) -> float | None:
    """Seconds to wait according to a Retry-After header (seconds or a date); None if it says nothing."""
    text = text.strip()
    if text.isdecimal():
        return float(text)
    with suppress(ValueError, TypeError, OverflowError):
        return max(parsedate_to_datetime(text).timestamp() - now, 0.0)
    return None


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    default = 443 if parts.scheme == "https" else 80
    return parts.scheme, parts.hostname or "", parts.port or default
