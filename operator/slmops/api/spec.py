# SPDX-License-Identifier: Apache-2.0
"""`spec` of an SLMDeployment: what the user wants."""

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints

from slmops.api.access import Auth, Tls, apart
from slmops.api.adaptation import Adaptation, adaptation_rules
from slmops.api.analysis import Analysis, Metric
from slmops.api.base import (
    ApiModel,
    LabelSelector,
    Quantity,
    SecretName,
    cel,
    keyed,
    validations,
)
from slmops.api.distribution import Distribution, not_with_replicas
from slmops.api.feedback import FeedbackPolicy
from slmops.api.overrides import MAX_OVERRIDES, Override, not_overridden_with_replicas
from slmops.api.privacy import Privacy, privacy_rules
from slmops.api.rollout import Rollout, Wave
from slmops.api.signature import Signature
from slmops.api.source import NO_DOTS, FileSource, HttpSource, HuggingFaceSource, Source
from slmops.api.variant import EngineName, ResourceAmounts, Resources, Variant

__all__ = [
    "Analysis",
    "Distribution",
    "FileSource",
    "HttpSource",
    "HuggingFaceSource",
    "Metric",
    "ModelSource",
    "Override",
    "Privacy",
    "ResourceAmounts",
    "Resources",
    "Rollout",
    "SLMDeploymentSpec",
    "Signature",
    "Source",
    "Variant",
    "Wave",
]


_VERSION: Final = r"^[A-Za-z0-9._-]+$"


class ModelSource(ApiModel):
    """An SLMModel of the same namespace that the deployment follows.

    Only a version that the SLMModel has accepted is rolled out, the newest that matches. One that is no
    longer offered goes on serving: an older one is never taken in its place unless `version` names it.
    """

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "(has(self.version) ? 1 : 0) + (has(self.channel) ? 1 : 0) + "
                "(has(self.versionPattern) ? 1 : 0) <= 1",
                "set at most one of version, channel and versionPattern",
            )
        )
    )

    name: SecretName = Field(description="Name of the SLMModel.")
    version: Annotated[str, StringConstraints(pattern=_VERSION, min_length=1, max_length=63)] | None = Field(
        default=None, description="Exactly this version."
    )
    channel: Literal["Latest"] | None = Field(
        default=None, description="Latest follows the newest accepted version, as when nothing is set."
    )
    version_pattern: (
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._*?-]+$", min_length=1, max_length=63)] | None
    ) = Field(
        default=None, description="The newest accepted version that matches, for example 2.*; ? is any one."
    )


class Model(ApiModel):
    """Which model this is, for people and for the API."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "has(self.from) != (has(self.version) && size(self.version) > 0)",
                "set version, or from: the version is that of the SLMModel then",
            )
        )
    )

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$", min_length=1, max_length=63)] = (
        Field(description="Name under which the API serves the model.")
    )
    version: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]*$", max_length=63)] = Field(
        default="",
        description="Version, shown in tables, metrics and conditions; left out with `from`, whose it is "
        "then.",
    )
    from_: ModelSource | None = Field(
        default=None,
        alias="from",
        description="An SLMModel to follow: its variants are used, and spec.variants is left out.",
    )
    signature: Signature | None = Field(
        default=None, description="Who must have signed the files of every variant; not part of the revision."
    )


class Toleration(ApiModel):
    """A taint of the nodes that the pods tolerate."""

    key: str | None = Field(default=None, max_length=317, description="Taint key; unset matches all keys.")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="How value is compared.")
    value: str | None = Field(default=None, max_length=63, description="Taint value for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Taint effect; unset matches all."
    )


def _kept(name: str, default: str) -> str:
    """CEL: the field is what it was, an absent one being its default (rules run before it is filled in)."""
    before, after = (f"(has({v}.{name}) ? {v}.{name} : '{default}')" for v in ("oldSelf", "self"))
    return f"{before} == {after}"


_IS_REPLICAS: Final = "has(self.mode) && self.mode == 'Replicas'"
_IS_PER_SITE: Final = "has(self.replicaScope) && self.replicaScope == 'PerSite'"
_SITE_LABEL: Final = "topology.kubernetes.io/zone"


class Placement(ApiModel):
    """Where the model runs: one inference pod on every node that matches, or a number of replicas."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                _kept("mode", "PerNode"),
                "mode cannot be changed, all pods would be taken away; make a new SLMDeployment and delete "
                "this one when that one serves",
            ),
            cel(
                _kept("replicaScope", "Total"),
                "replicaScope cannot be changed, all pods would be taken away; make a new SLMDeployment and "
                "delete this one when that one serves",
            ),
            cel(
                f"!({_IS_PER_SITE}) || {_kept('siteLabel', _SITE_LABEL)}",
                "siteLabel cannot be changed with replicaScope PerSite, all pods would be taken away; make a "
                "new SLMDeployment and delete this one when that one serves",
            ),
            cel(
                f"({_IS_REPLICAS}) || !has(self.replicas) || self.replicas == 1",
                "replicas needs mode: Replicas; with mode PerNode every matching node runs one pod",
            ),
            cel(
                f"({_IS_REPLICAS}) || !({_IS_PER_SITE})",
                "replicaScope: PerSite needs mode: Replicas",
            ),
        )
    )

    mode: Literal["PerNode", "Replicas"] = Field(
        default="PerNode",
        description="PerNode runs one pod on every matching node, each with its own copy of the model. "
        "Replicas runs a number of pods on any of the matching nodes; waves are shares of the replicas. It "
        "cannot be changed.",
    )
    replicas: int = Field(
        default=1,
        ge=0,
        le=1000,
        description="With mode Replicas: pods in total or of each site. kubectl scale and a "
        "HorizontalPodAutoscaler of the SLMDeployment set it.",
    )
    replica_scope: Literal["Total", "PerSite"] = Field(
        default="Total",
        description="What replicas counts: Total, or PerSite for as many at each value of siteLabel among "
        "the matching nodes; nodes without the label are left out and reported then. It cannot be changed.",
    )
    node_selector: LabelSelector = Field(
        description="Nodes that run the model. Nodes that no variant suits are left out and reported."
    )
    site_label: Annotated[
        str, StringConstraints(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9._-]+$", min_length=1, max_length=317)
    ] = Field(
        default=_SITE_LABEL,
        description="Node label whose value names the node's site; limits per site go by it. Nodes without "
        "it are a site of their own each.",
    )
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=20, description="Taints that the pods tolerate. With mode PerNode "
        "they always tolerate not-ready and unreachable, too: an offline node keeps serving.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )  # fmt: skip
    priority_class_name: str | None = Field(
        default=None, max_length=253, description="Priority class of the inference pods."
    )


class Runtime(ApiModel):
    """Settings of the inference server."""

    image: str | None = Field(
        default=None,
        max_length=500,
        description="Server image; unset takes the operator's default, pinned when a revision is made.",
    )
    image_pull_secrets: list[SecretName] = Field(
        default_factory=list,
        max_length=10,
        description="Names of image pull Secrets.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    engine: EngineName | None = Field(
        default=None,
        description="Inference engine; unset takes the one that the model's files are for, auto lets each "
        "node measure which is the fastest. A variant's and a DeviceProfile's count before it.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Threads of the engine; 0 takes the processor limit or all cores.",
    )
    slots: int = Field(default=4, ge=1, le=64, description="Requests that are decoded together.")
    context_length: int = Field(
        default=0,
        ge=0,
        le=1048576,
        description="Tokens per request, prompt and answer together; 0 takes the model's limit.",
    )
    max_queue: int = Field(
        default=32, ge=0, le=10000, description="Requests that may wait for a slot; more get 429."
    )


class Service(ApiModel):
    """The Service in front of the pods."""

    model_config = ConfigDict(json_schema_extra=apart())

    port: int = Field(default=80, ge=1, le=65535, description="Port of the Service.")
    traffic_policy: Literal["Local", "Cluster"] = Field(
        default="Local",
        description="Local answers on each node with that node's pod, so prompts do not leave the node; "
        "Cluster spreads over all nodes. With placement.mode Replicas it is Cluster always: most nodes have "
        "no pod of their own.",
    )
    auth: Auth | None = Field(
        default=None,
        description="Who may ask; unset lets everybody who reaches the pods. A change is a new revision.",
    )
    tls: Tls | None = Field(
        default=None,
        description="Makes the pods speak HTTPS, and nothing else, on their port; unset is plain HTTP. A "
        "change is a new revision: while it goes out, pods of both kinds stand behind the Service.",
    )


class Cache(ApiModel):
    """The model store on each node."""

    host_path: str = Field(
        default="/var/lib/slmops",
        pattern=r"^/[A-Za-z0-9._/-]*[A-Za-z0-9._-]$",
        max_length=200,
        description="Folder on the node; shared by all SLMDeployments that name it.",
        json_schema_extra=validations(NO_DOTS),
    )
    size_limit: Quantity | None = Field(
        default=None, description="Most bytes the store may hold on a node; unset means the file system."
    )
    high_watermark_percent: int | None = Field(
        default=None,
        ge=1,
        le=99,
        description="A fetch never fills the store's file system beyond this share; keep it below what makes "
        "the kubelet evict pods or remove images, for example 80. Unset leaves 5 % free, at most 4 GiB. "
        "Takes effect with the next revision.",
    )
    keep_previous: int = Field(
        default=1,
        ge=0,
        le=10,
        description="Earlier revisions kept on the node, so rollback needs no network.",
    )
    deletion_policy: Literal["Retain", "Delete"] = Field(
        default="Delete",
        description="Whether deleting the SLMDeployment removes its models from the reachable nodes.",
    )


class Evaluation(ApiModel):
    """The golden set that the model brings along."""

    enabled: bool = Field(
        default=True, description="Whether each node answers the model's golden set before it is ready."
    )


class SLMDeploymentSpec(ApiModel):
    """A small language model on every matching node."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            *not_with_replicas()["x-kubernetes-validations"],
            *privacy_rules(),
            *adaptation_rules(),
            cel(
                "has(self.model.from) != (has(self.variants) && size(self.variants) > 0)",
                "give at least 1 of variants, or model.from, not both",
            )
            | {"fieldPath": ".variants"},
            cel(
                "!has(self.placement.mode) || self.placement.mode != 'Replicas' || !has(self.variants) || "
                "!self.variants.exists(v, has(v.profiles))",
                "variants[].profiles needs placement.mode PerNode: the scheduler places replicas",
            ),
            not_overridden_with_replicas(),
            cel(
                "has(self.model.from) || !has(self.feedback) || !has(self.feedback.rules) || "
                "!self.feedback.rules.exists(r, has(r.action) && r.action == 'NewModelVersion')",
                "feedback.rules[].action NewModelVersion needs model.from: an SLMModel that is to look again",
            ),
        )
    )

    model: Model = Field(description="Which model this is.")
    variants: list[Variant] = Field(
        default_factory=list,
        max_length=16,
        description="Forms of the model in order of preference.",
        json_schema_extra=keyed("name"),
    )
    placement: Placement = Field(description="Which nodes run it.")
    runtime: Runtime = Field(default_factory=Runtime, description="Settings of the inference server.")
    service: Service = Field(default_factory=Service, description="The Service in front of the pods.")
    cache: Cache = Field(default_factory=Cache, description="The model store on each node.")
    distribution: Distribution = Field(
        default_factory=Distribution, description="How models reach the nodes over thin links."
    )
    privacy: Privacy = Field(
        default_factory=Privacy, description="Where the model may run, and whom its pods may speak with."
    )
    rollout: Rollout = Field(default_factory=Rollout, description="How a new revision reaches the fleet.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="The model's golden set.")
    overrides: list[Override] | None = Field(
        default=None,
        max_length=MAX_OVERRIDES,
        description="What differs at some sites, on some classes of devices or on some nodes. The first that "
        "matches a node counts. Needs placement.mode PerNode.",
        json_schema_extra=keyed("name"),
    )
    feedback: FeedbackPolicy | None = Field(
        default=None, description="What users and the devices themselves say of the stable revision."
    )
    adaptation: Adaptation | None = Field(
        default=None,
        description="Sites that adapt the model to their wording, on their own hardware. Needs "
        "placement.mode PerNode.",
    )
    revision_history_limit: int = Field(
        default=3, ge=1, le=20, description="Old revisions kept as ControllerRevisions."
    )
