# SPDX-License-Identifier: Apache-2.0
"""The pods that serve a deployment's model, as commands that talk to them need them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from slmcli.cluster import PodAddress
from slmcli.errors import NotFoundError, RefusedError
from slmcli.observe import observe_pod
from slmcli.safe import clean_tree
from slmcli.times import seconds_of
from slmcli.view import Body, DeploymentView
from slmwire import env
from slmwire.labels import Role
from slmwire.paths import HTTP_PORT
from slmwire.scheme import SERVER, read_scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPod:
    """A pod whose container `server` serves the model."""

    address: PodAddress
    node: str
    revision: str
    variant: str
    model: str
    """Name that the API serves; empty where the pod does not say."""
    version: str
    ready: bool
    created_at: float
    started_at: float | None
    """When the server's container started last; None while it does not run."""


def read_serving(bodies: Iterable[Body]) -> tuple[ServingPod, ...]:
    """The serving pods among a deployment's pods, by node and name; those that are leaving are left out."""
    found = [_read(clean_tree(dict(body))) for body in bodies]
    return tuple(
        sorted((pod for pod in found if pod is not None), key=lambda pod: (pod.node, pod.address.pod))
    )


def _read(body: Body) -> ServingPod | None:
    view = observe_pod(body)
    if view.role is not Role.SERVE or view.deleting:
        return None
    container = _named((body.get("spec") or {}).get("containers"), SERVER)
    status = _named((body.get("status") or {}).get("containerStatuses"), SERVER)
    running = (status.get("state") or {}).get("running") or {}
    ports = container.get("ports") or [{}]
    said = {entry.get("name"): str(entry.get("value") or "") for entry in container.get("env") or ()}
    return ServingPod(
        address=PodAddress(
            namespace=str(body["metadata"].get("namespace") or ""),
            pod=view.name,
            port=int(ports[0].get("containerPort") or HTTP_PORT),
            scheme=read_scheme(body.get("spec") or {}),
        ),
        node=view.node,
        revision=view.revision,
        variant=view.variant,
        model=said.get(env.MODEL, ""),
        version=said.get(env.MODEL_VERSION, ""),
        ready=view.ready,
        created_at=view.created_at,
        started_at=seconds_of(running.get("startedAt")),
    )


def _named(entries: Any, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next((e for e in entries or () if e.get("name") == name), {})
    return found


def choose_pod(view: DeploymentView, pods: Iterable[ServingPod], *, node: str | None) -> ServingPod:
    """A ready pod on `node` or on any; one of the stable revision before others. NotFoundError for a node
    without a pod, RefusedError when none is ready."""
    here = [pod for pod in pods if node is None or pod.node == node]
    if node is not None and not here:
        raise NotFoundError(
            f"{view.namespace}/{view.name} has no serving pod on node {node}; kubectl slm nodes {view.name} "
            "shows where it has"
        )
    ready = [pod for pod in here if pod.ready]
    if not ready:
        raise RefusedError(
            f"{view.namespace}/{view.name} has no ready pod{f' on node {node}' if node else ''}; kubectl slm "
            f"explain {view.name} says why"
        )
    stable = view.status.stable_revision if view.status is not None else ""
    return min(ready, key=lambda pod: (pod.revision != stable, pod.node, pod.address.pod))
