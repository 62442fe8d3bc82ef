# SPDX-License-Identifier: Apache-2.0
"""Bodies of answers in the form of the OpenAI API."""

import itertools
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from slmserve.answers import Answer, FinishReason
from slmwire.metrics import ENDPOINT_CHAT

DONE = b"data: [DONE]\n\n"
_PROCESS = secrets.token_hex(8)
_numbers = itertools.count(1)


def to_event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def usage_of(answer: Answer) -> dict[str, int]:
    """Token counts so far; an end token counts as generated."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.generated_tokens,
        "total_tokens": answer.prompt_tokens + answer.generated_tokens,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyForm:
    """Shapes the answers of one request; `endpoint` is chat or completions, `created` Unix seconds."""

    endpoint: str
    model: str
    created: int
    fingerprint: str
    identifier: str = field(default_factory=lambda: f"{_PROCESS}{next(_numbers):08x}")

    @property
    def is_chat(self) -> bool:
        """Whether the answer has messages."""
        return self.endpoint == ENDPOINT_CHAT

    def whole(self, text: str, finish: FinishReason, usage: dict[str, int]) -> dict[str, Any]:
        """Body of an answer that is not streamed."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if self.is_chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return self._frame("chat.completion", choices=[choice], usage=usage)

    def opening(self) -> dict[str, Any] | None:
        """First event of a stream: the role; None where there are no roles."""
        return self._chunk({"role": "assistant", "content": ""}, None) if self.is_chat else None

    def part(self, text: str, finish: FinishReason | None) -> dict[str, Any]:
        """Event with text, or with the finish reason, or both."""
        return self._chunk({"content": text} if text else {}, finish, text=text)

    def counts(self, usage: dict[str, int]) -> dict[str, Any]:
        """Last event of a stream that asked for usage: no choices."""
        return self._frame("chat.completion.chunk", choices=[], usage=usage)

    def _chunk(self, delta: dict[str, str], finish: FinishReason | None, text: str = "") -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        choice |= {"delta": delta} if self.is_chat else {"text": text}
        return self._frame("chat.completion.chunk", choices=[choice])

    def _frame(self, kind: str, **more: Any) -> dict[str, Any]:
        prefix = "chatcmpl-" if self.is_chat else "cmpl-"
        return {
            "id": prefix + self.identifier,
            "object": kind if self.is_chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            **more,
        }
