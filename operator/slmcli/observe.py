# SPDX-License-Identifier: Apache-2.0
"""Nodes and pods as the planner sees them, and what each node does in words.

The operator's own reading of Kubernetes objects lies in its adapters, which this program does not import;
a test holds the two against each other.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from slmcli.safe import clean_tree
from slmcli.times import seconds_of
from slmcli.view import Body, DeploymentView
from slmops.api.base import quantity_value
from slmops.model.observed import NodeView, PodView
from slmops.planning.access import is_unstarted
from slmops.planning.names import Names
from slmops.planning.nodes import NodeState, Problem, read_nodes
from slmops.planning.selectors import matches
from slmwire import labels
from slmwire.labels import Role
from slmwire.reasons import Termination, parse_termination


def observe_node(body: Body) -> NodeView:
    """View of a Node."""
    metadata, status = body["metadata"], body.get("status") or {}
    return NodeView(
        name=metadata["name"],
        labels=dict(metadata.get("labels") or {}),
        ready=_condition(status, "Ready").get("status") == "True",
        allocatable_memory_bytes=_bytes((status.get("allocatable") or {}).get("memory", "0")),
        deleting="deletionTimestamp" in metadata,
        address=next(
            (
                str(a.get("address", ""))
                for a in status.get("addresses") or ()
                if a.get("type") == "InternalIP"
            ),
            "",
        ),
    )


def observe_pod(body: Body) -> PodView:
    """View of a pod that carries our labels."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    tags = metadata.get("labels") or {}
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    ends = _failures(containers)
    failure = ends[-1] if ends else {}
    waiting = [w for c in containers if (w := (c.get("state") or {}).get("waiting"))]
    scheduled = _condition(status, "PodScheduled")
    role = tags.get(labels.ROLE, "")
    return PodView(
        name=metadata["name"],
        node=spec.get("nodeName") or _intended_node(spec),
        revision=tags.get(labels.REVISION, ""),
        variant=tags.get(labels.VARIANT, ""),
        role=Role(role) if role in Role.__members__.values() else Role.SERVE,
        ready=_condition(status, "Ready").get("status") == "True",
        created_at=seconds_of(metadata.get("creationTimestamp")) or 0.0,
        restarts=sum(int(container.get("restartCount") or 0) for container in containers),
        server_restarts=sum(int(c.get("restartCount") or 0) for c in status.get("containerStatuses") or ()),
        waiting_reason=str(waiting[0].get("reason", "")) if waiting else "",
        last_exit_reason=str(failure.get("reason", "")),
        last_exit_code=int(failure.get("exitCode") or 0),
        termination=_said(ends),
        unstarted=is_unstarted(status),
        ended=status.get("phase") in ("Failed", "Succeeded"),
        unschedulable=scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable",
        deleting="deletionTimestamp" in metadata,
    )


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((c for c in status.get("conditions") or () if c.get("type") == kind), {})


def _bytes(text: str) -> int:
    try:
        return int(quantity_value(text))
    except ValueError:
        return 0


def _failures(containers: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Ends with an error, the latest last."""
    ends = [
        end
        for container in containers
        for key in ("lastState", "state")
        if (end := (container.get(key) or {}).get("terminated")) and end.get("exitCode") != 0
    ]
    return sorted(ends, key=lambda end: seconds_of(end.get("finishedAt")) or 0.0)


def _said(ends: list[Mapping[str, Any]]) -> Termination | None:
    parsed = (parse_termination(str(end.get("message") or "")) for end in reversed(ends))
    return next((found for found in parsed if found is not None), None)


def _intended_node(spec: Mapping[str, Any]) -> str:
    # A pod of a DaemonSet that cannot be scheduled names its node here and nowhere else.
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or ():
        for field in term.get("matchFields") or ():
            if field.get("key") == "metadata.name" and field.get("values"):
                return str(field["values"][0])
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """One node in words.

    `state` is one of offline, failed, unfit, waiting (nothing given yet), fetching, prepared (holds the model
    ahead), moving (given a revision that does not serve yet), updated, stable, other (serves a third
    revision), leaving (matches placement no more).
    """

    node: str
    site: str
    state: str
    given: tuple[tuple[str, str], ...]
    """(revision, variant) by the node's labels."""
    fetching: tuple[tuple[str, str], ...]
    serving: tuple[str, ...]
    """Revisions with a ready pod; of an offline node what was last known."""
    online: bool
    restarts: int
    problem: Problem | None


def report_nodes(view: DeploymentView, nodes: Iterable[Body], pods: Iterable[Body]) -> tuple[NodeReport, ...]:
    """One report per node that matches placement or carries labels of this deployment, by site and name.

    Empty when spec is not understood: it says which nodes match.
    """
    if view.spec is None:
        return ()
    states = read_nodes(
        Names(view.namespace, view.name),
        view.spec,
        (observe_node(clean_tree(body)) for body in nodes),
        [observe_pod(clean_tree(body)) for body in pods],
    )
    return tuple(sorted((_report(view, state) for state in states), key=lambda r: (r.site, r.node)))


def _report(view: DeploymentView, state: NodeState) -> NodeReport:
    assert view.spec is not None
    ready = [p for p in state.pods if p.role is Role.SERVE and p.ready and not p.deleting]
    problem = _problem(view, state)
    return NodeReport(
        node=state.name,
        site=state.node.labels.get(view.spec.placement.site_label, ""),
        state=_state(view, state, problem),
        given=tuple(sorted(state.serve.items())),
        fetching=tuple(sorted(state.prefetch.items())),
        serving=tuple(sorted({pod.revision for pod in ready})),
        online=state.online,
        restarts=sum(pod.restarts for pod in state.pods if pod.role is Role.SERVE),
        problem=problem,
    )


def _fits(view: DeploymentView, state: NodeState) -> bool:
    assert view.spec is not None
    variants = view.spec.variants
    # Those of an SLMModel are not in the spec.
    return not variants or any(matches(variant.node_selector, state.node.labels) for variant in variants)


def _problem(view: DeploymentView, state: NodeState) -> Problem | None:
    if state.matched and not _fits(view, state):
        return Problem(reason="Unfit", message="no variant's nodeSelector matches the node")
    if not state.online:
        return Problem(reason="NodeNotReady", message="the kubelet does not report")
    found = [p for revision in state.serve if (p := state.serve_problem(revision))]
    found += [p for revision in state.prefetch if (p := state.prefetch_problem(revision))]
    if found:
        return found[0]
    # The operator knows more than labels and pods say, for example how much memory a variant needs.
    worst = view.status.worst_nodes if view.status is not None else ()
    known = next((entry for entry in worst if entry.node == state.name and entry.reason == "Unfit"), None)
    return Problem(reason=known.reason, message=known.message) if known is not None else None


def _state(view: DeploymentView, state: NodeState, problem: Problem | None) -> str:
    status = view.status
    if not state.matched:
        return "leaving"
    if problem is not None:
        return {"NodeNotReady": "offline", "Unfit": "unfit"}.get(problem.reason, "failed")
    stable = status.stable_revision if status is not None else ""
    update = status.rollout.revision if status is not None and status.rollout is not None else ""
    if any(not state.serves(revision, variant) for revision, variant in state.serve.items()):
        return "moving"
    if update != stable and update in state.serve:
        return "updated"
    if state.prefetch:
        ready = all(state.cached(revision, variant) for revision, variant in state.prefetch.items())
        return "prepared" if ready else "fetching"
    if stable and stable in state.serve:
        return "stable"
    return "other" if state.serve else "waiting"
