# SPDX-License-Identifier: Apache-2.0
"""What an export holds, taken apart: every tensor by its part, and the numbers that its config leaves out.

Matrices come as [outputs, inputs], queries, keys and values apart, in the order of Hugging Face.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from slmopt.errors import unfit
from slmopt.graph import Layer, Matrix, OnnxExport

Tensor = NDArray[np.float32]
PARTS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ATTENTION_PARTS: Final = PARTS[:3]
_NORMS: Final = {
    "model.layers.{}.input_layernorm.weight": "input_norm",
    "model.layers.{}.post_attention_layernorm.weight": "post_norm",
    "model.layers.{}.attn.q_norm.layernorm.weight": "q_norm",
    "model.layers.{}.attn.k_norm.layernorm.weight": "k_norm",
}
_OPTIONAL: Final = frozenset({"q_norm", "k_norm"})
"""Of queries and keys, which Qwen 3 has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One tensor; `layer` is -1 for those of the whole model: `embedding`, `final_norm`, `head`."""

    part: str
    values: Tensor
    layer: int = -1
    kind: Literal["weight", "bias"] = "weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """Rotary position embedding: dimensions of a head that turn, base, and factors on the frequencies."""

    dimensions: int
    base: float
    factors: Tensor | None = None
    """[dimensions / 2], by which the frequencies are divided; None when all are 1."""


def find_rotation(cosines: Tensor, sines: Tensor) -> Rotation:
    """Of the tables [positions, dimensions / 2]; raises OptimizeError (Unfit) when they are scaled.

    The angle at each position is unwrapped along the table, so that tables in fp16 are good enough.
    """
    if not np.allclose(np.square(cosines) + np.square(sines), 1, atol=5e-3):
        raise unfit("the rotation is scaled (LongRoPE, YaRN); this conversion does not know that")
    count = cosines.shape[1]
    angles = np.unwrap(np.arctan2(sines.astype(np.float64), cosines.astype(np.float64)), axis=0)
    frequencies = (angles[-1] - angles[0]) / (len(angles) - 1)
    if count < 2 or not (frequencies > 0).all():
        raise unfit("the rotation cannot be read off cos_cache and sin_cache; export the model again")
    base = float(frequencies[1] ** -count)
    rounded = float(f"{base:.3g}")
    base = rounded if abs(base / rounded - 1) < 2e-3 else base
    factors = base ** (-np.arange(count) / count) / frequencies
    # Below one turn over the whole table an angle in fp16 says little.
    if np.allclose(factors, 1, atol=2e-2):
        return Rotation(dimensions=2 * count, base=base)
    return Rotation(dimensions=2 * count, base=base, factors=factors.astype(np.float32))


def read_rotation(export: OnnxExport) -> Rotation:
    """The export's; raises OptimizeError (Unfit) unless whole heads turn."""
    rotation = find_rotation(export.read("cos_cache"), export.read("sin_cache"))
    if rotation.dimensions != export.geometry.head_size:
        raise unfit(
            f"convert: {rotation.dimensions} of {export.geometry.head_size} dimensions of a head turn; this "
            "conversion knows full rotation only; use another format for this model"
        )
    return rotation


def find_epsilon(export: OnnxExport) -> float:
    """Of the RMS norms; raises OptimizeError (Unfit)."""
    for node in export.nodes:
        if node.op_type == "SimplifiedLayerNormalization":
            for attribute in node.attribute:
                if attribute.name == "epsilon":
                    return float(attribute.f)
    raise unfit("the model has no RMS norm: its architecture is not known to this conversion")


def iterate_weights(export: OnnxExport) -> Iterator[Weight]:
    """Every tensor; the head is left out where it is the embedding table. Raises OptimizeError (Unfit)."""
    embedding = export.read("model.embed_tokens.weight")
    yield Weight(part="embedding", values=embedding)
    for layer in export.layers():
        for pattern, part in _NORMS.items():
            name = pattern.format(layer.index)
            if part not in _OPTIONAL or export.is_float(name):
                yield Weight(part=part, layer=layer.index, values=export.read(name))
        for part, rows in _parts(export, layer, lambda matrix: export.read(matrix.weight).T):
            yield Weight(part=part, layer=layer.index, values=rows)
        if any(matrix.bias for matrix in layer.matrices.values()):
            for part, bias in _parts(export, layer, lambda matrix: _bias(export, matrix)):
                if bias.size:
                    yield Weight(part=part, layer=layer.index, kind="bias", values=bias)
    last = export.read(f"model.layers.{export.geometry.layers}.final_norm_layernorm.weight")
    yield Weight(part="final_norm", values=last)
    head = next((matrix for matrix in export.matrices() if matrix.node == "/lm_head/MatMul"), None)
    if head is None:
        raise unfit("the model has no /lm_head/MatMul in fp32 or fp16; export it again with its head")
    output = export.read(head.weight).T
    if not np.array_equal(output, embedding):
        yield Weight(part="head", values=output)


def _bias(export: OnnxExport, matrix: Matrix) -> Tensor:
    return export.read(matrix.bias) if matrix.bias else np.zeros(0, np.float32)


def _parts(
    export: OnnxExport, layer: Layer, read: Callable[[Matrix], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """(name, rows by output) of the seven matrices; the packed one is taken apart."""
    shape = export.geometry
    names: tuple[str, ...] = PARTS
    if "qkv_proj" in layer.matrices:
        first = shape.heads * shape.head_size
        second = first + shape.kv_heads * shape.head_size
        rows = np.split(read(layer.get("qkv_proj")), [first, second])
        yield from zip(_ATTENTION_PARTS, rows, strict=True)
        names = PARTS[3:]
    for name in names:
        yield name, read(layer.get(name))
