# SPDX-License-Identifier: Apache-2.0
"""Structured slicing: whole feed-forward neurons and attention heads go, so files and work shrink.

Every layer loses as many, as runtimes know one width and one number of heads for all layers. Neurons are
ranked within their layer, by the product of their weights' norms or by how strongly they act on the golden
cases times the norm of what they write (Molchanov et al. 2019 and Sun et al. 2023 use such products).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from slmopt.activations import measure_inputs
from slmopt.errors import unfit
from slmopt.graph import Layer, Matrix, OnnxExport
from slmopt.job import Slice
from slmopt.log import log

Vector = NDArray[np.float32]
Indices = NDArray[np.int64]
_SMALL_WIDTH: Final = 1024
_GRAIN, _SMALL_GRAIN = 32, 8
"""Widths stay multiples: of a quantization block, or of a vector register in models that are tiny."""


def kept_width(width: int, percent: int) -> int:
    """Neurons that stay of `width`: a multiple of 32 (8 below 1,024), so that no more go than `percent`."""
    grain = _GRAIN if width >= _SMALL_WIDTH else _SMALL_GRAIN
    return min(width, -(-width * (100 - percent) // (100 * grain)) * grain)


def strongest(scores: Vector, count: int) -> Indices:
    """Indices of the `count` largest of `scores` [n], ascending; the earlier one of equals."""
    return np.sort(np.argsort(-scores, kind="stable")[:count]).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadPlan:
    """Heads that stay in each layer: either whole groups go, or as many query heads of every group."""

    heads: int
    kv_heads: int


def plan_heads(heads: int, kv_heads: int, percent: int) -> HeadPlan:
    """The plan that takes most heads, but no more than `percent`; raises OptimizeError (Unfit) for none.

    Whole groups are preferred among equals: they shrink the attention cache as well.
    """
    per_group = heads // kv_heads
    plans = [HeadPlan(heads=kept * per_group, kv_heads=kept) for kept in range(1, kv_heads + 1)]
    plans += [HeadPlan(heads=kept * kv_heads, kv_heads=kv_heads) for kept in range(1, per_group)]
    modest = [plan for plan in plans if 100 * (heads - plan.heads) <= heads * percent]
    best = min(modest, key=lambda plan: (plan.heads, plan.kv_heads))
    if best.heads == heads:
        possible = sorted({round(100 - 100 * plan.heads / heads) for plan in plans} - {0})
        raise unfit(
            f"slice.headsPercent {percent} takes no head: of {heads} heads in {kv_heads} groups it can take "
            f"{', '.join(f'{share} %' for share in possible) or 'none'}; ask for that, or leave it out"
        )
    return best


def choose_heads(scores: Vector, plan: HeadPlan, kv_heads: int) -> tuple[Indices, Indices]:
    """(query heads, groups) that stay by `scores` [heads]; query heads of a group stay together."""
    grouped = scores.reshape(kv_heads, -1)
    groups = strongest(grouped.sum(axis=1), plan.kv_heads)
    per_group = plan.heads // plan.kv_heads
    width = grouped.shape[1]
    query = [group * width + strongest(grouped[group], per_group) for group in groups]
    return np.concatenate(query).astype(np.int64), groups


def _spread(heads: Indices, size: int) -> Indices:
    """Columns of these heads of `size` columns each."""
    return (heads[:, None] * size + np.arange(size)).reshape(-1)


def _norms(weight: NDArray[Any], axis: int) -> Vector:
    return np.asarray(np.sqrt(np.square(weight, dtype=np.float64).sum(axis=axis)), np.float32)


def apply_slice(export: OnnxExport, step: Slice) -> None:
    """Slice in place, genai_config.json's numbers included; raises OptimizeError (Unfit)."""
    export.refuse_quantized("slice")
    layers = export.layers()
    export.refuse_shared([m for layer in layers for m in layer.matrices.values()], step="slice")
    acting: Mapping[str, Vector] = {}
    if step.importance == "activations":
        wanted = [layer.get(name).source for layer in layers for name in ("down_proj", "o_proj")]
        acting = measure_inputs(export, wanted)
    if step.feed_forward_percent:
        _slice_feed_forward(export, layers, step.feed_forward_percent, acting)
    if step.heads_percent:
        _slice_heads(export, layers, step.heads_percent, acting)
    # Shapes between the nodes are those of before; engines infer them again.
    export.model.graph.ClearField("value_info")


def _slice_feed_forward(
    export: OnnxExport, layers: tuple[Layer, ...], percent: int, acting: Mapping[str, Vector]
) -> None:
    width = kept = 0
    for layer in layers:
        gate, up, down = (layer.get(name) for name in ("gate_proj", "up_proj", "down_proj"))
        columns, rows = (export.read(matrix.weight) for matrix in (gate, up)), export.read(down.weight)
        width = rows.shape[0]
        kept = kept_width(width, percent)
        if kept >= width:
            raise unfit(
                f"slice.feedForwardPercent {percent} takes no neuron of {width}: the width stays a multiple "
                f"of {_GRAIN if width >= _SMALL_WIDTH else _SMALL_GRAIN}; ask for more"
            )
        scores = _norms(rows, 1)
        if acting:
            scores = scores * acting[down.source]
        else:
            for column in columns:
                scores = scores * _norms(column, 0)
        keep = strongest(scores, kept)
        for matrix in (gate, up):
            _keep_outputs(export, matrix, keep)
        export.write(down.weight, rows[keep])
    log("sliced feed-forward", width=width, kept=kept)


def _keep_outputs(export: OnnxExport, matrix: Matrix, keep: Indices) -> None:
    export.write(matrix.weight, export.read(matrix.weight)[:, keep])
    if matrix.bias:
        export.write(matrix.bias, export.read(matrix.bias)[keep])


def _slice_heads(
    export: OnnxExport, layers: tuple[Layer, ...], percent: int, acting: Mapping[str, Vector]
) -> None:
    shape = export.geometry
    plan = plan_heads(shape.heads, shape.kv_heads, percent)
    for layer in layers:
        output = layer.get("o_proj")
        rows = export.read(output.weight)
        # How much each column of a head adds: what it writes, times what flows through it.
        strength = _norms(rows, 1)
        strength = strength * (acting[output.source] if acting else _value_norms(export, layer))
        scores = _norms(strength.reshape(shape.heads, shape.head_size), 1)
        query, groups = choose_heads(scores, plan, shape.kv_heads)
        columns, key_columns = (_spread(heads, shape.head_size) for heads in (query, groups))
        if "qkv_proj" in layer.matrices:
            key_start = shape.heads * shape.head_size
            value_start = key_start + shape.kv_heads * shape.head_size
            packed = np.concatenate([columns, key_start + key_columns, value_start + key_columns])
            _keep_outputs(export, layer.get("qkv_proj"), packed)
        else:
            for name, keep in (("q_proj", columns), ("k_proj", key_columns), ("v_proj", key_columns)):
                _keep_outputs(export, layer.get(name), keep)
        export.write(output.weight, rows[columns])
        for attribute in export.attention(layer.index).attribute:
            if attribute.name == "num_heads":
                attribute.i = plan.heads
            elif attribute.name == "kv_num_heads":
                attribute.i = plan.kv_heads
    _update_reshapes(export, plan)
    _update_geometry(export, plan)
    log("sliced heads", heads=plan.heads, groups=plan.kv_heads, of=[shape.heads, shape.kv_heads])


def _value_norms(export: OnnxExport, layer: Layer) -> Vector:
    """Norms of the value columns that feed each query head's columns [heads * head_size]."""
    shape = export.geometry
    if "qkv_proj" in layer.matrices:
        start = (shape.heads + shape.kv_heads) * shape.head_size
        values = export.read(layer.get("qkv_proj").weight)[:, start:]
    else:
        values = export.read(layer.get("v_proj").weight)
    per_head = _norms(values, 0).reshape(shape.kv_heads, 1, shape.head_size)
    return np.repeat(per_head, shape.heads // shape.kv_heads, axis=1).reshape(-1)


def _update_reshapes(export: OnnxExport, plan: HeadPlan) -> None:
    """Where queries and keys are normalized (Qwen 3), the graph's shapes hold the width of all heads."""
    shape = export.geometry
    widths = {
        old * shape.head_size: new * shape.head_size
        for old, new in ((shape.heads, plan.heads), (shape.kv_heads, plan.kv_heads))
    }
    for node in export.nodes:
        if node.op_type != "Reshape" or "/attn/" not in node.name:
            continue
        wanted = export.constant(node.input[1])
        if len(wanted) == 3 and widths.get(wanted[2], wanted[2]) != wanted[2]:
            changed = [*wanted[:2], widths[wanted[2]]]
            name = f"/model/constants/INT64/{changed}/sliced"
            export.add_constant(name, changed)
            node.input[1] = name


def _update_geometry(export: OnnxExport, plan: HeadPlan) -> None:
    decoder = export.config["model"]["decoder"]
    decoder["num_attention_heads"] = plan.heads
    decoder["num_key_value_heads"] = plan.kv_heads
    graph = export.model.graph
    for value in [*graph.input, *graph.output]:
        shape = value.type.tensor_type.shape
        # Past and present of the cache: [batch, kv_heads, length, head_size].
        if len(shape.dim) == 4 and shape.dim[1].dim_value == export.geometry.kv_heads:
            shape.dim[1].dim_value = plan.kv_heads
    export.geometry = replace(export.geometry, heads=plan.heads, kv_heads=plan.kv_heads)
