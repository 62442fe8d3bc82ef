# SPDX-License-Identifier: Apache-2.0
"""One choice of an answer, and several side by side: pieces of text in, bodies and events out."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from slmserve.answers import Answer, GenerationFailedError
from slmserve.logprobs import Scored
from slmserve.replies import ReplyForm, to_event
from slmserve.signals import AnswerWatch
from slmserve.toolparse import CallCollector, CallPart, ToolParser
from slmserve.tools import ToolForm


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The answer number `index` of a request; read it once, whole or as events."""

    index: int
    answer: Answer
    form: ReplyForm
    tools: ToolForm | None = None
    """How tool calls are written in the text; None: all of it is content."""
    watch: AnswerWatch | None = None
    """Notes how the answer ended."""

    async def whole(self) -> dict[str, Any]:
        """The choice in a body that is not streamed; raises what `Answer.pieces` raises."""
        content: list[str] = []
        scored: list[Scored] = []
        collector = CallCollector()
        async for said in self._watched():
            content.append(said.text)
            scored += said.scored
            for call in said.calls:
                collector.add(call)
            if said.finish is not None:
                return self.form.choice(
                    self.index, "".join(content), finish=said.finish, calls=collector.calls, scored=scored
                )
        raise GenerationFailedError

    async def events(self) -> AsyncIterator[tuple[bytes, bool]]:
        """Server-sent events, the role first where there are roles, and whether each is the last.

        Raises what `Answer.pieces` raises.
        """
        opening = self.form.opening(self.index)
        if opening is not None:
            yield to_event(opening), False
        async for said in self._watched():
            calls = [call.to_delta() for call in said.calls]
            part = self.form.part(self.index, said.text, finish=said.finish, calls=calls, scored=said.scored)
            yield to_event(part), said.finish is not None

    async def _watched(self) -> AsyncIterator["_Said"]:
        async for said in self._said():
            if self.watch is not None:
                self.watch.see(said.text, said.finish, tokens=self.answer.generated_tokens)
            yield said

    async def _said(self) -> AsyncIterator["_Said"]:
        if self.tools is None:
            async for piece in self.answer.pieces():
                yield _Said(text=piece.text, finish=piece.finish, scored=piece.scored)
            return
        parser = ToolParser(self.tools)
        async for piece in self.answer.pieces():
            text, calls = parser.push(piece.text)
            finish: str | None = piece.finish
            if finish is not None:
                text += parser.flush()
                finish = "tool_calls" if parser.calls and finish == "stop" else finish
            if text or calls or finish or piece.scored:
                yield _Said(text=text, finish=finish, scored=piece.scored, calls=tuple(calls))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """A piece of an answer, content told from calls."""

    text: str
    finish: str | None
    scored: tuple[Scored, ...]
    calls: tuple[CallPart, ...] = ()


async def gather_choices(choices: Sequence[Choice]) -> list[dict[str, Any]]:
    """All of them whole, in order; the first failure ends the waiting."""
    return await asyncio.gather(*(choice.whole() for choice in choices))


async def merge_events(choices: Sequence[Choice]) -> AsyncIterator[tuple[bytes, bool]]:
    """Events of all choices as they come, and whether each is the last of all."""
    if len(choices) == 1:
        async for event in choices[0].events():
            yield event
        return
    ready: asyncio.Queue[tuple[bytes, bool] | Exception] = asyncio.Queue()

    async def feed(choice: Choice) -> None:
        try:
            async for event in choice.events():
                ready.put_nowait(event)
        except Exception as error:
            ready.put_nowait(error)

    feeding = [asyncio.create_task(feed(choice)) for choice in choices]
    running = len(feeding)
    try:
        while running:
            got = await ready.get()
            if isinstance(got, Exception):
                raise got
            running -= got[1]
            yield got[0], not running
    finally:
        for task in feeding:
            task.cancel()
