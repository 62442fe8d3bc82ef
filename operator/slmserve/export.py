# SPDX-License-Identifier: Apache-2.0
"""What genai_config.json says about an export of the onnxruntime-genai builder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from slmserve.errors import StartError
from slmwire.reasons import Reason

CONFIG_FILE: Final = "genai_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """Geometry, tensor names and default sampling of one export."""

    filename: str
    context_length: int
    vocab_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    input_ids: str
    attention_mask: str
    position_ids: str
    """Empty when the export derives positions from the mask."""
    logits: str
    past_names: tuple[str, ...]
    present_names: tuple[str, ...]
    end_tokens: frozenset[int]
    temperature: float
    """Used when a request names neither temperature nor top_p; 0 unless the model says do_sample."""
    top_p: float


def _unfit(message: str) -> StartError:
    return StartError(Reason.UNFIT, f"{CONFIG_FILE}: {message}")


def load_export(model_dir: Path) -> ExportConfig:
    """Read genai_config.json; raises StartError (Unfit) when it is absent or incomplete."""
    path = model_dir / CONFIG_FILE
    try:
        body = json.loads(path.read_bytes())
    except OSError as error:
        raise _unfit(
            f"cannot be read from the model directory ({error.strerror}); the model must be an export "
            "of the onnxruntime-genai builder"
        ) from error
    except ValueError as error:
        raise _unfit("is not JSON") from error
    try:
        config = _parse(body)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _unfit(f"lacks or misstates {error}; export the model again") from error
    if not (model_dir / config.filename).is_file():
        raise _unfit(f"names {config.filename}, which is not in the model directory")
    return config


def _positive(section: dict[str, Any], key: str) -> int:
    value = int(section[key])
    if not 0 < value < 1 << 31:
        raise ValueError(f"{key} ({value})")
    return value


def _parse(body: Any) -> ExportConfig:
    model = body["model"]
    decoder = model["decoder"]
    inputs, outputs = decoder["inputs"], decoder["outputs"]
    layers = _positive(decoder, "num_hidden_layers")
    if layers > 1024:
        raise ValueError(f"num_hidden_layers ({layers})")

    def names(section: dict[str, Any], prefix: str) -> tuple[str, ...]:
        patterns = [section[f"{prefix}_{kind}_names"] for kind in ("key", "value")]
        return tuple(pattern % layer for layer in range(layers) for pattern in patterns)

    ends = model["eos_token_id"]
    search = body.get("search", {})
    samples = bool(search.get("do_sample", False))
    filename = str(decoder["filename"])
    if "/" in filename or filename.startswith("."):
        raise ValueError("decoder.filename")
    return ExportConfig(
        filename=filename,
        context_length=_positive(model, "context_length"),
        vocab_size=_positive(model, "vocab_size"),
        layers=layers,
        heads=_positive(decoder, "num_attention_heads"),
        kv_heads=_positive(decoder, "num_key_value_heads"),
        head_size=_positive(decoder, "head_size"),
        input_ids=str(inputs["input_ids"]),
        attention_mask=str(inputs["attention_mask"]),
        position_ids=str(inputs.get("position_ids", "")),
        logits=str(outputs["logits"]),
        past_names=names(inputs, "past"),
        present_names=names(outputs, "present"),
        end_tokens=frozenset(int(token) for token in (ends if isinstance(ends, list) else [ends])),
        temperature=float(search.get("temperature", 1.0)) if samples else 0.0,
        top_p=float(search.get("top_p", 1.0)) if samples else 1.0,
    )
