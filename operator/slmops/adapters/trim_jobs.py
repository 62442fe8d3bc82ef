# SPDX-License-Identifier: Apache-2.0
"""From Jobs and their pods to the few fields that are kept in memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from slmops.adapters.trim import seconds_of
from slmops.model.jobs import ContainerView, JobPodView, JobView
from slmwire import labels
from slmwire.paths import TERMINATION_LIMIT_BYTES

JOB_NAME_LABELS: Final = ("batch.kubernetes.io/job-name", "job-name")
_State = Literal["Waiting", "Running", "Done", "Failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedJob:
    """A Job's view with the object that it belongs to, as its label says."""

    namespace: str
    owner: str
    """Name of an SLMModel or SLMDeployment; empty without the label."""
    uid: str
    owner_uids: frozenset[str]
    view: JobView


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedJobPod:
    """A view of a Job's pod with the object that the Job belongs to, as its label says."""

    namespace: str
    owner: str
    view: JobPodView


def trim_job(body: Mapping[str, Any], *, owner_label: str = labels.MODEL) -> OwnedJob:
    """View of a Job that carries our labels; `owner_label` is the one that names whom it belongs to."""
    metadata, status = body["metadata"], body.get("status") or {}
    tags = metadata.get("labels") or {}
    ended: Mapping[str, Any] = {}
    state: Literal["Active", "Complete", "Failed"] = "Active"
    for condition in status.get("conditions") or ():
        if condition.get("status") == "True" and condition.get("type") in ("Complete", "Failed"):
            ended, state = condition, condition["type"]
    return OwnedJob(
        namespace=metadata.get("namespace", ""),
        owner=tags.get(owner_label, ""),
        uid=metadata.get("uid", ""),
        owner_uids=frozenset(owner.get("uid", "") for owner in metadata.get("ownerReferences") or ()),
        view=JobView(
            name=metadata["name"],
            work=tags.get(labels.WORK, ""),
            uid=metadata.get("uid", ""),
            state=state,
            reason=str(ended.get("reason") or ""),
            message=str(ended.get("message") or ""),
            created_at=seconds_of(metadata.get("creationTimestamp")),
            finished_at=seconds_of(ended.get("lastTransitionTime")),
            deleting="deletionTimestamp" in metadata,
        ),
    )


def trim_job_pod(body: Mapping[str, Any], *, owner_label: str = labels.MODEL) -> OwnedJobPod:
    """View of a pod of such a Job."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    tags = metadata.get("labels") or {}
    scheduled: Mapping[str, Any] = next(
        (c for c in status.get("conditions") or () if c.get("type") == "PodScheduled"), {}
    )
    unschedulable = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    return OwnedJobPod(
        namespace=metadata.get("namespace", ""),
        owner=tags.get(owner_label, ""),
        view=JobPodView(
            name=metadata["name"],
            job=next((tags[name] for name in JOB_NAME_LABELS if name in tags), ""),
            owner_uid=_controller_uid(metadata),
            node=spec.get("nodeName") or "",
            created_at=seconds_of(metadata.get("creationTimestamp")),
            started_at=seconds_of(status.get("startTime")),
            containers=tuple(_containers(spec, status)),
            unschedulable=str(scheduled.get("message") or "no node fits") if unschedulable else "",
            reason=str(status.get("reason") or ""),
            message=str(status.get("message") or "")[:TERMINATION_LIMIT_BYTES],
            deleting="deletionTimestamp" in metadata,
        ),
    )


def _controller_uid(metadata: Mapping[str, Any]) -> str:
    owners = metadata.get("ownerReferences") or ()
    return next((owner.get("uid", "") for owner in owners if owner.get("controller")), "")


def _containers(spec: Mapping[str, Any], status: Mapping[str, Any]) -> Iterator[ContainerView]:
    for kind in ("init", ""):
        known = {entry["name"]: entry for entry in status.get(f"{kind}ContainerStatuses" if kind else
                                                              "containerStatuses") or ()}  # fmt: skip
        for container in spec.get("initContainers" if kind else "containers") or ():
            yield _container(container["name"], (known.get(container["name"]) or {}).get("state") or {})


def _container(name: str, state: Mapping[str, Any]) -> ContainerView:
    kind: _State = "Waiting"
    said: Mapping[str, Any] = state.get("waiting") or {}
    if "running" in state:
        kind, said = "Running", {}
    elif "terminated" in state:
        said = state["terminated"] or {}
        kind = "Done" if said.get("exitCode") == 0 else "Failed"
    return ContainerView(
        name=name,
        state=kind,
        reason=str(said.get("reason") or ""),
        message=str(said.get("message") or "")[:TERMINATION_LIMIT_BYTES],
        finished_at=seconds_of(said.get("finishedAt")),
    )
