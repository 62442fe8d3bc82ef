# SPDX-License-Identifier: Apache-2.0
"""What the files beside an encoder's graph say: how long a text may be, and how its vector is made.

Read are config.json of transformers and, where they are, the files of sentence-transformers: modules.json,
the configuration of its pooling module, sentence_bert_config.json.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from slmserve.errors import StartError
from slmwire.reasons import Reason

CONFIG_FILE: Final = "config.json"
MODULES_FILE: Final = "modules.json"
_LIMIT_FILES: Final = (
    ("sentence_bert_config.json", "max_seq_length"),
    ("tokenizer_config.json", "model_max_length"),
)
_POOLING_FOLDER: Final = "1_Pooling"
_OFFSET_MODELS: Final = {"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"}
"""Their positions begin behind the padding token's id, so that two of the table's rows are never used."""
_HARMLESS_MODULES: Final = {"Transformer", "Pooling", "Normalize"}
"""A vector is normalised in any case."""


class Pooling(StrEnum):
    """How one vector is made of those of all tokens."""

    MEAN = "mean"
    CLS = "cls"
    """The first token's."""
    LAST = "lasttoken"
    """The last token's."""


_FLAGS: Final = {
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_lasttoken": Pooling.LAST,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """What the engine needs beside the graph."""

    max_length: int
    """Tokens of one text, special tokens included."""
    vocab_size: int
    pad_token: int
    pooling: Pooling


def _unfit(message: str) -> StartError:
    return StartError(Reason.UNFIT, message)


def _read(path: Path) -> Any:
    """The file's JSON; an empty object when there is no such file."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _unfit(f"{path.name} cannot be read: {error}") from error


def load_encoder_config(model_dir: Path) -> EncoderConfig:
    """Read the directory's files; raises StartError (Unfit) that names the file and the cure."""
    body = _read(model_dir / CONFIG_FILE)
    try:
        key = "max_position_embeddings" if body.get("n_positions") is None else "n_positions"
        positions, vocab_size = _number(body, key), _number(body, "vocab_size")
        pad_token = int(body.get("pad_token_id") or 0)
        offset = pad_token + 1 if body.get("model_type") in _OFFSET_MODELS else 0
        limits = [positions - offset]
        for name, key in _LIMIT_FILES:
            limit = _read(model_dir / name).get(key)
            # Absent, or a huge number that stands for "no limit".
            limits += [int(limit)] if limit is not None else []
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _unfit(f"{CONFIG_FILE} or a file beside it lacks or misstates {error}") from error
    if min(limits) < 1 or vocab_size < 1:
        raise _unfit(f"{CONFIG_FILE}: max_position_embeddings or vocab_size is not positive")
    return EncoderConfig(
        max_length=min(limits), vocab_size=vocab_size, pad_token=pad_token, pooling=_pooling(model_dir)
    )


def _number(body: Mapping[str, Any], key: str) -> int:
    try:
        return int(body[key])
    except (KeyError, TypeError, ValueError):
        raise ValueError(key) from None


def _pooling(model_dir: Path) -> Pooling:
    """The pooling of sentence-transformers' files; the mean where there are none."""
    folder = _POOLING_FOLDER
    modules = _read(model_dir / MODULES_FILE)
    try:
        for module in modules or ():
            kind = str(module["type"]).rpartition(".")[2]
            if kind not in _HARMLESS_MODULES:
                raise _unfit(f"{MODULES_FILE} has a {kind} module; export a graph that contains it")
            folder = str(module["path"]) if kind == "Pooling" else folder
        if Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise _unfit(f"{MODULES_FILE} points outside the model directory")
        return _pooling_mode(_read(model_dir / folder / CONFIG_FILE))
    except (KeyError, TypeError, AttributeError) as error:
        raise _unfit(f"{MODULES_FILE} or {folder}/{CONFIG_FILE} is malformed: {error}") from error


def _pooling_mode(body: Mapping[str, Any]) -> Pooling:
    modes = [key for key, value in body.items() if key.startswith("pooling_mode_") and value is True]
    named = body.get("pooling_mode")
    if named is not None:
        modes = [named] if isinstance(named, str) else list(named)
    known = [_FLAGS.get(mode) or (Pooling(mode) if mode in set(Pooling) else None) for mode in modes]
    if len(known) > 1 or None in known:
        raise _unfit(f"pooling {', '.join(map(str, modes))} is not one of {', '.join(Pooling)}")
    return known[0] if known and known[0] else Pooling.MEAN
