# SPDX-License-Identifier: Apache-2.0
"""Low-rank branches beside the linear layers of an export: what an adapter of that model fills.

A linear layer y = f(x) becomes y = f(x) + (x A) B. A [K, rank] and B [rank, N] are inputs of the graph with a
default, zeros: initializers that may be overridden. With the defaults, outputs are what they were.
The layer itself may be fp32, fp16 or quantized; the branch has the type of the activations.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from slmopt.errors import OptimizeError, unfit
from slmopt.graph import OnnxExport
from slmopt.job import LoraInputs
from slmopt.log import log

FIRST, SECOND = ".lora_A", ".lora_B"
"""How the names of the inputs end."""
_MIN_IR_VERSION: Final = 4
"""Before that, whatever had a value had to be an input, and inputs with a default were nothing special."""
_LINEAR: Final = ("MatMul", "MatMulNBits", "MatMulInteger")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Linear:
    """A product with a constant matrix, in whatever form."""

    node: str
    position: int
    """Of the last node that belongs to it, in the graph's order."""
    source: str
    """Tensor [..., inputs] that goes in."""
    result: str
    """Tensor [..., outputs] that comes out."""
    inputs: int
    outputs: int
    type: int
    """Of the activations, in ONNX's words."""


def apply_lora_inputs(export: OnnxExport, step: LoraInputs) -> None:
    """Add the branches in place; raises OptimizeError (Unfit)."""
    _refuse_inputs(export)
    chosen = _select(export, step.targets)
    graph = export.model.graph
    behind: dict[int, list[Any]] = {}
    for layer in chosen:
        base = f"{layer.result}/without_lora"
        for output, name in enumerate(graph.node[layer.position].output):
            if name == layer.result:
                graph.node[layer.position].output[output] = base
        first, second = (f"{_prefix(layer.node)}{end}" for end in (FIRST, SECOND))
        _add_input(graph, first, (layer.inputs, step.rank), layer.type)
        _add_input(graph, second, (step.rank, layer.outputs), layer.type)
        low, delta = f"{layer.result}/lora_low", f"{layer.result}/lora_delta"
        behind[layer.position] = [
            helper.make_node("MatMul", [layer.source, first], [low], name=f"{layer.node}/lora_A"),
            helper.make_node("MatMul", [low, second], [delta], name=f"{layer.node}/lora_B"),
            helper.make_node("Add", [base, delta], [layer.result], name=f"{layer.node}/lora_Add"),
        ]
    nodes = list(graph.node)
    del graph.node[:]
    for position, node in enumerate(nodes):
        graph.node.extend([node, *behind.get(position, ())])
    count = sum(step.rank * (layer.inputs + layer.outputs) for layer in chosen)
    log("low-rank inputs added", layers=len(chosen), rank=step.rank, values=count)


def _refuse_inputs(export: OnnxExport) -> None:
    if export.model.ir_version < _MIN_IR_VERSION:
        raise unfit(
            f"loraInputs: the graph has IR version {export.model.ir_version}, and inputs with a default need "
            f"{_MIN_IR_VERSION}; export the model again"
        )
    held = sorted(export.overridable)
    if any(FIRST in name or SECOND in name for name in held):
        raise unfit(f"loraInputs: the model has low-rank inputs already ({held[0]}); leave the step out")
    if held:
        raise unfit(
            f"loraInputs: the graph lists weights among its inputs ({held[0]}), where only an adapter's "
            "may stand; export the model again"
        )


def _select(export: OnnxExport, targets: Sequence[str]) -> list[_Linear]:
    """The layers whose names hold one of `targets`, each of which has to be found."""
    every = list(_find_linear(export))
    for part in targets:
        if any(part in layer.node for layer in every):
            continue
        others = sorted({n.op_type for n in export.nodes if part in n.name and n.op_type not in _LINEAR})
        if others:
            raise unfit(
                f"loraInputs.targets: {part!r} names nodes of {', '.join(others[:5])} and no linear layer "
                f"that this step knows ({', '.join(_LINEAR)}); name others"
            )
        some = sorted({_short(layer.node) for layer in every})
        raise unfit(
            f"loraInputs.targets: no linear layer has {part!r} in its name; there are {', '.join(some[:20])}"
        )
    return [layer for layer in every if any(part in layer.node for part in targets)]


def _short(node: str) -> str:
    parts = node.split("/")
    return parts[-2] if len(parts) > 1 else node


def _prefix(node: str) -> str:
    """`model.layers.0.attn.qkv_proj` for `/model/layers.0/attn/qkv_proj/MatMul_Q4`."""
    head, _, tail = node.rpartition("/")
    return (head if head and tail.startswith("MatMul") else node).strip("/").replace("/", ".")


def _add_input(graph: Any, name: str, shape: tuple[int, int], kind: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    graph.initializer.append(numpy_helper.from_array(np.zeros(shape, dtype), name))
    graph.input.append(helper.make_tensor_value_info(name, kind, shape))


def _find_linear(export: OnnxExport) -> Iterator[_Linear]:
    """All linear layers with a name, in the graph's order."""
    weights = {tensor.name: tensor for tensor in export.model.graph.initializer}
    readers: dict[str, list[int]] = {}
    for position, node in enumerate(export.nodes):
        for name in node.input:
            readers.setdefault(name, []).append(position)
    makers = {name: node for node in export.nodes for name in node.output}
    for position, node in enumerate(export.nodes):
        if node.op_type not in _LINEAR or not node.name or len(node.input) < 2:
            continue
        weight = weights.get(node.input[1])
        if weight is None:
            continue
        source, position, result = node.input[0], position, node.output[0]
        kind = weight.data_type
        if node.op_type == "MatMulNBits":
            sizes = {a.name: a.i for a in node.attribute}
            shape = (sizes["K"], sizes["N"])
            kind = _scale_type(weights, node)
        else:
            shape = tuple(weight.dims)
        if node.op_type == "MatMulInteger":
            source, position, result = _around_integers(export, node, makers, readers)
            kind = TensorProto.FLOAT
        if len(shape) != 2 or kind not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            continue
        yield _Linear(
            node=node.name,
            position=position,
            source=source,
            result=result,
            inputs=shape[0],
            outputs=shape[1],
            type=kind,
        )


def _scale_type(weights: Mapping[str, Any], node: Any) -> int:
    """The type of the activations of a MatMulNBits: its scales have it."""
    scales = weights.get(node.input[2])
    return int(scales.data_type) if scales is not None else TensorProto.UNDEFINED


def _around_integers(
    export: OnnxExport, node: Any, makers: Mapping[str, Any], readers: Mapping[str, Sequence[int]]
) -> tuple[str, int, str]:
    """What goes into the quantization before a MatMulInteger, and where its scaled result is made.

    The form is that of onnxruntime's dynamic quantization: DynamicQuantizeLinear, MatMulInteger, Cast, Mul.
    """
    quantize, position, result = makers.get(node.input[0]), -1, node.output[0]
    for wanted in ("Cast", "Mul"):
        following = readers.get(result, ())
        if len(following) == 1 and export.nodes[following[0]].op_type == wanted:
            position = following[0]
            result = export.nodes[position].output[0]
        else:
            quantize = None
    if quantize is None or quantize.op_type != "DynamicQuantizeLinear":
        raise _unknown_form(node)
    return quantize.input[0], position, result


def _unknown_form(node: onnx.NodeProto) -> OptimizeError:
    return unfit(
        f"loraInputs: {node.name} is quantized in a form that this step does not know; put loraInputs before "
        "the step that quantizes"
    )
