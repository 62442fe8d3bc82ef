# SPDX-License-Identifier: Apache-2.0
"""Machine-readable reasons and the termination message that carries them from a node.

Edge pods hold no API credential: the kubelet copies at most 4 KiB from the container's
termination log into the pod status, and that is how the fetcher reports.
"""

import json
from dataclasses import dataclass
from enum import StrEnum

from slmwire.paths import TERMINATION_LIMIT_BYTES


class Reason(StrEnum):
    """Why a node could not get or load its model."""

    INSUFFICIENT_CAPACITY = "InsufficientCapacity"
    INTEGRITY_MISMATCH = "IntegrityMismatch"
    SIGNATURE_INVALID = "SignatureInvalid"
    SOURCE_UNAVAILABLE = "SourceUnavailable"
    ADAPTER_LOST = "AdapterLost"
    """Neither the node nor any other of its site that answers has an adapter that was trained there."""
    ACCESS_DENIED = "AccessDenied"
    RATE_LIMITED = "RateLimited"
    UNFIT = "Unfit"
    INTERNAL_ERROR = "InternalError"


@dataclass(frozen=True, slots=True, kw_only=True)
class Termination:
    """What a container says as it ends; `reason` is empty after success."""

    reason: str = ""
    message: str = ""
    digest: str = ""
    bytes_downloaded: int = 0
    bytes_reused: int = 0
    bytes_from_peers: int = 0
    """Of the bytes downloaded, those that other nodes of the site gave."""
    milliseconds: int = 0

    def to_json(self) -> str:
        """JSON of at most 4 KiB; a longer message is cut."""
        message = self.message
        while True:
            text = json.dumps(
                {
                    "reason": self.reason,
                    "message": message,
                    "digest": self.digest,
                    "bytesDownloaded": self.bytes_downloaded,
                    "bytesReused": self.bytes_reused,
                    "bytesFromPeers": self.bytes_from_peers,
                    "milliseconds": self.milliseconds,
                },
                separators=(",", ":"),
            )
            if len(text.encode()) <= TERMINATION_LIMIT_BYTES:
                return text
            message = message[: len(message) // 2] + "..."


def parse_termination(text: str) -> Termination | None:
    """The message of a container of ours, or None when the text is somebody else's."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or not isinstance(body.get("reason"), str):
        return None

    def text_of(key: str) -> str:
        value = body.get(key, "")
        return value if isinstance(value, str) else ""

    def number(key: str) -> int:
        value = body.get(key, 0)
        return value if isinstance(value, int) else 0

    return Termination(
        reason=text_of("reason"),
        message=text_of("message"),
        digest=text_of("digest"),
        bytes_downloaded=number("bytesDownloaded"),
        bytes_reused=number("bytesReused"),
        bytes_from_peers=number("bytesFromPeers"),
        milliseconds=number("milliseconds"),
    )
