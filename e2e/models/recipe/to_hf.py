# SPDX-License-Identifier: Apache-2.0
"""A committed fp32 export back to a Hugging Face checkpoint, for exporters that start from one. No torch.

The builder's fp32 graph keeps every weight as it was trained: matrices transposed, and queries, keys and
values side by side in one matrix.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from e2e.models.recipe.tokenizer import END_ID, PAD_ID
from e2e.models.recipe.versions import CONTEXT_TOKENS, SHAPE, Shape

Weights = Mapping[str, NDArray[np.float32]]

_KEPT: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_NORMS: Final = ("input_layernorm", "post_attention_layernorm")
_EPSILON: Final = 1e-6


def read_initializers(directory: Path) -> Weights:
    """The initializers of the export's graph by name."""
    graph = onnx.load_model(str(directory / "model.onnx")).graph
    return {weight.name: np.asarray(numpy_helper.to_array(weight)) for weight in graph.initializer}


def build_state(weights: Weights, shape: Shape) -> dict[str, NDArray[np.float32]]:
    """The checkpoint's tensors, named as transformers names them, from the builder's fp32 initializers."""
    state = {
        "model.embed_tokens.weight": weights["model.embed_tokens.weight"],
        "model.norm.weight": weights[f"model.layers.{shape.layers}.final_norm_layernorm.weight"],
        "lm_head.weight": weights["lm_head.MatMul.weight"].T,
    }
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        for norm in _NORMS:
            state[f"{prefix}.{norm}.weight"] = weights[f"{prefix}.{norm}.weight"]
        fused = weights[f"{prefix}.attn.qkv_proj.MatMul.weight"].T
        parts = np.split(fused, [queries, queries + keys])
        for name, part in zip("qkv", parts, strict=True):
            state[f"{prefix}.self_attn.{name}_proj.weight"] = part
        state[f"{prefix}.self_attn.o_proj.weight"] = weights[f"{prefix}.attn.o_proj.MatMul.weight"].T
        for name in ("gate", "up", "down"):
            state[f"{prefix}.mlp.{name}_proj.weight"] = weights[f"{prefix}.mlp.{name}_proj.MatMul.weight"].T
    return state


def build_config(shape: Shape) -> dict[str, Any]:
    """config.json of the checkpoint."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": _EPSILON,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": END_ID,
        "eos_token_id": END_ID,
        "pad_token_id": PAD_ID,
        "torch_dtype": "float32",
    }


def to_safetensors(state: Weights) -> bytes:
    """The file format: length of the header (8 bytes), the header in JSON, then the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    end = 0
    for name, array in sorted(state.items()):
        data = np.ascontiguousarray(array, "<f4").tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [end, end + len(data)],
        }
        end += len(data)
        parts.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(parts)


def write_checkpoint(export: Path, checkpoint: Path, shape: Shape = SHAPE) -> None:
    """Write the fp32 `export` as a Hugging Face checkpoint into `checkpoint`."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    state = build_state(read_initializers(export), shape)
    (checkpoint / "model.safetensors").write_bytes(to_safetensors(state))
    (checkpoint / "config.json").write_text(json.dumps(build_config(shape), indent=2) + "\n")
    generation = {"bos_token_id": END_ID, "eos_token_id": END_ID, "pad_token_id": PAD_ID}
    (checkpoint / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    for name in _KEPT:
        shutil.copyfile(export / name, checkpoint / name)
