# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back, whole or token by token."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from slmserve.errors import StartError
from slmwire.reasons import Reason

TOKENIZER_FILE: Final = "tokenizer.json"
_REPLACEMENT: Final = "\ufffd"
_MOST_PENDING: Final = 16
"""Tokens that may wait for the rest of a character; no encoding needs as many."""
_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TextCodec:
    """A model's tokenizer; safe to use from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        # A file may ask for both, for training; here they would cut and pad prompts in silence.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._added = {
            index: (token.content, bool(token.special))
            for index, token in tokenizer.get_added_tokens_decoder().items()
        }
        self._piece_bytes: Callable[[str], bytes] | None = None
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

    @property
    def size(self) -> int:
        """Ids that the vocabulary has, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def special_tokens(self) -> Mapping[int, str]:
        """The added tokens that `decode` leaves out, by id."""
        return {index: content for index, (content, special) in self._added.items() if special}

    @cached_property
    def fallback_tokens(self) -> frozenset[int]:
        """The unknown token, and single bytes of characters that the vocabulary lacks; empty when it has
        neither. The bytes of ASCII are left out: vocabularies write line breaks so."""
        stated = getattr(self._tokenizer.model, "unk_token", None)
        unknown = [stated] if isinstance(stated, str) else ["<unk>", "[UNK]"]
        pieces = [*unknown, *(f"<0x{byte:02X}>" for byte in range(0x80, 0x100))]
        found = (self._tokenizer.token_to_id(piece) for piece in pieces)
        return frozenset(token for token in found if token is not None)

    def token_bytes(self, token: int) -> bytes:
        """What one token stands for, special ones included; empty for an id without a piece."""
        if token in self._added:
            content: str = self._added[token][0]
            return content.encode()
        piece: str | None = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self._piece_bytes is None:
            self._piece_bytes = _reader_of_pieces(self._tokenizer.decoder)
        return self._piece_bytes(piece)

    def to_json(self) -> str:
        """The tokenizer in the form of tokenizer.json."""
        text: str = self._tokenizer.to_str()
        return text


def _reader_of_pieces(decoder: Any) -> Callable[[str], bytes]:
    """How a vocabulary's pieces spell bytes, by the decoder that the tokenizer has.

    Byte-level vocabularies give every byte a printable character (GPT-2's table); the others write
    spaces as U+2581 and bytes that are no text as <0xNN> (SentencePiece).
    """
    stated = "" if decoder is None else decoder.__getstate__().decode()
    if '"ByteLevel"' in stated:
        table = _byte_alphabet()
        return lambda piece: b"".join(
            bytes((table[c],)) if c in table else c.encode("utf-8", "replace") for c in piece
        )
    falls_back = '"ByteFallback"' in stated
    replaced = "\u2581" in stated

    def read(piece: str) -> bytes:
        found = _BYTE_TOKEN.fullmatch(piece) if falls_back else None
        if found:
            return bytes((int(found[1], 16),))
        return (piece.replace("\u2581", " ") if replaced else piece).encode("utf-8", "replace")

    return read


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 characters are themselves, the other bytes follow at U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in plain}
    others = (byte for byte in range(256) if chr(byte) not in table)
    return table | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def load_codec(model_dir: Path) -> TextCodec:
    """Read tokenizer.json; raises StartError (Unfit)."""
    path = model_dir / TOKENIZER_FILE
    try:
        return TextCodec(Tokenizer.from_file(str(path)))
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
