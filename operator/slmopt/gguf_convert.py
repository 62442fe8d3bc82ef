# SPDX-License-Identifier: Apache-2.0
"""From an fp32 or fp16 export to one GGUF file for llama.cpp.

For the architecture `llama` GGUF wants the rows of queries and keys in the order of interleaved rotation:
the builder keeps Hugging Face's order, halves one after the other.
"""

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from numpy.typing import NDArray

from slmopt.errors import unfit
from slmopt.gguf_vocab import read_vocabulary, write_special_tokens
from slmopt.graph import OnnxExport
from slmopt.log import log
from slmopt.model_dir import GENAI_CONFIG, carry_files
from slmopt.weights import Tensor, Weight, find_epsilon, iterate_weights, read_rotation

GGUF_FILE: Final = "model.gguf"
GENERATION_CONFIG: Final = "generation_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """llama.cpp's name, and whether it rotates neighbours (`llama`) or halves."""

    name: str
    interleaved: bool


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "llama": Architecture(name="llama", interleaved=True),
    "mistral": Architecture(name="llama", interleaved=True),
    "qwen2": Architecture(name="qwen2", interleaved=False),
    "qwen3": Architecture(name="qwen3", interleaved=False),
}
"""By `model.type` of genai_config.json."""
_NAMES: Final[Mapping[str, str]] = {
    "embedding": "token_embd",
    "final_norm": "output_norm",
    "head": "output",
    "input_norm": "attn_norm",
    "post_norm": "ffn_norm",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
_TYPES: Final[Mapping[str, gguf.GGMLQuantizationType]] = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
}
_FILE_TYPES: Final[Mapping[str, gguf.LlamaFileType]] = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
_TABLES: Final = frozenset({"embedding", "head"})
"""Errors in these reach every token: in a Q4_0 file they are Q8_0."""


def permute_heads(weight: Tensor, heads: int) -> Tensor:
    """Rows [heads * size, ...] of each head reordered: (0, 1, 2, ..) -> (0, size/2, 1, ..)."""
    size = weight.shape[0] // heads
    split = weight.reshape(heads, 2, size // 2, *weight.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(weight.shape)


def convert_gguf(export: OnnxExport, target: Path, kind: str) -> None:
    """Write `model.gguf` of `kind` and the other files into `target`; raises OptimizeError (Unfit)."""
    export.refuse_quantized("convert")
    architecture = ARCHITECTURES.get(export.geometry.type)
    if architecture is None:
        raise unfit(
            f"convert: {GENAI_CONFIG} says model.type {export.geometry.type}; conversion to gguf knows "
            f"{', '.join(ARCHITECTURES)}; use another format for this model"
        )
    rows = export.read("model.embed_tokens.weight").shape[0]
    vocabulary = read_vocabulary(export.directory, size=rows)
    writer = gguf.GGUFWriter(str(target / GGUF_FILE), architecture.name)
    _write_header(writer, export, kind, vocab=rows)
    vocabulary.write(writer)
    write_special_tokens(writer, export.directory, export.config["model"], size=rows)
    heads = {"q_proj": export.geometry.heads, "k_proj": export.geometry.kv_heads}
    for weight in iterate_weights(export):
        values = weight.values
        if architecture.interleaved and weight.part in heads:
            values = permute_heads(values, heads[weight.part])
        _add_tensor(writer, weight, values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    try:
        writer.write_tensors_to_file()
    except OSError as error:
        if error.errno is not None:
            raise
        # numpy says how much it could not write, but not why.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), GGUF_FILE) from error
    writer.close()
    _carry(export, target)
    log("converted", format="gguf", type=kind, architecture=architecture.name)


def _carry(export: OnnxExport, target: Path) -> None:
    """The other files; what only onnxruntime reads stays behind, its sampling defaults do not."""
    behind = {GENAI_CONFIG, export.filename, *export.data_files}
    carry_files(export.directory, target, without=behind)
    if not (target / GENERATION_CONFIG).exists():
        model, search = export.config["model"], export.config.get("search")
        search = search if isinstance(search, dict) else {}
        kept = {key: search[key] for key in ("do_sample", "temperature", "top_p") if key in search}
        ends = {key: model[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in model}
        (target / GENERATION_CONFIG).write_text(json.dumps(ends | kept, indent=2) + "\n")


def _write_header(writer: gguf.GGUFWriter, export: OnnxExport, kind: str, *, vocab: int) -> None:
    shape = export.geometry
    rotation = read_rotation(export)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(export.read(export.layers()[0].get("up_proj").weight).shape[1])
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_layer_norm_rms_eps(find_epsilon(export))
    writer.add_rope_dimension_count(rotation.dimensions)
    writer.add_rope_freq_base(rotation.base)
    writer.add_vocab_size(vocab)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if rotation.factors is not None:
        writer.add_tensor("rope_freqs.weight", rotation.factors)


def _add_tensor(writer: gguf.GGUFWriter, weight: Weight, values: Tensor, kind: str) -> None:
    prefix = f"blk.{weight.layer}." if weight.layer >= 0 else ""
    name = f"{prefix}{_NAMES[weight.part]}.{weight.kind}"
    chosen = _TYPES[kind]
    if values.ndim == 1:
        chosen = gguf.GGMLQuantizationType.F32
    elif kind == "Q4_0" and weight.part in _TABLES:
        chosen = gguf.GGMLQuantizationType.Q8_0
    block, _ = gguf.GGML_QUANT_SIZES[chosen]
    if values.shape[-1] % block:
        log("row is no multiple of the block; kept in F16", tensor=name, row=values.shape[-1])
        chosen = gguf.GGMLQuantizationType.F16
    contiguous = np.ascontiguousarray(values, np.float32)
    if chosen == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, contiguous)
        return
    data: NDArray[Any] = gguf.quants.quantize(contiguous, chosen)
    writer.add_tensor(name, data, raw_dtype=chosen)
