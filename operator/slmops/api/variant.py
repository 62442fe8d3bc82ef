# SPDX-License-Identifier: Apache-2.0
"""`spec.variants[]`: the forms of a model, what each needs, and the nodes that it suits."""

from typing import Annotated, Final, Literal, get_args

from pydantic import ConfigDict, Field, StringConstraints

from slmops.api.base import NAME_PATTERN, ApiModel, LabelSelector, Name, Quantity, cel, validations
from slmops.api.source import Source

EngineName = Literal["onnxruntime", "llama.cpp", "openvino", "litert", "executorch", "encoder", "auto"]
AUTO: Final = "auto"
ENGINE_NAMES: Final[tuple[str, ...]] = get_args(EngineName)

ProfileName = Annotated[str, StringConstraints(pattern=NAME_PATTERN, min_length=1, max_length=40)]


def _within_limit(name: str) -> dict[str, str]:
    return cel(
        f"!has(self.requests.{name}) || !has(self.limits) || !has(self.limits.{name}) || "
        f"quantity(self.requests.{name}).compareTo(quantity(self.limits.{name})) <= 0",
        f"the {name} request is above its limit",
    )


class ResourceAmounts(ApiModel):
    """Amounts of processor and memory."""

    cpu: Quantity | None = Field(default=None, description="Processor cores, for example 500m or 2.")
    memory: Quantity | None = Field(default=None, description="Memory, for example 512Mi.")


class Resources(ApiModel):
    """What the inference container asks for and may use at most."""

    model_config = ConfigDict(json_schema_extra=validations(_within_limit("cpu"), _within_limit("memory")))

    requests: ResourceAmounts = Field(
        default_factory=lambda: ResourceAmounts(cpu="100m"),
        description="Reserved on the node. The memory decides which nodes the variant fits and whether two "
        "versions fit side by side; unset, it is computed from the model: weights, cache and the engine's "
        "own.",
    )
    limits: ResourceAmounts = Field(
        default_factory=ResourceAmounts, description="Upper bounds; unset means none."
    )


class VariantRuntime(ApiModel):
    """Settings of the inference server for one variant; what is unset is taken from spec.runtime."""

    threads: int | None = Field(default=None, ge=0, le=256, description="As spec.runtime.threads.")
    slots: int | None = Field(default=None, ge=1, le=64, description="As spec.runtime.slots.")
    context_length: int | None = Field(
        default=None, ge=0, le=1048576, description="As spec.runtime.contextLength."
    )
    max_queue: int | None = Field(default=None, ge=0, le=10000, description="As spec.runtime.maxQueue.")


class MemoryHints(ApiModel):
    """What is known better than the operator can compute it; used where no memory request is given."""

    weights: Quantity | None = Field(
        default=None, description="Memory of the weights; unset takes the size of their files."
    )
    cache_per_token: Quantity | None = Field(
        default=None,
        description="Key-value cache of one token, for example 24Ki; unset reads the model's configuration.",
    )
    overhead: Quantity | None = Field(
        default=None, description="What the process takes beside both; unset goes by the engine."
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
    # What came later is absent until it is set: a default would change every revision's identity.
    profiles: list[ProfileName] | None = Field(
        default=None,
        max_length=32,
        description="DeviceProfiles whose nodes may take it; unset means all nodes.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    engine: EngineName | None = Field(
        default=None,
        description="Inference engine that the files are for; unset goes by the DeviceProfile, then by "
        "spec.runtime.engine, then by the files.",
    )
    runtime: VariantRuntime | None = Field(
        default=None, description="Settings of the inference server for this variant."
    )
    memory: MemoryHints | None = Field(default=None, description="What is known of its need of memory.")
