# SPDX-License-Identifier: Apache-2.0
"""The snapshot that the plan of an SLMModel is made from, and the plan.

Nothing here refers to a live object. Times are seconds since the epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from slmops.api import MODEL_KIND, SLMModelSpec, SLMModelStatus
from slmops.api.base import LabelSelector
from slmops.model.config import OperatorConfig
from slmops.model.jobs import CreateJob, DeleteJob, JobPodView, JobView, Work
from slmops.model.observed import Resolved, ResolveFailure
from slmops.model.plan import ResolveRequest, Transition


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
