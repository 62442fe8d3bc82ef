# SPDX-License-Identifier: Apache-2.0
"""How strongly inner tensors act on the model's golden cases, measured with onnxruntime."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from slmopt.errors import unfit
from slmopt.graph import OnnxExport
from slmopt.model_dir import TOKENIZER
from slmopt.probe import save_probe
from slmwire.paths import GOLDEN_FILE

MAX_CASES: Final = 32
MAX_TOKENS: Final = 512
"""Per case; more tells little and takes memory."""
_INDEX_TYPES: Final[Mapping[str, Any]] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


def read_texts(directory: Path) -> list[str]:
    """Questions and answers of the first golden cases, without a template; raises OptimizeError (Unfit)."""
    path = directory / GOLDEN_FILE
    if not path.is_file():
        raise unfit(
            f'slice.importance "activations" needs {GOLDEN_FILE} in the source; add it, or use "weights"'
        )
    texts: list[str] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip() or len(texts) == MAX_CASES:
            continue
        try:
            case = json.loads(line)
            texts.append("\n".join([*(str(m["content"]) for m in case["messages"]), str(case["expected"])]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise unfit(f"{GOLDEN_FILE} line {number} is no golden case ({error}); correct it") from error
    if not texts:
        raise unfit(f'{GOLDEN_FILE} is empty; add cases, or use slice.importance "weights"')
    return texts


def measure_inputs(export: OnnxExport, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Root mean square of each of the tensors `names` [1, length, width] over all tokens: [width]."""
    texts = read_texts(export.directory)
    try:
        tokenizer = Tokenizer.from_file(str(export.directory / TOKENIZER))
        return _measure(export, tokenizer, _open_session(export, names), names, texts)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # neither library has a class of errors of its own
        text = " ".join(str(error).split())[:300]
        raise unfit(
            f'slice.importance "activations": the model does not run ({text}); export it again, or use '
            '"weights"'
        ) from error


def _measure(
    export: OnnxExport, tokenizer: Tokenizer, session: Any, names: Sequence[str], texts: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    sums = {name: np.zeros(0) for name in names}
    tokens = 0
    for text in texts:
        ids = tokenizer.encode(text).ids[: min(MAX_TOKENS, export.geometry.context)]
        if not ids:
            continue
        tokens += len(ids)
        for name, value in zip(
            names, session.run(list(names), _build_feeds(export, session, ids)), strict=True
        ):
            squares = np.square(value[0].astype(np.float64)).sum(axis=0)
            sums[name] = squares if not sums[name].size else sums[name] + squares
    return {name: np.sqrt(total / max(1, tokens)).astype(np.float32) for name, total in sums.items()}


def _open_session(export: OnnxExport, names: Sequence[str]) -> Any:
    ort.disable_telemetry_events()
    kind = onnx.TensorProto.FLOAT16 if export.is_half else onnx.TensorProto.FLOAT
    outputs = [onnx.helper.make_tensor_value_info(name, kind, None) for name in names]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Packed matrices would be a second copy of the model.
    options.add_session_config_entry("session.disable_prepacking", "1")
    # A fused node would hide what is measured.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory(prefix="slmopt-") as scratch:
        save_probe(export.model, Path(scratch) / "probe.onnx", outputs=outputs)
        return ort.InferenceSession(f"{scratch}/probe.onnx", options, providers=["CPUExecutionProvider"])


def _build_feeds(export: OnnxExport, session: Any, ids: Sequence[int]) -> dict[str, NDArray[Any]]:
    names = export.config["model"]["decoder"]["inputs"]
    feeds: dict[str, NDArray[Any]] = {}
    for node in session.get_inputs():
        kind = _INDEX_TYPES.get(node.type)
        if node.name == names.get("input_ids"):
            feeds[node.name] = np.array([ids], kind)
        elif node.name == names.get("attention_mask"):
            feeds[node.name] = np.ones((1, len(ids)), kind)
        elif node.name == names.get("position_ids"):
            feeds[node.name] = np.arange(len(ids), dtype=kind)[None]
        else:
            shape = (1, export.geometry.kv_heads, 0, export.geometry.head_size)
            feeds[node.name] = np.zeros(shape, np.float16 if node.type == "tensor(float16)" else np.float32)
    return feeds
