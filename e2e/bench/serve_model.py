# SPDX-License-Identifier: Apache-2.0
"""A model of a chosen geometry with random weights, in the form of the onnxruntime-genai builder.

Speed does not depend on what the weights say, so a server can be measured on the geometry of a
real small language model without its download and without torch. The graph repeats what the
builder emits for a Llama-type model on CPU: GroupQueryAttention with rotary embedding, int4
MatMulNBits (accuracy level 4), tied quantised embeddings.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_MS = "com.microsoft"


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Sizes of a Llama-type decoder; `hidden` and `feed_forward` are multiples of the block's size."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    vocab: int
    context: int


QWEN_HALF_BILLION = Geometry(
    name="qwen2.5-0.5b-geometry",
    layers=24,
    hidden=896,
    heads=14,
    kv_heads=2,
    head_size=64,
    feed_forward=4864,
    vocab=151_936,
    context=2048,
)

TINY = Geometry(
    name="tiny-geometry",
    layers=3,
    hidden=96,
    heads=4,
    kv_heads=2,
    head_size=32,
    feed_forward=192,
    vocab=512,
    context=256,
)


class _Graph:
    """Collects nodes and initializers; `quantised` chooses int4 MatMulNBits or float MatMul."""

    def __init__(self, geometry: Geometry, *, quantised: bool, block: int, seed: int) -> None:
        self.geometry = geometry
        self.block = block
        self.quantised = quantised
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(
        self, op: str, inputs: list[str], outputs: list[str], *, domain: str = "", **attributes: Any
    ) -> str:
        self.nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def constant(self, name: str, value: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def linear(self, source: str, name: str, rows: int, columns: int, output: str = "") -> str:
        """`source` [..., rows] times a random weight -> [..., columns]."""
        output = output or f"{name}.output"
        if not self.quantised:
            weight = self.rng.standard_normal((rows, columns), np.float32) * np.float32(0.7 / np.sqrt(rows))
            return self.add("MatMul", [source, self.constant(f"{name}.weight", weight)], [output])
        return self._nbits(source, name, rows, columns, output)

    def _nbits(self, source: str, name: str, rows: int, columns: int, output: str) -> str:
        blocks = rows // self.block
        packed = self.rng.integers(0, 256, (columns, blocks, self.block // 2), np.uint8)
        scales = np.full(columns * blocks, 0.15 / np.sqrt(rows), np.float32)
        scales *= self.rng.uniform(0.5, 1.5, scales.shape).astype(np.float32)
        inputs = [source, self.constant(f"{name}.qweight", packed), self.constant(f"{name}.scales", scales)]
        attributes = {"K": rows, "N": columns, "bits": 4, "block_size": self.block, "accuracy_level": 4}
        return self.add("MatMulNBits", inputs, [output], domain=_MS, **attributes)


def _embed(graph: _Graph) -> tuple[str, str]:
    """Returns the embedding's output and the name of the (shared) head weight."""
    g = graph.geometry
    if not graph.quantised:
        table = graph.rng.standard_normal((g.vocab, g.hidden), np.float32) * np.float32(0.5)
        return graph.add("Gather", [graph.constant("embed", table), "input_ids"], ["embedded"]), ""
    blocks = g.hidden // graph.block
    packed = graph.rng.integers(0, 256, (g.vocab, blocks, graph.block // 2), np.uint8)
    scales = np.full(g.vocab * blocks, 0.1, np.float32)
    graph.constant("head.qweight", packed)
    graph.constant("head.scales", scales)
    shape = graph.constant("embed.shape", np.array([g.vocab, g.hidden // 2], np.int64))
    flat = graph.add("Reshape", ["head.qweight", shape], ["embed.flat"])
    scale_shape = graph.constant("embed.scale_shape", np.array([g.vocab, blocks], np.int64))
    scale = graph.add("Reshape", ["head.scales", scale_shape], ["embed.scales"])
    attributes = {"bits": 4, "block_size": graph.block, "gather_axis": 0, "quantize_axis": 1}
    embedded = graph.add(
        "GatherBlockQuantized", [flat, "input_ids", scale], ["embedded"], domain=_MS, **attributes
    )
    return embedded, "head"


def _mask(graph: _Graph) -> tuple[str, str]:
    one = graph.constant("one", np.array([1], np.int64))
    total = graph.add("ReduceSum", ["attention_mask", one], ["mask.sum"], keepdims=0)
    last = graph.add("Sub", [total, one], ["mask.last"])
    lengths = graph.add("Cast", [last], ["seqlens_k"], to=TensorProto.INT32)
    shape = graph.add("Shape", ["attention_mask"], ["mask.shape"])
    index = graph.constant("index", np.array(1, np.int64))
    width = graph.add("Gather", [shape, index], ["mask.width"], axis=0)
    return lengths, graph.add("Cast", [width], ["total_seq_len"], to=TensorProto.INT32)


def _rotary(graph: _Graph) -> tuple[str, str]:
    g = graph.geometry
    frequencies = 1.0 / (10_000.0 ** (np.arange(0, g.head_size, 2) / g.head_size))
    angles = np.outer(np.arange(g.context), frequencies).astype(np.float32)
    return graph.constant("cos_cache", np.cos(angles)), graph.constant("sin_cache", np.sin(angles))


def _norm(graph: _Graph, name: str, source: str, skip: str = "") -> tuple[str, str]:
    """Root-mean-square norm; with `skip` the residual sum comes back as second value."""
    weight = graph.constant(f"{name}.weight", np.ones(graph.geometry.hidden, np.float32))
    if not skip:
        out = graph.add(
            "SimplifiedLayerNormalization",
            [source, weight],
            [f"{name}.out"],
            axis=-1,
            epsilon=1e-6,
            stash_type=1,
        )
        return out, source
    outputs = [f"{name}.out", "", "", f"{name}.sum"]
    graph.add("SkipSimplifiedLayerNormalization", [source, skip, weight], outputs, domain=_MS, epsilon=1e-6)
    return outputs[0], outputs[3]


def _layer(graph: _Graph, index: int, residual: str, delta: str, shared: tuple[str, ...]) -> tuple[str, str]:
    g, base = graph.geometry, f"layer{index}"
    normed, residual = _norm(graph, f"{base}.norm1", residual, delta)
    q = graph.linear(normed, f"{base}.q", g.hidden, g.heads * g.head_size)
    k = graph.linear(normed, f"{base}.k", g.hidden, g.kv_heads * g.head_size)
    v = graph.linear(normed, f"{base}.v", g.hidden, g.kv_heads * g.head_size)
    past = [f"past_key_values.{index}.{kind}" for kind in ("key", "value")]
    present = [f"present.{index}.{kind}" for kind in ("key", "value")]
    attended = graph.add(
        "GroupQueryAttention",
        [q, k, v, *past, *shared],
        [f"{base}.attn", *present],
        domain=_MS,
        num_heads=g.heads,
        kv_num_heads=g.kv_heads,
        scale=float(1.0 / np.sqrt(g.head_size)),
        do_rotary=1,
        rotary_interleaved=0,
    )
    out = graph.linear(attended, f"{base}.o", g.heads * g.head_size, g.hidden)
    normed, residual = _norm(graph, f"{base}.norm2", residual, out)
    gate = graph.linear(normed, f"{base}.gate", g.hidden, g.feed_forward)
    up = graph.linear(normed, f"{base}.up", g.hidden, g.feed_forward)
    sigmoid = graph.add("Sigmoid", [gate], [f"{base}.sigmoid"])
    silu = graph.add("Mul", [gate, sigmoid], [f"{base}.silu"])
    product = graph.add("Mul", [silu, up], [f"{base}.product"])
    return residual, graph.linear(product, f"{base}.down", g.feed_forward, g.hidden)


def _decoder(graph: _Graph) -> None:
    g = graph.geometry
    residual, head = _embed(graph)
    shared = (*_mask(graph), *_rotary(graph))
    delta = ""
    for index in range(g.layers):
        residual, delta = _layer(graph, index, residual, delta, shared)
    normed, _ = _norm(graph, "final", residual, delta)
    if not head:
        graph.linear(normed, "head", g.hidden, g.vocab, "logits")
        return
    attributes = {"K": g.hidden, "N": g.vocab, "bits": 4, "block_size": graph.block, "accuracy_level": 4}
    graph.add("MatMulNBits", [normed, "head.qweight", "head.scales"], ["logits"], domain=_MS, **attributes)


def _write_graph(graph: _Graph, path: Path) -> None:
    g = graph.geometry
    names = [f"{i}.{kind}" for i in range(g.layers) for kind in ("key", "value")]

    def kv(prefix: str, length: str) -> list[Any]:
        shape = ["batch_size", g.kv_heads, length, g.head_size]
        return [helper.make_tensor_value_info(f"{prefix}.{n}", TensorProto.FLOAT, shape) for n in names]

    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch_size", "total_length"])
    logits = helper.make_tensor_value_info(
        "logits", TensorProto.FLOAT, ["batch_size", "sequence_length", g.vocab]
    )
    body = helper.make_graph(
        graph.nodes,
        g.name,
        [ids, mask, *kv("past_key_values", "past_length")],
        [logits, *kv("present", "total_length_")],
        graph.weights,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(_MS, 1)]
    model = helper.make_model(body, opset_imports=opsets, ir_version=10)
    onnx.save_model(
        model, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024
    )


def _genai_config(g: Geometry) -> dict[str, Any]:
    return {
        "model": {
            "bos_token_id": 1,
            "context_length": g.context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": g.head_size,
                "hidden_size": g.hidden,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": g.heads,
                "num_hidden_layers": g.layers,
                "num_key_value_heads": g.kv_heads,
            },
            "eos_token_id": [2],
            "pad_token_id": 0,
            "type": "llama",
            "vocab_size": g.vocab,
        },
        "search": {"do_sample": False, "max_length": g.context, "past_present_share_buffer": True},
    }


def tokenizer_json(vocab_size: int) -> dict[str, Any]:
    """One word per token: enough to read and write token ids as text."""
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"t{i}": i for i in range(3, vocab_size)}
    special = [
        {"id": i, "content": name, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for name, i in (("<pad>", 0), ("<s>", 1), ("</s>", 2))
    ]  # fmt: skip
    return {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<pad>"},
    }


def chat_template() -> str:
    """Each message behind the token that begins one."""
    return "{% for m in messages %}<s> {{ m['content'] }} {% endfor %}"


def build_model(
    directory: Path, geometry: Geometry, *, quantised: bool = True, block: int = 32, seed: int = 0
) -> Path:
    """Write model.onnx, genai_config.json and tokenizer files below `directory`; returns it.

    `block` weights share a scale where the model is quantised.
    """
    directory.mkdir(parents=True, exist_ok=True)
    graph = _Graph(geometry, quantised=quantised, block=block, seed=seed)
    _decoder(graph)
    _write_graph(graph, directory / "model.onnx")
    for name, body in (
        ("genai_config.json", _genai_config(geometry)),
        ("tokenizer.json", tokenizer_json(geometry.vocab)),
        (
            "tokenizer_config.json",
            {"chat_template": chat_template(), "eos_token": "</s>", "bos_token": "<s>"},
        ),
    ):
        (directory / name).write_text(json.dumps(body))
    return directory
