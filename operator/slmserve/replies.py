# SPDX-License-Identifier: Apache-2.0
"""Bodies of answers in the form of the OpenAI API."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from slmserve.answers import Answer
from slmserve.logprobs import Scored, to_chat_logprobs, to_completion_logprobs
from slmserve.tokenizer import TextCodec
from slmwire.metrics import ENDPOINT_CHAT

DONE = b"data: [DONE]\n\n"


def to_event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def usage_of(answers: Sequence[Answer], *, per_prompt: int = 1) -> dict[str, Any]:
    """Token counts so far; an end token counts as generated.

    Each prompt counts once, however many (`per_prompt`) answers it has; they lie side by side.
    """
    prompts = answers[::per_prompt]
    prompt_tokens = sum(answer.prompt_tokens for answer in prompts)
    generated = sum(answer.generated_tokens for answer in answers)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": prompt_tokens + generated,
        "prompt_tokens_details": {"cached_tokens": sum(answer.cached_tokens for answer in prompts)},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyForm:
    """Shapes the answers of one request; `endpoint` is chat or completions, `created` Unix seconds."""

    endpoint: str
    model: str
    created: int
    fingerprint: str
    codec: TextCodec
    scores: bool = False
    """Whether log probabilities were asked for."""
    number: str = field(default_factory=lambda: secrets.token_hex(12))
    """Not to be guessed: whoever knows it may judge the answer."""

    @property
    def is_chat(self) -> bool:
        """Whether the answer has messages."""
        return self.endpoint == ENDPOINT_CHAT

    @property
    def identifier(self) -> str:
        """`id` of the answer."""
        return ("chatcmpl-" if self.is_chat else "cmpl-") + self.number

    def whole(self, choices: Sequence[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        """Body of an answer that is not streamed."""
        return self._frame("chat.completion", choices=list(choices), usage=usage)

    def choice(
        self,
        index: int,
        text: str,
        *,
        finish: str,
        calls: Sequence[dict[str, Any]] = (),
        scored: Sequence[Scored] = (),
    ) -> dict[str, Any]:
        """One whole answer; `calls` are tool calls in the API's form."""
        choice: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": self._logprobs(scored)}
        if not self.is_chat:
            return choice | {"text": text}
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": list(calls)}
        return choice | {"message": message}

    def opening(self, index: int) -> dict[str, Any] | None:
        """First event of a stream: the role; None where there are no roles."""
        if not self.is_chat:
            return None
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def part(
        self,
        index: int,
        text: str,
        *,
        finish: str | None,
        calls: Sequence[dict[str, Any]] = (),
        scored: Sequence[Scored] = (),
    ) -> dict[str, Any]:
        """Event with text, parts of tool calls, or the finish reason, or several of them."""
        delta: dict[str, Any] = {"content": text} if text else {}
        if calls:
            delta["tool_calls"] = list(calls)
        logprobs = self._logprobs(scored) if scored else None
        return self._chunk(index, delta, finish, logprobs, text=text)

    def counts(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Last event of a stream that asked for usage: no choices."""
        return self._frame("chat.completion.chunk", choices=[], usage=usage)

    def _logprobs(self, scored: Sequence[Scored]) -> dict[str, Any] | None:
        if not self.scores:
            return None
        return (to_chat_logprobs if self.is_chat else to_completion_logprobs)(scored, self.codec)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish: str | None,
        logprobs: dict[str, Any] | None,
        text: str = "",
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": logprobs}
        choice |= {"delta": delta} if self.is_chat else {"text": text}
        return self._frame("chat.completion.chunk", choices=[choice])

    def _frame(self, kind: str, **more: Any) -> dict[str, Any]:
        return {
            "id": self.identifier,
            "object": kind if self.is_chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            **more,
        }
