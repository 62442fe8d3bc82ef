# SPDX-License-Identifier: Apache-2.0
"""The model `orders` in the formats of the other engines, made from the committed fp32 export.

Each function writes a complete model directory (tokenizer, chat template and golden set included) in
well under a second; fixtures cache them for a session.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from e2e.models.recipe.to_gguf import Kind, write_gguf
from tests.unit.slmserve.process import ORDERS

SOURCE = ORDERS / "v1-fp32"
_SHARED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "golden.jsonl")


def build_llama_dir(directory: Path, *, kind: Kind = "F32") -> Path:
    """`directory` as a model for llama.cpp."""
    _copy_shared(directory)
    write_gguf(SOURCE, directory / "model.gguf", kind=kind)
    return directory


def build_openvino_dir(directory: Path, *, kind: Kind = "F16") -> Path:
    """`directory` as a model for OpenVINO: the library itself turns a GGUF file into its own format.

    It knows F16, Q8_0 and Q4_0, and no F32.
    """
    from slmserve.engines.openvino_library import openvino_genai

    _copy_shared(directory)
    scratch = directory / "scratch"
    scratch.mkdir()
    write_gguf(SOURCE, scratch / "model.gguf", kind=kind)
    openvino_genai.LLMPipeline(str(scratch / "model.gguf"), "CPU", enable_save_ov_model=True)
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (scratch / name).rename(directory / name)
    shutil.rmtree(scratch)
    model = json.loads((SOURCE / "genai_config.json").read_bytes())["model"]
    config = {
        "max_position_embeddings": model["context_length"],
        "vocab_size": model["vocab_size"],
        "eos_token_id": model["eos_token_id"],
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def write_adapter(target: Path, *, scale: float, architecture: str = "llama") -> None:
    """A LoRA adapter of rank 2 for the queries and keys of the model's first layer.

    `scale` 0 changes nothing; the other numbers are random, from a fixed seed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(3)
    writer: Any = gguf.GGUFWriter(target, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0)

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return random.standard_normal((rows, columns)).astype(np.float32)

    for name, rows in (("attn_q", 128), ("attn_k", 64)):
        writer.add_tensor(f"blk.0.{name}.weight.lora_a", matrix(2, 128))
        writer.add_tensor(f"blk.0.{name}.weight.lora_b", matrix(rows, 2) * np.float32(scale))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_shared(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in _SHARED:
        shutil.copyfile(SOURCE / name, directory / name)
