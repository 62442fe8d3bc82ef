# SPDX-License-Identifier: Apache-2.0
"""`spec` of an SLMDeployment: what the user wants."""

from typing import Annotated, Any, Literal

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
    Sha256,
)

Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#@]+[^\s#@]*$", max_length=1024)]


def cel(rule: str, message: str) -> dict[str, str]:
    """One `x-kubernetes-validations` entry."""
    return {"rule": rule, "message": message}


def exactly_one_of(*names: str) -> dict[str, str]:
    """CEL rule: exactly one of the optional fields is set."""
    count = " + ".join(f"(has(self.{name}) ? 1 : 0)" for name in names)
    return cel(f"{count} == 1", f"exactly one of {', '.join(names)} must be set")


def _validations(*rules: dict[str, str]) -> dict[str, Any]:
    return {"x-kubernetes-validations": list(rules)}


def _keyed(key: str) -> dict[str, Any]:
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


class SecretKeyRef(ApiModel):
    """A key of a Secret in the SLMDeployment's namespace."""

    name: SecretName = Field(description="Name of the Secret.")
    key: str = Field(default="token", min_length=1, max_length=253, description="Key that holds the token.")


class SourceFile(ApiModel):
    """One file of a model, pinned by its hash."""

    path: str = Field(min_length=1, max_length=200, description="Path relative to the model's directory.")
    sha256: Sha256 = Field(description="SHA-256 of the whole file, 64 lower-case hexadecimal digits.")
    size: int | None = Field(
        default=None,
        ge=0,
        description="Size in bytes. Optional for http, where the server is asked; required for file.",
    )


class HttpSource(ApiModel):
    """Files on an HTTP(S) server.

    Either `url` is a manifest ({"files": [{"path", "size", "sha256"}, ...]}) and the files lie beside
    it, or `files` lists them and `url` is the folder that they lie in.
    """

    model_config = ConfigDict(
        json_schema_extra=_validations(
            cel(
                "!has(self.files) || size(self.files) == 0 || self.url.endsWith('/')",
                "url must end in / when files are listed: it is the folder that holds them",
            ),
            cel(
                "!has(self.files) || size(self.files) == 0 || !has(self.sha256)",
                "sha256 is the hash of a manifest; leave it out when files are listed, each has its own",
            ),
        )
    )

    url: Url = Field(description="URL of the manifest, or of the folder when `files` is given.")
    sha256: Sha256 | None = Field(
        default=None,
        description="SHA-256 of the manifest. Without it the manifest found first is pinned in status.",
    )
    files: list[SourceFile] = Field(
        default_factory=list, max_length=100, description="The files, when there is no manifest.",
        json_schema_extra=_keyed("path"),
    )  # fmt: skip
    secret_ref: SecretKeyRef | None = Field(default=None, description="Bearer token for the server.")


class HuggingFaceSource(ApiModel):
    """A repository on the Hugging Face Hub or a mirror of it."""

    repo: str = Field(
        pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$", max_length=200, description="Repository, `owner/name`."
    )
    revision: str = Field(
        default="main",
        min_length=1,
        max_length=200,
        description="Branch, tag or commit; resolved once to a commit, recorded in status.",
    )
    files: list[str] = Field(
        default_factory=list,
        max_length=50,
        description="Glob patterns of the files to take; empty takes all.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    endpoint: Url | None = Field(default=None, description="Endpoint of a mirror; default is the public Hub.")
    secret_ref: SecretKeyRef | None = Field(default=None, description="Access token.")


class FileSource(ApiModel):
    """Files that were put on each node by hand, below a folder the operator's administrator allows."""

    path: str = Field(
        pattern=r"^/[^\s]*$", max_length=500, description="Absolute folder on the node that holds the files."
    )
    files: list[SourceFile] = Field(
        min_length=1,
        max_length=100,
        description="The files with size and hash; the operator cannot read the node's disk to find out.",
        json_schema_extra=_keyed("path"),
    )


class Source(ApiModel):
    """Where a variant's files come from; exactly one kind."""

    model_config = ConfigDict(json_schema_extra=_validations(exactly_one_of("http", "hf", "file")))

    http: HttpSource | None = Field(default=None, description="Files on an HTTP(S) server.")
    hf: HuggingFaceSource | None = Field(default=None, description="A Hugging Face repository.")
    file: FileSource | None = Field(default=None, description="Files already on the node.")


class ResourceAmounts(ApiModel):
    """Amounts of processor and memory."""

    cpu: Quantity | None = Field(default=None, description="Processor cores, for example 500m or 2.")
    memory: Quantity | None = Field(default=None, description="Memory, for example 512Mi.")


class Resources(ApiModel):
    """What the inference container asks for and may use at most."""

    requests: ResourceAmounts = Field(
        default_factory=lambda: ResourceAmounts(cpu="100m", memory="256Mi"),
        description="Reserved on the node. The memory decides whether two versions fit side by side.",
    )
    limits: ResourceAmounts = Field(
        default_factory=ResourceAmounts, description="Upper bounds; unset means none."
    )


class Variant(ApiModel):
    """One form of the model (precision, architecture) and the nodes that it suits."""

    name: Name = Field(description="Name of the variant, for example int4.")
    source: Source = Field(description="Where the files come from.")
    node_selector: LabelSelector = Field(
        default_factory=LabelSelector,
        description="Nodes that this variant suits. A node takes the first that suits it.",
    )
    resources: Resources = Field(default_factory=Resources, description="Of the inference container.")


class Model(ApiModel):
    """Which model this is, for people and for the API."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$", min_length=1, max_length=63)] = (
        Field(description="Name under which the API serves the model.")
    )
    version: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$", min_length=1, max_length=63)] = (
        Field(description="Version, shown in tables, metrics and conditions.")
    )


class Toleration(ApiModel):
    """A taint of the nodes that the pods tolerate."""

    key: str | None = Field(default=None, max_length=317, description="Taint key; unset matches all keys.")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="How value is compared.")
    value: str | None = Field(default=None, max_length=63, description="Taint value for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Taint effect; unset matches all."
    )


class Placement(ApiModel):
    """Which nodes run the model: one inference pod on every node that matches."""

    node_selector: LabelSelector = Field(
        description="Nodes that run the model. Nodes that no variant suits are left out and reported."
    )
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=20, description="Taints that the pods tolerate, beside not-ready "
        "and unreachable, which they always do: an offline node keeps serving.",
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

    port: int = Field(default=80, ge=1, le=65535, description="Port of the Service.")
    traffic_policy: Literal["Local", "Cluster"] = Field(
        default="Local",
        description="Local answers on each node with that node's pod, so prompts do not leave the node; "
        "Cluster spreads over all nodes.",
    )


class Cache(ApiModel):
    """The model store on each node."""

    host_path: str = Field(
        default="/var/lib/slmops",
        pattern=r"^/[A-Za-z0-9._/-]*[A-Za-z0-9._-]$",
        max_length=200,
        description="Folder on the node; shared by all SLMDeployments that name it.",
    )
    size_limit: Quantity | None = Field(
        default=None, description="Most bytes the store may hold on a node; unset means the file system."
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


class Wave(ApiModel):
    """A group of nodes that take a new revision together."""

    model_config = ConfigDict(json_schema_extra=_validations(exactly_one_of("nodeSelector", "percent")))

    name: Name = Field(description="Name of the wave.")
    node_selector: LabelSelector | None = Field(
        default=None, description="Nodes of this wave, for example a lab or a pilot site."
    )
    percent: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="Share of all matching nodes that has the new revision after this wave.",
    )


class Metric(ApiModel):
    """One measurement that judges the new revision."""

    model_config = ConfigDict(
        json_schema_extra=_validations(
            cel(
                "has(self.max) || has(self.min) || has(self.maxDegradation)",
                "set at least one of max, min, maxDegradation: a metric without a bound judges nothing",
            )
        )
    )

    name: Name = Field(description="Name of the metric, shown in status.")
    preset: Literal["ErrorRate", "LatencyP95", "TimeToFirstTokenP95", "EvaluationScore"] = Field(
        description="ErrorRate: share of requests answered with 5xx. LatencyP95 and TimeToFirstTokenP95: "
        "seconds. EvaluationScore: share of the golden set answered as expected."
    )
    max: Decimal | None = Field(default=None, description="Fails above this value.")
    min: Decimal | None = Field(default=None, description="Fails below this value.")
    max_degradation: DecimalOrPercent | None = Field(
        default=None,
        description="How much worse than the stable nodes it may be: absolute (0.02) or relative (10%).",
    )
    min_samples: int | None = Field(
        default=None,
        ge=1,
        description="Evidence needed on each side before the metric judges: requests, for EvaluationScore "
        "golden cases. Default 50 for ErrorRate, 30 for latencies, 10 for EvaluationScore.",
    )
    failure_limit: int = Field(
        default=2,
        ge=1,
        le=100,
        description="Consecutive failed measurements that fail the wave.",
    )
    required: bool = Field(
        default=True,
        description="Whether the wave waits for this metric to pass; otherwise it can only fail it.",
    )


class Analysis(ApiModel):
    """How a wave is judged."""

    interval: Duration = Field(default="10s", description="Time between measurements.")
    passes: int = Field(
        default=2, ge=1, le=100, description="Consecutive measurements in which every required metric passes."
    )
    metrics: list[Metric] = Field(
        default_factory=lambda: [
            Metric(name="quality", preset="EvaluationScore", max_degradation="0.03"),
            Metric(name="errors", preset="ErrorRate", max_degradation="0.02", required=False),
        ],
        min_length=1,
        max_length=20,
        description="The metrics; all required ones must pass.",
        json_schema_extra=_keyed("name"),
    )


class Rollout(ApiModel):
    """How a new revision reaches the fleet."""

    model_config = ConfigDict(
        json_schema_extra=_validations(
            cel(
                "has(self.waves[self.waves.size() - 1].percent) && "
                "self.waves[self.waves.size() - 1].percent == 100",
                "the last wave must be percent: 100, or some nodes would never get a new revision",
            ),
        )
    )

    waves: list[Wave] = Field(
        default_factory=lambda: [Wave(name="canary", percent=10), Wave(name="rest", percent=100)],
        min_length=1,
        max_length=20,
        description="Waves in order: selectors first, then growing percentages, the last one 100.",
        json_schema_extra=_keyed("name"),
    )
    max_unavailable: Annotated[str, StringConstraints(pattern=r"^([0-9]+%|[0-9]+)$", max_length=10)] | int = (
        Field(
            default="10%",
            description="Nodes (a number, or a percentage of all nodes, at least one) that may be without a "
            "ready pod because of the rollout.",
            json_schema_extra={"x-kubernetes-int-or-string": True},
        )
    )
    max_failures: int = Field(
        default=0, ge=0, description="Nodes of the current wave that may fail before it is rolled back."
    )
    quorum_percent: int = Field(
        default=70,
        ge=1,
        le=100,
        description="Share of a wave's nodes that must have taken the revision; offline nodes are deferred. "
        "Below it the wave holds.",
    )
    soak: Duration = Field(default="60s", description="Time a wave runs before it is judged.")
    progress_deadline: Duration = Field(
        default="30m", description="Longest time a wave may take, prefetch not counted."
    )
    prefetch_deadline: Duration = Field(
        default="24h", description="Longest time a wave's nodes may take to fetch and verify the model."
    )
    on_deadline: Literal["Hold", "Rollback"] = Field(
        default="Hold", description="What happens when a deadline passes without a verdict."
    )
    paused: bool = Field(default=False, description="Stops the rollout where it is; nothing is moved.")
    analysis: Analysis = Field(default_factory=Analysis, description="How a wave is judged.")


class Evaluation(ApiModel):
    """The golden set that the model brings along."""

    enabled: bool = Field(
        default=True, description="Whether each node answers the model's golden set before it is ready."
    )


class SLMDeploymentSpec(ApiModel):
    """A small language model on every matching node."""

    model: Model = Field(description="Which model this is.")
    variants: list[Variant] = Field(
        min_length=1,
        max_length=16,
        description="Forms of the model in order of preference.",
        json_schema_extra=_keyed("name"),
    )
    placement: Placement = Field(description="Which nodes run it.")
    runtime: Runtime = Field(default_factory=Runtime, description="Settings of the inference server.")
    service: Service = Field(default_factory=Service, description="The Service in front of the pods.")
    cache: Cache = Field(default_factory=Cache, description="The model store on each node.")
    rollout: Rollout = Field(default_factory=Rollout, description="How a new revision reaches the fleet.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="The model's golden set.")
    revision_history_limit: int = Field(
        default=3, ge=1, le=20, description="Old revisions kept as ControllerRevisions."
    )
