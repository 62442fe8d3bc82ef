# SPDX-License-Identifier: Apache-2.0
"""`status.adaptation`: what each site that adapts the model has come to. One entry for each site of spec."""

from typing import Any, Final, Literal

from pydantic import Field

from slmops.api.base import ApiModel, Sha256, Timestamp, keyed

MAX_TRIED: Final = 32
MESSAGE_LIMIT: Final = 512
Phase = Literal["Collecting", "Training", "Accepted", "Refused", "Failed", "RolledBack", "Unsupported"]
_ATOMIC: Final[dict[str, Any]] = {"x-kubernetes-list-type": "atomic"}


class SiteAdapter(ApiModel):
    """An adapter that was trained at a site. The file is in the stores of its nodes, and nowhere else."""

    sha256: Sha256 = Field(description="SHA-256 of the file.")
    size: int = Field(ge=1, description="Size of the file in bytes.")
    base_digest: str = Field(
        max_length=71, description="Digest of the model's own files, which are what it is for."
    )
    trained_at: Timestamp = Field(description="When it was accepted.")


class SiteAdaptationStatus(ApiModel):
    """Where one site stands. Shares are of answers as expected, from 0 to 1."""

    site: str = Field(max_length=63, description="The site.")
    phase: Phase = Field(
        default="Collecting",
        description="Collecting: nothing was trained yet. Training: a Job runs. Accepted, Refused, Failed: "
        "how the last training ended. RolledBack: its adapter failed its rollout, or no node has it any "
        "more. Unsupported: the site cannot train.",
    )
    reason: str = Field(default="", max_length=64, description="CamelCase reason for the phase.")
    message: str = Field(
        default="", max_length=MESSAGE_LIMIT, description="The same in a sentence, with the cure."
    )
    last_outcome: str = Field(
        default="",
        max_length=64,
        description="Of the last training that was judged: Accepted, TooFewExamples, NoGain or QualityLoss. "
        "The numbers here are about it.",
    )
    asked_at: Timestamp | None = Field(
        default=None, description="When a training was asked for that has not ended; unset without any."
    )
    asked_by: Literal["", "Rule", "Annotation", "NewModel"] = Field(
        default="", description="Who asked for the training that is wanted, or for the last one."
    )
    job: str = Field(default="", max_length=63, description="The latest Job.")
    node: str = Field(default="", max_length=253, description="Node of the latest Job.")
    attempt: int = Field(default=0, ge=0, description="Jobs made for the site so far.")
    failures: int = Field(
        default=0, ge=0, description="Jobs of this training that failed and may be tried again."
    )
    tried: list[str] = Field(
        default_factory=list,
        max_length=MAX_TRIED,
        description="Nodes that this training has tried in vain.",
        json_schema_extra=_ATOMIC,
    )
    retry_at: Timestamp | None = Field(default=None, description="When the next Job may be made.")
    started_at: Timestamp | None = Field(default=None, description="When the latest Job was made.")
    finished_at: Timestamp | None = Field(
        default=None, description="When the last training ended, or its rollout failed: the cooldown's begin."
    )
    base_digest: str = Field(
        default="", max_length=71, description="Model files that the latest training was about."
    )
    examples: int = Field(default=0, ge=0, description="Examples that the last training learned from.")
    held_out: int = Field(default=0, ge=0, description="Examples that it was judged by.")
    before: str | None = Field(
        default=None,
        description="Share on these with what served then: an earlier adapter, or the model alone.",
    )
    after: str | None = Field(default=None, description="The same with the new adapter.")
    golden_before: str | None = Field(
        default=None, description="Share on the model's own golden set without any training."
    )
    golden_after: str | None = Field(default=None, description="The same with the new adapter.")
    waiting: SiteAdapter | None = Field(
        default=None,
        description="Accepted adapter that becomes part of the model once no other rollout is under way.",
    )
    adapter: SiteAdapter | None = Field(
        default=None, description="Adapter that the site's variants with these files are to have."
    )
    previous: SiteAdapter | None = Field(
        default=None, description="The one before, which is taken up again if the rollout fails."
    )


class AdaptationStatus(ApiModel):
    """Where the sites of spec.adaptation stand."""

    train_token: str = Field(
        default="", max_length=256, description="Value of the annotation slmops.dev/train acted on last."
    )
    sites: list[SiteAdaptationStatus] = Field(
        default_factory=list, description="One entry for each site.", json_schema_extra=keyed("site")
    )
