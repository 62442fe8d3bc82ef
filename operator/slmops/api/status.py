# SPDX-License-Identifier: Apache-2.0
"""`status` of an SLMDeployment: what the operator found and decided.

Its size does not grow with the fleet: counters, one summary per wave and at most ten nodes.
Timestamps are RFC 3339 in UTC with seconds.
"""

from enum import StrEnum
from typing import Any, Final, Literal

from pydantic import Field

from slmops.api.adaptation_status import AdaptationStatus
from slmops.api.base import ApiModel, Timestamp, keyed
from slmops.api.feedback_status import FeedbackStatus

MAX_WORST_NODES: Final = 10
MAX_MEASUREMENTS: Final = 20
MAX_BASELINES: Final = 64
MAX_FAILED_REVISIONS: Final = 10


_ATOMIC: Final[dict[str, Any]] = {"x-kubernetes-list-type": "atomic"}


class ConditionType(StrEnum):
    """Conditions; for each, True is the good state."""

    ACCEPTED = "Accepted"
    """The spec makes sense. Reasons: Accepted (True); InvalidSpec, InvalidName, HostPathNotAllowed,
    FilePathNotAllowed, SourceHostNotAllowed (False: nothing that runs is touched); InvalidWaves,
    InvalidWindow, InvalidQuery, ProviderNotAllowed, NoVariantFits (False: no rollout begins or goes on; the
    stable revision is looked after and a rollback is finished)."""
    MODEL_RESOLVED = "ModelResolved"
    """Every variant's files are known by digest. Reasons: Resolved (True); Resolving (Unknown);
    SourceUnavailable, AccessDenied, RateLimited, IntegrityMismatch, Unfit, SignatureInvalid, InternalError
    (False); NoAcceptedVersion, VersionUnfit, ModelsUnknown, ProfilesUnknown (False: what runs is
    kept)."""
    SIGNATURE_VERIFIED = "SignatureVerified"
    """Set with spec.model.signature: a key of it signed the files of every variant. Reasons: Verified
    (True); Verifying (Unknown); SignatureInvalid (False)."""
    READY = "Ready"
    """Every reachable matching node (with mode Replicas: every replica) serves. Reasons: AllNodesReady,
    ScaledToZero (True); NodesNotReady or the reason of the first node that does not serve, NodesOffline,
    NoMatchingNodes, NotAccepted, ModelNotResolved, Deleting (False)."""
    PROGRESSING = "Progressing"
    """Nodes are being moved or judged. Reasons: Resolving, Installing, Prefetching, Flipping, Soaking,
    Analysing, RollingBack, Converging (True); Complete, Paused, ModelNotResolved, and what a rollout is
    held by: QuorumMissing, NoBaseline, NoData, Inconclusive, ProviderError, DeadlineExceeded,
    StableUnhealthy, NoMatchingNodes, AwaitingApproval, OutsideWindow, FeedbackHold, NotAccepted (False)."""
    ROLLOUT_SUCCEEDED = "RolloutSucceeded"
    """The revision that spec stands for is the stable one. Reasons: Promoted (True); InProgress
    (Unknown); AnalysisFailed, NodesFailed, DeadlineExceeded, Aborted (False: it was rolled back);
    FeedbackFailed (False: it was taken back later, for what users said of it);
    Pinned (False: somebody went back to another revision by hand, until spec changes)."""

    FEEDBACK_HEALTHY = "FeedbackHealthy"
    """Set with rules in spec.feedback: the stable revision holds them. Reasons: Healthy (True); Measuring,
    Pending (a rule is broken, not for long enough yet), NoData, Inconclusive, ProviderError, NotServing
    (Unknown); RuleViolated, FeedbackHold (rollouts are frozen), RollingBack, RollbackBlocked (False)."""

    ADAPTATION_HEALTHY = "AdaptationHealthy"
    """Set with spec.adaptation: nothing keeps its sites from adapting the model. Reasons: Collecting,
    Training, Adapted (True); NotServing (Unknown); Unsupported, TrainingFailed, AdapterRolledBack (False)."""


class Condition(ApiModel):
    """A `metav1.Condition`."""

    type: str = Field(min_length=1, max_length=316, description="Type of the condition.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(min_length=1, max_length=128, description="CamelCase reason for the status.")
    message: str = Field(max_length=2048, description="What it means, in a sentence.")
    last_transition_time: Timestamp = Field(description="When status changed last.")
    observed_generation: int = Field(ge=0, description="metadata.generation that it is about.")


class NodeCounts(ApiModel):
    """How many of the matching nodes are in which state."""

    total: int = Field(default=0, description="Nodes that match placement and a variant.")
    ready: int = Field(default=0, description="Nodes with a ready inference pod of any revision.")
    stable: int = Field(default=0, description="Nodes given the stable revision.")
    updated: int = Field(default=0, description="Nodes given the update revision.")
    offline: int = Field(default=0, description="Nodes whose kubelet does not report.")
    failed: int = Field(default=0, description="Nodes on which the model cannot be fetched or run.")
    unfit: int = Field(default=0, description="Nodes that match placement but no variant.")


class NodeProblem(ApiModel):
    """A node that needs attention."""

    node: str = Field(description="Name of the node.")
    reason: str = Field(description="CamelCase reason.")
    message: str = Field(max_length=512, description="What was seen, and the cure where one is known.")


class ReasonCount(ApiModel):
    """How many nodes have one reason."""

    reason: str = Field(description="CamelCase reason.")
    nodes: int = Field(description="Number of nodes.")


class VariantStatus(ApiModel):
    """What a variant's source was resolved to."""

    name: str = Field(description="Name of the variant.")
    source_hash: str = Field(description="Hash of the source in spec that was resolved.")
    digest: str = Field(description="sha256:<hex> over all files: the same bytes on every node.")
    reference: str = Field(description="What a mutable reference stood for, for example a commit.")
    size_bytes: int = Field(description="Size of all files.")
    nodes: int = Field(default=0, description="Nodes given this variant of the update revision.")


class WaveStatus(ApiModel):
    """Summary of a wave."""

    name: str = Field(description="Name of the wave.")
    nodes: int = Field(default=0, description="Nodes in the wave, earlier waves not counted.")
    updated: int = Field(default=0, description="Nodes that were given the new revision.")
    ready: int = Field(default=0, description="Nodes that serve the new revision.")
    deferred: int = Field(default=0, description="Nodes that were offline; they converge on return.")
    failed: int = Field(default=0, description="Nodes that failed after they took the new revision.")
    verdict: str = Field(default="", description="Pending, Pass, Fail or Skipped.")
    started_at: Timestamp | None = Field(default=None, description="When the wave began.")
    finished_at: Timestamp | None = Field(default=None, description="When it was judged.")
    approved_at: Timestamp | None = Field(default=None, description="When somebody approved or skipped it.")


class Measurement(ApiModel):
    """One judged measurement of one metric."""

    metric: str = Field(description="Name of the metric.")
    wave: str = Field(description="Name of the wave.")
    at: str = Field(description="When it was taken.")
    verdict: str = Field(
        description="Pass, Fail, Inconclusive, NoData, ProviderError, or Terminated: the wave failed on "
        "another metric before this one was measured."
    )
    canary: str | None = Field(default=None, description="Value on the nodes with the new revision.")
    stable: str | None = Field(default=None, description="Value on the stable nodes.")
    canary_samples: int = Field(default=0, description="Samples behind the value.")
    stable_samples: int = Field(default=0, description="Samples behind the stable value.")
    message: str = Field(default="", max_length=512, description="Why this verdict.")
    variant: str = Field(default="", description="Variant (device class) that decided; empty for all.")
    p_value: str | None = Field(
        default=None, description="Of a Sequential test: bound on the chance of such counts if not worse."
    )
    dry_run: bool = Field(default=False, description="Counts for nothing.")


class MetricState(ApiModel):
    """Running counts of one metric in the current wave."""

    name: str = Field(description="Name of the metric.")
    verdict: str = Field(default="", description="Verdict of the latest measurement.")
    consecutive_passes: int = Field(default=0, description="Passes in a row.")
    consecutive_failures: int = Field(default=0, description="Failures in a row.")
    consecutive_inconclusive: int = Field(default=0, description="Inconclusive results in a row.")
    consecutive_no_data: int = Field(default=0, description="Results without data in a row.")
    consecutive_errors: int = Field(default=0, description="Errors of the provider in a row.")
    measured_at: Timestamp | None = Field(default=None, description="When it was measured last.")


class Baseline(ApiModel):
    """The stable revision's latest value, kept for the wave after which no stable node is left."""

    metric: str = Field(description="Name of the metric.")
    variant: str = Field(default="", description="Variant (device class); empty for all.")
    value: str = Field(description="Value on the stable nodes.")
    samples: int = Field(description="Samples behind it.")
    events: str | None = Field(default=None, description="ErrorRate: how many of the samples were errors.")
    buckets: str | None = Field(
        default=None,
        max_length=512,
        description="Latencies: `seconds:requests` of the histogram around its 95 % quantile, cumulative.",
    )
    at: str = Field(description="When it was measured.")


class RolloutStatus(ApiModel):
    """The rollout in progress, or the last one."""

    revision: str = Field(description="Revision being rolled out.")
    step: Literal[
        "Installing",
        "Prefetching",
        "Flipping",
        "Soaking",
        "Analysing",
        "RollingBack",
        "Completed",
        "Failed",
        "Cancelled",
    ] = Field(description="What the rollout is doing.")
    step_started_at: Timestamp = Field(description="When the step began.")
    wave: int = Field(default=0, ge=0, description="Index of the current wave.")
    wave_started_at: Timestamp = Field(description="When the current wave began.")
    started_at: Timestamp = Field(description="When the rollout began.")
    finished_at: Timestamp | None = Field(default=None, description="When it ended.")
    reason: str = Field(default="", description="Why it is being rolled back or has failed.")
    message: str = Field(default="", max_length=2048, description="The same in a sentence.")
    waves: list[WaveStatus] = Field(
        default_factory=list, description="One summary per wave.", json_schema_extra=keyed("name")
    )
    metrics: list[MetricState] = Field(
        default_factory=list, description="Counts of the current wave.", json_schema_extra=keyed("name")
    )
    paused_at: Timestamp | None = Field(
        default=None,
        description="When it was paused, or a window closed on nodes still to move or to fetch; timers "
        "stand since.",
    )
    promoted_at: Timestamp | None = Field(
        default=None,
        description="When somebody asked to go through all waves without approval, soak and analysis.",
    )
    baseline: list[Baseline] = Field(
        default_factory=list,
        description="Latest values of the stable revision, at most 64.",
        json_schema_extra=keyed("metric", "variant"),
    )
    measurements: list[Measurement] = Field(
        default_factory=list, description="The latest measurements.", json_schema_extra=_ATOMIC
    )
    judged_by: Literal["Prometheus", "Direct"] | None = Field(
        default=None,
        description="Who measures or measured last: Prometheus, or Direct for the operator itself. Unset "
        "where nobody was asked.",
    )


class FailedRevision(ApiModel):
    """A revision that was rolled back; it is not tried again by itself."""

    revision: str = Field(description="The revision.")
    reason: str = Field(description="CamelCase reason.")
    message: str = Field(default="", max_length=512, description="What was seen.")
    at: str = Field(description="When it failed.")


class OperationStatus(ApiModel):
    """The latest request of one kind made by hand through an annotation, and what came of it."""

    operation: str = Field(description="promote, skip, abort, retry or undo.")
    token: str = Field(max_length=256, description="Value of the annotation that was acted on.")
    outcome: Literal["Done", "Refused"] = Field(description="What came of it.")
    message: str = Field(default="", max_length=512, description="What was done, or why not and the cure.")
    at: str = Field(description="When it was acted on.")


class PinnedRevision(ApiModel):
    """A revision taken up again by hand; it is wanted instead of spec's until spec changes."""

    revision: str = Field(description="The revision that is wanted.")
    instead_of: str = Field(description="Revision that spec stood for at that time.")
    at: str = Field(description="When it was asked for.")


class ReplicaRevision(ApiModel):
    """A revision that a replica has beside another one."""

    revision: str = Field(description="The revision.")
    variant: str = Field(description="Its variant.")


class ReplicaCount(ApiModel):
    """Replicas of one site that were given the same."""

    site: str = Field(default="", description="The site; empty with replicaScope Total.")
    revision: str = Field(description="Revision that they serve or are to serve.")
    variant: str = Field(description="Variant of it.")
    replicas: int = Field(ge=0, description="How many.")
    beside: list[ReplicaRevision] = Field(
        default_factory=list,
        description="Revisions that they have beside it until the change is over, a further pod for each.",
        json_schema_extra=_ATOMIC,
    )
    moving: str = Field(
        default="",
        description="Rollout that took their pods away before others were ready; empty when they are.",
    )


class SLMDeploymentStatus(ApiModel):
    """What the operator found and decided."""

    observed_generation: int = Field(default=0, description="metadata.generation that status is about.")
    stable_revision: str = Field(default="", description="Revision promoted last; empty before the first.")
    update_revision: str = Field(
        default="", description="Revision that is wanted: spec's, or the pinned one."
    )
    model_version: str = Field(default="", description="spec.model.version of the stable revision.")
    ready_nodes: str = Field(default="", description="Ready of total nodes, for tables.")
    canary: str = Field(default="", description="State of the rollout, for tables.")
    retry_token: str = Field(default="", description="Value of the retry annotation that was acted on.")
    operations: list[OperationStatus] = Field(
        default_factory=list,
        description="Requests made by hand that were acted on, the latest of each kind.",
        json_schema_extra=keyed("operation"),
    )
    pinned: PinnedRevision | None = Field(
        default=None, description="Set while a revision other than spec's is wanted."
    )
    nodes: NodeCounts = Field(
        default_factory=NodeCounts, description="Counts of nodes; with mode Replicas, of replicas."
    )
    replicas: int = Field(default=0, description="With mode Replicas: inference pods of all revisions.")
    selector: str = Field(default="", description="With mode Replicas: label selector of these pods.")
    replica_counts: list[ReplicaCount] = Field(
        default_factory=list,
        description="With mode Replicas: what the replicas were given. It decides how far each Deployment "
        "is scaled.",
        json_schema_extra=_ATOMIC,
    )
    reasons: list[ReasonCount] = Field(
        default_factory=list, description="Problems by reason.", json_schema_extra=keyed("reason")
    )
    worst_nodes: list[NodeProblem] = Field(
        default_factory=list,
        description="At most ten nodes with a problem.",
        json_schema_extra=keyed("node"),
    )
    variants: list[VariantStatus] = Field(
        default_factory=list, description="Resolved sources.", json_schema_extra=keyed("name")
    )
    rollout: RolloutStatus | None = Field(
        default=None, description="The rollout in progress or the last one."
    )
    failed_revisions: list[FailedRevision] = Field(
        default_factory=list,
        description="Revisions that were rolled back.",
        json_schema_extra=keyed("revision"),
    )
    previous_stable: str | None = Field(
        default=None, description="Stable revision before this one; unset while there was none."
    )
    feedback: FeedbackStatus | None = Field(
        default=None, description="Where the rules of spec.feedback stand; unset without any."
    )
    adaptation: AdaptationStatus | None = Field(
        default=None, description="Where the sites of spec.adaptation stand; unset without it."
    )
    conditions: list[Condition] = Field(
        default_factory=list, description="Conditions; see each type.", json_schema_extra=keyed("type")
    )
