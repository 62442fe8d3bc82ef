# SPDX-License-Identifier: Apache-2.0
"""Work on large requests that must not hold up the streams of others."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from slmserve.backend import EngineInfo, GenerationDefaults
from slmserve.model import LoadedModel
from slmserve.prompts import chat_prompt, completion_prompts
from slmserve.schemas import ChatRequest, CompletionRequest
from slmserve.template import ChatTemplate, load_template
from slmserve.tokenizer import load_codec


class _Witness(ChatTemplate):
    """Notes on which thread it rendered."""

    def __init__(self) -> None:
        self.tool_form = None
        self.threads: list[threading.Thread] = []

    def render(self, messages: Sequence[Any], tools: Sequence[Any] | None = None) -> str:
        self.threads.append(threading.current_thread())
        return "tea"


def _model(directory: Path, template: ChatTemplate | None) -> LoadedModel:
    return LoadedModel(
        directory=directory,
        engine=EngineInfo(name="e", version="1", slots=1, max_length=256, vocab_size=768),
        defaults=GenerationDefaults(end_tokens=frozenset({1})),
        build_backend=None,
        codec=load_codec(directory),
        template=template,
        digest="",
    )


async def test_the_loop_has_its_turn_between_many_prompts(orders_dir: Path) -> None:
    turns = 0

    async def stream() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    streaming = asyncio.create_task(stream())
    request = CompletionRequest(model="m", prompt=["two teas"] * 64)
    await completion_prompts(_model(orders_dir, load_template(orders_dir)), request)
    streaming.cancel()
    assert turns >= 64


@pytest.mark.parametrize(("count", "inline"), [(2, True), (5000, False)])
async def test_many_messages_are_rendered_elsewhere(orders_dir: Path, count: int, inline: bool) -> None:
    witness = _Witness()
    messages: Any = [{"role": "user", "content": "x"}] * count
    await chat_prompt(_model(orders_dir, witness), ChatRequest(model="m", messages=messages))
    assert [thread is threading.current_thread() for thread in witness.threads] == [inline]


def test_too_many_prompts_are_refused_before_they_are_read(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="ask for 40 answers") as caught:
        client.completions.create(model="orders", prompt=["tea " * 5000] * 40)
    assert caught.value.param == "n"
