# SPDX-License-Identifier: Apache-2.0
"""What happens when an SLMDeployment is deleted: labels, workloads and (by policy) caches go."""

from slmops.api import SLMDeploymentSpec
from slmops.api.status import ConditionType
from slmops.model.jobs import DeleteJob
from slmops.model.observed import Observed, OwnedKind
from slmops.model.plan import (
    Action,
    ApplyObject,
    DeleteObject,
    PatchNodeLabels,
    Plan,
    RemoveFinalizer,
    Transition,
)
from slmops.planning import build
from slmops.planning.conditions import Says, with_condition_only
from slmops.planning.names import Names
from slmops.planning.nodes import NodeState, read_nodes
from slmops.planning.validate import is_host_path_allowed
from slmwire.labels import Role

RETRY_SECONDS = 5.0


def plan_deletion(observed: Observed, now: float) -> Plan:
    """Take the labels off all nodes; where caches are to go, let each reachable node drop them first.

    An offline node cannot drop its cache: its labels go, its pods end when it returns, and its store
    stays until another fetch on that node collects what nobody pins. When the whole namespace goes,
    no pod can be made that would drop caches: they stay, and the namespace is not held up for them.

    Trainings end first: what one keeps after its node has dropped the cache would stay there for nobody.
    """
    deployment = observed.deployment
    if not deployment.has_finalizer:
        return Plan(status=deployment.status)
    names = Names(deployment.namespace, deployment.name)
    spec = deployment.spec
    if spec is None:
        states: tuple[NodeState, ...] = ()
        actions: list[Action] = [*_end_trainings(observed), *_forget_labels(names, observed)]
        if not actions:
            actions.append(RemoveFinalizer())
        return Plan(status=deployment.status, actions=tuple(actions), requeue_after_seconds=RETRY_SECONDS)
    waited = now - (deployment.deleting_since or now)
    release = (
        # What users wrote goes in any case: without a server nobody may be left to remove it in time.
        (spec.cache.deletion_policy == "Delete" or spec.adaptation is not None)
        and not observed.namespace_ending
        and waited < observed.config.release_timeout_seconds
        # A spec that was refused for its folder must not get it mounted by being deleted.
        and is_host_path_allowed(spec, observed.config)
    )
    hosts = _replica_hosts(spec, observed) if release else frozenset()
    training = frozenset(pod.node for pod in observed.job_pods) if release else frozenset()
    states = tuple(
        s
        for s in read_nodes(names, spec, observed.nodes, observed.pods)
        if s.labelled or (s.online and s.name in hosts)
    )
    patches = tuple(
        p
        for s in states
        if not (s.online and s.name in training) and (p := _patch(names, s, release=release)) is not None
    )
    actions = [*_end_trainings(observed), *_release_workload(names, spec, observed, states, release=release)]
    actions += patches
    if not states or hosts:
        # After the labels: a node is found by the replicas that run on it.
        actions += [
            DeleteObject(kind=view.kind, name=view.name, why="the SLMDeployment is deleted")
            for view in observed.owned
            if view.kind is OwnedKind.DEPLOYMENT and not view.deleting
        ]
    transitions: tuple[Transition, ...] = ()
    if not states:
        actions += [
            DeleteObject(kind=view.kind, name=view.name, why="the SLMDeployment is deleted")
            for view in observed.owned
            if view.kind is OwnedKind.DAEMON_SET and not view.deleting
        ]
        actions.append(RemoveFinalizer())
        transitions = (
            Transition(
                kind="Normal", reason="Deleted", message="labels and workloads are gone from all nodes"
            ),
        )
    says = Says(status="False", reason="Deleting", message=f"{len(states)} node(s) still to be cleaned")
    return Plan(
        status=with_condition_only(
            deployment.status, {ConditionType.READY: says}, generation=deployment.generation, now=now
        ),
        actions=tuple(actions),
        transitions=transitions,
        requeue_after_seconds=RETRY_SECONDS,
    )


def _end_trainings(observed: Observed) -> tuple[DeleteJob, ...]:
    return tuple(
        DeleteJob(name=job.name, why="the SLMDeployment is deleted")
        for job in observed.jobs
        if not job.deleting
    )


def _replica_hosts(spec: SLMDeploymentSpec, observed: Observed) -> frozenset[str]:
    """Nodes that replicas run on: their models are there, though no label says so."""
    if spec.placement.mode != "Replicas":
        return frozenset()
    return frozenset(pod.node for pod in observed.pods if pod.role is Role.SERVE and not pod.deleting)


def _patch(names: Names, state: NodeState, *, release: bool) -> PatchNodeLabels | None:
    labels: dict[str, str | None] = {names.serve_label(r): None for r in state.serve}
    labels |= {names.prefetch_label(r): None for r in state.prefetch}
    if state.moving:
        labels[names.moving_label] = None
    if release and state.online:
        if state.release:
            done = any(p.ready and p.role is Role.RELEASE and not p.deleting for p in state.pods)
            if done:
                labels[names.release_label] = None
        else:
            labels[names.release_label] = "true"
    elif state.release:
        labels[names.release_label] = None
    if not labels:
        return None
    return PatchNodeLabels(node=state.name, labels=labels, why="the SLMDeployment is deleted")


def _release_workload(
    names: Names,
    spec: SLMDeploymentSpec,
    observed: Observed,
    states: tuple[NodeState, ...],
    *,
    release: bool,
) -> tuple[ApplyObject, ...]:
    needed = release and any(state.online for state in states)
    exists = any(v.name == names.release_workload for v in observed.owned if v.kind is OwnedKind.DAEMON_SET)
    if not needed or exists:
        return ()
    body = build.build_release_daemon_set(names, spec, config=observed.config)
    return (
        ApplyObject(
            kind=OwnedKind.DAEMON_SET, name=names.release_workload, body=body, why="drop cached models"
        ),
    )


def _forget_labels(names: Names, observed: Observed) -> tuple[PatchNodeLabels, ...]:
    result = []
    for node in observed.nodes:
        labels: dict[str, str | None] = {
            key: None for key in node.labels if key.startswith(names.label_prefix)
        }
        if labels:
            result.append(PatchNodeLabels(node=node.name, labels=labels, why="the SLMDeployment is deleted"))
    return tuple(result)
