# SPDX-License-Identifier: Apache-2.0
"""What brings the decided revisions to the nodes: policies, workloads, labels, and what is deleted."""

from dataclasses import dataclass

from slmops.model.observed import Observed
from slmops.model.plan import Action
from slmops.planning import feedback
from slmops.planning.decision import ACTIVE, Decision
from slmops.planning.distribution import hosts_of
from slmops.planning.fleet import Fleet
from slmops.planning.moves import count_moving, find_unsettled, limits_of
from slmops.planning.names import Names
from slmops.planning.network import apply_policies, policy_names
from slmops.planning.objects import (
    apply_workloads,
    delete_unneeded,
    needs_of,
    revisions_to_keep,
)
from slmops.planning.placement import cause_of, find_wishes, place_nodes
from slmops.planning.places import Places
from slmops.planning.replicas import ReplicaPlan, plan_replicas
from slmops.planning.slots import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What brings the decided revisions to the nodes."""

    policies: tuple[Action, ...]
    workloads: tuple[Action, ...]
    patches: tuple[Action, ...]
    deletions: tuple[Action, ...]
    moving: int
    replicas: ReplicaPlan | None
    settles_in_seconds: float | None
    """When the first of the nodes that came back a moment ago may be moved."""
    places: Places


def place_revisions(
    names: Names,
    fleet: Fleet,
    layout: Layout | None,
    decision: Decision,
    observed: Observed,
    *,
    wanted: str,
    target: str,
    now: float,
) -> Placed:
    """All that is written in this look but the Service. `wanted` is the revision that spec stands for,
    `target` the one that is to be rolled out."""
    spec, rollout = fleet.spec, decision.rollout
    wishes = find_wishes(fleet, decision)
    back = rollout is not None and rollout.step in ("RollingBack", "Failed", "Cancelled")
    limits = limits_of(fleet, back=back)
    settle_seconds = observed.config.node_settle_seconds
    unsettled = find_unsettled(fleet, wishes, now=now, settle_seconds=settle_seconds)
    patches, places = place_nodes(
        names,
        fleet,
        wishes,
        decision,
        key=observed.deployment.uid,
        cause=cause_of(rollout),
        limits=limits,
        unsettled=unsettled.keys(),
        settle_seconds=settle_seconds,
        now=now,
    )
    replicas = plan_replicas(names, fleet, layout, patches, decision, observed.owned) if layout else None
    if replicas:
        needs, workloads, patches = replicas.needs, replicas.writes, ()
    else:
        prefetching = rollout.revision if rollout is not None and rollout.step in ACTIVE else ""
        needs = needs_of(names, fleet, wishes, patches, prefetching=prefetching)
        workloads = apply_workloads(names, fleet, needs, observed.owned)
    needed = needs.revisions | {r for r in (decision.stable_revision, target, wanted) if r}
    keep = revisions_to_keep(
        fleet.revisions.values(),
        needed=needed,
        previous=feedback.previous_stable(observed.deployment.status, decision.stable_revision) or "",
        history_limit=spec.revision_history_limit,
    )
    policies = apply_policies(
        names,
        spec,
        observed.config,
        revisions=[fleet.revisions[r] for r in sorted(needed & fleet.revisions.keys())],
        nodes=hosts_of(fleet, observed),
        owned=observed.owned,
    )
    # That there is no node at all is no reason to take every workload down.
    any_node = bool(observed.nodes) or observed.other_nodes
    deletions = delete_unneeded(
        names,
        needs,
        observed.owned,
        keep_revisions=keep,
        policies=policy_names(names, spec, observed.config, job_pods=observed.job_pods),
    )
    return Placed(
        policies=policies,
        workloads=workloads,
        patches=patches,
        deletions=deletions if any_node else (),
        moving=count_moving(fleet, wishes),
        replicas=replicas,
        settles_in_seconds=min(unsettled.values(), default=None),
        places=places,
    )
