# SPDX-License-Identifier: Apache-2.0
"""From a generation's tokens to text in the event loop: detokenise, stop strings, metrics."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slmserve.backend import Backend
from slmserve.generation import Constraint, Finish, Generation, Step
from slmserve.logprobs import Scored
from slmserve.metrics import Metrics
from slmserve.sampling import NOT_A_NUMBER, SamplingParams
from slmserve.stops import StopMatcher
from slmserve.tokenizer import Detokenizer, TextCodec

FinishReason = Literal["stop", "length"]


class GenerationFailedError(Exception):
    """The engine failed, or the model's logits were not numbers."""


class FormLostError(Exception):
    """The constraint could not be followed to the end: the answer is not of the form asked for."""


class InterruptedGenerationError(Exception):
    """The server ended the request (shutdown)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Text that is ready; the last piece has a `finish`. `text` may be empty there."""

    text: str
    finish: FinishReason | None = None
    scored: tuple[Scored, ...] = ()
    """The tokens that this text comes from, where log probabilities were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What to generate: a prompt of 1.. token ids and its limits."""

    prompt: Sequence[int] | NDArray[np.int64]
    max_tokens: int
    sampling: SamplingParams
    end_tokens: frozenset[int]
    stops: tuple[str, ...] = ()
    constraint: Constraint | None = None
    top_logprobs: int | None = None
    adapter: str = ""
    markers: Mapping[int, str] = field(default_factory=dict)
    """Special tokens that show in the text all the same: they say where a tool call begins."""
    arrived: float | None = None
    """time.perf_counter() when the request arrived; default now."""


class Answer:
    """One submitted request; iterate `pieces` once, and always `close` it.

    With `metrics` None nothing is counted: the golden set is not traffic.
    """

    def __init__(self, ask: Ask, codec: TextCodec, metrics: Metrics | None) -> None:
        self._steps: deque[Step] = deque()
        self._wake = asyncio.Event()
        self._codec = codec
        self._metrics = metrics
        self._stops = ask.stops
        self._markers = ask.markers
        self._scores = ask.top_logprobs is not None
        self._scored: deque[Scored] = deque()
        self._decoded = 0
        self._released = 0
        self.prompt_tokens = len(ask.prompt)
        self.generated_tokens = 0
        self._last_at: float | None = None
        self.generation = Generation(
            ask.prompt,
            max_tokens=ask.max_tokens,
            sampling=ask.sampling,
            end_tokens=ask.end_tokens,
            inbox=self._receive,
            arrived=ask.arrived,
            constraint=ask.constraint,
            top_logprobs=ask.top_logprobs,
            adapter=ask.adapter,
        )

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens whose attention cache was there already."""
        return self.generation.cached_tokens

    def close(self) -> None:
        """Free the slot if the request still holds one."""
        self.generation.cancel()

    def _receive(self, step: Step) -> None:
        self._steps.append(step)
        self._wake.set()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Text as it comes, one piece per wake-up that has text, then one with the finish reason.

        Raises GenerationFailedError, FormLostError or InterruptedGenerationError.
        """
        detokenizer, matcher = Detokenizer(self._codec), StopMatcher(self._stops)
        while True:
            await self._wake.wait()
            self._wake.clear()
            text, finish = self._consume(detokenizer, matcher)
            scored = self._release(text, whole=finish is not None and not matcher.stopped)
            if finish is not None:
                yield Piece(text=text, finish=finish, scored=scored)
                return
            if text or scored:
                yield Piece(text=text, scored=scored)

    def _consume(self, detokenizer: Detokenizer, matcher: StopMatcher) -> tuple[str, FinishReason | None]:
        parts: list[str] = []
        one_by_one = bool(self._stops or self._scores)
        while self._steps:
            tokens, finish = self._take_steps(1 if one_by_one else len(self._steps))
            if tokens:
                parts.append(matcher.push(self._decode(detokenizer, tokens)))
            if matcher.stopped:
                self.generation.cancel()
                return "".join(parts), "stop"
            if finish is Finish.ERROR:
                raise GenerationFailedError
            if finish is Finish.CANCELLED:
                raise InterruptedGenerationError
            if finish is not None and getattr(self.generation.constraint, "failed", False):
                raise FormLostError
            if finish is not None:
                parts.append(matcher.push(detokenizer.flush()))
                by_length = finish is Finish.LENGTH and not matcher.stopped
                parts.append(matcher.flush())
                return "".join(parts), "length" if by_length else "stop"
        return "".join(parts), None

    def _decode(self, detokenizer: Detokenizer, tokens: Sequence[int]) -> str:
        if self._markers.keys().isdisjoint(tokens):
            text = detokenizer.push(*tokens)
        else:
            parts = []
            for token in tokens:
                marker = self._markers.get(token)
                parts.append(detokenizer.push(token) if marker is None else detokenizer.flush() + marker)
            text = "".join(parts)
        self._decoded += len(text)
        return text

    def _release(self, text: str, *, whole: bool) -> tuple[Scored, ...]:
        """Scores of the tokens whose text has begun to show; of all that are left at the whole's end."""
        self._released += len(text)
        ready = []
        while self._scored and (whole or self._scored[0].start < self._released):
            ready.append(self._scored.popleft())
        return tuple(ready)

    def _take_steps(self, most: int) -> tuple[list[int], Finish | None]:
        """Tokens with text of the next steps, counted, and how the last one ended the answer.

        With stop strings the tokens are taken one by one: those after the stop are not counted. With
        log probabilities too: each has to know where its text begins.
        """
        tokens: list[int] = []
        generated, finish = 0, None
        for _ in range(most):
            step = self._steps.popleft()
            finish = step.finish
            if step.token != NOT_A_NUMBER:
                generated += 1
                self._time(step)
                if finish is not Finish.END_TOKEN:
                    tokens.append(step.token)
                    if step.logprobs is not None:
                        scored = Scored(token=step.token, start=self._decoded, logprobs=step.logprobs)
                        self._scored.append(scored)
        self.generated_tokens += generated
        if self._metrics is not None and generated:
            self._metrics.count_generated(generated)
        return tokens, finish

    def _time(self, step: Step) -> None:
        if self._metrics is not None:
            if self._last_at is None:
                self._metrics.observe_first_token(step.at - self.generation.arrived, self.prompt_tokens)
                self._metrics.count_cached(self.cached_tokens)
            else:
                self._metrics.observe_next_token(step.at - self._last_at)
        self._last_at = step.at


def build_deliver(loop: asyncio.AbstractEventLoop) -> Callable[[Sequence[Step]], None]:
    """A `deliver` for the scheduler that hands each round's steps to `loop` in one call."""

    def hand_out(steps: Sequence[Step]) -> None:
        for step in steps:
            step.generation.inbox(step)

    def deliver(steps: Sequence[Step]) -> None:
        # The loop is closed only when the process ends, and then nobody waits for the steps.
        if not loop.is_closed():
            loop.call_soon_threadsafe(hand_out, steps)

    return deliver


def submit(scheduler: Backend, ask: Ask, codec: TextCodec, metrics: Metrics | None) -> Answer:
    """Queue `ask`; raises backend.QueueFullError or ClosedError."""
    answer = Answer(ask, codec, metrics)
    scheduler.submit(answer.generation)
    return answer
