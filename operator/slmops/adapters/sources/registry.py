# SPDX-License-Identifier: Apache-2.0
"""A client of the OCI Distribution API: manifests and blobs, with the token that a registry asks for."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode, urlsplit, urlunsplit

import aiohttp
from yarl import URL

from slmops.adapters.sources.authorize import Authorize, basic_header, use_bearer, use_header
from slmops.adapters.sources.failures import plain_url
from slmops.adapters.sources.web import WebClient, read_body
from slmops.ports.sources import SourceError
from slmwire.reasons import Reason
from slmwire.registry import Login, LoginError, find_login, parse_challenges

MAX_MANIFEST_BYTES: Final = 4 << 20
MAX_TOKEN_BYTES: Final = 1 << 20
SECRET_FIELD: Final = "pullSecretRef"
MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
DOCKER_HUB: Final = "docker.io"
_HUB_HOST: Final = "registry-1.docker.io"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageName:
    """`registry/repository[:tag][@digest]`, taken apart."""

    registry: str
    repository: str
    tag: str
    digest: str

    @property
    def host(self) -> str:
        """Whom to ask: the Docker Hub's registry has another name."""
        return _HUB_HOST if self.registry == DOCKER_HUB else self.registry

    @property
    def reference(self) -> str:
        """What is asked for: the digest where there is one."""
        return self.digest or self.tag

    def at(self, digest: str) -> str:
        """The name with this digest in place of tag and digest."""
        return f"{self.registry}/{self.repository}@{digest}"


def parse_image(text: str) -> ImageName:
    """Take apart what `slmops.api.source.IMAGE_PATTERN` allows; the tag is `latest` by default."""
    name, _, digest = text.partition("@")
    registry, _, rest = name.partition("/")
    repository, _, tag = rest.partition(":")
    return ImageName(
        registry=registry.lower(),
        repository=repository,
        tag=tag or ("" if digest else "latest"),
        digest=digest,
    )


def read_docker_config(text: str, image: ImageName) -> tuple[str, str] | None:
    """User and password for an image in a Docker `config.json`; None if it has none.

    SourceError if the text is no such file, or has only what this client cannot use.
    """
    try:
        login = find_login(text, f"https://{image.host}/v2/{image.repository}/manifests/")
    except LoginError as error:
        raise SourceError(Reason.ACCESS_DENIED, str(error), permanent=True) from error
    if login == Login():
        return None
    if not login.username or not login.password:
        raise SourceError(
            Reason.ACCESS_DENIED,
            f"the Secret has no user and password for {image.registry}; identity tokens are not supported",
            permanent=True,
        )
    return login.username, login.password


class Registry:
    """One repository of a registry. Asks for a token when it is told to, and again when one is refused."""

    def __init__(
        self, client: WebClient, image: ImageName, *, scheme: str, login: tuple[str, str] | None
    ) -> None:
        self._client, self._image, self._scheme, self._login = client, image, scheme, login
        self._base = f"{scheme}://{image.host}/v2/{image.repository}"
        self._authorize: Authorize | None = None

    def blob_url(self, digest: str) -> str:
        """Where a blob lies."""
        return f"{self._base}/blobs/{digest}"

    async def read_manifest(self, reference: str) -> tuple[dict[str, Any], str]:
        """A manifest or index by tag or digest, and its digest. SourceError if it is not what its digest
        says, or none."""
        url = f"{self._base}/manifests/{reference}"
        accept = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
        async with self._open(url, {"Accept": accept}) as response:
            body = await read_body(url, response, limit_bytes=MAX_MANIFEST_BYTES)
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        if reference.startswith("sha256:") and digest != reference:
            raise SourceError(
                Reason.INTEGRITY_MISMATCH, f"{url} has the digest {digest}; something between alters it"
            )
        try:
            manifest = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise SourceError(Reason.UNFIT, f"{url} is not JSON", permanent=True) from error
        if not isinstance(manifest, dict):
            raise SourceError(Reason.UNFIT, f"{url} is no manifest", permanent=True)
        return {"mediaType": kind} | manifest, digest

    @asynccontextmanager
    async def open_blob(self, digest: str) -> AsyncIterator[aiohttp.StreamReader]:
        """The content of a blob, to be read through."""
        async with self._open(self.blob_url(digest), {}) as response:
            yield response.content

    async def read_part(self, url: str, *, offset: int, size: int) -> bytes:
        """`size` bytes of a blob from `offset` on."""
        if not size:
            return b""
        wanted = {"Range": f"bytes={offset}-{offset + size - 1}"}
        async with self._open(url, wanted, expected=(200, 206)) as response:
            if response.status == 200 and offset:
                raise SourceError(
                    Reason.UNFIT, f"{plain_url(url)}: the registry gives no parts of layers", permanent=True
                )
            try:
                return await response.content.readexactly(size)
            except asyncio.IncompleteReadError as error:
                raise SourceError(
                    Reason.SOURCE_UNAVAILABLE, f"{plain_url(url)} ended after {len(error.partial)} bytes"
                ) from error

    @asynccontextmanager
    async def _open(
        self, url: str, headers: Mapping[str, str], *, expected: tuple[int, ...] = (200,)
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        async with self._client.open("GET", url, headers=headers, authorize=self._authorize) as response:
            # Whoever a registry redirects to may not say where our login is to be sent.
            if response.status != 401 or response.url.origin() != URL(url).origin():
                yield self._checked(url, response, expected)
                return
            challenges = response.headers.getall("WWW-Authenticate", [])
            refusal = self._refusal(url, response)
        self._authorize = await self._answer(challenges) or _raise(refusal)
        async with self._client.open("GET", url, headers=headers, authorize=self._authorize) as response:
            yield self._checked(url, response, expected)

    def _checked(
        self, url: str, response: aiohttp.ClientResponse, expected: tuple[int, ...]
    ) -> aiohttp.ClientResponse:
        if response.status not in expected:
            raise self._refusal(url, response)
        return response

    def _refusal(self, url: str, response: aiohttp.ClientResponse) -> SourceError:
        return self._client.status_error(
            url, response, named_in=SECRET_FIELD, has_credentials=self._login is not None
        )

    async def _answer(self, challenges: list[str]) -> Authorize | None:
        """What the registry wants to see after its challenge; None if that is nothing we have."""
        offered = parse_challenges(challenges)
        if "bearer" in offered:
            return await self._ask_token(offered["bearer"])
        if "basic" in offered and self._login is not None:
            return use_header(basic_header(*self._login))
        return None

    async def _ask_token(self, challenge: dict[str, str]) -> Authorize | None:
        realm = challenge.get("realm", "")
        where = plain_url(realm)
        try:
            parts = urlsplit(realm)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or (self._scheme == "https" and parts.scheme != "https"):
            raise SourceError(
                Reason.ACCESS_DENIED,
                f"{self._image.registry} names {where} as the place to log in, which is not https",
                permanent=True,
            )
        scope = challenge.get("scope") or f"repository:{self._image.repository}:pull"
        query = {"scope": scope} | ({"service": challenge["service"]} if challenge.get("service") else {})
        joined = "&".join(part for part in (parts.query, urlencode(query)) if part)
        url = urlunsplit((parts.scheme, parts.netloc, parts.path, joined, ""))
        authorize = use_header(basic_header(*self._login)) if self._login else None
        async with self._client.open("GET", url, authorize=authorize) as response:
            if response.status != 200:
                raise self._refusal(url, response)
            body = await read_body(url, response, limit_bytes=MAX_TOKEN_BYTES)
        try:
            answer = json.loads(body)
            token = answer.get("token") or answer.get("access_token")
        except (ValueError, RecursionError, AttributeError) as error:
            raise SourceError(Reason.SOURCE_UNAVAILABLE, f"{where} gave no token") from error
        if not isinstance(token, str):
            raise SourceError(Reason.SOURCE_UNAVAILABLE, f"{where} gave no token")
        return use_bearer(token)


def _raise(error: SourceError) -> Authorize:
    raise error
