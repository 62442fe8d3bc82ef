# SPDX-License-Identifier: Apache-2.0
"""The resolver that the runtime uses: one entry for all kinds of sources."""

import hashlib
from collections.abc import Mapping
from typing import Final

from slmops.adapters.sources.addresses import AddressPolicy
from slmops.adapters.sources.authorize import use_basic, use_bearer, use_s3
from slmops.adapters.sources.file_source import resolve_file, resolve_pvc
from slmops.adapters.sources.geometry import with_geometry
from slmops.adapters.sources.hf_source import resolve_hugging_face
from slmops.adapters.sources.http_source import resolve_http
from slmops.adapters.sources.oci_source import read_oci_file, resolve_oci
from slmops.adapters.sources.s3_source import resolve_s3
from slmops.adapters.sources.web import TIMEOUT_SECONDS, WebClient
from slmops.api.source import SOURCE_KINDS, Source
from slmops.model.observed import Resolved
from slmops.model.source_secret import secret_of
from slmops.ports.sources import SourceError, SourceResolver
from slmwire.manifest import ManifestFile
from slmwire.reasons import Reason

MAX_READ_BYTES: Final = 128 << 10
"""Most that `read_file` reads."""


class Resolver:
    """Resolves all kinds of sources; each request is bounded in time and size."""

    def __init__(self, policy: AddressPolicy, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._policy, self._timeout_seconds = policy, timeout_seconds

    async def resolve(self, source: Source, *, secret: Mapping[str, str] | None = None) -> Resolved:
        """Files with size and hash, and what a mutable reference stood for. Raises SourceError."""
        secret = secret or {}
        if source.file is not None:
            return resolve_file(source.file)
        if source.pvc is not None:
            return resolve_pvc(source.pvc)
        async with build_client(self._policy, source, secret, self._timeout_seconds) as client:
            if source.http is not None:
                return await with_geometry(await resolve_http(source.http, client), client)
            if source.hf is not None:
                token = secret.get("token", "").strip()
                resolved = await resolve_hugging_face(source.hf, client, policy=self._policy, token=token)
                return await with_geometry(resolved, client)
            if source.oci is not None:
                return await resolve_oci(source.oci, client, docker_config=secret.get("config.json", ""))
            if source.s3 is not None:
                return await with_geometry(await resolve_s3(source.s3, client), client)
        kinds = ", ".join(SOURCE_KINDS)
        raise SourceError(Reason.UNFIT, f"the source names none of {kinds}", permanent=True)

    async def read_file(
        self, source: Source, file: ManifestFile, *, secret: Mapping[str, str] | None = None
    ) -> bytes:
        """Content of a small file, checked against its hash. Raises SourceError."""
        if not file.url.startswith(("http://", "https://")):
            raise SourceError(
                Reason.UNFIT, f"only nodes can read {file.path} from this source", permanent=True
            )
        if file.size > MAX_READ_BYTES:
            raise SourceError(
                Reason.UNFIT,
                f"{file.path} has {file.size} bytes; at most {MAX_READ_BYTES} are read here",
                permanent=True,
            )
        secret = secret or {}
        async with build_client(self._policy, source, secret, self._timeout_seconds) as client:
            if source.oci is not None:
                config = secret.get("config.json", "")
                body = await read_oci_file(source.oci, file, client, docker_config=config)
            else:
                body = await client.get(file.url, limit_bytes=file.size)
        if hashlib.sha256(body).hexdigest() != file.sha256:
            raise SourceError(
                Reason.INTEGRITY_MISMATCH, f"{file.path} is no longer what the source was resolved to"
            )
        return body


def build_client(
    policy: AddressPolicy, source: Source, secret: Mapping[str, str], timeout_seconds: float
) -> WebClient:
    """Client that says who asks in the way of this kind of source. SourceError if the secret is unfit."""
    if source.oci is not None:
        # The registry client logs in by itself; layers are read through, which may take long.
        return WebClient(policy, timeout_seconds=0)
    authorize = use_bearer(secret.get("token", ""))
    kind = secret_of(source)
    if secret and kind is not None and kind.auth == "basic":
        authorize = use_basic(secret.get("username", ""), secret.get("password", ""))
    elif secret and source.s3 is not None:
        authorize = use_s3(secret, region=source.s3.region)
    return WebClient(policy, authorize=authorize, timeout_seconds=timeout_seconds)


def build_resolver(policy: AddressPolicy | None = None) -> SourceResolver:
    """Resolver for the operator; by default loopback is off limits, as is link-local always."""
    return Resolver(policy or AddressPolicy())
