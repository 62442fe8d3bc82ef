# SPDX-License-Identifier: Apache-2.0
"""From a checked request body to what the backend is asked: one `Ask` for each choice."""

from dataclasses import dataclass

from slmserve.answers import Ask
from slmserve.backend import Capability
from slmserve.constraints import json_grammar
from slmserve.errors import invalid
from slmserve.model import LoadedModel
from slmserve.names import ServedName
from slmserve.prompts import chat_prompt, completion_prompts, fit_answer
from slmserve.sampling import SamplingParams
from slmserve.schemas import ChatRequest, CompletionRequest
from slmserve.service import Service


async def build_asks(
    service: Service, request: ChatRequest | CompletionRequest, served: ServedName, *, arrived: float
) -> list[Ask]:
    """Check a request against the model; `request.choices` asks for each prompt. Raises ApiError."""
    model = service.model
    _refuse_what_lacks(model, request)
    if isinstance(request, ChatRequest):
        prompts, param = [await chat_prompt(model, request)], "messages"
    else:
        prompts, param = await completion_prompts(model, request), "prompt"
    _bound(service, len(prompts) * request.choices)
    limits = [fit_answer(model, prompt, request.limit, param=param) for prompt in prompts]
    form = _form(request)
    return [
        Ask(
            prompt=prompt,
            max_tokens=limit,
            sampling=_sampling(model, request, number),
            end_tokens=model.defaults.end_tokens,
            stops=request.stops,
            constraint=None if form is None else await service.grammars.compile(form.text, param=form.param),
            top_logprobs=request.alternatives,
            adapter=served.adapter,
            arrived=arrived,
        )
        for prompt, limit in zip(prompts, limits, strict=True)
        for number in range(request.choices)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """The grammar that an answer has to follow, and the field that asks for it."""

    text: str
    param: str


def _form(request: ChatRequest | CompletionRequest) -> _Form | None:
    if isinstance(request, ChatRequest) and request.answer_schema is not None:
        return _Form(text=json_grammar(request.answer_schema), param="response_format")
    return None


def _refuse_what_lacks(model: LoadedModel, request: ChatRequest | CompletionRequest) -> None:
    """Raises ApiError 400 that names the field which this engine cannot follow."""
    schema = request.answer_schema if isinstance(request, ChatRequest) else None
    asked = {
        "response_format": (schema is not None, Capability.CONSTRAINT),
        "logprobs": (request.alternatives is not None, Capability.LOGPROBS),
        "seed": (request.seed is not None, Capability.SEED),
    }
    for param, (wanted, capability) in asked.items():
        if wanted and capability not in model.engine.capabilities:
            raise refuse_by_engine(model, param)


def refuse_by_engine(model: LoadedModel, param: str) -> Exception:
    """400: the engine that serves the model has no such capability."""
    return invalid(
        f"'{param}' is not supported by engine {model.engine.name}; remove it, or serve the model with"
        " an engine that has it",
        param=param,
        code="unsupported_parameter",
    )


def _bound(service: Service, choices: int) -> None:
    most = service.model.engine.slots + service.config.max_queue
    if choices > most:
        raise invalid(
            f"'prompt' and 'n' ask for {choices} answers; this server takes at most {most} at once",
            param="n",
        )


def _sampling(model: LoadedModel, request: ChatRequest | CompletionRequest, number: int) -> SamplingParams:
    """The request's sampling; without temperature and top_p the model's own default.

    The choices of one request have seeds that follow each other: the same one would give the same text.
    """
    temperature, top_p = request.temperature, request.top_p
    if temperature is None:
        temperature = model.defaults.temperature if top_p is None else 1.0
        top_p = model.defaults.top_p if top_p is None else top_p
    seed = None if request.seed is None else request.seed + number
    return SamplingParams(temperature=temperature, top_p=1.0 if top_p is None else top_p, seed=seed)
