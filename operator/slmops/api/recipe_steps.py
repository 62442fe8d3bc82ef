# SPDX-License-Identifier: Apache-2.0
"""`spec.recipes[].steps` of an SLMModel: what is done to the files."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints

from slmops.api.base import ApiModel, cel, exactly_one_of, validations

CONVERT_TYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "GGUF": ("F32", "F16", "Q8_0", "Q4_0"),
    "ONNX": ("fp32", "fp16", "int4"),
    "LiteRT": ("dynamic_wi8_afp32", "dynamic_wi4b32_afp32"),
}
"""Types that each format knows; the first is the default."""
STEP_KINDS: Final = ("quantizeInt8", "quantizeInt4", "prune", "slice", "loraInputs", "convert")


NodeNames = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=200)]], Field(max_length=64)
]


class QuantizeInt8(ApiModel):
    """Weights as 8-bit integers in blocks that share a scale."""

    # No default here: it would be a field that optimizer images of before refuse, and another recipe.
    block_size: Literal[16, 32, 64, 128, 256] | None = Field(
        default=None,
        description="Weights that share a scale, 128 unless set; small blocks are more exact, larger and "
        "slower.",
    )
    exclude: NodeNames = Field(
        default_factory=list,
        description="Parts of names of graph nodes that stay as they are, for example lm_head.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class QuantizeInt4(ApiModel):
    """Weights as 4-bit integers in blocks that share a scale."""

    block_size: Literal[16, 32, 64, 128, 256] = Field(
        default=32, description="Weights that share a scale; small blocks are more exact and larger."
    )
    accuracy_level: int = Field(
        default=4,
        ge=0,
        le=4,
        description="Precision of the arithmetic: 0 any, 1 float32, 2 float16, 3 bfloat16, 4 int8.",
    )
    symmetric: bool = Field(default=True, description="Whether the blocks have no zero point.")
    algorithm: Literal["RTN", "KQuant"] = Field(
        default="RTN",
        description="RTN rounds to the nearest, KQuant searches scale and offset of each block; no data "
        "is needed.",
    )
    embeddings: bool = Field(default=False, description="Whether the embedding table is quantized, too.")
    exclude: NodeNames = Field(
        default_factory=list,
        description="Parts of names of graph nodes that stay as they are, for example lm_head.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class Prune(ApiModel):
    """Sets the weights to zero that matter least."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "has(self.method) && self.method == 'NM' ? "
                "(has(self.pattern) && !has(self.sparsityPercent)) : "
                "(has(self.sparsityPercent) && !has(self.pattern))",
                "method Magnitude needs sparsityPercent, method NM needs pattern",
            )
        )
    )

    method: Literal["Magnitude", "NM"] = Field(
        default="Magnitude",
        description="Magnitude takes the smallest weights of each matrix, NM the smallest of each group.",
    )
    sparsity_percent: int | None = Field(
        default=None, ge=1, le=95, description="With Magnitude: share of weights that become zero."
    )
    pattern: Annotated[str, StringConstraints(pattern=r"^[1-9]:([2-9]|1[0-6])$")] | None = Field(
        default=None, max_length=5, description="With NM: N:M keeps N weights of each M, for example 2:4."
    )
    scope: Literal["Matrix", "Global"] = Field(
        default="Matrix",
        description="With Magnitude: whether the share holds for each matrix or for all of them together.",
    )


class Slice(ApiModel):
    """Takes whole parts out of every layer, which makes the model smaller and faster on any hardware."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "(has(self.feedForwardPercent) && self.feedForwardPercent > 0) || "
                "(has(self.headsPercent) && self.headsPercent > 0)",
                "set feedForwardPercent or headsPercent above 0",
            )
        )
    )

    feed_forward_percent: int = Field(
        default=0, ge=0, le=90, description="Share of the feed-forward width that is taken out."
    )
    heads_percent: int = Field(
        default=0, ge=0, le=90, description="Share of the attention heads that are taken out."
    )
    importance: Literal["Weights", "Activations"] = Field(
        default="Weights",
        description="By what parts are ranked: norms of weights, or what they do on the golden set.",
    )


class LoraInputs(ApiModel):
    """Gives linear layers a low-rank branch that adapters fill; without one, answers stay what they are."""

    rank: int = Field(
        default=8, ge=1, le=256, description="Width of the branches, and so of every adapter of the model."
    )
    targets: NodeNames = Field(
        default_factory=list,
        description="Parts of names of the graph nodes that get a branch; none means all projections of "
        "attention and feed-forward (/attn/ and /mlp/), but not the head.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class Convert(ApiModel):
    """Writes the model in the format of another engine."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            *(
                cel(
                    f"!has(self.type) || self.to != '{to}' || self.type in {list(types)}",
                    f"type for {to} is one of {', '.join(types)}",
                )
                for to, types in CONVERT_TYPES.items()
            )
        )
    )

    to: Literal["GGUF", "LiteRT", "ONNX"] = Field(description="Format to write.")
    type: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+$")] | None = Field(
        default=None,
        max_length=32,
        description="Type of the weights in it, for example Q4_0; unset takes the first of the rule.",
    )


class Step(ApiModel):
    """One step of a recipe; exactly one kind."""

    model_config = ConfigDict(json_schema_extra=validations(exactly_one_of(*STEP_KINDS)))

    quantize_int8: QuantizeInt8 | None = Field(
        default=None, alias="quantizeInt8", description="Weights as 8-bit integers."
    )
    quantize_int4: QuantizeInt4 | None = Field(
        default=None, alias="quantizeInt4", description="Weights as 4-bit integers."
    )
    prune: Prune | None = Field(default=None, description="Weights that matter least become zero.")
    slice: Slice | None = Field(default=None, description="Whole parts of the layers are taken out.")
    lora_inputs: LoraInputs | None = Field(
        default=None, alias="loraInputs", description="Inputs for adapters are added."
    )
    convert: Convert | None = Field(default=None, description="Another file format.")
