# SPDX-License-Identifier: Apache-2.0
"""From a checked request body to what the backend is asked: one `Ask` for each choice."""

from dataclasses import dataclass

from slmserve.answers import Ask
from slmserve.backend import Capability
from slmserve.constraints import json_grammar
from slmserve.errors import invalid
from slmserve.model import LoadedModel
from slmserve.names import ServedName
from slmserve.parts import ChosenTool
from slmserve.prompts import chat_prompt, completion_prompts, fit_answer
from slmserve.sampling import SamplingParams
from slmserve.schemas import ChatRequest, CompletionRequest
from slmserve.service import Service
from slmserve.tools import ToolForm, tool_grammar


async def build_asks(
    service: Service, request: ChatRequest | CompletionRequest, served: ServedName, *, arrived: float
) -> list[Ask]:
    """Check a request against the model; `request.choices` asks for each prompt. Raises ApiError."""
    model = service.model
    _refuse_what_lacks(model, request)
    if isinstance(request, ChatRequest):
        _bound(service, request.choices)
        prompts, param = [await chat_prompt(model, request)], "messages"
    else:
        _bound(service, len(request.prompts) * request.choices)
        prompts, param = await completion_prompts(model, request), "prompt"
    limits = [fit_answer(model, prompt, request.limit, param=param) for prompt in prompts]
    form = _form(model, request)
    markers = _markers(model, tool_form_of(model, request))
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
            markers=markers,
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


def _form(model: LoadedModel, request: ChatRequest | CompletionRequest) -> _Form | None:
    if not isinstance(request, ChatRequest):
        return None
    schema, tools, choice = request.answer_schema, request.offered_tools, request.tool_choice
    tool_form = tool_form_of(model, request)
    if tool_form is None:
        return None if schema is None else _Form(text=json_grammar(schema), param="response_format")
    forced = choice == "required" or isinstance(choice, ChosenTool)
    if not forced and schema is None:
        return None
    functions = [tool.function for tool in tools]
    if isinstance(choice, ChosenTool):
        functions = [function for function in functions if function.name == choice.function.name]
    single = isinstance(choice, ChosenTool) or request.parallel_tool_calls is False
    grammar = tool_grammar(
        tool_form,
        functions,
        model.codec.special_tokens,
        most=1 if single else None,
        answer_schema=None if forced else schema,
    )
    return _Form(text=grammar, param="tools" if forced else "response_format")


def tool_form_of(model: LoadedModel, request: ChatRequest | CompletionRequest) -> ToolForm | None:
    """How the answer's tool calls are written; None where there can be none."""
    if not isinstance(request, ChatRequest) or not request.offered_tools or model.template is None:
        return None
    return model.template.tool_form


def _markers(model: LoadedModel, form: ToolForm | None) -> dict[int, str]:
    if form is None:
        return {}
    return {token: text for token, text in model.codec.special_tokens.items() if text in form.markers}


def _refuse_what_lacks(model: LoadedModel, request: ChatRequest | CompletionRequest) -> None:
    """Raises ApiError 400 that names the field which this model or engine cannot follow."""
    if model.build_backend is None:
        raise invalid(
            "this model only gives embeddings; use /v1/embeddings",
            param="model",
            code="unsupported_endpoint",
        )
    schema, choice = None, None
    if isinstance(request, ChatRequest):
        schema, choice = request.answer_schema, request.tool_choice
    forced = choice == "required" or isinstance(choice, ChosenTool)
    asked = {
        "response_format": (schema is not None, Capability.CONSTRAINT),
        "tool_choice": (forced, Capability.CONSTRAINT),
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
