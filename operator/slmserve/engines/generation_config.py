# SPDX-License-Identifier: Apache-2.0
"""generation_config.json of the Hugging Face format: how a model wants to be sampled."""

import json
from pathlib import Path
from typing import Any, Final

from slmserve.backend import GenerationDefaults
from slmserve.errors import StartError
from slmwire.reasons import Reason

CONFIG_FILE: Final = "generation_config.json"


def load_defaults(model_dir: Path, end_tokens: frozenset[int]) -> GenerationDefaults:
    """Defaults of the file, where there is one, with `end_tokens` beside its own.

    Greedy unless the file says do_sample. Raises StartError (Unfit) for a file that cannot be read.
    """
    path = model_dir / CONFIG_FILE
    if not path.is_file():
        return GenerationDefaults(end_tokens=end_tokens)
    try:
        return _parse(json.loads(path.read_bytes()), end_tokens)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        message = (
            f"{CONFIG_FILE} cannot be used ({' '.join(str(error).split())[:200]}); correct it or leave it out"
        )
        raise StartError(Reason.UNFIT, message) from error


def _parse(body: Any, end_tokens: frozenset[int]) -> GenerationDefaults:
    ends = body.get("eos_token_id")
    own = ends if isinstance(ends, list) else [] if ends is None else [ends]
    samples = bool(body.get("do_sample", False))
    temperature, top_p = float(body.get("temperature") or 1.0), float(body.get("top_p") or 1.0)
    if not 0 <= temperature <= 10 or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} or top_p {top_p} is out of range")
    return GenerationDefaults(
        end_tokens=end_tokens | {int(token) for token in own},
        temperature=temperature if samples else 0.0,
        top_p=top_p if samples else 1.0,
    )
