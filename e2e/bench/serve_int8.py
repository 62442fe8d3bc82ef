# SPDX-License-Identifier: Apache-2.0
"""An int4 export with the layers' matrices in int8, and activations in 8 bits row by row.

ONNX Runtime's int4 kernels win while one row decodes, since they read half the bytes. With more rows,
and above all with prompts, arithmetic counts, and its plain int8 product does three times as much of
it. Each row of activations has its own scale, so that a row's result depends on no other row: the same
prompt in other chunks, or beside other requests, gives the same tokens. The head stays as it is: it
works on one row per request, and shares its matrix with the embeddings.
"""

import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_MS: Final = "com.microsoft"
_PREFIX: Final = "int8_rows"
_NIBBLE_ZERO: Final = 8
_LARGEST: Final = 127


def unpack_int4(packed: NDArray[np.uint8], scales: NDArray[Any], *, block: int) -> NDArray[np.float32]:
    """Values [columns, rows] of MatMulNBits' packed [columns, blocks, block / 2], zero point 8."""
    columns = packed.shape[0]
    nibbles = np.stack((packed & 15, packed >> 4), axis=-1).reshape(columns, -1, block)
    values = (nibbles.astype(np.float32) - _NIBBLE_ZERO) * scales.reshape(columns, -1, 1).astype(np.float32)
    return values.reshape(columns, -1)


def quantise_columns(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """From [columns, rows] to int8 [rows, columns] and a scale for each column."""
    scales = np.maximum(np.abs(values).max(axis=1), 1e-12).astype(np.float32) / _LARGEST
    return np.ascontiguousarray(np.rint(values / scales[:, None]).astype(np.int8).T), scales


class _Converter:
    """Rewrites the nodes of one graph."""

    def __init__(self, graph: Any, *, logits: str) -> None:
        self._weights = {weight.name: weight for weight in graph.initializer}
        self._logits = logits
        self._quantised: dict[str, str] = {}
        self.added: list[Any] = []
        self.nodes: list[Any] = []
        for name, value in (
            ("least", np.float32(1e-9)),
            ("inverse", np.float32(1 / _LARGEST)),
            ("one", np.float32(1)),
            ("middle", np.uint8(128)),
            ("last", np.array([-1], np.int64)),
        ):
            self._add_weight(name, np.asarray(value))
        for node in graph.node:
            self._convert(node)

    @property
    def kept(self) -> list[Any]:
        """Weights that the new nodes need, old and new."""
        used = {name for node in self.nodes for name in node.input}
        return [w for w in [*self._weights.values(), *self.added] if w.name in used]

    def _add_weight(self, name: str, value: NDArray[Any]) -> str:
        self.added.append(numpy_helper.from_array(value, f"{_PREFIX}/{name}"))
        return f"{_PREFIX}/{name}"

    def _add_node(
        self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any
    ) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output

    def _convert(self, node: Any) -> None:
        given = {attribute.name: attribute.i for attribute in node.attribute}
        plain = len([name for name in node.input if name]) == 3
        if node.op_type != "MatMulNBits" or given["bits"] != 4 or not plain or node.output[0] == self._logits:
            self.nodes.append(node)
            return
        source, packed, scales = node.input
        values = unpack_int4(
            numpy_helper.to_array(self._weights[packed]),
            numpy_helper.to_array(self._weights[scales]),
            block=given["block_size"],
        )
        weights, columns = quantise_columns(values[:, : given["K"]])
        rows = self._quantise_rows(source)
        output = node.output[0]
        inputs = [
            f"{rows}/values",
            self._add_weight(f"{output}/weights", weights),
            f"{_PREFIX}/one",
            self._add_weight(f"{output}/scales", columns),
            f"{_PREFIX}/middle",
        ]
        product = self._add_node("MatMulIntegerToFloat", inputs, f"{output}/{_PREFIX}", _MS)
        self._add_node("Mul", [product, f"{rows}/scale"], output)

    def _quantise_rows(self, source: str) -> str:
        """8-bit values around 128 and the scale of each row; once for all products of `source`."""
        if source in self._quantised:
            return self._quantised[source]
        base = self._quantised[source] = f"{source}/{_PREFIX}"
        size = self._add_node("Abs", [source], f"{base}/size")
        largest = self._add_node("ReduceMax", [size, f"{_PREFIX}/last"], f"{base}/largest", keepdims=1)
        scale = self._add_node("Mul", [largest, f"{_PREFIX}/inverse"], f"{base}/step")
        self._add_node("Max", [scale, f"{_PREFIX}/least"], f"{base}/scale")
        scaled = self._add_node("Div", [source, f"{base}/scale"], f"{base}/scaled")
        # Rounds, clips and casts in one pass.
        inputs = [scaled, f"{_PREFIX}/one", f"{_PREFIX}/middle"]
        self._add_node("QuantizeLinear", inputs, f"{base}/values")
        return base


def convert_to_int8(source: Path, target: Path, *, logits: str = "logits") -> Path:
    """Write the export in `source` to `target` with int8 layers; products with zero points are kept."""
    target.mkdir(parents=True, exist_ok=True)
    model = onnx.load_model(str(source / "model.onnx"))
    converter = _Converter(model.graph, logits=logits)
    weights = converter.kept
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(converter.nodes)
    model.graph.initializer.extend(weights)
    onnx.save_model(
        model,
        str(target / "model.onnx"),
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=1024,
    )
    for path in source.iterdir():
        if path.is_file() and not path.name.startswith("model.onnx"):
            shutil.copy(path, target / path.name)
    return target
