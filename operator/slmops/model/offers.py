# SPDX-License-Identifier: Apache-2.0
"""What an SLMModel offers to the SLMDeployments that follow it, as its status says."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from slmops.api.source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One variant on a node of one device class; None where it was not measured."""

    quality: float | None = None
    """0..1, higher is better."""
    decode_tokens_per_second: float | None = None
    memory_bytes: int | None = None
    """Peak resident set with one request at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedVariant:
    """One variant that passed its gates."""

    name: str
    source: Source
    """Pinned: the same bytes for ever."""
    engine: str = ""
    """Engine that it was measured with; empty: what suits its files."""
    profiles: tuple[str, ...] = ()
    """DeviceProfiles that it was accepted for; empty means any."""
    size_bytes: int = 0
    cache_bytes_per_token: int | None = None
    measured: Mapping[str, Measured] = field(default_factory=dict)
    """By DeviceProfile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedVersion:
    """One version of the model; only an accepted one is rolled out."""

    version: str
    accepted: bool
    variants: tuple[OfferedVariant, ...] = ()
    reason: str = ""
    """CamelCase, of a version that is not accepted (yet)."""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOffer:
    """All versions, the newest first."""

    name: str
    namespace: str
    versions: tuple[OfferedVersion, ...] = ()
