# SPDX-License-Identifier: Apache-2.0
"""The two inference endpoints: body in, tokens through the scheduler, OpenAI answer out."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from slmserve.answers import Answer, Ask, FormLostError, InterruptedGenerationError, submit
from slmserve.asks import build_asks, tool_form_of
from slmserve.backend import ClosedError, QueueFullError
from slmserve.choices import Choice, gather_choices, merge_events
from slmserve.errors import ApiError, internal, overloaded, unavailable
from slmserve.journal import describe_exception
from slmserve.names import resolve_name
from slmserve.receiving import CLIENT_LEFT, read_body, wait_disconnect
from slmserve.replies import DONE, ReplyForm, to_event, usage_of
from slmserve.schemas import ChatRequest, CompletionRequest, parse_chat, parse_completion
from slmserve.service import Service
from slmserve.signals import AnswerWatch
from slmwire.metrics import ENDPOINT_CHAT

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Exchange:
    """One accepted request on its way; `code` is what it counts as in the end."""

    service: Service
    form: ReplyForm
    choices: list[Choice]
    request: ChatRequest | CompletionRequest
    code: int = CLIENT_LEFT

    def finish(self) -> None:
        for choice in self.choices:
            choice.answer.close()
        self.service.end_request()
        self.service.metrics.count_request(self.form.endpoint, self.code)
        seconds = time.perf_counter() - self.choices[0].answer.generation.arrived
        self.service.metrics.observe_request(self.form.endpoint, seconds)

    @property
    def usage(self) -> dict[str, Any]:
        """Token counts so far."""
        return usage_of([choice.answer for choice in self.choices], per_prompt=self.request.choices)

    def succeed(self) -> None:
        """The whole answer is there: from now on it can be judged."""
        self.code = 200
        self.service.given.add(self.form.identifier)
        if self.service.keeper is not None and isinstance(self.request, ChatRequest):
            self.service.keeper.remember(self.form.identifier, self.request)

    def fail(self, error: Exception) -> ApiError:
        """The error that the client sees."""
        if isinstance(error, InterruptedGenerationError):
            self.code = 503
            return unavailable("the server ended before the answer did", retry_seconds=1)
        if isinstance(error, FormLostError):
            self.code = 400
            return ApiError(
                400,
                "the schema became too complex while the answer was written, or has text that the model's"
                " vocabulary cannot write; use fewer patterns and alternatives",
                code="schema_too_complex",
            )
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
        served = resolve_name(service, parsed.model)
        asks = await build_asks(service, parsed, served, arrived=arrived)
        answers = _submit(service, asks)
    except ApiError as error:
        service.metrics.count_request(endpoint, error.status)
        raise
    except ClientDisconnect:
        service.metrics.count_request(endpoint, CLIENT_LEFT)
        return Response(status_code=CLIENT_LEFT)
    except Exception:
        service.metrics.count_request(endpoint, 500)
        raise
    identity = service.config.identity
    form = ReplyForm(
        endpoint=endpoint,
        model=served.answers_as,
        created=int(time.time()),
        fingerprint=identity.revision or identity.model_version or "none",
        codec=service.model.codec,
        scores=parsed.alternatives is not None,
    )
    service.begin_request()
    tools = tool_form_of(service.model, parsed)
    _note_prompts(service, parsed, asks)
    choices = [
        Choice(index=index, answer=answer, form=form, tools=tools, watch=AnswerWatch(service.signals))
        for index, answer in enumerate(answers)
    ]
    exchange = _Exchange(service, form, choices, parsed)
    if parsed.stream:
        events = _stream(exchange, include_usage=parsed.includes_usage)
        return _EventResponse(exchange, events)
    return await _collect(exchange, request)


def _note_prompts(service: Service, parsed: ChatRequest | CompletionRequest, asks: Sequence[Ask]) -> None:
    """Each prompt once, however many answers it gets."""
    texts = parsed.written
    for index, ask in enumerate(asks[:: parsed.choices]):
        text = texts[index] if index < len(texts) else ""
        service.signals.note_prompt(ask.prompt, text, service.model.codec)


def _submit(service: Service, asks: Sequence[Ask]) -> list[Answer]:
    """Queue all or none; raises ApiError 429 or 503."""
    scheduler, model = service.scheduler, service.model
    answers: list[Answer] = []
    try:
        for ask in asks:
            answer = submit(scheduler, ask, model.codec, service.metrics)
            answers.append(answer)
        return answers
    except (QueueFullError, ClosedError) as error:
        for answer in answers:
            answer.close()
        if isinstance(error, ClosedError):
            raise unavailable("the server is ending", retry_seconds=1) from None
        waits = 1 + scheduler.queue_depth // model.engine.slots
        raise overloaded(retry_seconds=min(waits, 30)) from None


async def _collect(exchange: _Exchange, request: Request) -> Response:
    """Wait for the whole answer, or for the client to leave."""
    leaving = asyncio.create_task(wait_disconnect(request.receive))
    working = asyncio.create_task(_gather(exchange))
    try:
        await asyncio.wait({leaving, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return Response(status_code=CLIENT_LEFT)
    finally:
        leaving.cancel()
        working.cancel()
        exchange.finish()


async def _gather(exchange: _Exchange) -> Response:
    try:
        choices = await gather_choices(exchange.choices)
    except Exception as error:
        raise exchange.fail(error) from None
    exchange.succeed()
    return JSONResponse(exchange.form.whole(choices, exchange.usage))


async def _stream(exchange: _Exchange, *, include_usage: bool) -> AsyncIterator[bytes]:
    try:
        async for event, last in merge_events(exchange.choices):
            if not last:
                yield event
                continue
            # What follows the last text goes out with it: one write, not three.
            exchange.succeed()
            usage = to_event(exchange.form.counts(exchange.usage)) if include_usage else b""
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
        leaving = asyncio.create_task(wait_disconnect(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except OSError:
            # The connection broke while we wrote: the client has left.
            self._exchange.code = CLIENT_LEFT
        finally:
            sending.cancel()
            leaving.cancel()
            self._exchange.finish()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
