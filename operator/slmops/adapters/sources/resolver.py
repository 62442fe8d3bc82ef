# SPDX-License-Identifier: Apache-2.0
"""The resolver that the runtime uses: one entry for all kinds of sources."""

from typing import Final

from slmops.adapters.sources.addresses import AddressPolicy
from slmops.adapters.sources.file_source import resolve_file
from slmops.adapters.sources.hf_source import resolve_hugging_face
from slmops.adapters.sources.http_source import resolve_http
from slmops.adapters.sources.web import TIMEOUT_SECONDS, WebClient
from slmops.api.source import Source
from slmops.model.observed import Resolved
from slmops.ports.sources import SourceError, SourceResolver
from slmwire.reasons import Reason

_HEADER_BYTES: Final = range(0x21, 0x7F)


class Resolver:
    """Resolves `http`, `hf` and `file` sources; each request is bounded in time and size."""

    def __init__(self, policy: AddressPolicy, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._policy, self._timeout_seconds = policy, timeout_seconds

    async def resolve(self, source: Source, *, token: str | None = None) -> Resolved:
        """Files with size and hash, and what a mutable reference stood for. Raises SourceError."""
        token = (token or "").strip()
        if any(ord(character) not in _HEADER_BYTES for character in token):
            raise SourceError(
                Reason.ACCESS_DENIED,
                "the token holds characters that no HTTP header may carry; put the bare token in the Secret",
                permanent=True,
            )
        if source.file is not None:
            return resolve_file(source.file)
        async with WebClient(self._policy, token=token, timeout_seconds=self._timeout_seconds) as client:
            if source.http is not None:
                return await resolve_http(source.http, client)
            if source.hf is not None:
                return await resolve_hugging_face(source.hf, client, policy=self._policy, token=token)
        raise SourceError(Reason.UNFIT, "the source names none of http, hf and file", permanent=True)


def build_resolver(policy: AddressPolicy | None = None) -> SourceResolver:
    """Resolver for the operator; by default loopback is off limits, as is link-local always."""
    return Resolver(policy or AddressPolicy())
