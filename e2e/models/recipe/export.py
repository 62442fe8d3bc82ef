# SPDX-License-Identifier: Apache-2.0
"""Checkpoint -> ONNX with the onnxruntime-genai builder, offline."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from e2e.models.recipe.tokenizer import apply_tokenizer

OPTIONS: Final = {"fp32": (), "int4": ("block_size=32", "accuracy_level=4")}
KEPT: Final = ("model.onnx", "model.onnx.data", "genai_config.json")


class ExportError(RuntimeError):
    """The builder failed; the message holds the end of what it printed."""


def export(checkpoint: Path, tokenizer: Tokenizer, variant: str, directory: Path) -> None:
    """Write the `variant` ("fp32" or "int4") of the Hugging Face `checkpoint` into `directory`."""
    options = OPTIONS[variant]
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "model"
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += [
            "-i",
            str(checkpoint),
            "-o",
            str(built),
            "-p",
            variant,
            "-e",
            "cpu",
            "-c",
            f"{scratch}/cache",
        ]
        command += ["--extra_options", *options] if options else []
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ExportError(
                f"the builder ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}"
            )
        directory.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copyfile(built / name, directory / name)
    # Our own files, not the builder's rewriting of them: they carry the chat template.
    apply_tokenizer(tokenizer, directory)
