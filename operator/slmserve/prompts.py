# SPDX-License-Identifier: Apache-2.0
"""Prompts as token ids: tokenised off the event loop when long, and checked against the model."""

import asyncio
from collections.abc import Sequence
from typing import Final

from slmserve.errors import ApiError, invalid
from slmserve.model import LoadedModel
from slmserve.schemas import ChatRequest, CompletionRequest
from slmserve.template import ChatTemplate

_INLINE_CHARACTERS: Final = 8192
"""Longer prompts are tokenised on another thread: they would hold up every stream."""
_INLINE_MESSAGES: Final = 256
"""More are rendered on another thread."""
_LONG_PROMPT: Final = asyncio.Semaphore(1)
"""One at a time: a megabyte of text takes seconds of a core and some 200 MB of memory."""


async def tokenise(
    model: LoadedModel, text: str, *, add_special_tokens: bool, param: str, most: int
) -> list[int]:
    """Token ids of `text`; raises ApiError 400 when there are certainly more than `most`."""
    least = len(text) // model.codec.longest_token
    if len(text) > _INLINE_CHARACTERS and least > most:
        raise too_long(most, f"at least {least} in '{param}'", param=param)
    try:
        if len(text) <= _INLINE_CHARACTERS:
            return model.codec.encode(text, add_special_tokens=add_special_tokens)
        async with _LONG_PROMPT:
            return await asyncio.to_thread(model.codec.encode, text, add_special_tokens=add_special_tokens)
    except Exception:
        # The message would quote the prompt.
        raise invalid(f"'{param}' cannot be tokenised", param=param) from None


def check_tokens(model: LoadedModel, tokens: Sequence[int], *, param: str) -> list[int]:
    """The ids as they are; raises ApiError 400 for one that the model does not have."""
    for token in tokens:
        if not 0 <= token < model.engine.vocab_size:
            most = model.engine.vocab_size - 1
            raise invalid(f"'{param}' has a token id that is not in 0..{most}", param=param)
    return list(tokens)


async def chat_prompt(model: LoadedModel, request: ChatRequest) -> list[int]:
    """The messages through the model's chat template."""
    if model.template is None:
        raise invalid("this model has no chat template; use /v1/completions", param="messages")
    tools = request.offered_tools
    if model.template.tool_form is None:
        about = next((n for n, m in enumerate(request.messages) if m.is_about_tools), None)
        if tools or about is not None:
            param = "tools" if tools else f"messages.{about}"
            raise invalid(
                f"'{param}': the chat template of this model takes no tools; use a model whose template does,"
                " or describe them in a system message",
                param=param,
                code="unsupported_parameter",
            )
    text = await _render(model.template, request)
    most = model.engine.max_length
    return await tokenise(model, text, add_special_tokens=False, param="messages", most=most)


async def _render(template: ChatTemplate, request: ChatRequest) -> str:
    def render() -> str:
        messages = [message.to_template() for message in request.messages]
        return template.render(messages, [tool.to_template() for tool in request.offered_tools])

    return render() if len(request.messages) <= _INLINE_MESSAGES else await asyncio.to_thread(render)


async def completion_prompts(model: LoadedModel, request: CompletionRequest) -> list[list[int]]:
    """The prompts in order, one or more."""
    prompts = []
    for prompt in request.prompts:
        if isinstance(prompt, str):
            most = model.engine.max_length
            prompts.append(await tokenise(model, prompt, add_special_tokens=True, param="prompt", most=most))
        else:
            prompts.append(check_tokens(model, prompt, param="prompt"))
        # Many prompts must not hold up the streams.
        await asyncio.sleep(0)
    return prompts


def fit_answer(model: LoadedModel, prompt: Sequence[int], limit: int | None, *, param: str) -> int:
    """Tokens that may be generated; raises ApiError 400 when prompt and answer do not fit."""
    context = model.engine.max_length
    room = context - len(prompt)
    if not prompt:
        raise invalid(f"'{param}' gives no tokens; it must have at least one", param=param)
    if room < 1 or (limit is not None and limit > room):
        asked = f"{len(prompt)} in the prompt" + (f" and {limit} to generate" if limit is not None else "")
        raise too_long(context, asked, param=param)
    return room if limit is None else limit


def too_long(context: int, asked: str, *, param: str) -> ApiError:
    """400: more tokens than the model's context holds."""
    return invalid(
        f"this model's context is {context} tokens; the request has {asked}; shorten '{param}' or lower"
        " max_tokens",
        param=param,
        code="context_length_exceeded",
    )
