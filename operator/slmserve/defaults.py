# SPDX-License-Identifier: Apache-2.0
"""How a model directory in Hugging Face's layout wants to be generated from.

For engines whose own format does not say it: end tokens and sampling come from generation_config.json, else
the end token from config.json, else the one that tokenizer_config.json names.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from slmserve.backend import GenerationDefaults
from slmserve.errors import StartError
from slmserve.tokenizer import TOKENIZER_FILE
from slmwire.reasons import Reason

GENERATION_FILE: Final = "generation_config.json"
MODEL_FILE: Final = "config.json"
TOKENIZER_CONFIG_FILE: Final = "tokenizer_config.json"


def load_defaults(model_dir: Path, own: frozenset[int] = frozenset()) -> GenerationDefaults:
    """End tokens and default sampling, greedy unless a file says do_sample.

    `own` are end tokens that the model's weights file names itself. Raises StartError (Unfit) for a file
    that cannot be used, and when nothing names an end token.
    """
    generation = _read_object(model_dir, GENERATION_FILE)
    try:
        ends = own | _end_tokens(generation)
        ends = ends or _end_tokens(_read_object(model_dir, MODEL_FILE)) or _named_end_token(model_dir)
        samples = bool(generation.get("do_sample", False))
        temperature, top_p = (float(generation.get(key) or 1.0) for key in ("temperature", "top_p"))
        if not 0 <= temperature <= 10 or not 0 < top_p <= 1:
            raise ValueError(f"temperature {temperature} or top_p {top_p} is out of range")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unfit(f"the model's configuration misstates its end token or sampling: {error}") from error
    if not ends:
        raise _unfit(
            f"no end token: give eos_token_id in {GENERATION_FILE}, or eos_token in {TOKENIZER_CONFIG_FILE}"
        )
    return GenerationDefaults(
        end_tokens=ends, temperature=temperature if samples else 0.0, top_p=top_p if samples else 1.0
    )


def _unfit(message: str) -> StartError:
    return StartError(Reason.UNFIT, message)


def _read_object(model_dir: Path, name: str) -> Mapping[str, Any]:
    """The JSON object in file `name`, empty when there is no such file."""
    path = model_dir / name
    if not path.is_file():
        return {}
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _unfit(f"{name} cannot be read: {error}") from error
    if not isinstance(body, Mapping):
        raise _unfit(f"{name} is not a JSON object")
    return body


def _end_tokens(config: Mapping[str, Any]) -> frozenset[int]:
    ends = config.get("eos_token_id")
    if ends is None:
        return frozenset()
    return frozenset(int(token) for token in (ends if isinstance(ends, list) else [ends]))


def _named_end_token(model_dir: Path) -> frozenset[int]:
    """The id that tokenizer.json's added tokens give to tokenizer_config.json's `eos_token`."""
    name = _read_object(model_dir, TOKENIZER_CONFIG_FILE).get("eos_token")
    if isinstance(name, Mapping):
        name = name.get("content")
    added = _read_object(model_dir, TOKENIZER_FILE).get("added_tokens") or []
    return frozenset(int(entry["id"]) for entry in added if name and entry.get("content") == name)
