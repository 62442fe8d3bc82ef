# SPDX-License-Identifier: Apache-2.0
"""Port to the resolution of model sources."""

from collections.abc import Mapping
from typing import Protocol

from slmops.api.source import Source
from slmops.model.observed import Resolved
from slmwire.manifest import ManifestFile
from slmwire.reasons import Reason


class SourceError(Exception):
    """A source could not be resolved; `reason` and the message are shown to the user."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        permanent: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        """What the server asked for; None when it said nothing."""
        self.permanent = permanent
        """Trying again will not help before somebody changes the source."""


class SourceResolver(Protocol):
    """Finds out which exact files a source stands for; bounded in time by itself."""

    async def resolve(self, source: Source, *, secret: Mapping[str, str] | None = None) -> Resolved:
        """Files with size and hash, and what a mutable reference stood for. Raises SourceError.

        `secret` holds what the Secret of the source does, by the names of slmwire.paths.SOURCE_DIR.
        """
        ...

    async def read_file(
        self, source: Source, file: ManifestFile, *, secret: Mapping[str, str] | None = None
    ) -> bytes:
        """Content of a small file that `source` was resolved to, checked against its hash. Raises
        SourceError, also for a source that only nodes can read."""
        ...
