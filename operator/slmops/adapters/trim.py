# SPDX-License-Identifier: Apache-2.0
"""From whole Kubernetes objects to the few fields that are kept in memory.

A Node is 9 KB as JSON and changes with every heartbeat; its view changes when placement may.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from slmops.api.base import quantity_value
from slmops.api.profile import DeviceProfileSpec
from slmops.model.observed import DistributionView, NodeView, OwnedKind, PodView, ProfileView
from slmops.planning.access import is_unstarted
from slmops.planning.distribution import content_of
from slmops.planning.network import digest_of
from slmwire import labels
from slmwire.reasons import Termination, parse_termination
from slmwire.scheme import Scheme, read_scheme

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedMeta:
    """Metadata of an owned object, what drift is told by; `data` only of a ControllerRevision."""

    kind: OwnedKind
    namespace: str
    name: str
    deployment: str
    """Name of the SLMDeployment, from the label; empty when the label is gone."""
    uid: str
    owner_uids: frozenset[str]
    generation: int
    resource_version: str
    labels: Mapping[str, str]
    deleting: bool
    replicas: int | None = None
    number: int = 0
    data: Mapping[str, Any] | None = None
    content: DistributionView | None = None
    """Of a ConfigMap that holds a readable distribution file."""
    digest: str = ""
    """Of a NetworkPolicy, see `planning.network`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedPod:
    """A pod's view with the deployment that it belongs to."""

    namespace: str
    deployment: str
    view: PodView
    ip: str = ""
    """Of a serving pod that has one: where its metrics are read."""
    scheme: Scheme = "http"
    """What its server speaks."""


def trim_node(body: Mapping[str, Any]) -> NodeView:
    """View of a Node."""
    metadata, status = body["metadata"], body.get("status") or {}
    ready = _condition(status, "Ready")
    return NodeView(
        name=metadata["name"],
        labels=dict(metadata.get("labels") or {}),
        ready=ready.get("status") == "True",
        ready_since=seconds_of(ready.get("lastTransitionTime")),
        allocatable_memory_bytes=_memory_bytes((status.get("allocatable") or {}).get("memory", "0")),
        deleting="deletionTimestamp" in metadata,
        address=_internal_address(status),
    )


def trim_profile(body: Mapping[str, Any]) -> ProfileView | None:
    """View of a DeviceProfile; None for one that this operator does not understand."""
    try:
        spec = DeviceProfileSpec.model_validate(body.get("spec") or {})
    except ValidationError as error:
        name = body["metadata"]["name"]
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        _log.error("DeviceProfile %s is left out: spec.%s: %s", name, where, problem["msg"])
        return None
    return ProfileView(name=body["metadata"]["name"], spec=spec)


def _internal_address(status: Mapping[str, Any]) -> str:
    addresses = status.get("addresses") or ()
    return next(
        (str(entry.get("address", "")) for entry in addresses if entry.get("type") == "InternalIP"), ""
    )


def trim_pod(body: Mapping[str, Any]) -> OwnedPod:
    """View of a pod that carries our labels."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    tags = metadata.get("labels") or {}
    # Init containers first: while one crashes, the others only wait for it.
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    failure = _latest_failure(containers)
    scheduled, ready = _condition(status, "PodScheduled"), _condition(status, "Ready")
    try:
        role = labels.Role(tags.get(labels.ROLE, ""))
    except ValueError:
        role = labels.Role.SERVE
    view = PodView(
        name=metadata["name"],
        node=spec.get("nodeName") or _intended_node(spec),
        revision=tags.get(labels.REVISION, ""),
        variant=tags.get(labels.VARIANT, ""),
        role=role,
        ready=ready.get("status") == "True",
        ready_changed_at=seconds_of(ready.get("lastTransitionTime")),
        created_at=seconds_of(metadata.get("creationTimestamp")),
        restarts=sum(int(container.get("restartCount") or 0) for container in containers),
        server_restarts=sum(int(c.get("restartCount") or 0) for c in status.get("containerStatuses") or ()),
        waiting_reason=next(
            (
                str(waiting.get("reason", ""))
                for container in containers
                if (waiting := (container.get("state") or {}).get("waiting"))
            ),
            "",
        ),
        last_exit_reason=str(failure.get("reason", "")),
        last_exit_code=int(failure.get("exitCode") or 0),
        termination=_termination(containers),
        unstarted=is_unstarted(status),
        unschedulable=scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable",
        deleting="deletionTimestamp" in metadata,
        site=tags.get(labels.SITE, ""),
        ended=status.get("phase") in ("Failed", "Succeeded"),
    )
    return OwnedPod(
        namespace=metadata.get("namespace", ""),
        deployment=tags.get(labels.DEPLOYMENT, ""),
        view=view,
        ip=str(status.get("podIP") or "") if role is labels.Role.SERVE else "",
        scheme=read_scheme(spec),
    )


def trim_owned(kind: OwnedKind, body: Mapping[str, Any]) -> OwnedMeta:
    """Metadata of an owned object."""
    metadata = body["metadata"]
    tags = metadata.get("labels") or {}
    revision = kind is OwnedKind.CONTROLLER_REVISION
    return OwnedMeta(
        kind=kind,
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        deployment=tags.get(labels.DEPLOYMENT, ""),
        uid=metadata.get("uid", ""),
        owner_uids=frozenset(owner.get("uid", "") for owner in metadata.get("ownerReferences") or ()),
        generation=int(metadata.get("generation") or 0),
        # A DaemonSet's changes with the status of every pod; its generation says what matters.
        resource_version=metadata.get("resourceVersion", "") if kind is OwnedKind.SERVICE else "",
        labels=dict(tags),
        deleting="deletionTimestamp" in metadata,
        replicas=(body.get("spec") or {}).get("replicas") if kind is OwnedKind.DEPLOYMENT else None,
        number=int(body.get("revision") or 0) if revision else 0,
        data=(body.get("data") or {}) if revision else None,
        content=content_of(body) if kind is OwnedKind.CONFIG_MAP else None,
        digest=digest_of(body) if kind is OwnedKind.NETWORK_POLICY else "",
    )


def seconds_of(text: str | None) -> float:
    """Seconds since the epoch of an RFC 3339 time; 0 for none."""
    if not text:
        return 0.0
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((c for c in status.get("conditions") or () if c.get("type") == kind), {})


def _memory_bytes(text: str) -> int:
    try:
        return int(quantity_value(text))
    except (ValueError, OverflowError):
        return 0  # "not known": a quantity in an exotic unit must not hide the node


def _intended_node(spec: Mapping[str, Any]) -> str:
    # A DaemonSet's pod is made for one node and names it here before the scheduler has bound it,
    # and for ever when it cannot: without this an unschedulable pod belongs to no node.
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or ():
        for field in term.get("matchFields") or ():
            if field.get("key") == "metadata.name" and field.get("values"):
                return str(field["values"][0])
    return ""


def _terminations(containers: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Ends of containers with an error, the latest last."""
    ends = [
        end
        for container in containers
        for state in (container.get("lastState") or {}, container.get("state") or {})
        if (end := state.get("terminated")) and end.get("exitCode") != 0
    ]
    return sorted(ends, key=lambda end: seconds_of(end.get("finishedAt")))


def _latest_failure(containers: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    ends = _terminations(containers)
    return ends[-1] if ends else {}


def _termination(containers: Iterable[Mapping[str, Any]]) -> Termination | None:
    # What an init container said before it ended well is over: the server's own end may have no message.
    open_ones = [container for container in containers if not _ended_well(container)]
    parsed = (parse_termination(str(end.get("message") or "")) for end in _terminations(open_ones))
    return next(reversed([found for found in parsed if found is not None]), None)


def _ended_well(container: Mapping[str, Any]) -> bool:
    end = (container.get("state") or {}).get("terminated")
    return end is not None and end.get("exitCode") == 0
