# SPDX-License-Identifier: Apache-2.0
"""The snapshot that the plan of an SLMModel is made from, and the plan.

Nothing here refers to a live object. Times are seconds since the epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from slmops.api import MODEL_KIND, SLMModelSpec, SLMModelStatus
from slmops.api.base import LabelSelector
from slmops.model.config import OperatorConfig
from slmops.model.observed import Resolved, ResolveFailure
from slmops.model.plan import ResolveRequest, Transition

Work = Literal["optimise", "evaluate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelObject:
    """The SLMModel. `spec` is None when it does not parse; then `spec_error` says why."""

    name: str
    namespace: str
    uid: str
    generation: int
    spec: SLMModelSpec | None
    status: SLMModelStatus
    spec_error: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    deleting: bool = False

    @property
    def kind(self) -> str:
        """`kind` of the object."""
        return MODEL_KIND


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
class ProfileView:
    """A DeviceProfile, as far as a measurement needs it."""

    node_selector: LabelSelector
    """Its nodes: the labels, the architecture and the accelerator that it names."""
    engine: str = ""
    engine_image: str = ""
    """Image with `engine`; empty: the operator's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelObserved:
    """Everything that the plan of one SLMModel depends on beside the time."""

    model: ModelObject
    config: OperatorConfig
    jobs: tuple[JobView, ...] = ()
    pods: tuple[JobPodView, ...] = ()
    resolutions: Mapping[str, Resolved | ResolveFailure] = field(default_factory=dict)
    """By the identity of the question."""
    manifests: Mapping[str, Resolved] = field(default_factory=dict)
    """By digest: what was resolved before, as far as the plan wanted it kept."""
    profiles: Mapping[str, ProfileView] | None = field(default_factory=dict)
    """DeviceProfiles by name; None while they cannot be read."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Jobs that the API server would not take a moment ago, by name, and what it said."""
    look_asked_at: float = 0.0
    """When a deployment that follows the model asked last for another look at its source; 0 for never."""
    in_use: frozenset[str] = frozenset()
    """Versions that SLMDeployments which follow the model name or run."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """A Job whose end is taken into status; `outcome` is Succeeded or the reason of its failure."""

    work: Work
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """The outcome of one look. Order: status, then actions in sequence, then events."""

    status: SLMModelStatus
    actions: tuple[CreateJob | DeleteJob, ...] = ()
    resolve: tuple[ResolveRequest, ...] = ()
    questions: frozenset[str] = frozenset()
    """Identities of questions whose answers are still needed; others may be forgotten."""
    digests: frozenset[str] = frozenset()
    """Digests whose manifests are still needed."""
    transitions: tuple[Transition, ...] = ()
    outcomes: tuple[JobOutcome, ...] = ()
    requeue_after_seconds: float | None = None
