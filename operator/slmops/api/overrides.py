# SPDX-License-Identifier: Apache-2.0
"""`spec.overrides[]`: what differs at some sites, on some classes of devices or on some nodes."""

from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field, StringConstraints

from slmops.api.base import ApiModel, LabelSelector, Name, Sha256, cel, keyed, validations
from slmops.api.profile import LabelValue, ProfileResources
from slmops.api.variant import EngineName, ProfileName, VariantRuntime

MAX_OVERRIDES: Final = 32
SELECTORS: Final = ("sites", "profiles", "nodeSelector")
CHANGES: Final = ("runtime", "resources", "engine", "adapters")


def _within_limit(name: str) -> dict[str, str]:
    request, limit = f"self.requests.{name}", f"self.limits.{name}"
    return cel(
        f"!has(self.requests) || !has({request}) || !has(self.limits) || !has({limit}) || "
        f"quantity({request}).compareTo(quantity({limit})) <= 0",
        f"the {name} request is above its limit",
    )


class OverrideResources(ProfileResources):
    """Requests and limits of the inference container that count before those of the variant.

    A limit that comes from elsewhere is raised to a request that is given here, and such a request is
    lowered to a limit that is given here.
    """

    model_config = ConfigDict(json_schema_extra=validations(_within_limit("cpu"), _within_limit("memory")))


class Adapter(ApiModel):
    """A LoRA adapter: one file, pinned by its hash, that nodes fetch and verify as they do the model.

    Clients ask for it as MODEL:NAME. The model has to be one that takes adapters.
    """

    name: Name = Field(description="Name of the adapter; it replaces one of the model's own of this name.")
    url: Annotated[
        str,
        StringConstraints(
            pattern=r"^https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)+\.(gguf|onnx_adapter)$",
            max_length=1024,
        ),
    ] = Field(
        description="Where the file is. .gguf is for llama.cpp, .onnx_adapter for onnxruntime. If the source "
        "of the variant names a Secret, it has to be that server: it is shown the credential."
    )
    sha256: Sha256 = Field(description="SHA-256 of the file, 64 lower-case hexadecimal digits.")
    size: int = Field(ge=1, le=1 << 40, description="Size of the file in bytes.")
    # Absent until it is set: a default would change the identity of every revision with adapters.
    default: bool | None = Field(
        default=None,
        description="Whether requests that name the model alone are answered with it; the model without it "
        "is MODEL:base then.",
    )


class Override(ApiModel):
    """What differs on some nodes. Of sites, profiles and nodeSelector all that are given must match.

    Of several overrides that match a node the first counts, alone.
    """

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                " || ".join(f"has(self.{name})" for name in SELECTORS),
                "say where it counts: set at least one of sites, profiles and nodeSelector",
            ),
            cel(
                " || ".join(f"has(self.{name})" for name in CHANGES),
                "say what it changes: set at least one of runtime, resources, engine and adapters",
            ),
        )
    )

    name: Name = Field(description="Name of the override; variants are called VARIANT-NAME on its nodes.")
    sites: list[LabelValue] | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Sites, as values of placement.siteLabel.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    profiles: list[ProfileName] | None = Field(
        default=None,
        min_length=1,
        max_length=32,
        description="DeviceProfiles that the node is of one of.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    node_selector: LabelSelector | None = Field(default=None, description="Labels of the nodes.")
    runtime: VariantRuntime | None = Field(
        default=None,
        description="Settings of the inference server; they count before those of the variant, of the "
        "DeviceProfile and of spec.runtime.",
    )
    resources: OverrideResources | None = Field(
        default=None, description="Of the inference container; they count before the variant's."
    )
    engine: EngineName | None = Field(
        default=None,
        description="Inference engine; variants for another engine are not taken there. It counts before "
        "the DeviceProfile's.",
    )
    adapters: list[Adapter] | None = Field(
        default=None,
        min_length=1,
        max_length=8,
        description="LoRA adapters that the server has beside the model's own.",
        json_schema_extra=keyed("name")
        | validations(
            cel(
                "self.filter(a, has(a.default) && a.default).size() <= 1",
                "at most one adapter can be the default",
            ),
            cel(
                "!self.exists(a, has(a.default) && a.default) || !self.exists(a, a.name == 'base')",
                "with a default adapter none can be called base: that names the model without it",
            ),
        ),
    )


def not_overridden_with_replicas() -> dict[str, Any]:
    """CEL rule for spec: which pod a node gets is known with one pod per node only."""
    return cel(
        "!has(self.placement.mode) || self.placement.mode != 'Replicas' || !has(self.overrides) || "
        "size(self.overrides) == 0",
        "overrides need placement.mode PerNode: the scheduler places replicas; leave them out, or make an "
        "SLMDeployment for each site",
    ) | {"fieldPath": ".overrides"}
