# SPDX-License-Identifier: Apache-2.0
"""The virtual nodes: made from groups, or from a number of nodes and what the spec selects."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Final

from slmcli.simulate.links import Link
from slmcli.simulate.settings import Group
from slmops.api import SLMDeploymentSpec
from slmops.api.base import LabelSelector
from slmops.model.observed import NodeView, PodView
from slmwire.labels import Role

_MBIT_BYTES: Final = 1e6 / 8
PILOT_PERCENT: Final = 1
"""Share of a uniform fleet that gets the labels of each wave with a nodeSelector."""


class Pod:
    """A pod of a DaemonSet, as its kubelet knows it."""

    __slots__ = (
        "created_at", "deleting", "download", "gone", "memory_bytes", "name", "phase", "restarts", "revision",
        "role", "scheduled", "stamp", "variant",
    )  # fmt: skip

    def __init__(
        self, *, name: str, revision: str, variant: str, role: Role, memory_bytes: int, now: float
    ) -> None:
        self.name = name
        self.revision = revision
        self.variant = variant
        self.role = role
        self.memory_bytes = memory_bytes
        self.created_at = now
        self.scheduled = False
        self.phase = "Pending"
        """Pending, Fetching, Starting, Ready or Broken."""
        self.restarts = 0
        self.deleting = False
        self.gone = False
        self.download: int | None = None
        self.stamp = 0
        """Grows with each phase: an event of an earlier one is void."""

    def view(self, node: str, *, online: bool) -> PodView:
        """As the API server shows it; an offline node's pods are not ready there."""
        return PodView(
            name=self.name,
            node=node,
            revision=self.revision,
            variant=self.variant,
            role=self.role,
            ready=online and self.phase == "Ready",
            created_at=self.created_at,
            restarts=self.restarts,
            waiting_reason="CrashLoopBackOff" if self.phase == "Broken" and self.restarts >= 2 else "",
            last_exit_reason="Error" if self.restarts else "",
            last_exit_code=1 if self.restarts else 0,
            unschedulable=not self.scheduled,
            deleting=self.deleting,
        )


class Node:
    """A node with its kubelet, its cache and its link."""

    __slots__ = (
        "cache", "counted", "crashes", "exposed", "group", "index", "labels", "link", "name", "online",
        "partial", "pod_views", "pods", "pods_made", "ready_since", "site", "used_bytes", "view",
    )  # fmt: skip

    def __init__(self, *, index: int, name: str, site: str, group: Group, link: Link) -> None:
        self.index = index
        self.name = name
        self.site = site
        self.group = group
        self.link = link
        self.labels: dict[str, str] = dict(group.labels)
        self.online = True
        self.ready_since = 0.0
        self.crashes = False
        """The new version does not come up here."""
        self.cache: set[tuple[str, str]] = set()
        """(revision, variant) whose files are there."""
        self.partial: dict[tuple[str, str], float] = {}
        """Bytes that are left of downloads that were cut off."""
        self.pods: list[Pod] = []
        self.pods_made = 0
        self.used_bytes = 0
        self.counted: tuple[tuple[str, str], ...] = ()
        """(revision, variant) of what serves now, as counted."""
        self.exposed: int | None = None
        """Wave in which the node came to run the new version; None while it does not."""
        self.view = NodeView(name=name, labels={}, ready=True)
        self.pod_views: tuple[PodView, ...] = ()

    def show_node(self) -> None:
        """Renew what the API server shows of the node."""
        self.view = NodeView(
            name=self.name,
            labels=dict(self.labels),
            ready=self.online,
            ready_since=self.ready_since,
            allocatable_memory_bytes=self.group.memory_bytes,
        )

    def show_pods(self) -> None:
        """Renew what the API server shows of the node's pods."""
        self.pod_views = tuple(pod.view(self.name, online=self.online) for pod in self.pods)


def build_nodes(groups: Sequence[Group], *, site_label: str) -> list[Node]:
    """All nodes of the groups, in order; those of a site share its link."""
    nodes: list[Node] = []
    for group in groups:
        links = [Link(group.link_mbps * _MBIT_BYTES) for _ in range(group.sites)]
        for number in range(group.count):
            name = f"{group.name}-{number:06}"
            site = f"{group.name}-site-{number % group.sites}" if group.sites else name
            link = links[number % group.sites] if group.sites else Link(group.link_mbps * _MBIT_BYTES)
            node = Node(index=len(nodes), name=name, site=site, group=group, link=link)
            if group.sites:
                node.labels.setdefault(site_label, site)
            nodes.append(node)
    return nodes


def uniform_groups(spec: SLMDeploymentSpec, base: Group) -> tuple[Group, ...]:
    """`base.count` nodes with labels that placement, variants and waves select, alike otherwise.

    The variants get equal shares, and each wave with a nodeSelector a hundredth, at least one node.
    """
    placement = labels_for(spec.placement.node_selector)
    pilots = [labels_for(w.node_selector) for w in spec.rollout.waves if w.node_selector is not None]
    rooms = base.count
    shares: list[tuple[int, dict[str, str]]] = []
    for pilot in pilots:
        size = min(rooms, max(1, base.count * PILOT_PERCENT // 100))
        shares.append((size, pilot))
        rooms -= size
    shares.append((rooms, {}))
    variants = [labels_for(variant.node_selector) for variant in spec.variants]
    groups = []
    for index, (size, extra) in enumerate(shares):
        for number, chosen in enumerate(variants):
            count = size // len(variants) + (number < size % len(variants))
            if count:
                labels = {**placement, **chosen, **extra}
                # A site has nodes of all kinds: they are told apart below, by the name alone.
                name = f"{base.name}-{index}-{spec.variants[number].name}" if len(shares) > 1 or number else (
                    base.name
                )  # fmt: skip
                groups.append(replace(base, name=name, count=count, labels=labels, sites=_sites(base, count)))
    return tuple(groups)


def _sites(base: Group, count: int) -> int:
    return 0 if base.sites == 0 else max(1, min(count, round(base.sites * count / base.count)))


def labels_for(selector: LabelSelector) -> dict[str, str]:
    """Labels that the selector matches, as far as there are any."""
    labels = dict(selector.match_labels)
    for requirement in selector.match_expressions:
        if requirement.operator == "In" and requirement.values:
            labels.setdefault(requirement.key, requirement.values[0])
        elif requirement.operator == "Exists":
            labels.setdefault(requirement.key, "true")
    return labels


def draw_nodes(nodes: Sequence[Node], random: Random, *, crash_percent: float) -> None:
    """Which nodes are offline at the start, and on which the new version does not come up."""
    for node in nodes:
        node.online = not (node.group.offline_percent and random.random() * 100 < node.group.offline_percent)
        node.crashes = bool(crash_percent) and random.random() * 100 < crash_percent


def sizes_by_site(nodes: Sequence[Node], now: float) -> Mapping[str, float]:
    """Bytes that each site's link has carried by `now`."""
    links: dict[str, Link] = {node.site: node.link for node in nodes}
    for link in links.values():
        link.advance(now)
    return {site: link.bytes_carried for site, link in links.items()}
