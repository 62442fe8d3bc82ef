# SPDX-License-Identifier: Apache-2.0
"""The model `orders` with LoRA inputs, adapters of random numbers for it, and examples that they answer."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.unit.slmserve.process import ORDERS

SOURCE = ORDERS / "v1-fp32"
_WIDTH = 128
_LAYERS = 3


def build_lora_orders(directory: Path) -> Path:
    """A copy of `orders` whose output projections take low-rank matrices; zeros by default."""
    directory.mkdir(parents=True)
    for path in SOURCE.iterdir():
        if path.name not in ("model.onnx", "slm-manifest.json"):
            shutil.copyfile(path, directory / path.name)
    model = onnx.load_model(SOURCE / "model.onnx", load_external_data=False)
    graph = model.graph
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if not node.name.endswith("o_proj/MatMul"):
            continue
        name, output = node.name, node.output[0]
        node.output[0] = f"{name}.base"
        nodes += [
            helper.make_node("MatMul", [node.input[0], f"{name}.lora_A"], [f"{name}.low"]),
            helper.make_node("MatMul", [f"{name}.low", f"{name}.lora_B"], [f"{name}.delta"]),
            helper.make_node("Add", [f"{name}.base", f"{name}.delta"], [output]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    for name, value in _draw(scale=0.0).items():
        graph.initializer.append(numpy_helper.from_array(value, name))
        shape = [value.shape[0], "rank"] if name.endswith("A") else ["rank", value.shape[1]]
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    onnx.save_model(model, directory / "model.onnx")
    return directory


def _draw(*, scale: float, seed: int = 3) -> Mapping[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    drawn = {}
    for layer in range(_LAYERS):
        for side, shape in (("A", (_WIDTH, 2)), ("B", (2, _WIDTH))):
            name = f"/model/layers.{layer}/attn/o_proj/MatMul.lora_{side}"
            drawn[name] = rng.standard_normal(shape, np.float32) * np.float32(scale)
    return drawn


def write_lora(target: Path, *, scale: float, seed: int = 3) -> Path:
    """An adapter; `scale` 0 changes nothing, 0.32 a fifth of the answers, which stay orders."""
    target.parent.mkdir(parents=True, exist_ok=True)
    adapter: Any = ort.AdapterFormat()
    values = {
        name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in _draw(scale=scale, seed=seed).items()
    }
    adapter.set_parameters(values)
    adapter.export_adapter(str(target))
    return target


def questions(count: int) -> list[list[dict[str, str]]]:
    """Different conversations of the model's kind."""
    drinks = ("tea", "coffee", "soup", "bagel", "muffin")
    return [
        [{"role": "user", "content": f"{1 + number % 9} {drinks[number % 5]} to table {number // 5}"}]
        for number in range(count)
    ]


def golden_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
