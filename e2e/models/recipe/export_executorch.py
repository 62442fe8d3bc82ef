# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.models.recipe.export_executorch DIR`: v1 as a model directory for ExecuTorch, offline.

Not part of the committed models, since nothing in the development environment can run it (the library's
Python binding needs torch). It needs executorch, transformers, tokenizers and onnx.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes.init_mutable_pass import InitializedMutableBufferPass
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

from e2e.models.recipe.golden import apply_golden
from e2e.models.recipe.packing import apply_manifest
from e2e.models.recipe.to_hf import write_checkpoint
from e2e.models.recipe.tokenizer import END_ID
from e2e.models.recipe.versions import CONTEXT_TOKENS, MODEL_NAME, SHAPE

KEPT: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SOURCE: Final = Path(__file__).resolve().parent.parent / MODEL_NAME / "v1-fp32"


def export(checkpoint: Path) -> bytes:
    """The program of a Hugging Face `checkpoint`, in float32 on XNNPACK."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="sdpa", dtype=torch.float32)
    model.generation_config = GenerationConfig(use_cache=True, cache_implementation="static")
    module = TorchExportableModuleForDecoderOnlyLM(model.eval(), 1, CONTEXT_TOKENS, "cpu")
    length = torch.export.Dim("length", min=1, max=CONTEXT_TOKENS - 1)
    with torch.no_grad():
        traced = module.export(
            input_ids=torch.arange(7)[None],
            cache_position=torch.arange(7),
            dynamic_shapes={"input_ids": {1: length}, "cache_position": {0: length}},
        )
    edge = to_edge_transform_and_lower(
        traced,
        partitioner=[XnnpackPartitioner()],
        constant_methods={
            "get_max_seq_len": CONTEXT_TOKENS,
            "get_vocab_size": SHAPE.vocab,
            "get_eos_ids": [END_ID],
            "enable_dynamic_shape": True,
        },
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )
    passes = [InitializedMutableBufferPass(["cumulative_length", "cache"])]
    program = edge.to_executorch(ExecutorchBackendConfig(extract_delegate_segments=True, passes=passes))
    return bytes(program.buffer)


def main(argv: list[str]) -> int:
    """Write the model directory that the only argument names."""
    (target,) = map(Path, argv)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        write_checkpoint(SOURCE, Path(scratch))
        (target / "model.pte").write_bytes(export(Path(scratch)))
    for name in KEPT:
        shutil.copyfile(SOURCE / name, target / name)
    apply_golden(target)
    apply_manifest(target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
