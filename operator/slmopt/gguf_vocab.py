# SPDX-License-Identifier: Apache-2.0
"""tokenizer.json in GGUF's terms: tokens, types, merges, special tokens."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf

from slmopt.errors import unfit
from slmopt.log import log
from slmopt.model_dir import CHAT_TEMPLATE, GENAI_CONFIG, TOKENIZER, TOKENIZER_CONFIG, read_json

_WORDS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS: Final[Mapping[str, str]] = {
    _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _WORDS + r"\p{N}" + _REST: "qwen2",
}
"""Regular expressions that tokenizers split by, and llama.cpp's name for each."""
_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Everything below `tokenizer.ggml`; lists by token id."""

    model: str
    """`gpt2` (bytes as characters, merges) or `llama` (SentencePiece, scores)."""
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    add_space_prefix: bool = False

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Add it to a file."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.types))
        if self.merges:
            writer.add_token_merges(list(self.merges))
        if self.scores:
            writer.add_token_scores(list(self.scores))
            writer.add_add_space_prefix(self.add_space_prefix)


def read_vocabulary(directory: Path, *, size: int) -> Vocabulary:
    """From tokenizer.json; `size` is the number of rows of the embedding table, the rest is filled up.

    Raises OptimizeError (Unfit) for tokenizers that llama.cpp has no like of.
    """
    body = read_json(directory, TOKENIZER)
    try:
        return _parse_vocabulary(body, size=size)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"[:200]
        raise unfit(
            f"{TOKENIZER} is not a tokenizer as the library writes it ({what}); save it again"
        ) from error


def _parse_vocabulary(body: Mapping[str, Any], *, size: int) -> Vocabulary:
    model = body.get("model", {})
    if model.get("type") != "BPE":
        raise unfit(
            f"{TOKENIZER} is of type {model.get('type')}; conversion to gguf knows BPE only; "
            "use another format for this model"
        )
    ids = dict(model["vocab"])
    added = {str(row["content"]): row for row in body.get("added_tokens", [])}
    ids |= {text: int(row["id"]) for text, row in added.items()}
    if min(ids.values()) < 0:
        raise ValueError("negative token")
    if max(ids.values()) >= size:
        raise unfit(
            f"{TOKENIZER} has token {max(ids.values())} and the embedding table {size} rows; "
            "they belong to different models"
        )
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [int(gguf.TokenType.UNUSED)] * size
    pieces = bool(model.get("byte_fallback"))
    unknown = str(model.get("unk_token") or "") if pieces else None
    for text, index in ids.items():
        tokens[index] = text
        types[index] = int(_type_of(text, added.get(text), unknown=unknown))
    if pieces:
        # The lower the id, the earlier SentencePiece would have merged it.
        scores = tuple(float(-index) for index in range(size))
        prefix = '"prepend"' in str(body.get("normalizer")).replace("'", '"').lower()
        return Vocabulary(
            model="llama",
            pre="default",
            tokens=tuple(tokens),
            types=tuple(types),
            scores=scores,
            add_space_prefix=prefix,
        )
    merges = tuple(row if isinstance(row, str) else " ".join(row) for row in model.get("merges", []))
    return Vocabulary(
        model="gpt2", pre=find_pre(body), tokens=tuple(tokens), types=tuple(types), merges=merges
    )


def _type_of(text: str, added: Mapping[str, Any] | None, *, unknown: str | None) -> gguf.TokenType:
    """`unknown` is None for byte-level tokenizers, whose tokens mean nothing but their characters."""
    if unknown is not None and text == unknown:
        return gguf.TokenType.UNKNOWN
    if added is not None:
        return gguf.TokenType.CONTROL if added.get("special") else gguf.TokenType.USER_DEFINED
    if unknown is not None and _BYTE.fullmatch(text):
        return gguf.TokenType.BYTE
    return gguf.TokenType.NORMAL


def find_pre(body: Mapping[str, Any]) -> str:
    """llama.cpp's name of the way in which a byte-level tokenizer splits text before it merges.

    One that llama.cpp does not know gets `default` and a warning: this product's server reads
    tokenizer.json itself, other programs would split some texts differently.
    """
    first = body.get("pre_tokenizer") or {}
    parts = first.get("pretokenizers", [first])
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    for part in parts:
        pattern = part.get("pattern", {})
        if name := _SPLITS.get(str(pattern.get("Regex", "")) if isinstance(pattern, Mapping) else ""):
            return name
    log(
        "tokenizer splits text in a way that llama.cpp has no name for; tokenizer.json counts",
        level="warning",
    )
    return "default"


def _special_ids(config: Mapping[str, Any], name: str, *, size: int) -> list[int]:
    """One id, several or none; raises OptimizeError (Unfit) for what is no token."""
    given = config.get(name)
    ids = [one for one in (given if isinstance(given, list) else [given]) if one is not None]
    if any(not isinstance(one, int) or isinstance(one, bool) or not 0 <= one < size for one in ids):
        raise unfit(
            f"{GENAI_CONFIG}: model.{name} is {str(given)[:80]}; it must be a token from 0 to {size - 1}; "
            "correct it"
        )
    return ids


def write_special_tokens(
    writer: gguf.GGUFWriter, directory: Path, config: Mapping[str, Any], *, size: int
) -> None:
    """Ids that begin, end and fill texts, from genai_config.json's `model`; and the chat template.

    Raises OptimizeError (Unfit) for an id beyond the `size` tokens.
    """
    settings = read_json(directory, TOKENIZER_CONFIG) if (directory / TOKENIZER_CONFIG).is_file() else {}
    many = _special_ids(config, "eos_token_id", size=size)
    if many:
        writer.add_eos_token_id(many[0])
    if len(many) > 1:
        writer.add_eot_token_id(many[1])
    for begin in _special_ids(config, "bos_token_id", size=size)[:1]:
        writer.add_bos_token_id(begin)
    fill = config.get("pad_token_id")
    if isinstance(fill, int) and 0 <= fill < size:  # some models say -1 for none
        writer.add_pad_token_id(fill)
    writer.add_add_bos_token(bool(settings.get("add_bos_token", False)))
    template = settings.get("chat_template")
    if (directory / CHAT_TEMPLATE).is_file():
        template = (directory / CHAT_TEMPLATE).read_text(encoding="utf-8")
    if isinstance(template, str):
        writer.add_chat_template(template)
