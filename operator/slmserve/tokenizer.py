# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back, whole or token by token."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from slmserve.errors import StartError
from slmwire.reasons import Reason

TOKENIZER_FILE: Final = "tokenizer.json"
_REPLACEMENT: Final = "\ufffd"
_MOST_PENDING: Final = 16
"""Tokens that may wait for the rest of a character; no encoding needs as many."""


class TextCodec:
    """A model's tokenizer; safe to use from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.longest_token = max(1, *map(len, tokenizer.get_vocab(with_added_tokens=True)))
        """Most characters that one token stands for."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`; a chat template has already written its special tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens` without special tokens."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text


def load_codec(model_dir: Path) -> TextCodec:
    """Read tokenizer.json; raises StartError (Unfit)."""
    path = model_dir / TOKENIZER_FILE
    try:
        tokenizer = Tokenizer.from_file(str(path))
        # Files of encoders often pad every text to a fixed length and cut it: both are the engine's matter.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return TextCodec(tokenizer)
    except Exception as error:
        message = f"{TOKENIZER_FILE} cannot be read: {' '.join(str(error).split())[:300]}"
        raise StartError(Reason.UNFIT, message) from error


class Detokenizer:
    """Turns tokens into text as they come; holds back what may still become another character.

    Decoding starts at the token before the unfinished part, since a decoder may treat the first
    token of a text differently (a leading space).
    """

    __slots__ = ("_codec", "_read", "_start", "_tokens")

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._tokens: list[int] = []
        self._start = 0
        self._read = 0

    def push(self, *tokens: int) -> str:
        """Text that `tokens` complete; empty while a character is unfinished."""
        self._tokens += tokens
        text = self._pending()
        pending = len(self._tokens) - self._read
        if text.endswith(_REPLACEMENT) and pending < _MOST_PENDING + len(tokens):
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return text

    def flush(self) -> str:
        """Text still held back, unfinished characters replaced; then there is none."""
        text = self._pending()
        self._start = self._read = len(self._tokens)
        return text

    def _pending(self) -> str:
        if self._read == len(self._tokens):
            return ""
        before = self._codec.decode(self._tokens[self._start : self._read])
        return self._codec.decode(self._tokens[self._start :])[len(before) :]
