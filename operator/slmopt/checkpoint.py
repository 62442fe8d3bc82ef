# SPDX-License-Identifier: Apache-2.0
"""From an export back to a Hugging Face checkpoint, which the converters that need torch start from.

`model.safetensors` is eight bytes of length, a JSON header, and the tensors one after the other.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from slmopt.errors import unfit
from slmopt.graph import OnnxExport
from slmopt.model_dir import GENAI_CONFIG, carry_files
from slmopt.weights import Weight, find_epsilon, iterate_weights, read_rotation

CLASSES: Final[Mapping[str, str]] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""By `model.type` of genai_config.json."""
_NAMES: Final[Mapping[str, str]] = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "input_norm": "input_layernorm",
    "post_norm": "post_attention_layernorm",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
_ALIGNMENT: Final = 8


def write_checkpoint(export: OnnxExport, target: Path) -> None:
    """Write config.json, model.safetensors (fp32) and the other files; raises OptimizeError (Unfit)."""
    export.refuse_quantized("convert")
    if export.geometry.type not in CLASSES:
        raise unfit(
            f"convert: {GENAI_CONFIG} says model.type {export.geometry.type}; this conversion knows "
            f"{', '.join(CLASSES)}; start from the Hugging Face checkpoint"
        )
    weights = {_name(weight): weight for weight in iterate_weights(export)}
    carry_files(export.directory, target, without={GENAI_CONFIG, export.filename, *export.data_files})
    (target / "config.json").write_text(json.dumps(_build_config(export, weights), indent=2) + "\n")
    header: dict[str, Any] = {}
    offset = 0
    for name, weight in weights.items():
        size = weight.values.size * 4
        shape = list(weight.values.shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with (target / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for weight in weights.values():
            file.write(weight.values.astype("<f4").tobytes())


def _name(weight: Weight) -> str:
    name = _NAMES.get(weight.part, f"self_attn.{weight.part}")
    return (
        f"{name}.{weight.kind}" if weight.layer < 0 else f"model.layers.{weight.layer}.{name}.{weight.kind}"
    )


def _build_config(export: OnnxExport, weights: Mapping[str, Weight]) -> dict[str, Any]:
    shape, model = export.geometry, export.config["model"]
    rotation = read_rotation(export)
    if rotation.factors is not None:
        raise unfit(
            "convert: the rotation's frequencies are stretched; start from the Hugging Face checkpoint"
        )
    return {
        "architectures": [CLASSES[shape.type]],
        "model_type": shape.type,
        "hidden_size": shape.hidden,
        "intermediate_size": weights["model.layers.0.mlp.up_proj.weight"].values.shape[0],
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": find_epsilon(export),
        "rope_theta": rotation.base,
        "hidden_act": "silu",
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in weights,
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "torch_dtype": "float32",
    } | {key: model[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in model}
