# SPDX-License-Identifier: Apache-2.0
"""HTTP(S) connections of one thread: proxies, TLS, reuse."""

import base64
import functools
import http.client
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final, cast
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from slmfetch.answer import Answer
from slmfetch.errors import TransferError
from slmfetch.log import plain_url
from slmwire import env
from slmwire.reasons import Reason

DRAIN_BYTES: Final = 64 << 10
"""Most of an answer that is read only to be able to use its connection again."""

DRAIN_SECONDS: Final = 0.5
HEAD_TIMEOUTS: Final = 2
"""Headers may take so many times the longest silence, however they trickle in."""

Origin = tuple[str, str, int]


def origin_of(url: str) -> Origin:
    """Scheme, host and port; ValueError when the URL has no valid port."""
    parts = urlsplit(url)
    default = 443 if parts.scheme == "https" else 80
    return parts.scheme, (parts.hostname or "").lower(), parts.port or default


class Session:
    """Connections that are kept between requests, one per origin; not for several threads at once."""

    def __init__(
        self, *, timeout_seconds: float, ca_file: Path | None = None, receive_buffer_bytes: int = 0
    ) -> None:
        self._timeout, self._ca_file = timeout_seconds, ca_file
        self._buffer = receive_buffer_bytes
        self._kept: dict[Origin, http.client.HTTPConnection] = {}
        self._busy: http.client.HTTPConnection | None = None

    def send(self, url: str, headers: Mapping[str, str], *, form: bytes | None = None) -> Answer:
        """GET, or POST when there is a `form`; the answer must be given to `finish`. TransferError.

        A kept connection that the other side closed meanwhile is replaced once, silently.
        """
        try:
            kept = self._kept.pop(origin_of(url), None)
            if kept is not None:
                with suppress(OSError, http.client.HTTPException):
                    return self._ask(kept, url, headers, form)
                kept.close()
            return self._ask(None, url, headers, form)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise network_error(url, error) from error

    @property
    def patience_seconds(self) -> float:
        """Longest that one step of an answer may take."""
        return HEAD_TIMEOUTS * self._timeout

    def finish(self, url: str, response: Answer) -> None:
        """Done with an answer: the connection is kept if little of it is unread, else it is closed."""
        connection, self._busy = self._busy, None
        keep = not response.will_close and response.length is not None and response.length <= DRAIN_BYTES
        if keep and response.length:
            try:
                response.within(DRAIN_SECONDS)
                response.read()
            except (OSError, http.client.HTTPException):
                keep = False
        response.close()
        if connection is None:
            return
        if keep:
            self._kept[origin_of(url)] = connection
        else:
            connection.close()

    def abort(self) -> None:
        """Wake up the thread that waits for bytes; for other threads."""
        connection = self._busy
        sock = connection.sock if connection is not None else None
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up everywhere."""
        for connection in self._kept.values():
            connection.close()
        self._kept.clear()
        if self._busy is not None:
            self._busy.close()
            self._busy = None

    def _ask(
        self,
        connection: http.client.HTTPConnection | None,
        url: str,
        headers: Mapping[str, str],
        form: bytes | None,
    ) -> Answer:
        parts = urlsplit(url)
        fresh, target, extra = self._connect(parts)
        connection = connection or fresh
        try:
            sock: socket.socket | None = connection.sock
            if self._buffer and sock is None:
                connection.connect()
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)
            self._busy = connection
            # mypy knows this as a class, but any callable will do.
            connection.response_class = functools.partial(  # type: ignore[assignment]
                Answer, head_seconds=self.patience_seconds
            )
            method = "GET" if form is None else "POST"
            connection.request(method, target, body=form, headers={**headers, **extra})
            return cast("Answer", connection.getresponse())
        except BaseException:
            self._busy = None
            connection.close()
            raise

    def _connect(self, parts: SplitResult) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
        """A connection (not opened yet), the request target and headers for a proxy, if there is one."""
        host, port = parts.hostname or "", parts.port
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        timeout = self._timeout
        proxy = _proxy_for(parts)
        if parts.scheme == "https":
            context = _tls(self._ca_file)
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


@functools.cache
def _tls(ca_file: Path | None) -> ssl.SSLContext:
    """One for the process: it holds all authorities, a megabyte or two."""
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


def parse_retry_after(text: str, now: float) -> float | None:
    """Seconds to wait according to a Retry-After header (seconds or a date); None if it says nothing."""
    text = text.strip()
    if text.isdecimal():
        return float(text)
    with suppress(ValueError, TypeError, OverflowError):
        return max(parsedate_to_datetime(text).timestamp() - now, 0.0)
    return None


def network_error(url: str, error: Exception) -> TransferError:
    """What an exception of a connection means, without the secrets that its text may quote."""
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
        # A server may say what it likes where a status is due.
        text = f"{where}: {str(error)[:200] or type(error).__name__}"
    return TransferError(Reason.SOURCE_UNAVAILABLE, text, retryable=True)
