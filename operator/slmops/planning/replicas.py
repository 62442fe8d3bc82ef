# SPDX-License-Identifier: Apache-2.0
"""From moved slots back to what is written: the counts in status and a Deployment for each of them.

Each (revision, variant, site) has a Deployment whose template never changes; only its number of replicas
does. That number follows from the status that is written before it, so a kill in between loses nothing,
and whoever scales a Deployment by hand is corrected.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmops.api.status import ReplicaCount
from slmops.model.observed import Observed, OwnedKind, OwnedView, PodView
from slmops.model.plan import ApplyObject, PatchNodeLabels
from slmops.planning import build
from slmops.planning.decision import ACTIVE, Decision
from slmops.planning.fleet import Fleet
from slmops.planning.names import Names
from slmops.planning.nodes import NodeState
from slmops.planning.objects import Needs
from slmops.planning.revision import Revision, RevisionVariant
from slmops.planning.scheduling import Body, label_in, require_nodes
from slmops.planning.slots import Layout, Slot, fold
from slmwire.labels import SITE, Role

Workload = tuple[str, str, str]
"""(site, revision, variant)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPlan:
    """What follows from the moves of this look."""

    counts: list[ReplicaCount]
    needs: Needs
    writes: tuple[ApplyObject, ...]
    """Those that add replicas before those that take some away."""


def plan_replicas(
    names: Names,
    fleet: Fleet,
    layout: Layout,
    patches: Sequence[PatchNodeLabels],
    decision: Decision,
    owned: Iterable[OwnedView],
) -> ReplicaPlan:
    """Counts and writes after `patches` of slots; patches that a pause forbids are left out."""
    empty = {state.name for state in fleet.states if not state.serve}
    if decision.paused:
        # What serves is left alone, but more replicas of it may be asked for at any time.
        patches = [p for p in patches if p.node in empty and decision.stable_revision]
    slots = _moved(names, layout, patches)
    replicas = count_replicas(slots)
    owned = tuple(owned)
    replicas |= _last_stable(names, fleet, layout, decision, replicas, owned)
    return ReplicaPlan(
        counts=fold(slots, layout.order),
        needs=Needs(
            serve=frozenset((revision, variant) for _, revision, variant in replicas),
            prefetch=frozenset(),
            deployments=frozenset(names.replica_workload(r, v, site) for site, r, v in replicas),
        ),
        writes=_writes(names, fleet, replicas, owned),
    )


def _moved(names: Names, layout: Layout, patches: Iterable[PatchNodeLabels]) -> list[tuple[str, Slot]]:
    """(site, slot) pairs after the patches."""
    slots = dict(layout.slots)
    for patch in patches:
        site, slot = slots[patch.node]
        serve, moving = dict(slot.serve), slot.moving
        for key, value in patch.labels.items():
            if key == names.moving_label:
                moving = value or ""
            elif value is None:
                serve.pop(key.removeprefix(names.label_prefix), None)
            else:
                serve[key.removeprefix(names.label_prefix)] = value
        slots[patch.node] = (site, Slot(serve=serve, moving=moving))
    return list(slots.values())


def count_replicas(slots: Iterable[tuple[str, Slot]]) -> dict[Workload, int]:
    """Replicas of each Deployment."""
    return dict(
        Counter((site, revision, variant) for site, slot in slots for revision, variant in slot.serve.items())
    )


def _last_stable(
    names: Names,
    fleet: Fleet,
    layout: Layout,
    decision: Decision,
    replicas: Mapping[Workload, int],
    owned: Iterable[OwnedView],
) -> dict[Workload, int]:
    """One stable replica of each site that stays beside the others until the rollout has ended.

    So a site is not without a pod that is known to be good while its last ones are judged, not even with
    one replica. It gives way where the new revision serves already and finds no room for another pod.
    """
    rollout, stable = decision.rollout, fleet.stable
    if rollout is None or stable is None or rollout.revision == stable.revision:
        return {}
    if rollout.step not in ACTIVE | {"RollingBack"} or fleet.spec.rollout.strategy != "Waves":
        return {}
    present = {view.name for view in owned if view.kind is OwnedKind.DEPLOYMENT and not view.deleting}
    served = {site for site, revision, _ in replicas if revision == stable.revision}
    result: dict[Workload, int] = {}
    for site, states in _by_site(fleet, layout).items():
        if site in served or _lacks_room(states, rollout.revision):
            continue
        for variant in stable.variants:
            if names.replica_workload(stable.revision, variant.name, site) in present:
                result[site, stable.revision, variant.name] = 1
                break
    return result


def _by_site(fleet: Fleet, layout: Layout) -> dict[str, list[NodeState]]:
    result: dict[str, list[NodeState]] = {}
    for state in fleet.states:
        result.setdefault(layout.slots[state.name][0], []).append(state)
    return result


def _lacks_room(states: Sequence[NodeState], revision: str) -> bool:
    problems = [state.serve_problem(revision) for state in states]
    stuck = any(problem is not None and problem.reason == "Unschedulable" for problem in problems)
    return stuck and any(state.serves(revision) for state in states)


def _writes(
    names: Names, fleet: Fleet, replicas: Mapping[Workload, int], owned: Iterable[OwnedView]
) -> tuple[ApplyObject, ...]:
    present = {(view.kind, view.name): view for view in owned}
    maps: dict[str, ApplyObject] = {}
    more: list[ApplyObject] = []
    fewer: list[ApplyObject] = []
    for (site, revision_name, variant_name), number in sorted(replicas.items()):
        revision = fleet.revisions.get(revision_name)
        variant = revision.variant(variant_name) if revision else None
        if revision is None or variant is None:
            continue  # its record is gone; what runs of it is left as it is until others serve
        config = names.workload(revision_name, variant_name)
        if (OwnedKind.CONFIG_MAP, config) not in present:
            body = build.build_config_map(names, revision, variant)
            maps[config] = ApplyObject(kind=OwnedKind.CONFIG_MAP, name=config, body=body, why="missing")
        name = names.replica_workload(revision_name, variant_name, site)
        view = present.get((OwnedKind.DEPLOYMENT, name))
        before = view.replicas if view is not None else 0
        if view is None:
            why = "missing"
        elif before != number:
            why = f"from {before} to {number} replicas"
        elif view.drifted:
            why = "changed by somebody else"
        else:
            continue
        body = build_deployment(
            names, revision, variant, site=site, site_label=fleet.spec.placement.site_label, replicas=number
        )
        group = fewer if (before or 0) > number else more
        group.append(ApplyObject(kind=OwnedKind.DEPLOYMENT, name=name, body=body, why=why))
    return (*maps.values(), *more, *fewer)


def build_deployment(
    names: Names,
    revision: Revision,
    variant: RevisionVariant,
    *,
    site: str,
    site_label: str,
    replicas: int,
) -> Body:
    """Deployment of one variant of one revision, bound to the nodes of a site unless `site` is empty."""
    template = variant.serve_template
    marks = {**template["metadata"]["labels"], **({SITE: site} if site else {})}
    pod_spec = require_nodes(dict(template["spec"]), [label_in(site_label, site)] if site else [])
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": names.replica_workload(revision.revision, variant.name, site),
            "namespace": names.namespace,
            "labels": marks,
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": marks},
            # The template never changes. Should somebody change it, nothing that serves goes before it is
            # put right.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "revisionHistoryLimit": 0,
            "paused": False,
            "template": {"metadata": {**template["metadata"], "labels": marks}, "spec": pod_spec},
        },
    }


def status_fields(observed: Observed, replicas: ReplicaPlan | None) -> dict[str, Any]:
    """Fields of status that only mode Replicas has; empty with mode PerNode."""
    if replicas is None:
        return {}
    names = Names(observed.deployment.namespace, observed.deployment.name)
    selector = build.object_labels(names, role=Role.SERVE)
    return {
        "replicas": sum(1 for pod in observed.pods if _is_serving_pod(pod)),
        "selector": ",".join(f"{key}={value}" for key, value in sorted(selector.items())),
        "replica_counts": replicas.counts,
    }


def _is_serving_pod(pod: PodView) -> bool:
    return pod.role is Role.SERVE and not pod.deleting and not pod.ended
