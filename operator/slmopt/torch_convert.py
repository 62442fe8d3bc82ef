# SPDX-License-Identifier: Apache-2.0
"""Conversions that need torch: to LiteRT, and from a Hugging Face checkpoint to an ONNX export.

The optimizer's plain image has no torch, which weighs gigabytes; these steps run where it is installed.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

from slmopt.checkpoint import write_checkpoint
from slmopt.errors import unfit
from slmopt.graph import OnnxExport
from slmopt.log import log
from slmopt.model_dir import GENAI_CONFIG, carry_files, describe_format, list_files

TORCH_TAG: Final = "-torch"
"""Suffix of the optimizer image's tag that has torch and these libraries."""
LIBRARIES: Final = "SLMOPT_TORCH_LIB"
"""Variable that names the folder of these libraries. They are for the processes that convert alone: some of
them want other versions of packages that the optimizer itself has."""
_LITERT: Final = """
import importlib.machinery, importlib.util, sys, types
if importlib.util.find_spec("tensorflow") is None:
    # litert-torch imports this one generated file of a package that it does not ask for.
    from ai_edge_litert import schema_py_generated as schema
    name = "tensorflow.lite.python.schema_py_generated"
    for part in ("tensorflow", "tensorflow.lite", "tensorflow.lite.python"):
        sys.modules[part] = types.ModuleType(part)
        sys.modules[part].__spec__ = importlib.machinery.ModuleSpec(part, None)
    sys.modules[name] = sys.modules["tensorflow.lite.python"].schema_py_generated = schema
from litert_torch.generative.export_hf.export import export
checkpoint, made, kind, context = sys.argv[1:]
context = int(context)
export(
    model=checkpoint,
    output_dir=made,
    quantization_recipe=kind,
    prefill_lengths=[length for length in (16, 64, 256) if length <= context] or [context],
    cache_length=context,
    bundle_litert_lm=False,  # the engine takes tokenizer and template from their own files
)
"""
"""Run in a process of its own: arguments are the checkpoint, the output folder, the type and the
tokens of a row's cache."""
MAX_LITERT_CONTEXT: Final = 4096
"""A row's cache has a fixed size there, in float32, whatever a request needs of it."""
_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".index.json", ".onnx", ".onnx.data")


def _is_there(package: str) -> bool:
    folder = os.environ.get(LIBRARIES, "")
    if folder:
        return PathFinder.find_spec(package, [folder]) is not None
    return importlib.util.find_spec(package) is not None


def _require(package: str, to: str) -> None:
    if not _is_there(package):
        raise unfit(
            f"convert to {to} needs {package}, which this image does not have; use the image "
            f"slmops-optimizer:<version>{TORCH_TAG} for this recipe"
        )


def _require_source(source: Path, to: str) -> str:
    """The source's format: `huggingface`, or `onnx` where an export can be taken back to a checkpoint."""
    form = describe_format(source)
    if form == to:
        raise unfit(f"convert: the source is {to} already; take the step out")
    if form not in ("huggingface", "onnx"):
        raise unfit(
            f"convert to {to} starts from a Hugging Face checkpoint (config.json, *.safetensors), for litert "
            f"also from an fp32 or fp16 export, and the source is {form}; make this an earlier step"
        )
    return form


def _run(command: list[str], what: str) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
    if folder := os.environ.get(LIBRARIES, ""):
        environment["PYTHONPATH"] = folder
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise unfit(f"{what} ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")


def _carry(source: Path, target: Path) -> None:
    behind = {path for path in list_files(source) if path.endswith(_WEIGHTS)} | {GENAI_CONFIG}
    carry_files(source, target, without=behind)


def _litert_context(checkpoint: Path) -> int:
    """Tokens of a row: the model's own limit, or what a fixed cache of it can bear."""
    try:
        config = json.loads((checkpoint / "config.json").read_bytes())
    except FileNotFoundError:
        raise unfit("the checkpoint has no config.json; put it beside its *.safetensors") from None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise unfit("the checkpoint's config.json is no JSON object; fetch it again, or make it anew")
    inner = config.get("text_config")  # of a model that takes more than text
    for part in (config, inner if isinstance(inner, dict) else {}):
        limit = part.get("max_position_embeddings")
        if type(limit) is int and limit > 0:
            return min(limit, MAX_LITERT_CONTEXT)
    return MAX_LITERT_CONTEXT


def convert_litert(source: Path, target: Path, kind: str) -> None:
    """Write a `.tflite` with prefill and decode signatures; raises OptimizeError (Unfit)."""
    form = _require_source(source, "litert")
    _require("litert_torch", "litert")
    with tempfile.TemporaryDirectory(prefix="slmopt-") as folder:
        scratch = Path(folder)
        checkpoint = source.resolve()
        if form == "onnx":
            checkpoint = scratch / "checkpoint"
            checkpoint.mkdir()
            write_checkpoint(OnnxExport(source), checkpoint)
        context = str(_litert_context(checkpoint))
        command = [sys.executable, "-c", _LITERT, str(checkpoint), str(scratch / "made"), kind, context]
        _run(command, "litert-torch")
        made = sorted((scratch / "made").rglob("*.tflite"), key=lambda path: path.stat().st_mtime)
        if not made:
            raise unfit("litert-torch made no .tflite; its version does not suit this step")
        shutil.copyfile(made[-1], target / "model.tflite")
    _carry(source, target)
    log("converted", format="litert", type=kind)


def convert_onnx(source: Path, target: Path, kind: str) -> None:
    """Write an export of the onnxruntime-genai builder for the CPU; raises OptimizeError (Unfit)."""
    _require_source(source, "onnx")
    for package in ("torch", "transformers", "onnxruntime_genai"):
        _require(package, "onnx")
    with tempfile.TemporaryDirectory(prefix="slmopt-") as scratch:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source.resolve())]
        command += ["-o", f"{scratch}/model", "-p", kind, "-e", "cpu", "-c", f"{scratch}/cache"]
        if kind == "int4":
            command += ["--extra_options", "block_size=32", "accuracy_level=4"]
        _run(command, "the builder")
        _carry(source, target)
        for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
            if (Path(scratch) / "model" / name).exists():
                shutil.copyfile(Path(scratch) / "model" / name, target / name)
    log("converted", format="onnx", type=kind)
