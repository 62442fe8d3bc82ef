# SPDX-License-Identifier: Apache-2.0
"""What fetchers are told about sharing and bandwidth; may change while they run, unlike a revision.

The operator writes it to a ConfigMap beside the pods. The kubelet keeps the mounted file up to date
and leaves it as it is while the API server is away.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

MAX_PORT: Final = 65535
MAX_RATE: Final = 1 << 50
FILE_KEY: Final = "distribution.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Limits and neighbours. The empty one means: no limit, no neighbours."""

    rate_limit_bytes_per_second: int = 0
    """Most bytes per second that one node takes from the source; 0 is no limit. Peers are not limited."""
    peer_port: int = 0
    """TCP port of the store agents; 0 means that nothing is fetched from peers."""
    sites: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By site: node name -> IP address. Only sites of two nodes or more are listed."""

    def neighbours(self, node: str) -> dict[str, str]:
        """Name -> address of the other nodes of the site that `node` belongs to."""
        for nodes in self.sites.values():
            if node in nodes:
                return {name: address for name, address in nodes.items() if name != node}
        return {}

    def to_json(self) -> str:
        """Canonical JSON, the form that `parse_distribution` reads."""
        body = {
            "rateLimitBytesPerSecond": self.rate_limit_bytes_per_second,
            "peerPort": self.peer_port,
            "sites": {site: dict(nodes) for site, nodes in self.sites.items()},
        }
        return json.dumps(body, separators=(",", ":"), sort_keys=True)


def parse_distribution(text: str | bytes) -> Distribution:
    """Read what `to_json` wrote. ValueError for anything else; unknown keys are passed over."""
    try:
        body = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(body, dict):
        raise ValueError("it is not a JSON object")
    sites = body.get("sites", {})
    if not isinstance(sites, dict) or not all(_is_text_map(nodes) for nodes in sites.values()):
        raise ValueError("sites must map each site to {node: address}")
    peer_port = _count(body, "peerPort")
    if peer_port > MAX_PORT:
        raise ValueError(f"peerPort must be at most {MAX_PORT}")
    return Distribution(
        # More than any link has is no limit, and would overflow where it is calculated with.
        rate_limit_bytes_per_second=min(_count(body, "rateLimitBytesPerSecond"), MAX_RATE),
        peer_port=peer_port,
        sites=sites,
    )


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(address, str) for address in value.values())


def _count(body: Mapping[str, Any], key: str) -> int:
    value = body.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{key} must be a whole number >= 0")
    return value
