# SPDX-License-Identifier: Apache-2.0
"""The model's golden set, answered on this device by the server's own scheduler."""

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from slmserve.answers import Answer, Ask, GenerationFailedError, submit
from slmserve.backend import Backend
from slmserve.errors import ApiError
from slmserve.model import LoadedModel
from slmserve.parts import Message
from slmserve.sampling import SamplingParams
from slmwire.paths import GOLDEN_FILE

_MAX_CASES: Final = 2000
_SPARE_TOKENS: Final = 16
"""An answer that is this much longer than the expected one is wrong; no need to see its end."""


class GoldenError(ValueError):
    """golden.jsonl cannot be used; the message names the line."""


class GoldenCase(BaseModel):
    """One question with its only right answer; `json` compares parsed values, `exact` the text."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    messages: list[Message] = Field(min_length=1)
    expected: str
    match: Literal["json", "exact"] = "exact"

    @field_validator("messages")
    @classmethod
    def _have_content(cls, messages: list[Message]) -> list[Message]:
        if any(message.content is None for message in messages):
            raise ValueError("every message must have content")
        return messages

    def accepts(self, answer: str) -> bool:
        """Whether `answer` is the expected one; surrounding white space does not count."""
        if answer.strip() == self.expected.strip():
            return True
        if self.match == "exact":
            return False
        try:
            return bool(json.loads(answer) == json.loads(self.expected))
        except (ValueError, RecursionError):
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenResult:
    """`score` is the share of `samples` cases answered as expected; `seconds` of wall time."""

    score: float
    samples: int
    seconds: float


def load_cases(model_dir: Path) -> list[GoldenCase]:
    """Cases of golden.jsonl, none when the model has no such file; raises GoldenError."""
    path = model_dir / GOLDEN_FILE
    if not path.is_file():
        return []
    cases = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            cases.append(GoldenCase.model_validate_json(line))
        except ValidationError as error:
            raise GoldenError(f"{GOLDEN_FILE} line {number}: {error.errors()[0]['msg']}") from None
        if len(cases) > _MAX_CASES:
            raise GoldenError(f"{GOLDEN_FILE} has more than {_MAX_CASES} cases")
    return cases


async def run_golden(
    cases: list[GoldenCase],
    model: LoadedModel,
    scheduler: Backend,
    *,
    most: int | None = None,
    adapter: str | None = None,
) -> GoldenResult:
    """Answer all cases greedily; `cases` is not empty, the scheduler takes `most` requests (None: any).

    `adapter` None: the model's default one; empty: none.
    """
    started = time.perf_counter()
    # Twice the slots: the next prompts wait in the queue, and no slot idles between two cases.
    wanted = model.engine.slots * 2
    gate = asyncio.Semaphore(wanted if most is None else min(wanted, most))

    async def judge(case: GoldenCase) -> bool:
        async with gate:
            return await _judge(case, model, scheduler, adapter)

    verdicts = await asyncio.gather(*(judge(case) for case in cases))
    seconds = time.perf_counter() - started
    return GoldenResult(score=sum(verdicts) / len(cases), samples=len(cases), seconds=seconds)


async def _judge(case: GoldenCase, model: LoadedModel, scheduler: Backend, adapter: str | None) -> bool:
    answer = await answer_case(case, model, scheduler, adapter=adapter)
    return answer is not None and case.accepts(answer)


def encode_prompt(case: GoldenCase, model: LoadedModel) -> list[int] | None:
    """The case's messages in the model's template; None when they do not fit or are refused."""
    if model.template is None:
        return None
    try:
        text = model.template.render([message.to_template() for message in case.messages])
    except ApiError:
        return None
    prompt = model.codec.encode(text, add_special_tokens=False)
    return prompt if 1 <= len(prompt) < model.engine.max_length else None


async def answer_case(
    case: GoldenCase, model: LoadedModel, scheduler: Backend, *, adapter: str | None = None
) -> str | None:
    """The model's greedy answer, cut where it has become too long; None when it has none.

    `adapter` None: the model's default one; empty: none.
    """
    prompt = encode_prompt(case, model)
    if prompt is None:
        return None
    room = model.engine.max_length - len(prompt)
    expected = len(model.codec.encode(case.expected, add_special_tokens=False))
    ask = Ask(
        prompt=prompt,
        max_tokens=min(room, expected + _SPARE_TOKENS),
        sampling=SamplingParams(),
        end_tokens=model.defaults.end_tokens,
        adapter=model.default_adapter if adapter is None else adapter,
    )
    answer = submit(scheduler, ask, model.codec, None)
    try:
        return await _text(answer)
    except GenerationFailedError:
        return None
    finally:
        answer.close()


async def _text(answer: Answer) -> str:
    return "".join([piece.text async for piece in answer.pieces()])
