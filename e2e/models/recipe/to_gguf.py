# SPDX-License-Identifier: Apache-2.0
"""A Llama-type export of the onnxruntime-genai builder, written as GGUF. Needs onnx and gguf, no torch.

The builder keeps what the checkpoint has, in other shapes: MatMul weights are transposed, and query,
key and value are one matrix. llama.cpp rotates neighbouring pairs of a head where the checkpoint
rotates its halves, so the rows of query and key change places.
"""

import json
from pathlib import Path
from typing import Any, Final, Literal

import gguf
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Kind = Literal["F32", "F16", "Q8_0", "Q4_0"]

_TYPES: Final = {
    "F32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "F16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "Q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
_MLP: Final = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}

Array = NDArray[np.float32]


class ConversionError(ValueError):
    """The export is not one that this module knows; the message says what it found."""


def write_gguf(model_dir: Path, target: Path, *, kind: Kind) -> None:
    """Write the export in `model_dir` (float32 weights) to the file `target`, matrices as `kind`.

    Raises ConversionError for another type of model, for quantised weights and scaled rotation.
    """
    config = json.loads((model_dir / "genai_config.json").read_bytes())["model"]
    decoder = config["decoder"]
    if config["type"] != "llama":
        raise ConversionError(f"genai_config.json says type {config['type']!r}; only llama is known")
    model = onnx.load(str(model_dir / decoder["filename"]))
    weights = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    missing = [name for name in ("lm_head.MatMul.weight", "cos_cache") if name not in weights]
    if missing:
        raise ConversionError(f"the graph lacks {missing[0]}; export it in fp32 for the CPU")

    writer = gguf.GGUFWriter(target, "llama")
    _add_shape(writer, config, weights, _epsilon(model))
    _add_tokenizer(writer, model_dir, config)
    tensor_type, file_type = _TYPES[kind]
    writer.add_file_type(file_type)
    for name, value in _tensors(decoder, weights):
        plain = value.ndim == 1
        of = gguf.GGMLQuantizationType.F32 if plain else tensor_type
        writer.add_tensor(
            f"{name}.weight", gguf.quants.quantize(np.ascontiguousarray(value), of), raw_dtype=of
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _epsilon(model: Any) -> float:
    for node in model.graph.node:
        if node.op_type == "SimplifiedLayerNormalization":
            return float(next(a.f for a in node.attribute if a.name == "epsilon"))
    raise ConversionError("the graph has no SimplifiedLayerNormalization")


def _rope_base(cosine: Array, sine: Array) -> float:
    """The base behind the table of rotations; [positions, head_size / 2] each."""
    steps = np.arctan2(sine[1].astype(np.float64), cosine[1].astype(np.float64))
    half = len(steps)
    base = float(steps[-1] ** (-half / (half - 1)))
    if not np.allclose(steps, base ** (-np.arange(half) / half), rtol=1e-4):
        raise ConversionError("the rotation is scaled; this module knows plain rotation only")
    return base


def _add_shape(writer: Any, config: Any, weights: dict[str, Array], epsilon: float) -> None:
    decoder = config["decoder"]
    head_size = decoder["head_size"]
    writer.add_context_length(config["context_length"])
    writer.add_embedding_length(decoder["hidden_size"])
    writer.add_block_count(decoder["num_hidden_layers"])
    writer.add_feed_forward_length(weights["model.layers.0.mlp.up_proj.MatMul.weight"].shape[1])
    writer.add_head_count(decoder["num_attention_heads"])
    writer.add_head_count_kv(decoder["num_key_value_heads"])
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(_rope_base(weights["cos_cache"], weights["sin_cache"]))
    writer.add_layer_norm_rms_eps(epsilon)
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: Any, model_dir: Path, config: Any) -> None:
    """The vocabulary of tokenizer.json: byte-level BPE with the regular expression of GPT-2."""
    body = json.loads((model_dir / "tokenizer.json").read_bytes())
    model = body["model"]
    if model["type"] != "BPE" or (body["pre_tokenizer"] or {}).get("type") != "ByteLevel":
        raise ConversionError("tokenizer.json is not byte-level BPE")
    texts = {number: text for text, number in model["vocab"].items()}
    special = {one["id"]: one["content"] for one in body["added_tokens"] if one["special"]}
    texts |= special
    size = config["vocab_size"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(size)])
    kinds = [gguf.TokenType.NORMAL if n in texts else gguf.TokenType.UNUSED for n in range(size)]
    for number in special:
        kinds[number] = gguf.TokenType.CONTROL
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    ends = config["eos_token_id"]
    writer.add_eos_token_id(ends[0] if isinstance(ends, list) else ends)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_add_bos_token(False)


def _pair_neighbours(rows: Array, heads: int) -> Array:
    """Rows [heads * size, hidden] whose halves rotate, as rows whose neighbours rotate."""
    size = len(rows) // heads
    return rows.reshape(heads, 2, size // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _tensors(decoder: Any, weights: dict[str, Array]) -> list[tuple[str, Array]]:
    heads, kv_heads = decoder["num_attention_heads"], decoder["num_key_value_heads"]
    layers, head_size = decoder["num_hidden_layers"], decoder["head_size"]
    found = [
        ("token_embd", weights["model.embed_tokens.weight"]),
        ("output", weights["lm_head.MatMul.weight"].T),
        ("output_norm", weights[f"model.layers.{layers}.final_norm_layernorm.weight"]),
    ]
    for layer in range(layers):
        source, to = f"model.layers.{layer}", f"blk.{layer}"
        cuts = [heads * head_size, (heads + kv_heads) * head_size]
        query, key, value = np.split(weights[f"{source}.attn.qkv_proj.MatMul.weight"].T, cuts)
        found += [
            (f"{to}.attn_norm", weights[f"{source}.input_layernorm.weight"]),
            (f"{to}.attn_q", _pair_neighbours(query, heads)),
            (f"{to}.attn_k", _pair_neighbours(key, kv_heads)),
            (f"{to}.attn_v", value),
            (f"{to}.attn_output", weights[f"{source}.attn.o_proj.MatMul.weight"].T),
            (f"{to}.ffn_norm", weights[f"{source}.post_attention_layernorm.weight"]),
        ]
        found += [
            (f"{to}.{name}", weights[f"{source}.mlp.{old}.MatMul.weight"].T) for old, name in _MLP.items()
        ]
    return found
