# SPDX-License-Identifier: Apache-2.0
"""A small encoder with random weights: one attention layer that really uses its mask, and its tokenizer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "the", "cat", "dog", "sat", "on", "mat"]
HIDDEN = 12
POSITIONS = 40
_FAR = -1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """How the graph is exported."""

    token_types: bool = True
    position_ids: bool = False
    output: str = "last_hidden_state"
    output_type: int = TensorProto.FLOAT
    index_type: int = TensorProto.INT64


def build_weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Weights by name; large enough that every token and position tells."""
    rng = np.random.default_rng(seed)
    shapes = {
        "words": (len(WORDS), HIDDEN),
        "places": (POSITIONS, HIDDEN),
        "types": (2, HIDDEN),
        "q": (HIDDEN, HIDDEN),
        "k": (HIDDEN, HIDDEN),
        "v": (HIDDEN, HIDDEN),
    }
    return {name: rng.normal(0, 0.6, shape).astype(np.float32) for name, shape in shapes.items()}


def compute_states(weights: dict[str, NDArray[np.float32]], tokens: list[int]) -> NDArray[np.float32]:
    """The graph in numpy, for one text without padding: [length, HIDDEN]."""
    x = weights["words"][tokens] + weights["places"][: len(tokens)] + weights["types"][0]
    scores = (x @ weights["q"]) @ (x @ weights["k"]).T / np.sqrt(np.float32(HIDDEN))
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    states: NDArray[np.float32] = x + shares / shares.sum(axis=-1, keepdims=True) @ (x @ weights["v"])
    return states


def _nodes(variant: Variant) -> list[onnx.NodeProto]:
    node = helper.make_node
    kind = variant.output_type
    parts = [
        node("Gather", ["words", "input_ids"], ["word"]),
        node("Shape", ["input_ids"], ["length"], start=1, end=2),
        node("Squeeze", ["length"], ["count"]),
        node("Range", ["zero", "count", "one"], ["counted"]),
        node("Gather", ["places", "position_ids" if variant.position_ids else "counted"], ["place"]),
        node("Gather", ["types", "token_type_ids"], ["type"])
        if variant.token_types
        else node("Gather", ["types", "zero"], ["type"]),
        node("Add", ["word", "place"], ["word_place"]),
        node("Add", ["word_place", "type"], ["x"]),
        *(node("MatMul", ["x", name], [f"x{name}"]) for name in "qkv"),
        node("Transpose", ["xk"], ["xkt"], perm=[0, 2, 1]),
        node("MatMul", ["xq", "xkt"], ["raw"]),
        node("Mul", ["raw", "scale"], ["scaled"]),
        node("Cast", ["attention_mask"], ["seen"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["seen", "axis"], ["seen_keys"]),
        node("Sub", ["unit", "seen_keys"], ["unseen"]),
        node("Mul", ["unseen", "far"], ["bias"]),
        node("Add", ["scaled", "bias"], ["scores"]),
        node("Softmax", ["scores"], ["shares"], axis=-1),
        node("MatMul", ["shares", "xv"], ["mixed"]),
        node("Add", ["x", "mixed"], ["states"]),
    ]
    last = "states"
    if variant.output == "sentence_embedding":
        parts.append(node("ReduceMax", ["states"], ["pooled"], axes=[1], keepdims=0))
        last = "pooled"
    if kind == TensorProto.INT8:
        parts += [node("Mul", [last, "levels"], ["levelled"]), node("Round", ["levelled"], ["rounded"])]
        last = "rounded"
    return [*parts, node("Cast", [last], [variant.output], to=kind)]


def build_encoder(directory: Path, variant: Variant | None = None, **config: Any) -> Path:
    """Write model.onnx, config.json and tokenizer.json; `config` goes into config.json."""
    variant = variant or Variant()
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if variant.token_types else []
    names += ["position_ids"] if variant.position_ids else []
    inputs = [helper.make_tensor_value_info(name, variant.index_type, ["n", "length"]) for name in names]
    shape = ["n", HIDDEN] if variant.output == "sentence_embedding" else ["n", "length", HIDDEN]
    output = helper.make_tensor_value_info(variant.output, variant.output_type, shape)
    constants: dict[str, NDArray[Any]] = {
        **build_weights(),
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "axis": np.array([1], np.int64),
        "scale": np.array(1 / np.sqrt(HIDDEN), np.float32),
        "unit": np.array(1, np.float32),
        "far": np.array(_FAR, np.float32),
        "levels": np.array(16, np.float32),
    }
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(_nodes(variant), "encoder", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(model, str(directory / "model.onnx"))
    body = {
        "model_type": "bert",
        "vocab_size": len(WORDS),
        "hidden_size": HIDDEN,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": 0,
    }
    (directory / "config.json").write_text(json.dumps(body | config))
    _write_tokenizer(directory)
    return directory


def _write_tokenizer(directory: Path) -> None:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # As published encoders do: the server has to take both off again.
    tokenizer.enable_padding(length=POSITIONS)
    tokenizer.enable_truncation(max_length=POSITIONS // 2)
    tokenizer.save(str(directory / "tokenizer.json"))


def write_sentence_transformers(directory: Path, pooling: dict[str, Any], *more: str) -> None:
    """Write modules.json and 1_Pooling/config.json; `more` names further modules."""
    kinds = ["Transformer", "Pooling", *more]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"st.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling/config.json").write_text(json.dumps(pooling))
