# SPDX-License-Identifier: Apache-2.0
"""What the tests of slmopt share: the project's own model, recipes as people write them, runs and scores."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from tokenizers import Tokenizer

from e2e.models.recipe.evaluate import assess
from e2e.models.recipe.golden import build_golden
from e2e.models.recipe.tokenizer import prompt_ids
from slmopt.graph import OnnxExport
from slmopt.job import Step, parse_job
from slmopt.recipes import apply_recipe
from slmwire.manifest import Manifest

ORDERS = Path(__file__).resolve().parents[3] / "e2e" / "models" / "orders" / "v2-fp32"
_TEXTS = [(example.text, example.target) for example in build_golden()[:1]]
_TOKENIZER = Tokenizer.from_file(str(ORDERS / "tokenizer.json"))
_ANSWER = _TOKENIZER.encode(_TEXTS[0][1]).ids
PROMPT = [*prompt_ids(_TOKENIZER, _TEXTS[0][0]), *_ANSWER]
"""A golden case, question and answer."""
ANSWER_TOKENS = len(_ANSWER)


def steps_of(*rows: Mapping[str, Any]) -> tuple[Step, ...]:
    return parse_job(json.dumps({"steps": rows})).steps


def run_recipe(target: Path, *rows: Mapping[str, Any], source: Path = ORDERS) -> Manifest:
    return apply_recipe(steps_of(*rows), source, target)


def exact_match(directory: Path) -> float:
    """Share of the golden cases answered exactly, on plain onnxruntime."""
    return assess(directory, build_golden())[0].exact


def run_logits(export: OnnxExport, scratch: Path, tokens: Sequence[int] = PROMPT) -> NDArray[np.float32]:
    """Logits [length, vocab] of a changed model, through onnxruntime."""
    scratch.mkdir()
    export.save(scratch)
    session = ort.InferenceSession(str(scratch / export.filename), providers=["CPUExecutionProvider"])
    heads = export.config["model"]["decoder"]["num_key_value_heads"]
    feeds: dict[str, NDArray[Any]] = {
        "input_ids": np.array([tokens], np.int64),
        "attention_mask": np.ones((1, len(tokens)), np.int64),
    }
    for node in session.get_inputs():
        if node.name not in feeds:
            kind = np.float16 if node.type == "tensor(float16)" else np.float32
            feeds[node.name] = np.zeros((1, heads, 0, export.geometry.head_size), kind)
    logits: NDArray[np.float32] = session.run(["logits"], feeds)[0][0].astype(np.float32)
    return logits


def make_half(target: Path) -> Path:
    """The model as an fp16 export."""
    export = OnnxExport(ORDERS)
    graph = export.model.graph
    single, half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    for tensor in graph.initializer:
        if tensor.data_type == single:
            values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.elem_type == single:
            value.type.tensor_type.elem_type = half
    target.mkdir()
    export.save(target)
    (target / "genai_config.json").write_text(json.dumps(export.config))
    return target


def make_dynamic(target: Path, source: Path = ORDERS) -> Path:
    """The model by onnxruntime's dynamic quantization, which no step writes and people bring along."""
    export = OnnxExport(source)
    target.mkdir()
    export.save(target)
    (target / "genai_config.json").write_text(json.dumps(export.config))
    path = str(target / export.filename)
    quantize_dynamic(
        path,
        path,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    return target


def lora_session(directory: Path) -> ort.InferenceSession:
    """The model in onnxruntime, without its warnings about inputs that have a default."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"])


def run_session(
    session: ort.InferenceSession, tokens: Sequence[int], matrices: Mapping[str, NDArray[Any]]
) -> NDArray[np.float32]:
    """Logits [length, vocab] of one sequence."""
    logits: NDArray[np.float32] = run_rows(session, [tokens], matrices)[0]
    return logits


def run_rows(
    session: ort.InferenceSession,
    rows: Sequence[Sequence[int]],
    matrices: Mapping[str, NDArray[Any]] | None = None,
) -> NDArray[np.float32]:
    """Logits [rows, length, vocab] of sequences of one length, in one batch."""
    ids = np.array(rows, np.int64)
    feeds: dict[str, NDArray[Any]] = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        **(matrices or {}),
    }
    for node in session.get_inputs():
        if node.name not in feeds:
            kind = np.float16 if node.type == "tensor(float16)" else np.float32
            feeds[node.name] = np.zeros((len(rows), 2, 0, 32), kind)
    logits: NDArray[np.float32] = session.run(["logits"], feeds)[0]
    return logits
