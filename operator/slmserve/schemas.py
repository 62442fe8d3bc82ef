# SPDX-License-Identifier: Apache-2.0
"""Request bodies, checked at the edge; what is not supported is refused by name."""

from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field, ValidationError

from slmserve.errors import ApiError, invalid
from slmserve.parts import (
    MAX_TOOLS,
    ChosenTool,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    ResponseFormat,
    Strict,
    Tool,
)

_MAX_STOPS: Final = 4
_MAX_CHOICES: Final = 8
_MAX_PROMPTS: Final = 64
_MAX_INPUTS: Final = 2048
_Tokens = Annotated[int, Field(ge=1, le=1 << 31)]
_Prompt = (
    str
    | Annotated[list[str], Field(max_length=_MAX_PROMPTS)]
    | list[int]
    | Annotated[list[list[int]], Field(max_length=_MAX_PROMPTS)]
)

_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "verbosity": (),
}
"""Parameters of the OpenAI API that this server lacks, with the values that ask for nothing."""


_TAGS: Final = {"text", "json_object"}
"""Branches of unions that appear in a location and are no fields."""


class StreamOptions(Strict):
    """`include_usage` adds one last event with the token counts."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class _Request(Strict):
    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    max_tokens: _Tokens | None = None

    # Accepted and without effect here.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None

    n: Annotated[int, Field(ge=1, le=_MAX_CHOICES)] | None = None

    # Refused unless they ask for nothing (see _NEUTRAL).
    frequency_penalty: Any = None
    presence_penalty: Any = None
    logit_bias: Any = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings as given."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(_Request):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: _Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    reasoning_effort: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    verbosity: Any = None

    @property
    def written(self) -> list[str]:
        """What the user wrote last, for the one prompt; empty when no user wrote anything."""
        said = [message.text for message in self.messages if message.role == "user"]
        return said[-1:]

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools that the model may call in this answer."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """JSON schema that the answer has to follow; None: any text."""
        asked = self.response_format
        if isinstance(asked, JsonSchemaFormat):
            return asked.json_schema.body
        return {"type": "object"} if isinstance(asked, JsonObjectFormat) else None

    @property
    def limit(self) -> int | None:
        """Most tokens to generate; None means as many as the context holds."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Likely tokens to tell at each place beside the chosen one; None: no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Request):
    """Body of /v1/completions."""

    prompt: _Prompt
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Any = None
    echo: Any = None
    suffix: Any = None

    @property
    def limit(self) -> int:
        """Most tokens to generate; the OpenAI API's default is 16."""
        return self.max_tokens or 16

    @property
    def alternatives(self) -> int | None:
        """Likely tokens to tell at each place beside the chosen one; None: no log probabilities."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or more: text or token ids."""
        return split_prompts(self.prompt)

    @property
    def written(self) -> list[str]:
        """The text of each prompt; empty for one of token ids."""
        return [prompt if isinstance(prompt, str) else "" for prompt in self.prompts]


def split_prompts(prompt: "str | list[str] | list[int] | list[list[int]]") -> list[str | list[int]]:
    """The four forms of a prompt or an input, as a list; an empty list is one prompt without tokens."""
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], (str, list)):
        return [part for part in prompt if isinstance(part, (str, list))]
    return [[token for token in prompt if isinstance(token, int)]]


class EmbeddingRequest(Strict):
    """Body of /v1/embeddings."""

    model: str
    input: (
        str
        | Annotated[list[str], Field(max_length=_MAX_INPUTS)]
        | list[int]
        | Annotated[list[list[int]], Field(max_length=_MAX_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: Any = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """The texts, one or more: text or token ids."""
        return split_prompts(self.input)


_Body = TypeVar("_Body", ChatRequest, CompletionRequest)
_Any = TypeVar("_Any", bound=Strict)


def parse_chat(body: bytes) -> ChatRequest:
    """Read and check a body; raises ApiError 400 that names the field and the cure."""
    request = _parse(ChatRequest, body)
    if request.top_logprobs and not request.logprobs:
        raise invalid("'top_logprobs' is only allowed when 'logprobs' is true", param="top_logprobs")
    for number, message in enumerate(request.messages):
        _check_message(message, f"messages.{number}")
    _check_tools(request)
    return request


def _check_message(message: Message, path: str) -> None:
    if message.content is None and not message.tool_calls:
        raise invalid(f"'{path}.content' is missing; it must be text or text parts", param=f"{path}.content")
    if message.tool_calls and message.role != "assistant":
        raise invalid(
            f"'{path}.tool_calls' is only for messages of the assistant", param=f"{path}.tool_calls"
        )
    if message.role == "tool" and message.tool_call_id is None:
        raise invalid(
            f"'{path}.tool_call_id' is missing; it must name the call that this is the result of",
            param=f"{path}.tool_call_id",
        )
    for number, call in enumerate(message.tool_calls or []):
        try:
            call.to_template()
        except (ValueError, RecursionError):
            param = f"{path}.tool_calls.{number}.function.arguments"
            raise invalid(f"'{param}' must be the text of a JSON object", param=param) from None


def _check_tools(request: ChatRequest) -> None:
    names = [tool.function.name for tool in request.tools or []]
    if len(set(names)) < len(names):
        raise invalid("'tools' has two functions of the same name; rename one", param="tools")
    choice = request.tool_choice
    if not names and choice not in (None, "none", "auto"):
        raise invalid("'tool_choice' asks for a call and there are no 'tools'", param="tool_choice")
    if isinstance(choice, ChosenTool) and choice.function.name not in names:
        raise invalid("'tool_choice' names a function that 'tools' does not have", param="tool_choice")


def parse_completion(body: bytes) -> CompletionRequest:
    """Read and check a body; raises ApiError 400 that names the field and the cure."""
    return _parse(CompletionRequest, body)


def parse_embedding(body: bytes) -> EmbeddingRequest:
    """Read and check a body; raises ApiError 400 that names the field and the cure."""
    return parse_body(EmbeddingRequest, body)


def parse_body(kind: type[_Any], body: bytes) -> _Any:
    """Read a body of one model; raises ApiError 400 that names the field."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error) from None


def _parse(kind: type[_Body], body: bytes) -> _Body:
    request = parse_body(kind, body)
    _refuse_unsupported(request)
    _check_stops(request.stops)
    if request.stream_options is not None and not request.stream:
        raise invalid("'stream_options' is only allowed when 'stream' is true", param="stream_options")
    return request


def _explain(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    location = [part for part in first["loc"] if not (isinstance(part, str) and part[:1].isupper())]
    if first["type"] == "json_invalid" or not location:
        return invalid(f"the body is not a JSON object that this endpoint takes: {first['msg']}")
    # Union branches appear as parts like "list[str]"; the path up to them is what a user knows.
    plain = []
    for part in location:
        if isinstance(part, str) and ("[" in part or part in {"str", "int", "float"}):
            break
        if part in _TAGS:
            continue
        plain.append(str(part))
    path = ".".join(plain)[:200]
    if first["type"] == "extra_forbidden":
        return invalid(f"'{path}' is not a parameter of this endpoint; remove it", param=path)
    return invalid(f"'{path}': {first['msg']}", param=path)


def _refuse_unsupported(request: _Request) -> None:
    for name, neutral in _NEUTRAL.items():
        value = getattr(request, name, None)
        if value is None or any(value == allowed and type(value) is not bool for allowed in neutral):
            continue
        if value is False and False in neutral:
            continue
        raise invalid(
            f"'{name}' is not supported by this server with that value; remove it",
            param=name,
            code="unsupported_parameter",
        )


def _check_stops(stops: tuple[str, ...]) -> None:
    if len(stops) > _MAX_STOPS:
        raise invalid(f"'stop' has {len(stops)} strings; at most {_MAX_STOPS} are allowed", param="stop")
    if any(not stop or len(stop) > 1000 for stop in stops):
        raise invalid("'stop' strings must have 1 to 1000 characters", param="stop")
