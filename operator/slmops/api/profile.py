# SPDX-License-Identifier: Apache-2.0
"""`DeviceProfile`: the blueprint of one class of devices, for all SLMDeployments of the cluster."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from slmops.api.base import (
    QUANTITY_PATTERN,
    ApiModel,
    Decimal,
    LabelSelector,
    Quantity,
    cel,
    validations,
)
from slmops.api.variant import EngineName, ResourceAmounts

PROFILE_KIND = "DeviceProfile"
PROFILE_PLURAL = "deviceprofiles"

QUANTITY_OR_PERCENT_PATTERN = rf"{QUANTITY_PATTERN}|^([1-9][0-9]?|100)%$"
LABEL_KEY_PATTERN = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
MemoryBudget = Annotated[str, StringConstraints(pattern=QUANTITY_OR_PERCENT_PATTERN, max_length=32)]
"""A quantity, or a percentage of the node's allocatable memory."""
LabelValue = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", min_length=1, max_length=63)
]


class Accelerator(ApiModel):
    """An accelerator that the nodes of the class have, as a label of theirs says."""

    label: str = Field(
        default="slmops.dev/accelerator",
        pattern=LABEL_KEY_PATTERN,
        min_length=1,
        max_length=317,
        description="Key of the label.",
    )
    value: LabelValue = Field(description="Value of the label, for example orin or hailo-8.")


class Budgets(ApiModel):
    """How much of a node one model may take."""

    memory: MemoryBudget | None = Field(
        default=None,
        description="Memory of the inference pods together, as a quantity or a percentage of what the node "
        "can allocate, for example 60%; unset means all of it.",
    )
    disk: Quantity | None = Field(
        default=None, description="Size of one model's files; unset means no bound but the store's."
    )


class PowerWatts(ApiModel):
    """Power that a device takes."""

    idle: Decimal = Field(description="Watts at rest.")
    busy: Decimal = Field(description="Watts while it generates.")


class VariantPreference(ApiModel):
    """Which variants of a model the class takes first."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "!has(self.prefer) || size(self.prefer) == 0 || !has(self.strategy) || "
                "self.strategy == 'Preferred'",
                "prefer needs strategy Preferred; the others sort by numbers",
            )
        )
    )

    prefer: list[
        Annotated[str, StringConstraints(pattern=r"^[a-z0-9*?-]+$", min_length=1, max_length=63)]
    ] = Field(
        default_factory=list,
        max_length=32,
        description="Names of variants, or patterns such as int4*, the best first. The others follow in "
        "the order in which the SLMDeployment has them.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    strategy: Literal["Preferred", "BestQuality", "Smallest", "Fastest"] = Field(
        default="Preferred",
        description="Preferred goes by prefer. The others go by what an SLMModel has measured on this class "
        "and otherwise by size: BestQuality takes the best or largest that fits, Smallest and Fastest the "
        "smallest or fastest.",
    )


class ProfileResources(ApiModel):
    """Requests and limits of the inference container where a variant says nothing."""

    requests: ResourceAmounts = Field(default_factory=ResourceAmounts, description="Reserved on the node.")
    limits: ResourceAmounts = Field(default_factory=ResourceAmounts, description="Upper bounds.")


class ProfileRuntime(ApiModel):
    """Settings of the inference server on this class of devices.

    They count where the SLMDeployment has the API's default; `variants[].runtime` counts before them.
    """

    threads: int | None = Field(default=None, ge=0, le=256, description="Threads of the engine.")
    slots: int | None = Field(default=None, ge=1, le=64, description="Requests that are decoded together.")
    context_length: int | None = Field(
        default=None, ge=0, le=1048576, description="Tokens per request, prompt and answer together."
    )
    resources: ProfileResources = Field(
        default_factory=ProfileResources, description="Of the inference container."
    )


class DeviceProfileSpec(ApiModel):
    """A class of devices: which nodes it is, what they can give, and what suits them best.

    It says nothing about which models run there; that is an SLMDeployment's to say. A node that several
    profiles match is of the class with the highest priority, of equals the first by name.
    """

    node_selector: LabelSelector = Field(
        default_factory=LabelSelector,
        description="Labels of the nodes, for example those of Node Feature Discovery.",
    )
    architectures: list[LabelValue] = Field(
        default_factory=list,
        max_length=8,
        description="Values of the label kubernetes.io/arch, for example arm64; empty means any.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    accelerator: Accelerator | None = Field(default=None, description="An accelerator that the nodes have.")
    priority: int = Field(
        default=0, ge=-1000, le=1000, description="Which profile counts for a node that several match."
    )
    budgets: Budgets = Field(default_factory=Budgets, description="How much of a node a model may take.")
    power_mode: str | None = Field(
        default=None, max_length=63, description="Power mode that the devices are set to, for people."
    )
    power_watts: PowerWatts | None = Field(
        default=None,
        description="Power that a device takes, for people and tools; the operator does not use it.",
    )
    variants: VariantPreference = Field(
        default_factory=VariantPreference, description="Which variants the class takes first."
    )
    engine: EngineName | None = Field(
        default=None,
        description="Inference engine; variants for another engine are not taken. auto lets each node "
        "measure which is the fastest.",
    )
    engine_image: str | None = Field(
        default=None,
        max_length=500,
        description="Server image with that engine; unset takes the operator's for the engine. "
        "spec.runtime.image of an SLMDeployment counts before it.",
    )
    runtime: ProfileRuntime = Field(
        default_factory=ProfileRuntime, description="Settings of the inference server."
    )
