# SPDX-License-Identifier: Apache-2.0
"""`status` of an SLMModel: its versions, the newest first, and how far each has come.

Measured numbers are decimal texts. Fewer versions than `spec.versionHistoryLimit` are kept where they are
large.
"""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from slmops.api.base import ApiModel, Decimal, Timestamp, keyed
from slmops.api.source import Source
from slmops.api.status import Condition

VariantStep = Literal["Optimising", "Publishing", "Evaluating", "Accepted", "Rejected", "Failed"]
Verdict = Literal["", "Pass", "Fail", "Error"]
MESSAGE_LIMIT = 512


class ModelConditionType(StrEnum):
    """Conditions; for each, True is the good state. All but Ready are about the newest version."""

    ACCEPTED = "Accepted"
    """The spec makes sense. Reasons: Accepted (True); InvalidSpec, FilePathNotAllowed, SourceHostNotAllowed,
    OptimizerImageMissing (False: no version and no Job begins)."""
    SOURCE_RESOLVED = "SourceResolved"
    """The files of the source, and of the dataset, are known by digest. Reasons: Resolved (True); Resolving
    (Unknown); DatasetUnfit, SourceUnavailable, AccessDenied, RateLimited, IntegrityMismatch, Unfit,
    SignatureInvalid, InternalError (False)."""
    OPTIMISED = "Optimised"
    """Every variant's files exist. Reasons: Published (True); NoVersion, Optimising, Publishing (Unknown);
    StepFailed, NotPublished, ReportLost, PodLost, Evicted, OOMKilled, ImagePullBackOff, Unschedulable,
    NotStarted, WriteFailed, DeadlineExceeded, or what a source or registry failed with (False)."""
    EVALUATED = "Evaluated"
    """Every variant was measured and passed its gates. Reasons: Passed, NotAsked (True); NoVersion,
    Evaluating, Optimising (Unknown); GateFailed, NotMeasured, NoReference, NoScore, ProfileNotFound,
    ProfilesUnknown, WriteFailed, EvaluationFailed, or what else a container failed with (False: the variant
    is not offered)."""
    READY = "Ready"
    """A version is offered to SLMDeployments. Reasons: VersionAccepted, EarlierVersion (True: the newest
    one is not accepted, an earlier one is offered); NoVersion, InProgress, NotAccepted, GateFailed,
    VariantFailed, Superseded, AwaitingAcceptance, Paused (False)."""


class ModelSourceStatus(ApiModel):
    """What the source was resolved to last."""

    source_hash: str = Field(description="Hash of the source in spec.")
    digest: str = Field(description="sha256:<hex> over all files.")
    reference: str = Field(description="What a mutable reference stood for.")
    checked_at: Timestamp = Field(description="When it was looked at.")
    checks: int = Field(default=1, description="How often it was looked at.")
    checked_generation: int = Field(default=0, description="metadata.generation at that time.")


class ModelEvaluationStatus(ApiModel):
    """One variant on a node of one device class."""

    profile: str = Field(default="", description="DeviceProfile; empty means a node of jobs.nodeSelector.")
    key: str = Field(default="", description="Identity of the measurement.")
    engine: str = Field(default="", description="Engine that was measured.")
    samples: int = Field(default=0, description="Prompts that were answered.")
    exact_match: Decimal | None = Field(default=None, description="Share answered as expected, 0 to 1.")
    perplexity: Decimal | None = Field(default=None, description="Of the expected answers.")
    score: Decimal | None = Field(default=None, description="The scorer's, 0 to 1.")
    prompt_tokens_per_second: Decimal | None = Field(default=None, description="Reading a prompt.")
    tokens_per_second: Decimal | None = Field(default=None, description="Writing an answer, one stream.")
    first_token: Decimal | None = Field(default=None, description="Seconds until the first token.")
    memory_bytes: int | None = Field(default=None, description="Peak memory with one request at a time.")
    cache_bytes_per_token: int | None = Field(default=None, description="Memory of each token of context.")
    measured_at: Timestamp | None = Field(default=None, description="When; unset until it was measured.")
    verdict: Verdict = Field(default="", description="Pass, Fail, Error, or empty while it is open.")
    reason: str = Field(default="", description="Why it did not pass, or what it waits for.")
    message: str = Field(default="", max_length=MESSAGE_LIMIT, description="The same in a sentence.")
    attempt: int = Field(default=0, description="Number in the name of its Job.")
    failures: int = Field(default=0, description="Attempts that failed one after another.")
    retry_at: Timestamp | None = Field(default=None, description="When the next attempt begins.")


class ModelVariantStatus(ApiModel):
    """One variant of a version."""

    name: str = Field(description="Name of the recipe.")
    key: str = Field(default="", description="Identity of what its files are made of.")
    step: VariantStep = Field(default="Optimising", description="How far it has come.")
    progress: str = Field(default="", description="Containers of the running Job that are done, of all.")
    source: Source | None = Field(default=None, description="Its files, pinned: the same bytes for ever.")
    digest: str = Field(default="", description="sha256:<hex> over all files.")
    size_bytes: int = Field(default=0, description="Size of all files.")
    signed: bool = Field(default=False, description="Whether it was signed when it was published.")
    engine: str = Field(default="", description="Engine that it is served with.")
    profiles: list[str] = Field(
        default_factory=list, description="DeviceProfiles that it was asked for.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )  # fmt: skip
    verdict: Verdict = Field(default="", description="Pass when it is offered for one profile at least.")
    reason: str = Field(default="", description="Why it is not offered, or what it waits for.")
    message: str = Field(default="", max_length=MESSAGE_LIMIT, description="The same in a sentence.")
    attempt: int = Field(default=0, description="Number in the name of its Job.")
    failures: int = Field(default=0, description="Attempts that failed one after another.")
    retry_at: Timestamp | None = Field(default=None, description="When the next attempt begins.")
    evaluations: list[ModelEvaluationStatus] = Field(
        default_factory=list, description="What was measured.", json_schema_extra=keyed("profile")
    )


class ModelVersionStatus(ApiModel):
    """One version of the model."""

    version: str = Field(description="Its name.")
    key: str = Field(default="", description="Identity of source and recipes.")
    digest: str = Field(default="", description="sha256:<hex> over the files of the source.")
    reference: str = Field(default="", description="What a mutable reference stood for.")
    created_at: str = Field(default="", description="When it was found.")
    accepted: bool = Field(default=False, description="Whether it is offered; it stays so.")
    accepted_at: Timestamp | None = Field(default=None, description="Since when.")
    metric: Literal["", "ExactMatch", "Perplexity", "Score"] = Field(
        default="", description="What quality is in this version."
    )
    reason: str = Field(default="", description="Where it stands, or why it is not accepted.")
    message: str = Field(default="", max_length=MESSAGE_LIMIT, description="The same in a sentence.")
    variants: list[ModelVariantStatus] = Field(
        default_factory=list, description="Its variants.", json_schema_extra=keyed("name")
    )


class SLMModelStatus(ApiModel):
    """What the operator found and decided."""

    observed_generation: int = Field(default=0, description="metadata.generation that status is about.")
    source: ModelSourceStatus | None = Field(default=None, description="What the source stood for last.")
    latest_version: str = Field(default="", description="The newest version.")
    accepted_version: str = Field(default="", description="The newest version that is offered.")
    progress: str = Field(default="", description="Where the newest version stands, for tables.")
    retry_token: str = Field(default="", description="Value of the retry annotation that was acted on.")
    versions: list[ModelVersionStatus] = Field(
        default_factory=list, description="Versions, the newest first.", json_schema_extra=keyed("version")
    )
    conditions: list[Condition] = Field(
        default_factory=list, description="Conditions; see each type.", json_schema_extra=keyed("type")
    )
