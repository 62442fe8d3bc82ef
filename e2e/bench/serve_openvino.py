# SPDX-License-Identifier: Apache-2.0
"""The geometry of `serve_gguf` in OpenVINO's format, which the library itself makes of the GGUF file."""

import json
from pathlib import Path
from typing import Final

from e2e.bench.serve_gguf import build_gguf
from e2e.bench.serve_model import Geometry

_MODEL: Final = ("openvino_model.xml", "openvino_model.bin")


def build_openvino(directory: Path, geometry: Geometry) -> Path:
    """Write model, config.json and tokenizer files below `directory`; returns it."""
    from slmserve.engines.openvino_library import openvino_genai

    build_gguf(directory, geometry)
    gguf = directory / "model.gguf"
    openvino_genai.LLMPipeline(str(gguf), "CPU", enable_save_ov_model=True)
    gguf.unlink()
    # Its own tokenizer is not used.
    for path in directory.glob("openvino_*"):
        if path.name not in _MODEL:
            path.unlink()
    config = {
        "max_position_embeddings": geometry.context,
        "vocab_size": geometry.vocab,
        "eos_token_id": 2,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory
