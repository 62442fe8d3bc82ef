# SPDX-License-Identifier: Apache-2.0
"""A decoder's graph, run forwards and backwards: logits of chosen positions, gradients of adapter matrices.

Only what the logits need is run, and only what lies between an adapter's matrix and the logits is
differentiated. Memory: the files are mapped, not read; beside them there are at most
`constants.CACHE_BYTES` of dequantized matrices, the largest matrix once more when it is not among them, and
what the operators hold on to of one batch until their gradients are made: for each layer about
tokens * (20 * hidden + 6 * feed_forward) + 3 * heads * tokens of a row * tokens of the batch floats.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import onnx
from onnx import helper

from slmopt.autodiff.attention import ATTENTION
from slmopt.autodiff.constants import DenseCache, constant_value, map_tensor
from slmopt.autodiff.elementwise import ELEMENTWISE
from slmopt.autodiff.linear import LINEAR
from slmopt.autodiff.node import Array, Gradients, Node, Pullback, Rule
from slmopt.autodiff.norms import NORMS
from slmopt.autodiff.shapes import SHAPES
from slmopt.errors import unfit
from slmopt.model_dir import GENAI_CONFIG, read_json

RULES: Final[Mapping[str, Rule]] = {**ELEMENTWISE, **LINEAR, **NORMS, **ATTENTION, **SHAPES}
"""Operators by their names, with the domain before those of onnxruntime's own."""
Matrices: TypeAlias = Mapping[str, Array]
_TAKES_STORED: Final = frozenset(
    {"MatMul", "com.microsoft.MatMulNBits", "MatMulInteger", "Gather", "com.microsoft.GatherBlockQuantized"}
)
"""Rules that convert a large constant themselves, by rows or through the cache."""
_PICK: Final = "pick rows"
"""Stands before the last matrix: the vocabulary is wide, and only few positions are asked for."""
_BEHIND_HEAD: Final = frozenset({"Mul", "Div", "Tanh", "Cast"})
_ROWS: Final = "rows to pick"


class Network:
    """The graph of one model directory, whose weights are frozen."""

    def __init__(self, directory: Path, *, dtype: Any = np.float32, cache: DenseCache | None = None) -> None:
        """`dtype` is that of all floats. Raises OptimizeError (Unfit) for operators without a rule."""
        decoder = read_json(directory, GENAI_CONFIG).get("model", {}).get("decoder", {})
        path = directory / decoder.get("filename", "model.onnx")
        try:
            graph = onnx.load(str(path), load_external_data=False).graph
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise unfit(f"{path.name} cannot be read as ONNX: {text}") from error
        self.dtype = np.dtype(dtype)
        self._dense = cache or DenseCache()
        names = decoder.get("inputs", {})
        self._ids = names.get("input_ids", "input_ids")
        self._mask = names.get("attention_mask", "attention_mask")
        self._positions = names.get("position_ids", "position_ids")
        self._logits = decoder.get("outputs", {}).get("logits", "logits")
        kinds = {value.name: value.type.tensor_type for value in graph.input}
        initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.adaptable = {
            name: map_tensor(initializers[name], directory) for name in kinds if name in initializers
        }
        """Inputs that have a default, by name, with that default."""
        self._inputs = {name: len(k.shape.dim) for name, k in kinds.items() if name not in initializers}
        used = _needed(graph.node, self._logits)
        self._constants = {
            name: map_tensor(tensor, directory)
            for name, tensor in initializers.items()
            if name not in self.adaptable and any(name in node.input for node in used)
        }
        for node in used:
            if node.op_type == "Constant":
                self._constants[node.output[0]] = constant_value(node, directory)
        self._nodes = self._prepare([node for node in used if node.op_type != "Constant"])
        self._last_use = {n: i for i, node in enumerate(self._nodes) for n in node.inputs}

    def _prepare(self, used: Sequence[Any]) -> tuple[Node, ...]:
        """The nodes with what is known before any value is; raises OptimizeError (Unfit)."""
        depends = set(self.adaptable)
        prepared: list[Node] = []
        head = self._find_head(used)
        for node in used:
            op = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
            if op not in RULES:
                raise unfit(
                    f"training knows no gradient of the operator {op} (node {node.name}); export the model "
                    "with the onnxruntime-genai builder for cpu, or leave spec.adaptation out"
                )
            inputs = tuple(node.input)
            if node is head:
                picked = f"{inputs[0]}/picked"
                prepared.append(self._make(_PICK, node, (inputs[0], _ROWS), (picked,), depends))
                inputs = (picked, *inputs[1:])
            prepared.append(self._make(op, node, inputs, tuple(node.output), depends))
        self._picks_early = head is not None
        return tuple(prepared)

    def _make(
        self, op: str, node: Any, inputs: tuple[str, ...], outputs: tuple[str, ...], depends: set[str]
    ) -> Node:
        made = Node(
            op=op,
            name=node.name or node.output[0],
            inputs=inputs,
            outputs=outputs,
            attributes={a.name: helper.get_attribute_value(a) for a in node.attribute},
            wanted=tuple(name in depends for name in inputs),
            dtype=self.dtype,
            dense=lambda own, make: self._dense.get(own.name, make),
        )
        if any(made.wanted):
            depends.update(name for name in outputs if name)
        return made

    def _find_head(self, used: Sequence[Any]) -> Any:
        """The node that multiplies by the vocabulary's matrix, when nothing but scaling is behind it."""
        makers = {name: node for node in used for name in node.output}
        node = makers.get(self._logits)
        while node is not None and node.op_type in _BEHIND_HEAD:
            computed = [name for name in node.input if name in makers and name not in self._constants]
            node = makers[computed[0]] if len(computed) == 1 else None
        if node is None or node.op_type not in ("MatMul", "MatMulNBits"):
            return None
        return node if node.input[1] in self._constants else None

    def evaluate(self, ids: Array, lengths: Sequence[int], rows: Array, matrices: Matrices) -> Array:
        """Logits [len(rows), vocab]: `rows` number the positions of `ids` [batch, length] row by row.

        `lengths` are the sequences' own; what is beyond is padding. `matrices` are those of an adapter; the
        defaults stand for what is missing.
        """
        return self._run(ids, lengths, rows, matrices, keep=lambda *_: None)

    def differentiate(
        self, ids: Array, lengths: Sequence[int], rows: Array, matrices: Matrices
    ) -> tuple[Array, Callable[[Array], Matrices]]:
        """As `evaluate`, and a function from the logits' gradient to that of the adapter's matrices.

        The function is good for one call, which frees what it held.
        """
        tape: list[tuple[Node, Pullback]] = []
        logits = self._run(ids, lengths, rows, matrices, keep=lambda node, pull: tape.append((node, pull)))
        shape = (*np.shape(ids), logits.shape[-1])

        def pull_all(gradient: Array) -> Matrices:
            if not self._picks_early:
                gradient = _scatter(gradient, rows, shape)
            return self._pull(tape, gradient)

        return logits, pull_all

    def _run(
        self,
        ids: Array,
        lengths: Sequence[int],
        rows: Array,
        matrices: Matrices,
        *,
        keep: Callable[[Node, Pullback], None],
    ) -> Array:
        values: dict[str, Any] = dict(self._feeds(ids, lengths))
        values |= {n: np.asarray(v, self.dtype) for n, v in {**self.adaptable, **matrices}.items()}
        values[_ROWS] = rows
        for position, node in enumerate(self._nodes):
            rule = _pick if node.op == _PICK else RULES[node.op]
            outputs, pull = rule(node, [self._value(values, node, name) for name in node.inputs])
            values.update((name, value) for name, value in zip(node.outputs, outputs, strict=False) if name)
            if any(node.wanted):
                keep(node, pull)
            for name in node.inputs:
                if self._last_use[name] == position:
                    values.pop(name, None)
        logits: Array = values[self._logits]
        return logits if self._picks_early else logits.reshape(-1, logits.shape[-1])[rows]

    def _value(self, values: Mapping[str, Any], node: Node, name: str) -> Any:
        if not name:
            return None
        if name in values:
            return values[name]
        stored = self._constants[name]
        if node.op in _TAKES_STORED or not np.issubdtype(stored.dtype, np.floating):
            return stored
        return stored.astype(self.dtype, copy=False)

    def _feeds(self, ids: Array, lengths: Sequence[int]) -> Iterator[tuple[str, Array]]:
        """A value for every input that has no default; caches are empty."""
        batch, length = ids.shape
        for name, dimensions in self._inputs.items():
            if name == self._ids:
                yield name, ids
            elif name == self._mask:
                yield name, (np.arange(length)[None] < np.asarray(lengths)[:, None]).astype(np.int64)
            elif name == self._positions:
                yield name, np.broadcast_to(np.arange(length, dtype=np.int64), (batch, length))
            else:
                yield name, np.zeros((batch, *(0,) * (dimensions - 1)), self.dtype)

    def _pull(self, tape: list[tuple[Node, Pullback]], gradient: Array) -> Matrices:
        held: dict[str, Array] = {self._logits: gradient}
        while tape:
            node, pull = tape.pop()
            given = [held.pop(name, None) if name else None for name in node.outputs]
            if all(g is None for g in given):
                continue
            for name, wanted, found in zip(node.inputs, node.wanted, pull(given), strict=False):
                if wanted and found is not None:
                    held[name] = held[name] + found if name in held else found
        return {name: held[name] for name in self.adaptable if name in held}


def _needed(nodes: Sequence[Any], output: str) -> list[Any]:
    """The nodes that `output` is made of, in order."""
    wanted, found = {output}, []
    for node in reversed(nodes):
        if wanted.intersection(name for name in node.output if name):
            found.append(node)
            wanted.update(node.input)
    return found[::-1]


def _pick(_node: Node, inputs: Sequence[Any]) -> tuple[Sequence[Any], Pullback]:
    """Some positions [rows, hidden] of [batch, length, hidden]."""
    x, rows = inputs

    def pull(gradients: Gradients) -> Gradients:
        (g,) = gradients
        assert g is not None
        return _scatter(g, rows, x.shape), None

    return (x.reshape(-1, x.shape[-1])[rows],), pull


def _scatter(gradient: Array, rows: Array, shape: tuple[int, ...]) -> Array:
    wide = np.zeros((int(np.prod(shape[:-1])), shape[-1]), gradient.dtype)
    wide[rows] = gradient
    return wide.reshape(shape)
