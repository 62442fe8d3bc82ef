# SPDX-License-Identifier: Apache-2.0
"""From an export back to a Hugging Face checkpoint."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from slmopt.checkpoint import write_checkpoint
from slmopt.errors import OptimizeError
from slmopt.graph import OnnxExport
from tests.unit.slmopt.kit import ORDERS, run_recipe


def read_safetensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """After the format's description: length of the header, header, bytes."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    assert length % 8 == 0
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(body)
    return {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], np.float32).reshape(entry["shape"])
        for name, entry in header.items()
    }


def test_every_tensor_by_its_name_in_transformers(tmp_path: Path) -> None:
    export = OnnxExport(ORDERS)
    write_checkpoint(export, tmp_path)
    tensors = read_safetensors(tmp_path / "model.safetensors")
    assert len(tensors) == 3 + 3 * 9
    packed = export.read("model.layers.2.attn.qkv_proj.MatMul.weight").T
    layer = "model.layers.2"
    for name, expected in {
        "model.embed_tokens.weight": export.read("model.embed_tokens.weight"),
        "lm_head.weight": export.read("lm_head.MatMul.weight").T,
        "model.norm.weight": export.read("model.layers.3.final_norm_layernorm.weight"),
        f"{layer}.self_attn.q_proj.weight": packed[:128],
        f"{layer}.self_attn.k_proj.weight": packed[128:192],
        f"{layer}.self_attn.v_proj.weight": packed[192:],
        f"{layer}.self_attn.o_proj.weight": export.read(f"{layer}.attn.o_proj.MatMul.weight").T,
        f"{layer}.mlp.down_proj.weight": export.read(f"{layer}.mlp.down_proj.MatMul.weight").T,
        f"{layer}.input_layernorm.weight": export.read(f"{layer}.input_layernorm.weight"),
    }.items():
        assert np.array_equal(tensors[name], expected), name


def test_the_config_has_what_the_export_leaves_out(tmp_path: Path) -> None:
    run_recipe(tmp_path / "small", {"slice": {"feedForwardPercent": 50, "headsPercent": 50}})
    (tmp_path / "out").mkdir()
    write_checkpoint(OnnxExport(tmp_path / "small"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["rope_theta"], config["rms_norm_eps"]) == (1000.0, pytest.approx(1e-6))
    assert (config["intermediate_size"], config["num_attention_heads"], config["num_key_value_heads"]) == (
        160,
        2,
        1,
    )
    assert (config["head_dim"], config["hidden_size"], config["tie_word_embeddings"]) == (32, 128, False)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} <= names
    assert "genai_config.json" not in names


def test_quantized_and_unknown_models_are_refused(tmp_path: Path) -> None:
    run_recipe(tmp_path / "four", {"quantizeInt4": {}})
    with pytest.raises(OptimizeError, match="convert: the model is quantized already"):
        write_checkpoint(OnnxExport(tmp_path / "four"), tmp_path)
    export = OnnxExport(ORDERS)
    export.geometry = type(export.geometry)(
        layers=3, heads=4, kv_heads=2, head_size=32, hidden=128, vocab=640, context=256, type="phi3"
    )
    with pytest.raises(OptimizeError, match=r"model\.type phi3; this conversion knows llama"):
        write_checkpoint(export, tmp_path)
