# SPDX-License-Identifier: Apache-2.0
"""Settings of the NetworkPolicies of SLMDeployments: peers as JSON, as the chart writes them."""

import json
from collections.abc import Callable
from typing import Any, Final, Literal, cast

from slmops.model.config import ANY_PROMETHEUS, CLUSTER_DNS, NetworkConfig, Peer

_PEER_KEYS: Final = (
    {"namespaceSelector"}, {"podSelector"}, {"namespaceSelector", "podSelector"}, {"ipBlock"},
)  # fmt: skip


def read_network(text: Callable[[str], str], *, namespace: str) -> NetworkConfig:
    """From the environment, which `text` reads ("" for unset); `namespace` is the operator's. ValueError with
    a message that names the variable and the cure."""
    return NetworkConfig(
        default_mode=cast(
            Literal["Managed", "None"],
            _choice("SLMOPS_NETWORK_POLICY", text("SLMOPS_NETWORK_POLICY"), ("Managed", "None")),
        ),
        default_clients=cast(
            Literal["Any", "Namespace"],
            _choice("SLMOPS_CLIENTS", text("SLMOPS_CLIENTS"), ("Any", "Namespace")),
        ),
        operator_namespace=namespace,
        metrics_from=_peers("SLMOPS_METRICS_FROM", text("SLMOPS_METRICS_FROM"), ANY_PROMETHEUS),
        dns_to=_peers("SLMOPS_DNS_TO", text("SLMOPS_DNS_TO"), CLUSTER_DNS),
    )


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """The value; the first of the choices when there is none."""
    if value and value not in choices:
        raise ValueError(f"{name}={value}: must be one of {', '.join(choices)}")
    return value or choices[0]


def _peers(name: str, value: str, default: tuple[Peer, ...]) -> tuple[Peer, ...]:
    if not value:
        return default
    try:
        peers: Any = json.loads(value)
    except ValueError as error:
        raise ValueError(f"{name}: must be a JSON list of peers as in a NetworkPolicy ({error})") from error
    if not isinstance(peers, list) or not all(isinstance(p, dict) and set(p) in _PEER_KEYS for p in peers):
        raise ValueError(
            f"{name}: must be a list of peers as in a NetworkPolicy, each with namespaceSelector and "
            "podSelector, one of them, or ipBlock"
        )
    return tuple(peers)
