# SPDX-License-Identifier: Apache-2.0
"""Wait for a pod that can be talked to, and say meanwhile what it is waiting for.

A deployment that was applied a moment ago has none: the model's files are looked up, fetched to the nodes,
verified and loaded first.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from slmcli.actions import command_line
from slmcli.errors import LateError, RefusedError, UnreachableError
from slmcli.observe import observe_pod
from slmcli.render.cache import size_text
from slmcli.safe import clean_tree
from slmcli.serving import ServingPod, choose_pod, read_serving
from slmcli.session import Session
from slmcli.view import Body, DeploymentView, read_deployment
from slmops.api.status import ConditionType
from slmwire.labels import Role

POLL_SECONDS: Final = 1.0
_PHASES: Final = ("waiting for a node", "starting", "downloading the model", "loading the model")
_IN_VAIN: Final = frozenset({"NoMatchingNodes", "ScaledToZero"})
"""Reasons of Ready for which no pod comes until somebody does something."""


def await_pod(
    session: Session, name: str, *, node: str | None, timeout_seconds: float
) -> tuple[DeploymentView, ServingPod]:
    """The deployment and a ready pod of it, as `choose_pod` takes one.

    Each change of what is waited for is a line for the person. RefusedError and NotFoundError where waiting
    helps nobody, and with `timeout_seconds` 0 at once; LateError after that time.
    """
    end = session.now() + timeout_seconds
    view = _read(session, name)
    said = trouble = ""
    while True:
        try:
            bodies = session.cluster.pods(view.namespace, view.name)
            pods, trouble = read_serving(bodies), ""
            here = [pod for pod in pods if node in (None, pod.node)]
            if timeout_seconds <= 0 or any(pod.ready for pod in here):
                return view, choose_pod(view, pods, node=node)
            _refuse_what_comes_to_nothing(view)
            if _is_settled_without(view, here):
                return view, choose_pod(view, pods, node=node)
            waits_for = describe_wait(view, bodies, node=node)
        except UnreachableError as error:
            if timeout_seconds <= 0:
                raise
            trouble = waits_for = f"the cluster does not answer: {error}"
        if session.now() >= end:
            raise LateError(
                f"{view.namespace}/{view.name} has no ready pod{_on(node)} after {timeout_seconds:g}s: "
                f"{waits_for}; {command_line(view, 'explain')} says more, --timeout waits longer"
            )
        if waits_for != said:
            session.say(f"waiting for the first ready pod{_on(node)}: {waits_for}")
            said = waits_for
        session.sleep(min(POLL_SECONDS, max(0.0, end - session.now())))
        if not trouble:
            view = _read_again(session, view)


def _read(session: Session, name: str) -> DeploymentView:
    return read_deployment(session.cluster.get(session.namespace, name))


def _read_again(session: Session, view: DeploymentView) -> DeploymentView:
    try:
        return _read(session, view.name)
    except UnreachableError:
        return view  # the list of pods that follows will say so


def _is_settled_without(view: DeploymentView, here: Iterable[ServingPod]) -> bool:
    """All nodes serve and the one that is asked for has no pod: none is on its way to it."""
    ready = view.condition(ConditionType.READY)
    return not list(here) and view.up_to_date and ready is not None and ready.status == "True"


def _refuse_what_comes_to_nothing(view: DeploymentView) -> None:
    where = f"{view.namespace}/{view.name}"
    if view.deleting:
        raise RefusedError(f"{where} is being deleted; there is nobody to talk to")
    if not view.up_to_date or view.status is None:
        return
    accepted, ready = view.condition(ConditionType.ACCEPTED), view.condition(ConditionType.READY)
    if accepted is not None and accepted.status == "False" and not view.status.stable_revision:
        raise RefusedError(f"{where} is not accepted, {accepted.reason}: {accepted.message}")
    if ready is not None and ready.reason in _IN_VAIN:
        raise RefusedError(f"{where} has no pod, {ready.reason}: {ready.message}")


def describe_wait(view: DeploymentView, bodies: Iterable[Body], *, node: str | None) -> str:
    """What the pods do, or what keeps them from being made, in half a sentence."""
    if view.status is None or not view.up_to_date:
        return "the operator to see the deployment"
    found = [_phase(clean_tree(dict(body))) for body in bodies]
    here = [phase for where, phase in found if phase and node in (None, where)]
    if here:
        counts = Counter(here)
        order = [*_PHASES, *sorted(counts.keys() - set(_PHASES))]
        return ", ".join(f"{counts[phase]} {phase}{_size(view, phase)}" for phase in order if counts[phase])
    for kind in (ConditionType.MODEL_RESOLVED, ConditionType.READY):
        condition = view.condition(kind)
        if condition is not None and condition.status != "True":
            return condition.message
    return "the nodes to be given the model"


def _phase(body: Mapping[str, Any]) -> tuple[str, str]:
    """Node and phase of a pod that is on its way; no phase for one that serves, leaves or does neither."""
    pod = observe_pod(body)
    if pod.deleting or pod.role not in (Role.SERVE, Role.PREFETCH) or pod.ready:
        return pod.node, ""
    status = body.get("status") or {}
    if not (body.get("spec") or {}).get("nodeName"):
        return pod.node, "waiting for a node"
    if pod.waiting_reason and pod.waiting_reason not in ("PodInitializing", "ContainerCreating"):
        return pod.node, f"in {pod.waiting_reason}"
    if pod.role is Role.PREFETCH or _is_running(status.get("initContainerStatuses")):
        return pod.node, "downloading the model"
    return pod.node, "loading the model" if _is_running(status.get("containerStatuses")) else "starting"


def _is_running(statuses: Iterable[Mapping[str, Any]] | None) -> bool:
    return any("running" in (entry.get("state") or {}) for entry in statuses or ())


def _size(view: DeploymentView, phase: str) -> str:
    variants = view.status.variants if view.status is not None else []
    if phase != "downloading the model" or len(variants) != 1:
        return ""
    return f" ({size_text(variants[0].size_bytes)})"


def _on(node: str | None) -> str:
    return f" on node {node}" if node else ""
