# SPDX-License-Identifier: Apache-2.0
"""Routes, and the last line of defence: every answer is JSON in OpenAI form, none leaks a text."""

import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slmserve.access import KeyRing
from slmserve.embeddings import serve_embeddings
from slmserve.errors import ApiError, internal, unauthorized
from slmserve.inference import serve_inference
from slmserve.journal import describe_exception
from slmserve.judging import serve_feedback
from slmserve.metrics import CONTENT_TYPE
from slmserve.names import ServedName, resolve_name, served_names
from slmserve.service import Phase, Service
from slmwire.metrics import ENDPOINT_CHAT, ENDPOINT_COMPLETIONS, ENDPOINT_EMBEDDINGS
from slmwire.paths import KEY_HEADER, PATH_HEALTH, PATH_METRICS, PATH_READY

_log = logging.getLogger(__name__)
_OPEN_PATHS: Final = frozenset({PATH_HEALTH, PATH_READY, PATH_METRICS})
_ENDPOINTS: Final = {
    "/v1/chat/completions": ENDPOINT_CHAT,
    "/v1/completions": ENDPOINT_COMPLETIONS,
    "/v1/embeddings": ENDPOINT_EMBEDDINGS,
}
Handler = Callable[[Request], Awaitable[Response]]


class _Guard:
    """Turns what nobody caught into a 500 with an identifier; its message stays out of the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun = False

        async def watch(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:
            error_id = secrets.token_hex(8)
            fields = {"error_id": error_id, "error": describe_exception(error)}
            _log.error("unexpected failure", extra={"fields": fields})
            if not begun:
                await _respond(internal(error_id))(scope, receive, send)


class _Gate:
    """Lets only those with a key to the API; probes and metrics are open."""

    def __init__(self, app: ASGIApp, keys: KeyRing, service: Service) -> None:
        self._app = app
        self._keys = keys
        self._metrics = service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path not in _OPEN_PATHS and not self._admits(Headers(scope=scope)):
            if path in _ENDPOINTS:
                self._metrics.count_request(_ENDPOINTS[path], 401)
            await _respond(unauthorized())(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admits(self, headers: Headers) -> bool:
        # An API server keeps Authorization to itself, so who comes through its proxy needs another header.
        named = headers.get(KEY_HEADER)
        authorization = headers.get("authorization", "") if named is None else f"Bearer {named}"
        return self._keys.admits(authorization)


def _respond(error: ApiError) -> JSONResponse:
    return JSONResponse(error.to_body(), status_code=error.status, headers=error.headers)


async def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _respond(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = (
            "there is no such path; this server has /v1/chat/completions, /v1/completions, /v1/embeddings,"
            " /v1/models, /v1/feedback"
        )
        return _respond(ApiError(404, message, code="not_found"))
    if error.status_code == 405:
        headers = dict(error.headers or {})
        refusal = ApiError(
            405, "this path does not take that method", code="method_not_allowed", headers=headers
        )
        return _respond(refusal)
    return _respond(ApiError(error.status_code, str(error.detail)[:200]))


def _describe_model(service: Service, served: ServedName) -> dict[str, object]:
    identity = service.config.identity
    return {
        "id": served.identifier,
        "object": "model",
        "created": service.created,
        "owned_by": "slmops",
        "version": identity.model_version,
        "revision": identity.revision,
        "digest": service.model.digest,
        "max_model_len": service.model.engine.max_length,
        "root": identity.model,
        "parent": identity.model if served.bare else None,
    }


def _handlers(service: Service) -> list[tuple[str, str, Handler]]:
    async def chat(request: Request) -> Response:
        return await serve_inference(service, request, ENDPOINT_CHAT)

    async def completions(request: Request) -> Response:
        return await serve_inference(service, request, ENDPOINT_COMPLETIONS)

    async def embeddings(request: Request) -> Response:
        return await serve_embeddings(service, request)

    async def feedback(request: Request) -> Response:
        return await serve_feedback(service, request)

    async def models(_: Request) -> Response:
        data = [_describe_model(service, served) for served in served_names(service)]
        return JSONResponse({"object": "list", "data": data})

    async def model(request: Request) -> Response:
        return JSONResponse(_describe_model(service, resolve_name(service, request.path_params["name"])))

    async def health(_: Request) -> Response:
        return _probe("ok" if service.healthy else "stuck", passed=service.healthy)

    async def ready(_: Request) -> Response:
        passed = service.phase is Phase.READY and service.healthy
        return _probe(service.phase.value, passed=passed)

    async def metrics(_: Request) -> Response:
        return Response(service.render_metrics(), media_type=CONTENT_TYPE)

    return [
        ("POST", "/v1/chat/completions", chat),
        ("POST", "/v1/completions", completions),
        ("POST", "/v1/embeddings", embeddings),
        ("POST", "/v1/feedback", feedback),
        ("GET", "/v1/models", models),
        ("GET", "/v1/models/{name:path}", model),
        ("GET", PATH_HEALTH, health),
        ("GET", PATH_READY, ready),
        ("GET", PATH_METRICS, metrics),
    ]


def _probe(status: str, *, passed: bool) -> Response:
    return JSONResponse({"status": status}, status_code=200 if passed else 503)


def build_app(service: Service, keys: KeyRing | None = None) -> ASGIApp:
    """The ASGI application of `service`; with `keys` only those who have one may use the API."""
    routes = [Route(path, handler, methods=[method]) for method, path, handler in _handlers(service)]
    handlers = {ApiError: _on_api_error, HTTPException: _on_http_error}
    app: ASGIApp = Starlette(routes=routes, exception_handlers=handlers)
    return _Guard(app if keys is None else _Gate(app, keys, service))
