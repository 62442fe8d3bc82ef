# SPDX-License-Identifier: Apache-2.0
"""From one model directory to the next: a step, or a whole recipe."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from slmopt.errors import unfit
from slmopt.graph import OnnxExport
from slmopt.job import Convert, LoraInputs, Prune, QuantizeInt4, QuantizeInt8, Step
from slmopt.log import log
from slmopt.model_dir import GENAI_CONFIG, check_complete, new_directory, remove_scratch, write_manifest
from slmwire.manifest import Manifest, ManifestError, parse_manifest
from slmwire.paths import MODEL_MANIFEST_FILE


def apply_step(step: Step, source: Path, target: Path) -> Manifest:
    """Make `target`, a complete model directory, from `source`; raises OptimizeError.

    `target` appears whole or not at all. One that is there already is from an earlier run of the same
    container and is left as it is.
    """
    if (target / MODEL_MANIFEST_FILE).is_file():
        log("step is done already", directory=target)
        try:
            return parse_manifest((target / MODEL_MANIFEST_FILE).read_bytes())
        except ManifestError as error:
            raise unfit(f"{target}: {error}; remove the folder") from error
    if not source.is_dir():
        raise unfit(f"{source} is no folder; the step before has to make it")
    check_complete(source)
    remove_scratch(target)
    with new_directory(target) as scratch:
        _run_step(step, source, scratch)
        manifest = write_manifest(scratch)
    log("step is done", directory=target, digest=manifest.digest, bytes=manifest.size_bytes)
    return manifest


def apply_recipe(steps: Sequence[Step], source: Path, target: Path) -> Manifest:
    """All steps one after the other; raises OptimizeError. `steps` is not empty, `target` not there."""
    if target.exists():
        raise unfit(f"{target} exists; name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".slmopt-", dir=target.parent) as scratch:
        for index, step in enumerate(steps[:-1]):
            between = Path(scratch) / f"step-{index}"
            apply_step(step, source, between)
            source = between
        return apply_step(steps[-1], source, target)


def _run_step(step: Step, source: Path, target: Path) -> None:
    if isinstance(step, Convert) and step.to != "gguf":
        from slmopt.torch_convert import convert_litert, convert_onnx

        (convert_litert if step.to == "litert" else convert_onnx)(source, target, step.type)
        return
    export = OnnxExport(source)
    if isinstance(step, Convert):
        export.refuse_adaptable("convert")
        from slmopt.gguf_convert import convert_gguf

        convert_gguf(export, target, step.type)
        return
    if isinstance(step, QuantizeInt8):
        from slmopt.quantize import apply_int8

        apply_int8(export, step)
    elif isinstance(step, QuantizeInt4):
        from slmopt.quantize import apply_int4

        apply_int4(export, step)
    elif isinstance(step, Prune):
        from slmopt.prune import apply_prune

        apply_prune(export, step)
    elif isinstance(step, LoraInputs):
        from slmopt.lora import apply_lora_inputs

        apply_lora_inputs(export, step)
    else:
        export.refuse_adaptable("slice")
        from slmopt.slicing import apply_slice

        apply_slice(export, step)
    export.save(target)
    (target / GENAI_CONFIG).write_text(json.dumps(export.config, indent=4))
