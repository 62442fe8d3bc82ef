# SPDX-License-Identifier: Apache-2.0
"""`spec` of an SLMModel: a model's source, what is made of it, and what each variant must measure up to."""

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints

from slmops.api.base import (
    ApiModel,
    Decimal,
    DecimalOrPercent,
    Duration,
    LabelSelector,
    Name,
    Quantity,
    SecretName,
    cel,
    exactly_one_of,
    keyed,
    validations,
)
from slmops.api.recipe_steps import Step
from slmops.api.source import FILE_PATH_PATTERN, NO_DOTS, SecretRef, Source, Url
from slmops.api.spec import ResourceAmounts, Resources, Toleration
from slmops.api.variant import EngineName, ProfileName

PUBLISH_KINDS: Final = ("oci", "s3", "pvc")
Image = Annotated[str, StringConstraints(min_length=1, max_length=500)]
VersionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
"""It is a label of Jobs, too."""
_ATOMIC: Final[dict[str, Any]] = {"x-kubernetes-list-type": "atomic"}
_SET: Final[dict[str, Any]] = {"x-kubernetes-list-type": "set"}


class Gates(ApiModel):
    """What a variant must measure up to on each device class; unset fields ask for nothing."""

    max_quality_loss: DecimalOrPercent | None = Field(
        default=None,
        description="Most that the metric may be worse than the reference variant's: absolute, or with % a "
        "share of it.",
    )
    min_quality: Decimal | None = Field(
        default=None, description="Least value of the metric; not with metric Perplexity."
    )
    max_memory: Quantity | None = Field(
        default=None, description="Most memory that the server may need with one request at a time."
    )
    max_size: Quantity | None = Field(default=None, description="Most bytes that the files may have.")
    min_tokens_per_second: Decimal | None = Field(
        default=None, description="Least tokens per second of one stream."
    )
    max_first_token: Duration | None = Field(
        default=None, description="Longest time until the first token of an answer."
    )


class Recipe(ApiModel):
    """One variant of the model, and how it is made."""

    name: Name = Field(description="Name of the variant, for example int4.")
    steps: list[Step] = Field(
        default_factory=list,
        max_length=8,
        description="Steps in this order; empty takes the source as it is.",
        json_schema_extra=_ATOMIC,
    )
    engine: EngineName | None = Field(
        default=None, description="Engine that serves it; unset takes what suits its files."
    )
    profiles: list[ProfileName] = Field(
        default_factory=list,
        max_length=16,
        description="DeviceProfiles that it is meant for and measured on; empty means any device, and it is "
        "measured on a node of jobs.nodeSelector.",
        json_schema_extra=_SET,
    )
    gates: Gates | None = Field(
        default=None, description="Gates of this variant; fields that are set replace those of spec.gates."
    )
    image: Image | None = Field(
        default=None, description="Image of its steps; unset takes jobs.optimizerImage."
    )
    runtime_image: Image | None = Field(
        default=None, description="Image that measures it; unset takes jobs.runtimeImage."
    )


class PublishOci(ApiModel):
    """A repository in an OCI registry; the tag is made of version and variant."""

    image: Annotated[
        str,
        StringConstraints(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+$",
            max_length=300,
        ),
    ] = Field(
        description="Registry and repository without a tag, for example registry.example.com/models/chat.",
        json_schema_extra=validations(
            cel(
                "self.split('/')[0].contains('.') || self.split('/')[0].contains(':') || "
                "self.startsWith('localhost/')",
                "the image must begin with its registry, for example registry.example.com/models/chat",
            )
        ),
    )
    plain_http: bool = Field(default=False, description="Whether the registry speaks HTTP without TLS.")
    push_secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret of type kubernetes.io/dockerconfigjson that may push.",
    )
    pull_secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret of the same type that nodes and the operator pull with; unset means anonymous. "
        "Devices never get the one that may push.",
    )


class PublishS3(ApiModel):
    """A folder in an S3-compatible store; each variant gets a folder of its own in it."""

    endpoint: Url | None = Field(default=None, description="Endpoint of the store; unset means AWS.")
    region: str = Field(
        default="us-east-1", pattern=r"^[a-z0-9-]+$", max_length=63, description="Region that is signed for."
    )
    bucket: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$", min_length=3, max_length=63, description="The bucket."
    )
    prefix: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9_+@=.-]+/)*$",
        max_length=300,
        description="Folder in the bucket, with a slash at its end.",
        json_schema_extra=validations(NO_DOTS),
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret with the keys accessKeyId, secretAccessKey and perhaps sessionToken that may "
        "write.",
    )
    read_secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret with the same keys that nodes and the operator read with; unset means anonymous.",
    )


class PublishPvc(ApiModel):
    """A folder on a PersistentVolumeClaim that Jobs can write and nodes can read."""

    claim_name: SecretName = Field(description="Name of the claim, in the SLMModel's namespace.")
    path: str | None = Field(
        default=None, pattern=FILE_PATH_PATTERN, max_length=300, description="Folder; unset means the root."
    )


class Publish(ApiModel):
    """Where the files of variants that are made go; exactly one kind."""

    model_config = ConfigDict(json_schema_extra=validations(exactly_one_of(*PUBLISH_KINDS)))

    oci: PublishOci | None = Field(default=None, description="An OCI registry.")
    s3: PublishS3 | None = Field(default=None, description="An S3-compatible store.")
    pvc: PublishPvc | None = Field(default=None, description="A PersistentVolumeClaim.")


class SigningKeyRef(ApiModel):
    """A private key in a Secret of the SLMModel's namespace."""

    name: SecretName = Field(description="Name of the Secret.")
    key: str = Field(default="key.pem", min_length=1, max_length=253, description="Key that holds the PEM.")


class Signing(ApiModel):
    """Signs what is published."""

    key_secret_ref: SigningKeyRef = Field(description="Elliptic-curve private key in PEM.")


class Scorer(ApiModel):
    """A container that judges the answers in /workspace/answers.jsonl; its termination message is
    `{"score": 0.93}`, 0 to 1, higher is better."""

    image: Image = Field(description="Its image.")
    command: list[Annotated[str, StringConstraints(max_length=4096)]] = Field(
        default_factory=list,
        max_length=64,
        description="Command; empty takes the image's.",
        json_schema_extra=_ATOMIC,
    )
    args: list[Annotated[str, StringConstraints(max_length=4096)]] = Field(
        default_factory=list, max_length=64, description="Arguments.", json_schema_extra=_ATOMIC
    )


class ModelEvaluation(ApiModel):
    """How variants are measured."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "!has(self.metric) || self.metric != 'Score' || has(self.scorer)",
                "metric Score needs a scorer",
            )
        )
    )

    dataset: Source | None = Field(
        default=None,
        description="Folder with golden.jsonl and perhaps text.txt; unset takes what the model brings along.",
    )
    reference: Name | None = Field(
        default=None, description="Variant whose quality is the yardstick; unset takes the first."
    )
    metric: Literal["ExactMatch", "Perplexity", "Score"] = Field(
        default="ExactMatch", description="What quality is: answers as expected, perplexity, or the scorer's."
    )
    scorer: Scorer | None = Field(default=None, description="A scorer of your own.")
    deadline: Duration = Field(default="1h", description="Longest time that one measurement may take.")


class JobStorage(ApiModel):
    """A volume that is made for each Job and removed with it."""

    size: Quantity = Field(description="Size; three times the source's is enough for most recipes.")
    storage_class_name: str | None = Field(default=None, max_length=253, description="Storage class.")


class ModelJobs(ApiModel):
    """The Jobs that make and measure variants."""

    node_selector: LabelSelector = Field(
        default_factory=LabelSelector, description="Nodes that variants are made on."
    )
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=20, description="Taints that all Jobs tolerate.",
        json_schema_extra=_ATOMIC,
    )  # fmt: skip
    resources: Resources = Field(
        default_factory=lambda: Resources(requests=ResourceAmounts(cpu="500m", memory="1Gi")),
        description="Of each step, and of the container that measures.",
    )
    optimizer_image: Image | None = Field(
        default=None, description="Image of the steps; unset takes the operator's default."
    )
    runtime_image: Image | None = Field(
        default=None, description="Image that fetches and measures; unset takes the operator's default."
    )
    image_pull_secrets: list[SecretName] = Field(
        default_factory=list, max_length=10, description="Image pull Secrets.", json_schema_extra=_SET
    )
    storage: JobStorage | None = Field(
        default=None, description="Volume for the files; unset takes the node's disk (emptyDir)."
    )
    parallelism: int = Field(
        default=1,
        ge=1,
        le=8,
        description="Variants that are made at the same time. Measurements run beside them, one at a time "
        "on each device class.",
    )
    deadline: Duration = Field(default="6h", description="Longest time that making one variant may take.")
    backoff_limit: int = Field(
        default=3,
        ge=0,
        le=10,
        description="How often a Job is tried again that a source, a registry or a node let down.",
    )
    ttl: Duration = Field(default="1h", description="How long a Job that ended is kept for its logs.")


class SLMModelSpec(ApiModel):
    """A model: where it comes from, the variants that are made of it, and what they must measure up to."""

    source: Source = Field(description="Where the model's files come from; the reference may be mutable.")
    version: VersionName | None = Field(
        default=None,
        max_length=50,
        description="Name of the version; unset takes the beginning of the commit or digest. Another source "
        "or recipe under the same name gets a number behind it.",
    )
    poll_interval: Duration | None = Field(
        default=None,
        description="How often a mutable source is looked at, at least 10s; a new digest is a new version. "
        "Unset looks only when spec changes.",
    )
    recipes: list[Recipe] = Field(
        min_length=1,
        max_length=16,
        description="The variants, in order of preference.",
        json_schema_extra=keyed("name"),
    )
    publish: Publish | None = Field(
        default=None, description="Where the files of recipes with steps go; required when there are any."
    )
    signing: Signing | None = Field(default=None, description="Signs what is published.")
    evaluation: ModelEvaluation | None = Field(
        default=None, description="How variants are measured; unset measures nothing."
    )
    gates: Gates = Field(default_factory=Gates, description="What every variant must measure up to.")
    jobs: ModelJobs = Field(default_factory=ModelJobs, description="The Jobs.")
    version_history_limit: int = Field(
        default=5,
        ge=1,
        le=20,
        description="Versions kept in status, fewer where they do not fit into one object. The latest "
        "accepted one always is, and those that SLMDeployments name or run are.",
    )
    policy: Literal["Automatic", "Manual"] = Field(
        default="Automatic",
        description="Manual: a version that passed its gates waits until the annotation slmops.dev/accept "
        "names it.",
    )
    paused: bool = Field(
        default=False, description="Begins nothing new: no version, no Job; what runs goes on."
    )
