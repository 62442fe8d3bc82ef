# SPDX-License-Identifier: Apache-2.0
"""Log probabilities in the two forms of the OpenAI API."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from slmserve.generation import TokenLogprobs
from slmserve.tokenizer import TextCodec

_LEAST: Final = -9999.0
"""Stands for "almost impossible": JSON has no infinity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One token of an answer; `start` is where its text begins, in characters of the answer."""

    token: int
    start: int
    logprobs: TokenLogprobs


def _value(logprob: float) -> float:
    return logprob if logprob > _LEAST else _LEAST  # also where it is no number


def _text(data: bytes, prefix: str) -> str:
    """The bytes as text; part of a character is written as \\xNN, as the API does."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in data)


def to_chat_logprobs(entries: Sequence[Scored], codec: TextCodec) -> dict[str, Any]:
    """`logprobs` of a chat choice: `{content: [{token, logprob, bytes, top_logprobs}], refusal}`."""

    def describe(token: int, logprob: float) -> dict[str, Any]:
        data = codec.token_bytes(token)
        return {"token": _text(data, ""), "logprob": _value(logprob), "bytes": list(data)}

    content = [
        describe(entry.token, entry.logprobs.chosen)
        | {"top_logprobs": [describe(token, value) for token, value in entry.logprobs.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def to_completion_logprobs(entries: Sequence[Scored], codec: TextCodec) -> dict[str, Any]:
    """`logprobs` of a completion choice; the chosen token is always among its `top_logprobs`."""

    def show(token: int) -> str:
        return _text(codec.token_bytes(token), "bytes:")

    tops = []
    for entry in entries:
        top = {show(token): _value(value) for token, value in entry.logprobs.top}
        tops.append(top | {show(entry.token): _value(entry.logprobs.chosen)})
    return {
        "tokens": [show(entry.token) for entry in entries],
        "token_logprobs": [_value(entry.logprobs.chosen) for entry in entries],
        "top_logprobs": tops,
        "text_offset": [entry.start for entry in entries],
    }
