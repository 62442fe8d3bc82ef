# SPDX-License-Identifier: Apache-2.0
"""The geometry of `serve_model` as a GGUF file with random weights, for engines on llama.cpp.

All matrices are Q4_0 (4 bits, blocks of 32, one 16-bit scale), the head is tied to the embeddings:
as many bits to read for each token as in the ONNX file beside it.
"""

import json
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from numpy.typing import NDArray

from e2e.bench.serve_model import Geometry, chat_template, tokenizer_json

_BLOCK: Final = 32
_BLOCK_BYTES: Final = 18
_EPSILON: Final = 1e-6


class _Weights:
    """Writes tensors of random values."""

    def __init__(self, writer: gguf.GGUFWriter, *, seed: int) -> None:
        self._writer = writer
        self._rng = np.random.default_rng(seed)

    def matrix(self, name: str, rows: int, columns: int) -> None:
        """[rows, columns] with `columns` inputs, each weight about 0.7 / sqrt(columns)."""
        blocks = self._rng.integers(0, 256, (rows, columns // _BLOCK, _BLOCK_BYTES), np.uint8)
        scale = np.array([0.15 / np.sqrt(columns)], np.float16).view(np.uint8)
        blocks[:, :, :2] = scale
        packed: NDArray[Any] = blocks.reshape(rows, -1)
        self._writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def ones(self, name: str, size: int) -> None:
        """A norm that changes nothing."""
        self._writer.add_tensor(f"{name}.weight", np.ones(size, np.float32))


def _describe(writer: gguf.GGUFWriter, g: Geometry) -> None:
    writer.add_name(g.name)
    writer.add_context_length(g.context)
    writer.add_embedding_length(g.hidden)
    writer.add_block_count(g.layers)
    writer.add_feed_forward_length(g.feed_forward)
    writer.add_head_count(g.heads)
    writer.add_head_count_kv(g.kv_heads)
    writer.add_key_length(g.head_size)
    writer.add_value_length(g.head_size)
    writer.add_rope_dimension_count(g.head_size)
    writer.add_layer_norm_rms_eps(_EPSILON)
    writer.add_vocab_size(g.vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)


def _add_vocabulary(writer: gguf.GGUFWriter, g: Geometry) -> None:
    """One word per token, as in tokenizer.json; prompts come as token ids."""
    words = ["<pad>", "<s>", "</s>", *(f"t{i}" for i in range(3, g.vocab))]
    special = [gguf.TokenType.CONTROL] * 3
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([*special, *([gguf.TokenType.NORMAL] * (g.vocab - 3))])
    writer.add_token_merges(["t 3"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(chat_template())


def _add_weights(weights: _Weights, g: Geometry) -> None:
    weights.matrix("token_embd", g.vocab, g.hidden)
    for layer in range(g.layers):
        base = f"blk.{layer}"
        weights.ones(f"{base}.attn_norm", g.hidden)
        weights.ones(f"{base}.ffn_norm", g.hidden)
        weights.matrix(f"{base}.attn_q", g.heads * g.head_size, g.hidden)
        weights.matrix(f"{base}.attn_k", g.kv_heads * g.head_size, g.hidden)
        weights.matrix(f"{base}.attn_v", g.kv_heads * g.head_size, g.hidden)
        weights.matrix(f"{base}.attn_output", g.hidden, g.heads * g.head_size)
        weights.matrix(f"{base}.ffn_gate", g.feed_forward, g.hidden)
        weights.matrix(f"{base}.ffn_up", g.feed_forward, g.hidden)
        weights.matrix(f"{base}.ffn_down", g.hidden, g.feed_forward)
    weights.ones("output_norm", g.hidden)


def build_gguf(directory: Path, geometry: Geometry, *, seed: int = 0) -> Path:
    """Write model.gguf and tokenizer files below `directory`; returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(directory / "model.gguf", "llama")
    _describe(writer, geometry)
    _add_vocabulary(writer, geometry)
    _add_weights(_Weights(writer, seed=seed), geometry)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer_json(geometry.vocab)))
    body = {"chat_template": chat_template(), "eos_token": "</s>", "bos_token": "<s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(body))
    return directory
