# SPDX-License-Identifier: Apache-2.0
"""Conversion to GGUF, read back with the format's own library."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from slmopt.errors import OptimizeError
from slmopt.gguf_convert import permute_heads
from slmopt.gguf_vocab import find_pre, read_vocabulary
from slmopt.graph import OnnxExport
from slmopt.weights import find_rotation
from tests.unit.slmopt.kit import ORDERS, make_half, run_recipe

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Read:
    """A GGUF file: values by key, tensors by name as fp32 in numpy's order."""

    def __init__(self, directory: Path) -> None:
        self.reader = gguf.GGUFReader(directory / "model.gguf")
        self.types = {tensor.name: tensor.tensor_type.name for tensor in self.reader.tensors}

    def value(self, key: str) -> Any:
        return self.reader.fields[key].contents()

    def tensor(self, name: str) -> NDArray[np.float32]:
        found = next(tensor for tensor in self.reader.tensors if tensor.name == name)
        data: NDArray[np.float32] = gguf.quants.dequantize(found.data, found.tensor_type)
        return data


def rotate(
    values: NDArray[np.float64], angles: NDArray[np.float64], *, neighbours: bool
) -> NDArray[np.float64]:
    """One head [size] turned by `angles` [size / 2], in pairs of neighbours or of halves."""
    pairs = values.reshape(-1, 2).T if neighbours else values.reshape(2, -1)
    first, second = pairs
    turned = np.stack(
        [first * np.cos(angles) - second * np.sin(angles), first * np.sin(angles) + second * np.cos(angles)]
    )
    return turned.T.reshape(-1) if neighbours else turned.reshape(-1)


@given(st.integers(1, 4), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_reordered_queries_and_keys_give_the_same_attention(heads: int, half: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    query, key = draw.normal(size=(2, heads * 2 * half, 1))
    angles = draw.normal(size=(2, half))
    before = (query[:, 0], key[:, 0])
    after = [permute_heads(values.astype(np.float32), heads).astype(np.float64) for values in before]
    size = 2 * half
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        halves = [rotate(v[part], a, neighbours=False) for v, a in zip(before, angles, strict=True)]
        pairs = [rotate(v[part], a, neighbours=True) for v, a in zip(after, angles, strict=True)]
        assert np.dot(*halves) == pytest.approx(np.dot(*pairs), abs=1e-4)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("base", "half", "length"), [(1000.0, 16, 256), (10_000.0, 32, 2048), (5e5, 64, 4096)]
)
def test_the_base_is_read_off_the_tables(base: float, half: int, length: int, kind: Any) -> None:
    angles = np.outer(np.arange(length), base ** (-np.arange(half) / half))
    tables = (np.cos(angles).astype(kind).astype(np.float32), np.sin(angles).astype(kind).astype(np.float32))
    rotation = find_rotation(*tables)
    assert rotation.dimensions == 2 * half
    assert rotation.base == pytest.approx(base, rel=2e-3)
    if kind is np.float32:
        assert (rotation.base, rotation.factors) == (base, None)


def test_frequencies_that_are_stretched_become_factors() -> None:
    half, factors = 32, np.ones(32)
    factors[20:] = 8
    angles = np.outer(np.arange(4096), 5e5 ** (-np.arange(half) / half) / factors)
    rotation = find_rotation(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    assert rotation.factors is not None
    assert np.allclose(rotation.factors, factors, rtol=0.02)
    with pytest.raises(OptimizeError, match="the rotation is scaled"):
        find_rotation(1.2 * np.cos(angles).astype(np.float32), 1.2 * np.sin(angles).astype(np.float32))


def test_the_whole_model_is_there(tmp_path: Path) -> None:
    run_recipe(tmp_path / "out", {"convert": {"to": "gguf", "type": "F32"}})
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "model.gguf",
        "tokenizer.json",
        "tokenizer_config.json",
        "golden.jsonl",
        "slm-manifest.json",
    } <= names
    assert not names & {"genai_config.json", "model.onnx", "model.onnx.data"}
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 1
    read, export = Read(tmp_path / "out"), OnnxExport(ORDERS)
    assert read.value("general.architecture") == "llama"
    for key, value in {
        "block_count": 3,
        "context_length": 256,
        "embedding_length": 128,
        "feed_forward_length": 320,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 32,
        "rope.dimension_count": 32,
        "rope.freq_base": 1000.0,
    }.items():
        assert read.value(f"llama.{key}") == pytest.approx(value), key
    assert read.value("llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    packed = export.read("model.layers.1.attn.qkv_proj.MatMul.weight").T
    assert np.array_equal(read.tensor("blk.1.attn_q.weight"), permute_heads(packed[:128], 4))
    assert np.array_equal(read.tensor("blk.1.attn_k.weight"), permute_heads(packed[128:192], 2))
    assert np.array_equal(read.tensor("blk.1.attn_v.weight"), packed[192:])
    for name, weight in {
        "token_embd.weight": export.read("model.embed_tokens.weight"),
        "output.weight": export.read("lm_head.MatMul.weight").T,
        "output_norm.weight": export.read("model.layers.3.final_norm_layernorm.weight"),
        "blk.2.attn_norm.weight": export.read("model.layers.2.input_layernorm.weight"),
        "blk.2.ffn_norm.weight": export.read("model.layers.2.post_attention_layernorm.weight"),
        "blk.2.ffn_down.weight": export.read("model.layers.2.mlp.down_proj.MatMul.weight").T,
        "blk.0.ffn_gate.weight": export.read("model.layers.0.mlp.gate_proj.MatMul.weight").T,
        "blk.0.attn_output.weight": export.read("model.layers.0.attn.o_proj.MatMul.weight").T,
    }.items():
        assert np.array_equal(read.tensor(name), weight), name
    assert len(read.types) == 3 + 3 * 9


def test_the_tokenizer_is_there(tmp_path: Path) -> None:
    run_recipe(tmp_path / "out", {"convert": {"to": "gguf", "type": "F16"}})
    read = Read(tmp_path / "out")
    body = json.loads((ORDERS / "tokenizer.json").read_text())
    tokens = read.value("tokenizer.ggml.tokens")
    assert [tokens[i] for i in body["model"]["vocab"].values()] == list(body["model"]["vocab"])
    assert len(tokens) == 640
    merges = [row if isinstance(row, str) else " ".join(row) for row in body["model"]["merges"]]
    assert read.value("tokenizer.ggml.merges") == merges
    assert (read.value("tokenizer.ggml.model"), read.value("tokenizer.ggml.pre")) == ("gpt2", "gpt-2")
    assert read.value("tokenizer.ggml.token_type")[:5] == [3, 3, 3, 3, 1]
    assert read.value("tokenizer.ggml.eos_token_id") == 1
    assert read.value("tokenizer.ggml.add_bos_token") is False
    config = json.loads((ORDERS / "tokenizer_config.json").read_text())
    assert read.value("tokenizer.chat_template") == config["chat_template"]


@pytest.mark.parametrize(("kind", "most_bytes", "error"), [("Q8_0", 760_000, 0.01), ("Q4_0", 500_000, 0.15)])
def test_quantized_tensors_are_near_the_originals(
    tmp_path: Path, kind: str, most_bytes: int, error: float
) -> None:
    run_recipe(tmp_path / "out", {"convert": {"to": "gguf", "type": kind}})
    run_recipe(tmp_path / "exact", {"convert": {"to": "gguf", "type": "F32"}})
    read, exact = Read(tmp_path / "out"), Read(tmp_path / "exact")
    assert (tmp_path / "out" / "model.gguf").stat().st_size < most_bytes
    assert read.types["blk.0.ffn_up.weight"] == kind
    assert (read.types["token_embd.weight"], read.types["output_norm.weight"]) == ("Q8_0", "F32")
    for name in exact.types:
        true, near = exact.tensor(name), read.tensor(name)
        assert np.linalg.norm(true - near) <= error * np.linalg.norm(true), name


def test_sliced_and_half_precision_models_convert_too(tmp_path: Path) -> None:
    half = make_half(tmp_path / "half")
    slicing = {"slice": {"feedForwardPercent": 12, "headsPercent": 50}}
    run_recipe(tmp_path / "out", slicing, {"convert": {"to": "gguf", "type": "Q4_0"}}, source=half)
    read = Read(tmp_path / "out")
    assert read.value("llama.feed_forward_length") == 288
    assert (read.value("llama.attention.head_count"), read.value("llama.attention.head_count_kv")) == (2, 1)
    assert read.tensor("blk.0.attn_q.weight").shape == (64, 128)
    assert read.value("llama.rope.freq_base") == pytest.approx(1000, rel=1e-3)
    odd = ({"slice": {"feedForwardPercent": 55}}, {"convert": {"to": "gguf", "type": "Q4_0"}})
    run_recipe(tmp_path / "odd", *odd)
    # 144 inputs are no multiple of a block of 32.
    types = Read(tmp_path / "odd").types
    assert (types["blk.0.ffn_down.weight"], types["blk.0.ffn_up.weight"]) == ("F16", "Q4_0")


def edited(target: Path, name: str, change: Any) -> Path:
    shutil.copytree(ORDERS, target)
    body = json.loads((target / name).read_text())
    change(body)
    (target / name).write_text(json.dumps(body))
    return target


def test_what_llama_cpp_does_not_know_is_refused(tmp_path: Path) -> None:
    step = {"convert": {"to": "gguf"}}
    phi = edited(tmp_path / "phi", "genai_config.json", lambda b: b["model"].update(type="phi3"))
    with pytest.raises(
        OptimizeError, match=r"model\.type phi3; conversion to gguf knows llama, mistral, qwen2"
    ):
        run_recipe(tmp_path / "a", step, source=phi)
    unigram = edited(tmp_path / "unigram", "tokenizer.json", lambda b: b["model"].update(type="Unigram"))
    with pytest.raises(OptimizeError, match=r"tokenizer\.json is of type Unigram"):
        run_recipe(tmp_path / "b", step, source=unigram)
    with pytest.raises(OptimizeError, match="convert: the model is quantized already"):
        run_recipe(tmp_path / "c", {"quantizeInt4": {}}, step)
    with pytest.raises(OptimizeError, match="the source is gguf, and this step works on exports"):
        run_recipe(tmp_path / "d", step, {"quantizeInt4": {}})


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ({"type": "ByteLevel", "use_regex": True}, "gpt-2"),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": LLAMA3}},
                    {"type": "ByteLevel", "use_regex": False},
                ],
            },
            "llama-bpe",
        ),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": LLAMA3.replace("{1,3}", "")}},
                    {"type": "ByteLevel", "use_regex": False},
                ],
            },
            "qwen2",
        ),
        (
            {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}],
            },
            "smollm",
        ),
        ({"type": "Whitespace"}, "default"),
    ],
)
def test_ways_to_split_text_by_their_names(part: dict[str, Any], name: str) -> None:
    assert find_pre({"pre_tokenizer": part}) == name


def test_a_sentencepiece_vocabulary(tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "▁": 4, "a": 5, "▁a": 6}
    body = {
        "added_tokens": [{"id": i, "content": t, "special": True} for t, i in list(vocab.items())[:3]],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]},
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": ["▁ a"],
            "byte_fallback": True,
            "unk_token": "<unk>",
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(body))
    vocabulary = read_vocabulary(tmp_path, size=8)
    assert (vocabulary.model, vocabulary.add_space_prefix, vocabulary.merges) == ("llama", True, ())
    assert vocabulary.types == (2, 3, 3, 6, 1, 1, 1, 5)
    assert vocabulary.tokens[7] == "[PAD7]"
    assert list(vocabulary.scores) == sorted(vocabulary.scores, reverse=True)
    with pytest.raises(OptimizeError, match="belong to different models"):
        read_vocabulary(tmp_path, size=6)
