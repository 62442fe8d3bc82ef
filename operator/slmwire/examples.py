# SPDX-License-Identifier: Apache-2.0
"""Examples from feedback that stay on a node: what may be kept, and the names of the files.

Lines of a file are `{"messages": [...], "expected": "...", "at": seconds}`, redacted before they are written.
When a file expires stands in its name, so that whoever looks after the folder needs to know nothing else.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

REDACTIONS: Final = ("Email", "Phone", "CardNumber", "Iban", "IpAddress", "Url")
"""Kinds of texts that can be taken out, each replaced by its name in angle brackets."""
SERVER_GROUP: Final = 65532
"""Group of the server's process, to which the fetcher gives the folder: pods with the folder are in it."""
_FORMAT: Final = "until-%Y%m%dT%H%M%SZ.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSettings:
    """What a server keeps."""

    retention_seconds: int
    max_examples: int
    redact: tuple[str, ...] = REDACTIONS
    patterns: tuple[str, ...] = ()
    """Regular expressions of Python; what matches becomes `<Redacted>`."""

    def to_json(self) -> str:
        """Canonical JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True)


def parse_settings(text: str) -> ExampleSettings:
    """Inverse of `ExampleSettings.to_json`; raises ValueError for anything else."""
    try:
        body: Mapping[str, Any] = json.loads(text)
        return ExampleSettings(
            retention_seconds=int(body["retention_seconds"]),
            max_examples=int(body["max_examples"]),
            redact=tuple(body["redact"]),
            patterns=tuple(body["patterns"]),
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"these are no settings of examples: {error!r}") from error


def file_name(expires_at: float) -> str:
    """Name of a file that may be kept until `expires_at` (seconds since the epoch)."""
    return datetime.fromtimestamp(int(expires_at), UTC).strftime(_FORMAT)


def expiry_of(name: str) -> float | None:
    """When a file of that name expires; None for a name that is not of this form."""
    try:
        return datetime.strptime(name, _FORMAT).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
