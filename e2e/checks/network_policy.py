# SPDX-License-Identifier: Apache-2.0
"""What NetworkPolicies let through, by the rules of networking.k8s.io/v1.

A pod that no policy selects for a direction is open in it. One that some do select may do what any of them
allows. A connection needs the leave of both ends. An ipBlock counts for pods as well, as it does with most
network plugins.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Policy = Mapping[str, Any]
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One end of a connection: a pod, or with no namespace an address outside of the pods' network."""

    address: str
    namespace: str = ""
    labels: Labels = field(default_factory=dict)
    namespace_labels: Labels = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    """Named ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Who opens a connection to whom."""

    source: Endpoint
    target: Endpoint
    port: int
    protocol: Literal["TCP", "UDP"] = "TCP"


_SIDES: Final = {"Egress": "to", "Ingress": "from"}


def is_allowed(connection: Connection, policies: Iterable[Policy]) -> bool:
    """Whether the policies let a connection through; each names its namespace in its metadata."""
    known = list(policies)
    return _may(connection, known, "Egress") and _may(connection, known, "Ingress")


def _may(connection: Connection, policies: list[Policy], direction: str) -> bool:
    own, other = connection.source, connection.target
    if direction == "Ingress":
        own, other = other, own
    selected = [policy["spec"] for policy in policies if _selects(policy, own, direction)]
    if not selected:
        return True
    return any(
        _names_port(rule, connection) and _names_peer(rule, other, own, direction)
        for spec in selected
        for rule in spec.get(direction.lower()) or ()
    )


def _selects(policy: Policy, pod: Endpoint, direction: str) -> bool:
    spec = policy["spec"]
    types = spec.get("policyTypes") or (["Ingress", "Egress"] if "egress" in spec else ["Ingress"])
    return (
        direction in types
        and policy["metadata"]["namespace"] == pod.namespace
        and matches(spec["podSelector"], pod.labels)
    )


def _names_port(rule: Mapping[str, Any], connection: Connection) -> bool:
    ports = rule.get("ports")
    if not ports:
        return True
    for entry in ports:
        port = entry.get("port")
        first = connection.target.ports.get(port, -1) if isinstance(port, str) else port
        last = entry.get("endPort", first)
        if entry.get("protocol", "TCP") == connection.protocol and (
            first is None or first <= connection.port <= last
        ):
            return True
    return False


def _names_peer(rule: Mapping[str, Any], other: Endpoint, own: Endpoint, direction: str) -> bool:
    peers = rule.get(_SIDES[direction])
    if not peers:
        return True
    return any(_is_peer(peer, other, own) for peer in peers)


def _is_peer(peer: Mapping[str, Any], other: Endpoint, own: Endpoint) -> bool:
    if "ipBlock" in peer:
        block, address = peer["ipBlock"], ipaddress.ip_address(other.address)
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(part) for part in block.get("except", ())
        )
    if not other.namespace:
        return False
    if "namespaceSelector" in peer:
        near = matches(peer["namespaceSelector"], other.namespace_labels)
    else:
        near = other.namespace == own.namespace
    return near and matches(peer.get("podSelector") or {}, other.labels)


def matches(selector: Mapping[str, Any], labels: Labels) -> bool:
    """Whether a label selector takes these labels; an empty one takes all."""
    exact = all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())
    return exact and all(_holds(term, labels) for term in selector.get("matchExpressions") or ())


def _holds(term: Mapping[str, Any], labels: Labels) -> bool:
    key, values = term["key"], term.get("values", ())
    match term["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case unknown:
            raise ValueError(f"a selector has no operator {unknown}")
