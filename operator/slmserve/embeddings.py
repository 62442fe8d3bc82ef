# SPDX-License-Identifier: Apache-2.0
"""The endpoint /v1/embeddings: texts in, vectors out."""

import asyncio
import base64
import json
import logging
import secrets
import time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from slmserve.backend import ClosedError, QueueFullError
from slmserve.embedding import Embedder, load_shortening, shorten
from slmserve.embedding_queue import EmbeddingFailedError
from slmserve.errors import ApiError, internal, invalid, overloaded, unavailable
from slmserve.model import LoadedModel
from slmserve.names import resolve_name
from slmserve.prompts import check_tokens, tokenise, too_long
from slmserve.receiving import CLIENT_LEFT, read_body, wait_disconnect
from slmserve.schemas import EmbeddingRequest, parse_embedding
from slmserve.service import Service
from slmwire.metrics import ENDPOINT_EMBEDDINGS

_log = logging.getLogger(__name__)
_INLINE_NUMBERS: Final = 32_768
"""More are written on another thread: they would hold up every stream."""
_MOST_TOKENS: Final = 300_000
"""Of one request, as in the OpenAI API."""


async def serve_embeddings(service: Service, request: Request) -> Response:
    """Answer one request; counts it, whatever its end. Raises ApiError for refusals."""
    arrived = time.perf_counter()
    code = 500
    try:
        service.refuse_when_ending()
        parsed = parse_embedding(await read_body(request, service.config.max_body_bytes))
        served = resolve_name(service, parsed.model)
        queue, model = service.embeddings, service.model
        assert model.embedder is not None
        dimensions = _dimensions(model, model.embedder, parsed)
        texts = await _texts(model, model.embedder, parsed)
        service.begin_request()
        try:
            vectors = await _await_vectors(asyncio.wrap_future(queue.submit(texts)), request)
        finally:
            service.end_request()
        if vectors is None:
            code = CLIENT_LEFT
            return Response(status_code=code)
        tokens = sum(map(len, texts))
        if vectors.size > _INLINE_NUMBERS:
            body = await asyncio.to_thread(_render, vectors, dimensions, parsed, served.answers_as, tokens)
        else:
            body = _render(vectors, dimensions, parsed, served.answers_as, tokens)
        code = 200
        service.metrics.count_prompt(tokens)
        service.metrics.observe_request(ENDPOINT_EMBEDDINGS, time.perf_counter() - arrived)
        return Response(body, media_type="application/json")
    except ClientDisconnect:
        code = CLIENT_LEFT
        return Response(status_code=code)
    except Exception as error:
        refusal = _refuse(error)
        code = 500 if refusal is None else refusal.status
        if refusal is None:
            raise
        raise refusal from None
    finally:
        service.metrics.count_request(ENDPOINT_EMBEDDINGS, code)


def _refuse(error: Exception) -> ApiError | None:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return overloaded(retry_seconds=1)
    if isinstance(error, ClosedError):
        return unavailable("the server is ending", retry_seconds=1)
    if isinstance(error, EmbeddingFailedError):
        error_id = secrets.token_hex(8)
        _log.error("request failed", extra={"fields": {"error_id": error_id, "error": "the embedder failed"}})
        return internal(error_id)
    return None


async def _await_vectors(
    computing: "asyncio.Future[NDArray[np.float32]]", request: Request
) -> NDArray[np.float32] | None:
    """The vectors; None when the client has left, and then nobody computes them."""
    leaving = asyncio.ensure_future(wait_disconnect(request.receive))
    both: list[asyncio.Future[Any]] = [leaving, computing]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return computing.result() if computing.done() else None
    finally:
        leaving.cancel()
        computing.cancel()


def _dimensions(model: LoadedModel, embedder: Embedder, request: EmbeddingRequest) -> int:
    wanted = embedder.dimensions if request.dimensions is None else request.dimensions
    shortening = load_shortening(model.directory, embedder.dimensions)
    if not shortening.permits(wanted):
        raise invalid(
            f"'dimensions' is {wanted}; for this model it may be {shortening.describe()}", param="dimensions"
        )
    return wanted


async def _texts(model: LoadedModel, embedder: Embedder, request: EmbeddingRequest) -> list[list[int]]:
    most = embedder.max_length
    texts: list[list[int]] = []
    total = 0
    for number, text in enumerate(request.inputs):
        param = "input" if len(request.inputs) == 1 else f"input.{number}"
        if isinstance(text, str):
            tokens = await tokenise(model, text, add_special_tokens=True, param=param, most=most)
        else:
            tokens = check_tokens(model, text, param=param)
        if not tokens or text == "":
            raise invalid(f"'{param}' is empty; it must have at least one token", param=param)
        if len(tokens) > most:
            raise too_long(most, f"{len(tokens)} in '{param}'", param=param)
        total += len(tokens)
        if total > _MOST_TOKENS:
            raise invalid(f"'input' has more than {_MOST_TOKENS} tokens; send fewer texts", param="input")
        texts.append(tokens)
        # Thousands of short texts must not hold up the streams.
        await asyncio.sleep(0)
    return texts


def _render(
    vectors: NDArray[np.float32], dimensions: int, request: EmbeddingRequest, model: str, tokens: int
) -> bytes:
    def show(vector: NDArray[np.float32]) -> Any:
        if request.encoding_format == "base64":
            return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
        return vector.tolist()

    data = [
        {"object": "embedding", "index": index, "embedding": show(vector)}
        for index, vector in enumerate(shorten(vectors, dimensions))
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    body = {"object": "list", "data": data, "model": model, "usage": usage}
    return json.dumps(body, separators=(",", ":")).encode()
