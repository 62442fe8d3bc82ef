# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.models.recipe.export_litert`: the fp32 export of v1 as a model directory for LiteRT.

Weights become int8 with a scale per channel; activations are quantised as they come. `make model-litert`
runs it in an environment of its own (litert-torch needs torch: gigabytes).
"""

import importlib.machinery
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Final

# Both before the libraries load: nothing is looked up on a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import torch._dynamo  # noqa: F401 (it looks for tensorflow, and must not find what stands in for it)
from ai_edge_litert import schema_py_generated

from e2e.models.recipe.golden import apply_golden
from e2e.models.recipe.packing import apply_manifest
from e2e.models.recipe.to_hf import write_checkpoint
from e2e.models.recipe.versions import CONTEXT_TOKENS, MODEL_NAME

RECIPE: Final = "dynamic_wi8_afp32"
PREFILL_LENGTHS: Final = (16, 64)
"""Prompts of this model have 10 to 60 tokens; a call that is not full is padded."""
KEPT: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
ARTEFACTS: Final = Path(__file__).resolve().parent.parent / MODEL_NAME


def _stand_in_for_tensorflow() -> None:
    """litert-torch takes one generated module from tensorflow, which LiteRT's own package has too."""
    for name in ("tensorflow", "tensorflow.lite", "tensorflow.lite.python"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
    sys.modules["tensorflow.lite.python"].schema_py_generated = schema_py_generated  # type: ignore[attr-defined]


def export(checkpoint: Path, source: Path, directory: Path) -> None:
    """Write the Hugging Face `checkpoint` as a model directory; tokenizer and template are `source`'s."""
    _stand_in_for_tensorflow()
    from litert_torch.generative.export_hf.export import export as export_hf

    with tempfile.TemporaryDirectory() as scratch:
        export_hf(
            model=str(checkpoint),
            output_dir=scratch,
            prefill_lengths=list(PREFILL_LENGTHS),
            cache_length=CONTEXT_TOKENS,
            quantization_recipe=RECIPE,
            bundle_litert_lm=False,
        )
        (built,) = Path(scratch).rglob("model_quantized.tflite")
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built, directory / "model.tflite")
    for name in KEPT:
        shutil.copyfile(source / name, directory / name)
    apply_golden(directory)
    apply_manifest(directory)


def main() -> int:
    """Make orders/v1-litert anew from orders/v1-fp32."""
    source = ARTEFACTS / "v1-fp32"
    with tempfile.TemporaryDirectory() as scratch:
        write_checkpoint(source, Path(scratch))
        export(Path(scratch), source, ARTEFACTS / "v1-litert")
    return 0


if __name__ == "__main__":
    sys.exit(main())
