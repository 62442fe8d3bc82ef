# SPDX-License-Identifier: Apache-2.0
"""What NetworkPolicies let pods reach and be reached by, read off their rules.

Only `networking.k8s.io/v1` is looked at. Whether the network plugin enforces it, and what policies of a
plugin's own kind say besides, cannot be seen here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Literal

from pydantic import ValidationError

from slmcli.safe import clean_tree
from slmcli.view import Body
from slmops.api.base import LabelSelector
from slmops.planning.selectors import matches
from slmwire.labels import MANAGED_BY, MANAGED_BY_VALUE

Direction = Literal["Egress", "Ingress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """One direction of the traffic of some pods. Without a policy everything is allowed."""

    policies: tuple[str, ...]
    """Names of the policies that select the pods for this direction."""
    allowed: tuple[str, ...]
    """What their rules let through, in words."""
    anywhere: tuple[str, ...]
    """Those of `allowed` that name no peer, or every address."""
    not_understood: tuple[str, ...] = ()
    """Names of policies whose selector this program does not know; they may select the pods, too."""

    @property
    def is_restricted(self) -> bool:
        """Whether some policy selects the pods."""
        return bool(self.policies)

    def describe(self, direction: Direction) -> str:
        """One sentence."""
        if not self.policies:
            way = "leave" if direction == "Egress" else "come in"
            return f"no policy: everything may {way}"
        word = direction.lower()
        return f"{word} denied" + (f" except {'; '.join(self.allowed)}" if self.allowed else "")


def managed_names(bodies: Iterable[Body]) -> frozenset[str]:
    """Names of the policies that the operator keeps; the mark is its label."""
    found = (clean_tree(dict(raw))["metadata"] for raw in bodies)
    return frozenset(
        str(metadata["name"])
        for metadata in found
        if (metadata.get("labels") or {}).get(MANAGED_BY) == MANAGED_BY_VALUE
    )


def assess_reach(bodies: Iterable[Body], labels: Mapping[str, str], direction: Direction) -> Reach:
    """What a pod with these labels may do; rules of all policies that select it add up."""
    names: list[str] = []
    strange: list[str] = []
    allowed: dict[str, None] = {}
    anywhere: dict[str, None] = {}
    for raw in bodies:
        body = clean_tree(dict(raw))
        spec, name = body.get("spec") or {}, str(body["metadata"]["name"])
        if direction not in _types(spec):
            continue
        try:
            if not matches(LabelSelector.model_validate(spec.get("podSelector") or {}), labels):
                continue
        except ValidationError:
            strange.append(name)
            continue
        names.append(name)
        for rule in spec.get(direction.lower()) or ():
            for text, is_anywhere in _describe_rule(rule or {}, direction):
                allowed[text] = None
                if is_anywhere:
                    anywhere[text] = None
    return Reach(
        policies=tuple(sorted(names)),
        allowed=tuple(allowed),
        anywhere=tuple(anywhere),
        not_understood=tuple(sorted(strange)),
    )


def _types(spec: Mapping[str, Any]) -> tuple[str, ...]:
    # Where nothing is said, Ingress always counts, and Egress when there are such rules.
    return tuple(spec.get("policyTypes") or ("Ingress", *(["Egress"] if spec.get("egress") else [])))


def _describe_rule(rule: Mapping[str, Any], direction: Direction) -> Iterable[tuple[str, bool]]:
    ports = _ports(rule.get("ports") or ())
    peers = rule.get("to" if direction == "Egress" else "from") or ()
    if not peers:
        yield f"anything{ports}", True
    for peer in peers:
        text, is_anywhere = _peer(peer or {})
        yield text + ports, is_anywhere


def _peer(peer: Mapping[str, Any]) -> tuple[str, bool]:
    block = peer.get("ipBlock")
    if block is not None:
        cidr = str(block.get("cidr", ""))
        but = ", ".join(str(entry) for entry in block.get("except") or ())
        return f"{cidr} without {but}" if but else cidr, _is_everything(cidr)
    pods = _selector(peer.get("podSelector"), "pods")
    if peer.get("namespaceSelector") is None:
        return f"{pods} of this namespace", False
    return f"{pods} in {_selector(peer['namespaceSelector'], 'namespaces')}", False


def _is_everything(cidr: str) -> bool:
    try:
        return ip_network(cidr, strict=False).prefixlen == 0
    except ValueError:
        return False


def _selector(selector: Mapping[str, Any] | None, what: str) -> str:
    parts = [f"{key}={value}" for key, value in ((selector or {}).get("matchLabels") or {}).items()]
    for entry in (selector or {}).get("matchExpressions") or ():
        values = ", ".join(map(str, entry.get("values") or ()))
        parts.append(f"{entry.get('key')} {entry.get('operator')}{f' ({values})' if values else ''}")
    return f"{what} {' and '.join(parts)}" if parts else f"all {what}"


def _ports(ports: Iterable[Mapping[str, Any]]) -> str:
    texts = []
    for entry in ports:
        port, end = entry.get("port"), entry.get("endPort")
        texts.append(
            f"{entry.get('protocol') or 'TCP'} {'*' if port is None else port}{f'-{end}' if end else ''}"
        )
    return f" on {', '.join(texts)}" if texts else ""
