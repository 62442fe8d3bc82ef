# SPDX-License-Identifier: Apache-2.0
"""Replicas seen as nodes, so that one planner serves both modes of placement.

A *slot* stands for one replica of a site (of everything with `replicaScope: Total`, the site being
empty). What it was given is kept in status, for there is no node to label: slots that were given the same
are one entry of `replicaCounts`. Slots have no identity beside that. At each look they are put in order,
the target's first, and take the places of their site in the order in which waves take their members:
so the replicas that have the target are those whose turn has come.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Final

from slmops.api import SLMDeploymentSpec
from slmops.api.status import ReplicaCount, ReplicaRevision
from slmops.model.observed import NodeView, PodView
from slmops.planning.finding import Finding
from slmops.planning.nodes import NodeState, choose_variant_names
from slmops.planning.residency import only_allowed
from slmops.planning.revision import Revision
from slmops.planning.selectors import matches
from slmops.planning.waves import stable_order
from slmwire.labels import Role

MAX_SITES: Final = 64
"""With three revisions a site, status holds about two hundred entries."""
MAX_REPLICAS: Final = 2000
"""Of all sites together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One replica: what it was given."""

    serve: Mapping[str, str]
    """revision -> variant; empty for one that was given nothing yet."""
    moving: str = ""
    """Rollout that took its pod away before another was ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The two revisions that decide about the order of slots."""

    target: str
    stable: str

    def rank(self, slot: Slot) -> tuple[object, ...]:
        """Sort key: the target's first, then what is neither, then the stable revision's, then empty."""
        if not slot.serve:
            place = 3
        elif self.target in slot.serve:
            place = 0
        else:
            place = 2 if set(slot.serve) == {self.stable} else 1
        return place, len(slot.serve), sorted(slot.serve.items()), slot.moving

    def sort_revisions(self, serve: Mapping[str, str]) -> list[tuple[str, str]]:
        """The revisions of a slot, the target first, the stable one last."""
        return sorted(serve.items(), key=lambda pair: (pair[0] != self.target, pair[0] == self.stable, pair))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """All slots of a look."""

    order: Order
    slots: Mapping[str, tuple[str, Slot]]
    """(site, slot) by the slot's name."""
    states: tuple[NodeState, ...]
    """The same as the planner sees them, sorted by name."""
    left_out: tuple[str, ...]
    """Matching nodes without a site."""


def unfold(counts: Iterable[ReplicaCount]) -> dict[str, list[Slot]]:
    """Slots by site."""
    result: dict[str, list[Slot]] = {}
    for entry in counts:
        serve = {other.revision: other.variant for other in entry.beside} | {entry.revision: entry.variant}
        slot = Slot(serve=serve, moving=entry.moving)
        result.setdefault(entry.site, []).extend([slot] * entry.replicas)
    return result


def fold(slots: Iterable[tuple[str, Slot]], order: Order) -> list[ReplicaCount]:
    """Entries of status for (site, slot) pairs, in a stable order; inverse of `unfold`."""
    groups = Counter(
        (site, tuple(order.sort_revisions(slot.serve)), slot.moving) for site, slot in slots if slot.serve
    )
    return [
        ReplicaCount(
            site=site,
            revision=serve[0][0],
            variant=serve[0][1],
            replicas=replicas,
            beside=[ReplicaRevision(revision=revision, variant=variant) for revision, variant in serve[1:]],
            moving=moving,
        )
        for (site, serve, moving), replicas in sorted(groups.items())
    ]


def fit(slots: Iterable[Slot], replicas: int, order: Order) -> list[Slot]:
    """As many slots as there are to be, in order.

    New ones are empty. When some have to go, the shares stay about the same: of two or more replicas one
    at least keeps to the stable revision, and one to the other where there was one; a single one keeps
    the stable revision beside the other. What goes is taken over by what stays, as in any change: a pod
    that serves does not go before the one that stays serves, too.
    """
    ordered = sorted((slot for slot in slots if slot.serve), key=order.rank)
    missing = replicas - len(ordered)
    if missing >= 0:
        return [*ordered, *[Slot(serve={})] * missing]
    stable = [slot for slot in ordered if set(slot.serve) == {order.stable}]
    others = [slot for slot in ordered if set(slot.serve) != {order.stable}]
    if order.stable == order.target:
        # Nothing is tried: what is not on the stable revision yet goes first.
        kept = _absorb([*stable, *others][:replicas], [*stable, *others][replicas:])
    elif not stable or not others:
        kept = ordered[:replicas]
    elif replicas <= 1:
        kept = _absorb(stable[:replicas], others)
    else:
        share = (2 * len(others) * replicas + len(ordered)) // (2 * len(ordered))
        share = min(max(share, 1), replicas - 1)
        # Not the other way round: a stable replica that was given the target would be a canary.
        kept = [
            *_absorb(others[:share], stable[replicas - share :]),
            *stable[: replicas - share],
        ]
    return sorted(kept, key=order.rank)


def _absorb(kept: Sequence[Slot], removed: Sequence[Slot]) -> list[Slot]:
    """The slots that stay, each with what one of those that go has, too."""
    pairs = zip_longest(kept, removed[: len(kept)])
    return [
        replace(slot, serve={**other.serve, **slot.serve}) if other is not None else slot
        for slot, other in pairs
    ]


def sites_of(
    spec: SLMDeploymentSpec, nodes: Iterable[NodeView]
) -> tuple[dict[str, list[NodeView]], tuple[str, ...]]:
    """Matching nodes by site, and the names of those without one. The site of a total is empty. Nodes at
    sites that spec does not allow are in neither."""
    placement = spec.placement
    matching = [n for n in nodes if not n.deleting and matches(placement.node_selector, n.labels)]
    matching = list(only_allowed(spec, matching))
    if placement.replica_scope == "Total":
        return {"": matching}, ()
    sites: dict[str, list[NodeView]] = {}
    left_out = []
    for node in matching:
        site = node.labels.get(placement.site_label)
        if site:
            sites.setdefault(site, []).append(node)
        else:
            left_out.append(node.name)
    return sites, tuple(sorted(left_out))


def find_site_problem(spec: SLMDeploymentSpec | None, nodes: Iterable[NodeView]) -> Finding | None:
    """More sites or replicas than one SLMDeployment keeps account of."""
    if spec is None or spec.placement.mode != "Replicas":
        return None
    sites = len(sites_of(spec, nodes)[0])
    if sites > MAX_SITES:
        return Finding(
            reason="InvalidSpec",
            message=f"spec.placement.nodeSelector: it matches {sites} sites, at most {MAX_SITES} are "
            "possible with replicaScope PerSite; narrow it and make several SLMDeployments, or use mode "
            "PerNode",
        )
    if sites * spec.placement.replicas > MAX_REPLICAS:
        return Finding(
            reason="InvalidSpec",
            message=f"spec.placement.replicas: {spec.placement.replicas} at each of {sites} sites are more "
            f"than {MAX_REPLICAS} in all; use fewer",
        )
    return None


def lay_out(
    spec: SLMDeploymentSpec,
    *,
    counts: Sequence[ReplicaCount],
    nodes: Sequence[NodeView],
    pods: Iterable[PodView],
    revisions: Mapping[str, Revision],
    order: Order,
    key: str,
) -> Layout | None:
    """The slots of this look; None with mode PerNode.

    `key` seeds the order of places, as it does that of nodes in waves. A site without a node is given
    up; that there is no node at all is no reason to give up every site.
    """
    if spec.placement.mode != "Replicas":
        return None
    given = unfold(counts)
    sites, left_out = sites_of(spec, nodes)
    if not nodes:
        sites |= {site: [] for site in given}
    by_site: dict[str, list[PodView]] = {}
    for pod in pods:
        if pod.role is Role.SERVE and not pod.ended:
            by_site.setdefault(pod.site, []).append(pod)
    slots: dict[str, tuple[str, Slot]] = {}
    states: list[NodeState] = []
    for site, hosts in sites.items():
        placed = fit(given.get(site, ()), spec.placement.replicas, order)
        suits = choose_variant_names(revisions.values(), hosts)
        dealt = deal(placed, by_site.get(site, ()))
        labels = {spec.placement.site_label: site} if site else {}
        names = sorted(_names(site, len(placed)), key=lambda name: stable_order(key, name))
        for name, slot, mine in zip(names, placed, dealt, strict=True):
            slots[name] = (site, slot)
            states.append(
                NodeState(
                    node=NodeView(name=name, labels=labels, ready=True),
                    matched=True,
                    serve=slot.serve,
                    prefetch={},
                    release=False,
                    moving=slot.moving,
                    pods=mine,
                    suits=suits,
                )
            )
    states.sort(key=lambda state: state.name)
    return Layout(order=order, slots=slots, states=tuple(states), left_out=left_out)


def _names(site: str, replicas: int) -> list[str]:
    prefix = f"{site}/" if site else ""  # no label value has a slash
    return [f"{prefix}replica-{index}" for index in range(replicas)]


def deal(slots: Sequence[Slot], pods: Iterable[PodView]) -> list[tuple[PodView, ...]]:
    """Give each slot a pod of every revision that it has, as far as there are any.

    Ready pods go first to the slots that have nothing else: what one revision lacks is then lacking where
    another one is beside it. A pod on its way out goes to a slot whose pod waits for room.
    """
    by_pair: dict[tuple[str, str], list[PodView]] = {}
    leaving = []
    for pod in sorted(pods, key=lambda pod: (not pod.ready, pod.name)):
        if pod.deleting:
            leaving.append(pod)
        else:
            by_pair.setdefault((pod.revision, pod.variant), []).append(pod)
    places = sorted(range(len(slots)), key=lambda i: (len(slots[i].serve), bool(slots[i].moving), i))
    result: list[list[PodView]] = [[] for _ in slots]
    for pair, found in by_pair.items():
        takers = [i for i in places if slots[i].serve.get(pair[0]) == pair[1]]
        for i, pod in zip(takers, found, strict=False):
            result[i].append(pod)
    waiting = [mine for mine in result if any(pod.unschedulable for pod in mine)]
    for mine, pod in zip(waiting, leaving, strict=False):
        mine.append(pod)
    return [tuple(mine) for mine in result]
