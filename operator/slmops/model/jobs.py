# SPDX-License-Identifier: Apache-2.0
"""Jobs of ours as they are seen, and what is to be done about them. Times are seconds since the epoch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Work = Literal["optimise", "evaluate", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerView:
    """One container of a Job's pod; init containers come first, in the order in which they run."""

    name: str
    state: Literal["Waiting", "Running", "Done", "Failed"] = "Waiting"
    reason: str = ""
    """Of waiting or of the end, for example ImagePullBackOff or OOMKilled."""
    message: str = ""
    """Termination message, or what the kubelet says while it waits."""
    finished_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPodView:
    """A pod of a Job of ours."""

    name: str
    job: str
    owner_uid: str = ""
    """Of the Job that owns it."""
    node: str = ""
    created_at: float = 0.0
    started_at: float = 0.0
    """When a kubelet took it on."""
    containers: tuple[ContainerView, ...] = ()
    unschedulable: str = ""
    """What the scheduler says when it finds no node; empty otherwise."""
    reason: str = ""
    """Of the pod itself, for example Evicted."""
    message: str = ""
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A Job of ours that exists."""

    name: str
    work: str
    uid: str = ""
    state: Literal["Active", "Complete", "Failed"] = "Active"
    reason: str = ""
    message: str = ""
    created_at: float = 0.0
    finished_at: float = 0.0
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateJob:
    """Create a Job; one that exists is fine. `body` is complete but for the owner reference."""

    name: str
    work: Work
    body: Mapping[str, Any]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteJob:
    """Delete a Job with its pods; one that is gone already is fine."""

    name: str
    why: str
