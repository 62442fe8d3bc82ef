# SPDX-License-Identifier: Apache-2.0
"""What a simulation is told beside the SLMDeployment: the fleet, the traffic, the new version's effect."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

DEFAULT_START_SECONDS: Final = 1_767_600_000.0
"""2026-01-05T08:00:00Z, a Monday."""


class InputError(ValueError):
    """The input is wrong; the message is one line that names the place and the cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Nodes that are alike."""

    name: str
    count: int
    labels: Mapping[str, str] = field(default_factory=dict)
    sites: int = 0
    """Sites that the nodes are spread over, each with one link; 0 gives each node a link of its own."""
    memory_bytes: int = 8 << 30
    link_mbps: float = 50.0
    """Of each site (of each node without sites), in Mbit/s."""
    offline_percent: float = 0.0
    """Share of the time that a node is offline."""
    mean_outage_minutes: float = 60.0
    start_seconds: float = 20.0
    """From a cached model to a ready pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What is different about the new version; None and 0 mean the same as the stable one."""

    error_rate: float | None = None
    score: float | None = None
    crash_percent: float = 0.0
    """Share of the nodes on which it does not come up."""
    latency_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One simulation but for its seed."""

    effect: Effect = field(default_factory=Effect)
    requests_per_node_minute: float = 6.0
    base_error_rate: float = 0.002
    base_score: float = 0.95
    size_bytes: Mapping[str, int] = field(default_factory=dict)
    """Size of the new version's files by variant; the empty name stands for all others."""
    start_seconds: float = DEFAULT_START_SECONDS
    until_seconds: float = 72 * 3600.0
    approve_after_seconds: float = 0.0
    pods_per_second: float = 20.0
    """How fast the cluster makes and deletes pods; the controller manager's own limit is 20 calls/s."""
    patches_per_second: float = 175.0
    """How fast node labels are patched; measured, see docs/scaling.md."""


MAX_NODES: Final = 1_000_000
