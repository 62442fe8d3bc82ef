# SPDX-License-Identifier: Apache-2.0
"""Data residency: which nodes lie at a site that the spec allows."""

from collections.abc import Iterable, Mapping
from typing import Final

from slmops.api import SLMDeploymentSpec
from slmops.model.observed import NodeView
from slmops.planning.selectors import matches

SITE_NOT_ALLOWED: Final = "SiteNotAllowed"
MAX_SHOWN: Final = 5


def is_site_allowed(spec: SLMDeploymentSpec, labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels may run the model; without a site none may where sites are named."""
    privacy = spec.privacy
    return privacy.allowed_sites is None or labels.get(spec.placement.site_label, "") in privacy.site_set


def only_allowed(spec: SLMDeploymentSpec, nodes: Iterable[NodeView]) -> tuple[NodeView, ...]:
    """The nodes at allowed sites."""
    return tuple(node for node in nodes if is_site_allowed(spec, node.labels))


def find_forbidden(spec: SLMDeploymentSpec, nodes: Iterable[NodeView]) -> dict[str, str]:
    """Nodes that placement selects at a site that is not allowed, by name, each with what to say of it."""
    if spec.privacy.allowed_sites is None:
        return {}
    why = _describe_allowed(spec)
    return {
        node.name: _describe_node(spec, node, why)
        for node in nodes
        if not node.deleting
        and matches(spec.placement.node_selector, node.labels)
        and not is_site_allowed(spec, node.labels)
    }


def describe_forbidden(spec: SLMDeploymentSpec, node: NodeView) -> str:
    """Why the node gets no pod, and the cure."""
    return _describe_node(spec, node, _describe_allowed(spec))


def _describe_allowed(spec: SLMDeploymentSpec) -> str:
    """Which sites are allowed, some of them by name."""
    allowed = sorted(spec.privacy.allowed_sites or ())
    shown = ", ".join(allowed[:MAX_SHOWN])
    more = f" and {len(allowed) - MAX_SHOWN} more" if len(allowed) > MAX_SHOWN else ""
    return f"spec.privacy.allowedSites has {len(allowed)} site(s): {shown}{more}"


def _describe_node(spec: SLMDeploymentSpec, node: NodeView, allowed: str) -> str:
    label = spec.placement.site_label
    site = node.labels.get(label)
    where = f"the node's site ({label}) is {site}" if site else f"the node has no label {label}"
    return f"{where}, and {allowed}; no pod runs on it"
