# SPDX-License-Identifier: Apache-2.0
"""A conversation with a model in the form of the OpenAI API: the request, and the stream of its answer."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from slmcli.errors import RefusedError, UnreachableError, UsageError
from slmcli.safe import clean
from slmcli.serving import ServingPod

MAX_EVENT_BYTES: Final = 1 << 20
MAX_ANSWER_LETTERS: Final = 4 << 20
Message = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer. Times in seconds since the question was sent; None where there was no token, or the server
    did not say."""

    text: str
    finish: str
    """`stop`, `length` and so on; `interrupted` when it was ended from here."""
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    first_token_seconds: float | None = None
    seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first one, which waits for the prompt and for a slot."""
        if not self.generated_tokens or self.generated_tokens < 2 or self.first_token_seconds is None:
            return None
        spent = self.seconds - self.first_token_seconds
        return (self.generated_tokens - 1) / spent if spent > 0 else None


@dataclass(slots=True, kw_only=True)
class Conversation:
    """What was said so far; it lives as long as the program."""

    system: str = ""
    turns: list[Message] = field(default_factory=list)

    def messages(self, question: str) -> list[Message]:
        """What is sent with a new question."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return [*opening, *self.turns, {"role": "user", "content": question}]

    def keep(self, question: str, answer: str) -> None:
        """Remember a question with its answer; one without an answer is forgotten."""
        if answer:
            self.turns += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self.turns.clear()


def build_request(model: str, messages: Sequence[Message], *, temperature: float | None) -> dict[str, Any]:
    """Body of a streamed chat completion that says at its end how many tokens there were."""
    body: dict[str, Any] = {
        "model": model,
        "messages": list(messages),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return body if temperature is None else body | {"temperature": temperature}


def read_answer(
    pieces: Iterable[bytes], show: Callable[[str], None], *, clock: Callable[[], float]
) -> Answer:
    """Read a streamed answer to its end; `show` gets each part of the text when it is there.

    Ctrl-C ends it: what came so far is the answer. UnreachableError when the stream breaks off.
    """
    began = clock()
    parts: list[str] = []
    finish, ended = "", False
    usage: Any = None
    first: float | None = None
    try:
        for event in read_events(pieces):
            if event is None:
                ended = True
                break
            text, said = _part(event)
            finish = said or finish
            usage = event.get("usage") or usage
            if text:
                first = clock() - began if first is None else first
                parts.append(text)
                if sum(map(len, parts)) > MAX_ANSWER_LETTERS:
                    raise UnreachableError(f"the answer is longer than {MAX_ANSWER_LETTERS} letters")
                show(text)
    except KeyboardInterrupt:
        finish, ended = "interrupted", True
    if not ended:
        raise UnreachableError(
            "the answer broke off before its end; ask again (is the node still online, was its pod replaced?)"
        )
    return Answer(
        text="".join(parts),
        finish=finish,
        prompt_tokens=_count(usage, "prompt_tokens"),
        generated_tokens=_count(usage, "completion_tokens"),
        first_token_seconds=first,
        seconds=clock() - began,
    )


def read_events(pieces: Iterable[bytes]) -> Iterator[dict[str, Any] | None]:
    """The objects of a stream of server-sent events, None for its end mark `[DONE]`."""
    buffer = b""
    for piece in pieces:
        *lines, buffer = (buffer + piece).split(b"\n")
        if len(buffer) > MAX_EVENT_BYTES:
            raise UnreachableError(f"the server sends a line of more than {MAX_EVENT_BYTES} bytes")
        for line in lines:
            data = line.strip().removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or not data:
                continue
            if data == b"[DONE]":
                yield None
                continue
            yield _object(data)


def _object(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise UnreachableError("the server sends something that is no answer of the OpenAI API")
    error = event.get("error")
    if isinstance(error, dict):
        raise RefusedError(f"the server ended the answer: {clean(str(error.get('message') or error))}")
    return event


def _part(event: dict[str, Any]) -> tuple[str, str]:
    """Text and finish reason of the first choice, empty where there is none."""
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    if not isinstance(choice, dict):
        return "", ""
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else None
    finish = choice.get("finish_reason")
    return (text if isinstance(text, str) else "", finish if isinstance(finish, str) else "")


def _count(usage: Any, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def summary_text(pod: ServingPod, answer: Answer) -> str:
    """One line about an answer, for people."""
    parts = [f"{pod.model} {pod.version}".strip() or "model", f"revision {pod.revision}", f"node {pod.node}"]
    if answer.generated_tokens is not None:
        parts.append(f"{answer.generated_tokens} tokens")
    if answer.tokens_per_second is not None:
        parts.append(f"{answer.tokens_per_second:.1f} tokens/s")
    if answer.first_token_seconds is not None:
        parts.append(f"first after {answer.first_token_seconds:.2f}s")
    if answer.finish not in ("", "stop"):
        parts.append({"length": "cut at the limit of tokens"}.get(answer.finish, clean(answer.finish)))
    return ", ".join(parts)


def answer_document(namespace: str, name: str, pod: ServingPod, answer: Answer) -> dict[str, Any]:
    """The body of `ChatAnswer`."""
    return {
        "namespace": namespace,
        "name": name,
        "model": pod.model,
        "modelVersion": pod.version or None,
        "revision": pod.revision,
        "variant": pod.variant,
        "node": pod.node,
        "pod": pod.address.pod,
        "answer": answer.text,
        "finishReason": answer.finish or None,
        "promptTokens": answer.prompt_tokens,
        "generatedTokens": answer.generated_tokens,
        "firstTokenSeconds": answer.first_token_seconds,
        "seconds": answer.seconds,
        "tokensPerSecond": answer.tokens_per_second,
    }


def read_key(text: str, where: str) -> str:
    """The first key of a file as the server has it: one a line, `#` begins a comment."""
    lines = (line.strip() for line in text.splitlines())
    key = next((line for line in lines if line and not line.startswith("#")), "")
    if not key or not key.isascii() or not key.isprintable():
        raise UsageError(f"{where}: holds no key; write one in a line of its own")
    return key
