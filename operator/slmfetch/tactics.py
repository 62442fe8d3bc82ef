# SPDX-License-Identifier: Apache-2.0
"""How one file is asked for: in one piece or in several at once."""

import hashlib
from dataclasses import dataclass
from typing import Final

from slmfetch.errors import TransferError
from slmfetch.partial import Partial
from slmwire.manifest import ManifestFile
from slmwire.reasons import Reason

PIECE_BYTES: Final = 8 << 20
"""What one request of several asks for."""
PROBE_BYTES: Final = 1 << 20
"""What the first request for a large file asks for; its answer says whether others may help."""
PROGRESS_BYTES: Final = 64 << 10
"""An attempt that brought this much (or the rest of the file) counts as progress."""


@dataclass(slots=True, kw_only=True)
class Tactics:
    """How one file is asked for, as this run has learnt it."""

    connections: int
    _probed: bool = False
    _together: bool = True
    """Until a source turned out not to give the same bytes to each connection."""

    @property
    def piece_bytes(self) -> int:
        """What one request of several asks for."""
        return PIECE_BYTES

    def probe_end(self, file: ManifestFile, partial: Partial) -> int:
        """Where the first request ends that shows whether a large file may be split; 0 for all the rest."""
        large = file.size - partial.offset >= 2 * PIECE_BYTES
        if self._probed or not self._together or self.connections < 2 or not large:
            return 0
        self._probed = True
        return partial.offset + min(PROBE_BYTES, PIECE_BYTES)

    def may_split(self, file: ManifestFile, partial: Partial) -> bool:
        """Whether several connections may bring what is missing."""
        known = partial.splits and partial.origin == identity_of(file.url)
        if not known or not self._together:
            return False
        large = file.size - partial.offset > PIECE_BYTES
        # What came ahead is taken over even by one connection.
        return (self.connections > 1 and large) or partial.have > partial.offset

    def learn(self, error: TransferError) -> None:
        """After a split attempt failed: the next one is more modest."""
        if error.stale:
            self._together = False
        elif error.retry_after_seconds is not None or error.reason is Reason.RATE_LIMITED:
            self.connections = max(self.connections // 2, 1)


def identity_of(url: str) -> str:
    """Tells sources apart without storing the URL, which may hold a signature."""
    return hashlib.sha256(url.partition("?")[0].encode()).hexdigest()[:16]
