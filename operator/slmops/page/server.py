# SPDX-License-Identifier: Apache-2.0
"""Serves the fleet page: three documents, a stream of changes and a few files. It reads, and nothing else."""

import asyncio
import json
import logging
import re
import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final, Protocol

from aiohttp import web

from slmops.page.cache import Documents, Made, Take
from slmops.page.feed import Feed
from slmops.runtime.resource import DeploymentKey

COALESCE_SECONDS: Final = 1.0
"""Least time between two events of one stream."""
HEARTBEAT_SECONDS: Final = 15.0
MAX_STREAMS: Final = 16
MAX_REQUESTS: Final = 64
"""In progress at the same time, streams left out."""
MAX_CONNECTIONS: Final = 128
"""Open at the same time. The operator needs files of its own, and a process often may have 1,024."""
SILENT_SECONDS: Final = 15.0
"""A connection that sends no whole request, or none after the last, for so long is closed."""
MAX_KEYS: Final = 50
"""Deployments that an event names; of more it says that anything may have changed."""
SEND_SECONDS: Final = 10.0
"""A client that takes no event for so long is let go."""
_TYPES: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_NAME: Final = "[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
_LOCAL: Final = re.compile(r"localhost|127\.0\.0\.1|\[::1\]")
ANY_HOST: Final = "*"
_MISDIRECTED: Final = (
    "reach the fleet page as localhost, by port forwarding, or by a name of fleetPage.hosts\n"
)
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Private: what a proxy let one user see is not kept by it for others.
    "Cache-Control": "private, no-cache",
    "Server": "slmops",
}


_log = logging.getLogger("slmops.page")


class PortTaken(Exception):
    """The address cannot be listened on; the message says why."""


class Source(Protocol):
    """Where documents come from."""

    def take_overview(self) -> Callable[[], bytes]:
        """A snapshot of the fleet."""
        ...

    def take_deployment(self, key: DeploymentKey) -> Callable[[], bytes] | None:
        """A snapshot of one deployment; None when it is not known."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast streams and documents are made; tests have no time."""

    coalesce_seconds: float = COALESCE_SECONDS
    heartbeat_seconds: float = HEARTBEAT_SECONDS
    silent_seconds: float = SILENT_SECONDS


class Page:
    """The page's routes."""

    def __init__(
        self, source: Source, feed: Feed, *, documents: Documents | None = None, pace: Pace | None = None
    ) -> None:
        self._source = source
        self._feed = feed
        self._documents = documents or Documents()
        self._pace = pace or Pace()
        self._streams = 0
        self._requests = 0
        self._closing = asyncio.Event()
        self._heard: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()
        self._assets = load_assets()

    def build_app(self, *, hosts: tuple[str, ...] = ()) -> web.Application:
        """The application. `hosts` are names that it answers to, without a port, besides this machine;
        ANY_HOST among them lets it answer to all."""
        app = web.Application(middlewares=[self._guard], client_max_size=1)
        app[_HOSTS] = hosts
        router = app.router
        router.add_get("/", self._index, allow_head=False)
        router.add_get("/static/{name}", self._asset, allow_head=False)
        router.add_get("/api/fleet", self._fleet, allow_head=False)
        path = f"/api/deployments/{{namespace:{_NAME}}}/{{name:{_NAME}}}"
        router.add_get(path, self._deployment, allow_head=False)
        router.add_get("/api/events", self._events, allow_head=False)
        app.on_shutdown.append(self._close)
        return app

    async def _close(self, _: web.Application) -> None:
        self._closing.set()

    def admit(self, server: web.Server) -> asyncio.BaseProtocol:
        """The protocol of a new connection."""
        if len(server.connections) >= MAX_CONNECTIONS:
            return _TurnedAway()
        protocol = server()

        def drop_silent() -> None:
            transport = protocol.transport
            if transport is not None and transport not in self._heard:
                transport.abort()

        asyncio.get_running_loop().call_later(self._pace.silent_seconds, drop_silent)
        return protocol

    @property
    def silent_seconds(self) -> float:
        """How long a connection may be idle."""
        return self._pace.silent_seconds

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            response = await self._answer(request, handler)
        except web.HTTPException as error:
            # Its own text may repeat the request; this says as much.
            response = web.Response(status=error.status, text=f"{error.status} {error.reason}\n")
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
        except Exception:
            _log.exception("the fleet page cannot answer %s", request.path)
            response = web.Response(status=500, text="500 the operator's log says why\n")
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.transport is not None:
            self._heard.add(request.transport)
        if not is_answered(request.headers.get("Host", ""), request.app[_HOSTS]):
            # A foreign page whose name was made to point here would read it otherwise.
            return web.Response(status=421, text=_MISDIRECTED)
        if self._requests >= MAX_REQUESTS:
            return web.Response(status=503, text="too many requests\n", headers={"Retry-After": "2"})
        if handler == self._events:
            return await handler(request)
        self._requests += 1
        try:
            return await handler(request)
        finally:
            self._requests -= 1

    async def _index(self, _: web.Request) -> web.Response:
        return _file(self._assets["index.html"], "html")

    async def _asset(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        body = self._assets.get(name)
        if body is None or name == "index.html":
            raise web.HTTPNotFound
        return _file(body, name.rpartition(".")[2])

    async def _fleet(self, request: web.Request) -> web.Response:
        return await self._document(request, "fleet", lambda: self._feed.version, self._source.take_overview)

    async def _deployment(self, request: web.Request) -> web.Response:
        key = DeploymentKey(request.match_info["namespace"], request.match_info["name"])
        return await self._document(
            request,
            f"{key.namespace}/{key.name}",
            lambda: self._feed.version_of(key),
            lambda: self._source.take_deployment(key),
        )

    async def _document(
        self, request: web.Request, name: str, version: Callable[[], int], take: Take
    ) -> web.Response:
        made = await self._documents.get(name, version=version, take=take)
        if made is None:
            return web.json_response({"error": "there is no such SLMDeployment"}, status=404)
        return _reply(request, made)

    # Streams

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if self._streams >= MAX_STREAMS:
            return web.Response(
                status=503,
                text=f"{MAX_STREAMS} pages are open already; close one\n",
                headers={"Retry-After": "10"},
            )
        self._streams += 1
        try:
            response = web.StreamResponse(headers={**_HEADERS, "Content-Type": "text/event-stream"})
            await response.prepare(request)
            await self._stream(response)
        except (ConnectionResetError, TimeoutError):
            pass  # the client has left
        finally:
            self._streams -= 1
        return response

    async def _stream(self, response: web.StreamResponse) -> None:
        told = self._feed.version
        await _send(response, build_event(told, None))
        with self._feed.waiting() as changed:
            while not self._closing.is_set():
                if not await self._wait_for(changed, self._pace.heartbeat_seconds):
                    await _send(response, b": still here\n\n")
                    continue
                changed.clear()
                told, before = self._feed.version, told
                await _send(response, build_event(told, self._feed.changed_since(before)))
                await self._wait_for(self._closing, self._pace.coalesce_seconds)

    async def _wait_for(self, event: asyncio.Event, seconds: float) -> bool:
        """Whether the event was set in time, or the server closes."""
        waits = {asyncio.create_task(event.wait()), asyncio.create_task(self._closing.wait())}
        try:
            done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        return bool(done)


_HOSTS: Final = web.AppKey("hosts", tuple[str, ...])


def is_answered(host: str, hosts: tuple[str, ...]) -> bool:
    """Whether a Host, with or without a port, is this machine or one of `hosts`."""
    name = re.sub(r":\d+$", "", host).lower()
    return ANY_HOST in hosts or _LOCAL.fullmatch(name) is not None or name in hosts


async def _send(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(SEND_SECONDS):
        await response.write(data)


def build_event(version: int, keys: tuple[DeploymentKey, ...] | None) -> bytes:
    """An event of the stream: the deployments that have changed; null for anything."""
    few = keys is not None and len(keys) <= MAX_KEYS
    names = [f"{key.namespace}/{key.name}" for key in keys] if keys is not None and few else None
    data = json.dumps({"version": version, "deployments": names}, separators=(",", ":"))
    return f"event: change\ndata: {data}\n\n".encode()


def _reply(request: web.Request, made: Made) -> web.Response:
    headers = {"ETag": made.etag, "Vary": "Accept-Encoding"}
    if any(tag.value == made.etag.strip('"') for tag in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    body = made.body
    if made.zipped and "gzip" in request.headers.get("Accept-Encoding", ""):
        body = made.zipped
        headers["Content-Encoding"] = "gzip"
    return web.Response(body=body, content_type="application/json", headers=headers)


def _file(body: bytes, extension: str) -> web.Response:
    return web.Response(body=body, content_type=_TYPES[extension], charset="utf-8")


def load_assets() -> Mapping[str, bytes]:
    """The package's files by name."""
    folder = files("slmops.page") / "static"
    return {
        entry.name: entry.read_bytes()
        for entry in folder.iterdir()
        if entry.name.rpartition(".")[2] in _TYPES
    }


class _TurnedAway(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ends it."""
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A page that is served."""

    runner: web.AppRunner
    listener: asyncio.Server

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port: int = self.listener.sockets[0].getsockname()[1]
        return port

    async def cleanup(self) -> None:
        """End it, and all connections."""
        self.listener.close()
        await self.runner.cleanup()


async def start_server(page: Page, *, host: str, port: int, hosts: tuple[str, ...] = ()) -> Serving:
    """The page on an address, `::` for all of IPv4, too; port 0 takes a free one. `hosts` as for the
    application; none lets it answer to all, unless it listens for port forwarding alone. Raises PortTaken."""
    local = host in ("127.0.0.1", "::1")
    runner = web.AppRunner(
        page.build_app(hosts=hosts or (() if local else (ANY_HOST,))),
        access_log=None,
        shutdown_timeout=1.0,
        keepalive_timeout=page.silent_seconds,
    )
    await runner.setup()
    server = runner.server
    assert server is not None
    try:
        # Without a host asyncio listens on each family that the machine has; on `::` alone not on IPv4.
        listener = await asyncio.get_running_loop().create_server(
            lambda: page.admit(server), None if host == "::" else host, port
        )
    except OSError as error:
        await runner.cleanup()
        raise PortTaken(str(error)) from error
    return Serving(runner=runner, listener=listener)
