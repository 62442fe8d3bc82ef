# SPDX-License-Identifier: Apache-2.0
"""Bounded HTTP for resolution: size, time, redirects and addresses all have limits."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final, Self

import aiohttp
from aiohttp.helpers import get_env_proxy_for_url
from yarl import URL

from slmops.adapters.sources.addresses import AddressPolicy, GuardedResolver
from slmops.adapters.sources.authorize import Authorize
from slmops.adapters.sources.failures import build_status_error, plain_url
from slmops.ports.sources import SourceError
from slmwire.reasons import Reason

TIMEOUT_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 10.0
SILENCE_SECONDS: Final = 30.0
"""A body that is read through may take long, but not be silent for this long."""
MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class WebClient:
    """HTTP client for one resolution. Credentials go to the first URL's origin only.

    `timeout_seconds` limits each request with its body; 0 limits silence alone, for bodies that are
    read through.
    """

    def __init__(
        self, policy: AddressPolicy, *, authorize: Authorize | None = None, timeout_seconds: float
    ) -> None:
        self._policy, self._authorize = policy, authorize
        timeout = aiohttp.ClientTimeout(
            total=timeout_seconds or None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS
        )
        headers = {"User-Agent": "slmops", "Accept-Encoding": "identity"}
        self._direct = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=GuardedResolver(policy), limit=8),
            timeout=timeout,
            headers=headers,
        )
        # A proxy may live on loopback; what it may reach is the proxy's to decide.
        self._proxied = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=8), timeout=timeout, headers=headers
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._direct.close()
        await self._proxied.close()

    async def get(self, url: str, *, limit_bytes: int) -> bytes:
        """The whole body, at most `limit_bytes`; SourceError otherwise."""
        async with self.open("GET", url) as response:
            if response.status != 200:
                raise self.status_error(url, response)
            return await read_body(url, response, limit_bytes=limit_bytes)

    async def measure(self, url: str) -> int:
        """Size in bytes of a file that is not read; SourceError if the server does not tell."""
        async with self.open("HEAD", url) as response:
            if response.status == 200 and response.content_length is not None:
                return response.content_length
            refused = response.status in (405, 501) or response.status == 200
            if not refused:
                raise self.status_error(url, response)
        # Servers without HEAD tell the size with a range.
        async with self.open("GET", url, headers={"Range": "bytes=0-0"}) as response:
            if response.status not in (200, 206):
                raise self.status_error(url, response)
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if response.status == 206 and total.isdecimal():
                return int(total)
            if response.status == 200 and response.content_length is not None:
                return response.content_length
        raise SourceError(
            Reason.SOURCE_UNAVAILABLE,
            f"{plain_url(url)}: the server does not tell the size; give it in files[].size",
            permanent=True,
        )

    def status_error(
        self,
        url: str,
        response: aiohttp.ClientResponse,
        *,
        named_in: str = "secretRef",
        has_credentials: bool | None = None,
    ) -> SourceError:
        """The error that an answer other than success stands for. `has_credentials` is given where it is
        not for the client to know."""
        return build_status_error(
            response.status,
            where=plain_url(url),
            has_token=self._authorize is not None if has_credentials is None else has_credentials,
            retry_after=response.headers.get("Retry-After"),
            named_in=named_in,
        )

    @asynccontextmanager
    async def open(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        authorize: Authorize | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, whatever its status, after redirects; SourceError if there is none.

        `authorize` takes the place of the client's own."""
        try:
            async with await self._follow(
                method, URL(url), dict(headers or {}), authorize or self._authorize
            ) as response:
                yield response
        except SourceError:
            raise
        except TimeoutError as error:
            raise SourceError(
                Reason.SOURCE_UNAVAILABLE, f"{plain_url(url)} did not answer in time"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _explain(url, error) from error

    async def _follow(
        self, method: str, url: URL, headers: dict[str, str], authorize: Authorize | None
    ) -> aiohttp.ClientResponse:
        first, current = url.origin(), url
        for _ in range(MAX_REDIRECTS + 1):
            sent = dict(headers)
            if authorize is not None and current.origin() == first:
                sent |= authorize(method, str(current), headers)
            response = await self._send(method, current, sent)
            if response.status not in _REDIRECTS:
                return response
            target = response.headers.get("Location", "")
            response.close()
            new = current.join(URL(target))
            if not target or not (new.scheme == "https" or new.scheme == current.scheme == "http"):
                raise SourceError(
                    Reason.SOURCE_UNAVAILABLE,
                    f"{plain_url(str(url))} redirects to {plain_url(str(new))}, which is not allowed: only "
                    "https, or http to http",
                    permanent=True,
                )
            current = new
        raise SourceError(
            Reason.SOURCE_UNAVAILABLE,
            f"{plain_url(str(url))} redirects more than {MAX_REDIRECTS} times",
            permanent=True,
        )

    async def _send(self, method: str, url: URL, headers: dict[str, str]) -> aiohttp.ClientResponse:
        self._policy.check_target(url.raw_host or "", url.port or 0)
        self._policy.check_literal(url.host or "")
        try:
            proxy, auth = get_env_proxy_for_url(url)
        except LookupError:
            return await self._direct.request(method, url, headers=headers, allow_redirects=False)
        return await self._proxied.request(
            method, url, headers=headers, allow_redirects=False, proxy=proxy, proxy_auth=auth
        )


async def read_body(url: str, response: aiohttp.ClientResponse, *, limit_bytes: int) -> bytes:
    """The whole body, at most `limit_bytes`; SourceError if it is larger."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > limit_bytes:
            raise SourceError(
                Reason.UNFIT,
                f"{plain_url(url)} is larger than {limit_bytes} bytes, the most that is read here",
                permanent=True,
            )
    return bytes(body)


def _explain(url: str, error: Exception) -> SourceError:
    where = plain_url(url)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        text = f"{where}: the server's certificate is not trusted; mount its authority and set SSL_CERT_FILE"
        return SourceError(Reason.SOURCE_UNAVAILABLE, text, permanent=True)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return SourceError(Reason.SOURCE_UNAVAILABLE, f"{where}: the host name does not resolve")
    if isinstance(error, aiohttp.InvalidURL | ValueError):
        return SourceError(Reason.UNFIT, f"{where} is not a valid URL or the token no header", permanent=True)
    text = f"{where}: {type(error).__name__}"
    if isinstance(error, aiohttp.ClientConnectorError):
        text = f"{where}: cannot connect ({error.strerror})"
    return SourceError(Reason.SOURCE_UNAVAILABLE, text)
