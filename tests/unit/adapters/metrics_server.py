# SPDX-License-Identifier: Apache-2.0
"""A metrics server on loopback that answers as scripted, and credentials without an API server."""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from aiohttp import web

from e2e.rig.pki import Authority
from slmops.adapters.credentials import SecretCredentials
from slmops.adapters.errors import NotFound
from slmops.adapters.kube import KubeClient
from slmops.adapters.resources import Resource

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class MetricsServer:
    """Where it listens and what it was asked."""

    url: str
    port: int
    requests: list[web.Request] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)


@asynccontextmanager
async def serve(answer: Answer, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[MetricsServer]:
    """A server whose every path is answered by `answer`."""
    server = MetricsServer(url="", port=0)

    async def handle(request: web.Request) -> web.StreamResponse:
        server.requests.append(request)
        if request.method == "POST":
            server.queries.append(str((await request.post())["query"]))
        return await answer(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    server.port = runner.addresses[0][1]
    server.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.port}"
    try:
        yield server
    finally:
        await runner.cleanup()


async def hang(_: web.Request) -> web.StreamResponse:
    """Gives no answer."""
    await asyncio.Event().wait()
    raise AssertionError


def server_tls(folder: Path) -> tuple[ssl.SSLContext, str]:
    """A server's context for 127.0.0.1 and the PEM of the authority that signed it."""
    authority = Authority(folder)
    authority.create()
    pair = authority.issue("server", common_name="prometheus", addresses=["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    return context, authority.pair.certificate.read_text()


class Secrets:
    """The part of KubeClient that reads Secrets."""

    def __init__(self, **secrets: Mapping[str, str]) -> None:
        self.data: dict[str, Mapping[str, str]] = dict(secrets)
        self.error: Exception | None = None
        self.reads = 0

    async def get(self, resource: Resource, *, namespace: str = "", name: str) -> dict[str, Any]:
        """As KubeClient.get."""
        assert resource.plural == "secrets"
        assert namespace == "shop"
        self.reads += 1
        if self.error is not None:
            raise self.error
        if name not in self.data:
            raise NotFound(f"get {name}", status=404)
        return {"data": {key: base64.b64encode(v.encode()).decode() for key, v in self.data[name].items()}}

    def reader(self, now: Callable[[], float] = lambda: 0.0) -> SecretCredentials:
        """Credentials from these Secrets."""
        return SecretCredentials(cast(KubeClient, self), now=now)
