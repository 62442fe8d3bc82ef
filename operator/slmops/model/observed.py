# SPDX-License-Identifier: Apache-2.0
"""The snapshot that a plan is made from. Nothing here refers to a live object.

Times are seconds since the epoch. Collections are tuples or read-only mappings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal

from slmops.api import KIND, SLMDeploymentSpec, SLMDeploymentStatus
from slmops.api.profile import DeviceProfileSpec
from slmops.model.config import OperatorConfig
from slmops.model.geometry import Geometry
from slmops.model.jobs import JobPodView, JobView
from slmops.model.offers import ModelOffer
from slmwire.labels import Role
from slmwire.manifest import Manifest
from slmwire.reasons import Reason, Termination


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A Kubernetes node, trimmed to what placement needs."""

    name: str
    labels: Mapping[str, str]
    ready: bool
    """Condition Ready is True: the kubelet reports."""
    ready_since: float = 0.0
    """When Ready became what it is, by the clock of whoever wrote it; 0 when that is not known."""
    allocatable_memory_bytes: int = 0
    deleting: bool = False
    address: str = ""
    """Its InternalIP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """A pod of ours, trimmed. `node` is empty until it is scheduled."""

    name: str
    node: str
    revision: str
    variant: str
    role: Role
    ready: bool = False
    ready_changed_at: float = 0.0
    """When Ready became what it is, in seconds since the epoch; 0 when that is not known."""
    created_at: float = 0.0
    restarts: int = 0
    """Restarts of all containers, init containers included."""
    server_restarts: int = 0
    """Restarts of the containers that serve; fetching again is none."""
    waiting_reason: str = ""
    """Reason of the first waiting container, for example CrashLoopBackOff or ImagePullBackOff."""
    last_exit_reason: str = ""
    """Reason of the latest termination of a container, for example OOMKilled or Error."""
    last_exit_code: int = 0
    termination: Termination | None = None
    """Latest termination message written by a container of ours that ended with an error."""
    unstarted: bool = False
    """It has a node, but its volumes or its network are not there yet: no container could begin."""
    unschedulable: bool = False
    """Condition PodScheduled is False with reason Unschedulable."""
    deleting: bool = False
    site: str = ""
    """Of a replica that belongs to one site."""
    ended: bool = False
    """Phase Failed or Succeeded: evicted, for example. It does not come back, another one takes its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileView:
    """A DeviceProfile."""

    name: str
    spec: DeviceProfileSpec


class OwnedKind(StrEnum):
    """Kinds of objects that an SLMDeployment owns."""

    DAEMON_SET = "DaemonSet"
    DEPLOYMENT = "Deployment"
    CONFIG_MAP = "ConfigMap"
    SERVICE = "Service"
    CONTROLLER_REVISION = "ControllerRevision"
    NETWORK_POLICY = "NetworkPolicy"


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributionView:
    """What the ConfigMap of slmwire.distribution says, in short."""

    digest: str
    """Of the whole file."""
    limits: tuple[int, int]
    """Bytes per second, port of the peers."""
    written_at: float
    """By the operator's clock, seconds since the epoch; 0 when that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedView:
    """An owned object that exists. `drifted` says that somebody else changed it since we wrote it."""

    kind: OwnedKind
    name: str
    drifted: bool = False
    deleting: bool = False
    replicas: int | None = None
    """`spec.replicas` of a Deployment."""
    content: DistributionView | None = None
    """Of a ConfigMap that holds a readable distribution file."""
    digest: str = ""
    """Of a NetworkPolicy: hash of the spec that was written, as its annotation says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionView:
    """A stored ControllerRevision: `number` grows by one with each, `data` is what we put in."""

    revision: str
    number: int
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureCheck:
    """Whether the signature of a model holds. `text` is the signature, empty when there is none."""

    text: str
    key: str = ""
    """Fingerprint of the key that made it."""
    error: str = ""
    """Why it does not hold, and what to do; empty when it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A source after resolution: the exact files and what a mutable reference stood for."""

    manifest: Manifest
    reference: str
    signature: SignatureCheck | None = None
    """Set where spec asks for one."""
    geometry: Geometry | None = None
    """What the model's configuration says; None where it could not be read."""
    base: Manifest | None = None
    """The source's own files where `manifest` has adapters, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveFailure:
    """Why a source could not be resolved; `retry_at` is when it is tried again."""

    reason: Reason
    message: str
    retry_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A value over a window; `value` is None when the series are empty, NaN or stale."""

    value: float | None
    samples: int
    events: float = 0.0
    """ErrorRate, RefusalRate: how many of the samples were errors or refusals."""
    buckets: tuple[tuple[float, float], ...] = ()
    """Latencies: (upper bound in seconds, requests up to it), cumulative, bounds ascending to infinity."""


NO_SAMPLE: Final = Sample(value=None, samples=0)
Samples = Mapping[str, Sample]
"""By variant, which is the device class; a value over all pods has the empty name."""


class Preset(StrEnum):
    """What a metric measures."""

    ERROR_RATE = "ErrorRate"
    LATENCY_P95 = "LatencyP95"
    TTFT_P95 = "TimeToFirstTokenP95"
    TOKENS_PER_SECOND = "TokensPerSecond"
    EVALUATION_SCORE = "EvaluationScore"
    RESTARTS = "Restarts"
    OOM_KILLS = "OOMKills"
    FEEDBACK_SCORE = "FeedbackScore"
    REFUSAL_RATE = "RefusalRate"
    DRIFT = "Drift"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricQuery:
    """One question to a metrics provider about the pods of one revision.

    The window never starts before the wave's nodes took the revision. Exactly one of `preset` and
    `promql` is set; variables of the user's PromQL are replaced already.
    """

    namespace: str
    deployment: str
    revision: str
    window_seconds: float
    since: float = 0.0
    """When the window begins, seconds since the epoch."""
    preset: Preset | None = None
    promql: str = ""
    samples_promql: str = ""
    """Gives the samples behind `promql`; empty: the value itself is one sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """Which metrics provider a deployment asks, and as whom; equal settings share connections."""

    kind: Literal["Prometheus", "Direct"] = "Prometheus"
    namespace: str = ""
    """Of the Secret."""
    url: str = ""
    """Empty: the operator's own Prometheus."""
    secret: str = ""
    tenant: str = ""
    timeout_seconds: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Answer to one measurement request; `error` is set when the provider could not answer."""

    metric: str
    canary: Samples
    stable: Samples
    at: float
    error: str = ""
    revision: str = ""
    """That the canary side is about; empty where nobody asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """The SLMDeployment. `spec` is None when it does not parse; then `spec_error` says why."""

    name: str
    namespace: str
    uid: str
    generation: int
    spec: SLMDeploymentSpec | None
    status: SLMDeploymentStatus
    spec_error: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    deleting_since: float | None = None
    has_finalizer: bool = False

    @property
    def kind(self) -> str:
        """`kind` of the object."""
        return KIND


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Everything a plan depends on beside the time."""

    deployment: Deployment
    config: OperatorConfig
    nodes: tuple[NodeView, ...] = ()
    """All nodes of the cluster, or at least those that match placement or carry our labels."""
    other_nodes: bool = False
    """There are nodes beside these in the cluster."""
    pods: tuple[PodView, ...] = ()
    owned: tuple[OwnedView, ...] = ()
    revisions: tuple[RevisionView, ...] = ()
    resolutions: Mapping[str, Resolved | ResolveFailure] = field(default_factory=dict)
    """By source hash (`planning.revision.source_hash`)."""
    readings: tuple[Reading, ...] = ()
    """Fresh readings, each handed in once."""
    profiles: tuple[ProfileView, ...] | None = ()
    """All DeviceProfiles of the cluster; None while they cannot be read."""
    offer: ModelOffer | None = None
    """Of the SLMModel that spec follows, if there is one."""
    are_models_known: bool = True
    """False while SLMModels cannot be read: that `offer` is None then says nothing."""
    namespace_ending: bool = False
    """The namespace is being deleted: no object can be created in it any more."""
    jobs: tuple[JobView, ...] = ()
    """Jobs that train adapters, by name."""
    job_pods: tuple[JobPodView, ...] = ()
    """Their pods, by name; also those whose Job is gone already."""
    are_jobs_known: bool = True
    """False while Jobs cannot be read: that one is not in `jobs` then says nothing."""
