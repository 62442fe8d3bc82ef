# SPDX-License-Identifier: Apache-2.0
"""The two inference endpoints: body in, tokens through the scheduler, OpenAI answer out."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from slmserve.answers import Answer, Ask, GenerationFailedError, InterruptedGenerationError, submit
from slmserve.backend import ClosedError, QueueFullError
from slmserve.errors import ApiError, internal, invalid, overloaded, unavailable
from slmserve.journal import describe_exception
from slmserve.model import LoadedModel
from slmserve.replies import DONE, ReplyForm, to_event, usage_of
from slmserve.sampling import SamplingParams
from slmserve.schemas import ChatRequest, CompletionRequest, parse_chat, parse_completion
from slmserve.service import Service
from slmwire.metrics import ENDPOINT_CHAT

_log = logging.getLogger(__name__)
_CLIENT_LEFT: Final = 499
_BODY_SECONDS: Final = 30.0
_INLINE_CHARACTERS: Final = 8192
"""Longer prompts are tokenised on another thread: they would hold up every stream."""
_LONG_PROMPT: Final = asyncio.Semaphore(1)
"""One at a time: a megabyte of text takes seconds of a core and some 200 MB of memory."""


async def read_body(request: Request, limit: int) -> bytes:
    """The body; raises ApiError 413 beyond `limit` bytes, 408 when it does not come in time."""
    too_large = ApiError(413, f"the body is larger than {limit} bytes; shorten it", code="body_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {_BODY_SECONDS:.0f} s", code="timeout") from None
    return b"".join(parts)


def check_model(service: Service, name: str) -> None:
    """Raises ApiError 404 for a model that is not served here."""
    served = service.config.identity.model
    if name != served:
        shown = name[:100]
        raise ApiError(
            404,
            f"the model '{shown}' does not exist here; this server has '{served}'",
            param="model",
            code="model_not_found",
        )


async def _tokenise(model: LoadedModel, text: str, *, add_special_tokens: bool, param: str) -> list[int]:
    least = len(text) // model.codec.longest_token
    if len(text) > _INLINE_CHARACTERS and least > model.engine.max_length:
        raise _too_long(model, f"at least {least} in the prompt", param=param)
    try:
        if len(text) <= _INLINE_CHARACTERS:
            return model.codec.encode(text, add_special_tokens=add_special_tokens)
        async with _LONG_PROMPT:
            return await asyncio.to_thread(model.codec.encode, text, add_special_tokens=add_special_tokens)
    except Exception:
        # The message would quote the prompt.
        raise invalid(f"'{param}' cannot be tokenised", param=param) from None


async def _chat_prompt(model: LoadedModel, request: ChatRequest) -> list[int]:
    if model.template is None:
        raise invalid("this model has no chat template; use /v1/completions", param="messages")
    text = model.template.render([message.to_template() for message in request.messages])
    return await _tokenise(model, text, add_special_tokens=False, param="messages")


async def _completion_prompt(model: LoadedModel, request: CompletionRequest) -> list[int]:
    prompt = request.prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
        if len(prompt) > 1:
            raise invalid("'prompt' has several strings; send one request for each", param="prompt")
        prompt = prompt[0]
    if isinstance(prompt, str):
        return await _tokenise(model, prompt, add_special_tokens=True, param="prompt")
    tokens = [token for token in prompt if isinstance(token, int)]
    for token in tokens:
        if not 0 <= token < model.engine.vocab_size:
            raise invalid(
                f"'prompt' has a token id that is not in 0..{model.engine.vocab_size - 1}", param="prompt"
            )
    return tokens


def _fit(model: LoadedModel, prompt: list[int], limit: int | None, *, param: str) -> int:
    """Tokens that may be generated; raises ApiError 400 when prompt and answer do not fit."""
    context = model.engine.max_length
    room = context - len(prompt)
    if not prompt:
        raise invalid(f"'{param}' gives no tokens; it must have at least one", param=param)
    if room < 1 or (limit is not None and limit > room):
        asked = f"{len(prompt)} in the prompt" + (f" and {limit} to generate" if limit is not None else "")
        raise _too_long(model, asked, param=param)
    return room if limit is None else limit


def _too_long(model: LoadedModel, asked: str, *, param: str) -> ApiError:
    return invalid(
        f"this model's context is {model.engine.max_length} tokens; the request has {asked}; shorten the"
        " prompt or lower max_tokens",
        param=param,
        code="context_length_exceeded",
    )


def _sampling(model: LoadedModel, request: ChatRequest | CompletionRequest) -> SamplingParams:
    """The request's sampling; without temperature and top_p the model's own default."""
    temperature, top_p = request.temperature, request.top_p
    if temperature is None:
        temperature = model.defaults.temperature if top_p is None else 1.0
        top_p = model.defaults.top_p if top_p is None else top_p
    return SamplingParams(temperature=temperature, top_p=1.0 if top_p is None else top_p, seed=request.seed)


async def build_ask(service: Service, request: ChatRequest | CompletionRequest, *, arrived: float) -> Ask:
    """Check a request against the model; raises ApiError."""
    model = service.model
    check_model(service, request.model)
    if isinstance(request, ChatRequest):
        prompt, param = await _chat_prompt(model, request), "messages"
    else:
        prompt, param = await _completion_prompt(model, request), "prompt"
    return Ask(
        prompt=prompt,
        max_tokens=_fit(model, prompt, request.limit, param=param),
        sampling=_sampling(model, request),
        end_tokens=model.defaults.end_tokens,
        stops=request.stops,
        arrived=arrived,
    )


@dataclass(slots=True)
class _Exchange:
    """One accepted request on its way; `code` is what it counts as in the end."""

    service: Service
    endpoint: str
    answer: Answer
    form: ReplyForm
    code: int = _CLIENT_LEFT

    def finish(self) -> None:
        self.answer.close()
        self.service.end_request()
        self.service.metrics.count_request(self.endpoint, self.code)
        seconds = time.perf_counter() - self.answer.generation.arrived
        self.service.metrics.observe_request(self.endpoint, seconds)

    def fail(self, error: Exception) -> ApiError:
        """The error that the client sees."""
        if isinstance(error, InterruptedGenerationError):
            self.code = 503
            return unavailable("the server ended before the answer did", retry_seconds=1)
        self.code = 500
        error_id = secrets.token_hex(8)
        _log.error("request failed", extra={"fields": _error_fields(error, error_id)})
        return internal(error_id)


def _error_fields(error: Exception, error_id: str) -> dict[str, str]:
    return {"error_id": error_id, "error": describe_exception(error)}


async def serve_inference(service: Service, request: Request, endpoint: str) -> Response:
    """Answer one request; counts it, whatever its end. Raises ApiError for refusals."""
    arrived = time.perf_counter()
    try:
        service.refuse_when_ending()
        body = await read_body(request, service.config.max_body_bytes)
        parsed = parse_chat(body) if endpoint == ENDPOINT_CHAT else parse_completion(body)
        ask = await build_ask(service, parsed, arrived=arrived)
        answer = _submit(service, ask)
    except ApiError as error:
        service.metrics.count_request(endpoint, error.status)
        raise
    except ClientDisconnect:
        service.metrics.count_request(endpoint, _CLIENT_LEFT)
        return Response(status_code=_CLIENT_LEFT)
    except Exception:
        service.metrics.count_request(endpoint, 500)
        raise
    identity = service.config.identity
    form = ReplyForm(
        endpoint=endpoint,
        model=identity.model,
        created=int(time.time()),
        fingerprint=identity.revision or identity.model_version or "none",
    )
    service.begin_request()
    exchange = _Exchange(service, endpoint, answer, form)
    if parsed.stream:
        events = _stream(exchange, include_usage=parsed.includes_usage)
        return _EventResponse(exchange, events)
    return await _collect(exchange, request)


def _submit(service: Service, ask: Ask) -> Answer:
    scheduler, model = service.scheduler, service.model
    try:
        return submit(scheduler, ask, model.codec, service.metrics)
    except QueueFullError:
        waits = 1 + scheduler.queue_depth // model.engine.slots
        raise overloaded(retry_seconds=min(waits, 30)) from None
    except ClosedError:
        raise unavailable("the server is ending", retry_seconds=1) from None


async def _collect(exchange: _Exchange, request: Request) -> Response:
    """Wait for the whole answer, or for the client to leave."""
    leaving = asyncio.create_task(_wait_disconnect(request.receive))
    working = asyncio.create_task(_gather(exchange))
    try:
        await asyncio.wait({leaving, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return Response(status_code=_CLIENT_LEFT)
    finally:
        leaving.cancel()
        working.cancel()
        exchange.finish()


async def _wait_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _gather(exchange: _Exchange) -> Response:
    parts: list[str] = []
    answer = exchange.answer
    try:
        async for piece in answer.pieces():
            parts.append(piece.text)
            if piece.finish is not None:
                exchange.code = 200
                return JSONResponse(exchange.form.whole("".join(parts), piece.finish, usage_of(answer)))
        raise GenerationFailedError
    except Exception as error:
        raise exchange.fail(error) from None


async def _stream(exchange: _Exchange, *, include_usage: bool) -> AsyncIterator[bytes]:
    form, answer = exchange.form, exchange.answer
    opening = form.opening()
    head = b"" if opening is None else to_event(opening)
    try:
        if head:
            yield head
        async for piece in answer.pieces():
            event = to_event(form.part(piece.text, piece.finish))
            if piece.finish is None:
                yield event
                continue
            # What follows the last text goes out with it: one write, not three.
            exchange.code = 200
            usage = to_event(form.counts(usage_of(answer))) if include_usage else b""
            yield event + usage + DONE
    except Exception as error:
        yield to_event(exchange.fail(error).to_body())


class _EventResponse(Response):
    """Server-sent events; frees the slot when they end, when the client leaves, or never reads."""

    media_type = "text/event-stream"

    def __init__(self, exchange: _Exchange, events: AsyncIterator[bytes]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._exchange = exchange
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_wait_disconnect(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except OSError:
            # The connection broke while we wrote: the client has left.
            self._exchange.code = _CLIENT_LEFT
        finally:
            sending.cancel()
            leaving.cancel()
            self._exchange.finish()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
