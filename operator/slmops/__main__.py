# SPDX-License-Identifier: Apache-2.0
"""`python -m slmops`: run the operator. Configured by SLMOPS_* variables; see the chart's README."""

import asyncio
import logging
import socket
import sys
from contextlib import suppress
from typing import Final

import kopf
from prometheus_client import CollectorRegistry, start_http_server

from slmops.adapters.clock import SystemClock
from slmops.adapters.errors import KubeError
from slmops.adapters.kube import KubeClient, in_cluster_namespace, load_configuration
from slmops.adapters.prometheus import OwnPrometheus
from slmops.adapters.routing import build_provider
from slmops.adapters.sources import build_resolver
from slmops.adapters.sources.addresses import AddressPolicy
from slmops.handlers.deployments import build_registry
from slmops.page.feed import Feed
from slmops.page.server import Page, PortTaken, Serving, start_server
from slmops.page.source import WorldSource
from slmops.runtime.logs import setup_logging
from slmops.runtime.metrics import OperatorMetrics
from slmops.runtime.onlooker import Onlooker
from slmops.runtime.operator import Operator, Parts
from slmops.runtime.settings import Settings, SettingsError, read_settings
from slmops.runtime.targets import observe_targets

EXIT_SETTINGS: Final = 2
_log = logging.getLogger("slmops")


def main() -> None:
    """Entry point; exits 2 when a setting is wrong, 1 on failure, 0 when it was asked to stop."""
    try:
        settings = read_settings(default_namespace=in_cluster_namespace() or "default")
    except SettingsError as error:
        sys.stderr.write(f"slmops: {error}\n")
        sys.exit(EXIT_SETTINGS)
    setup_logging(log_format=settings.log_format, level=settings.log_level)
    sys.exit(asyncio.run(run(settings)))


async def run(settings: Settings) -> int:
    """Run until SIGTERM, SIGINT or a failure; the exit code."""
    metrics = OperatorMetrics()
    try:
        kube = KubeClient(await load_configuration(), on_request=metrics.count_request)
        if settings.metrics_port:
            _serve_metrics(settings.metrics_port, metrics.registry)
    except KubeError as error:
        _log.error("%s", error)
        return 1
    except OSError as error:
        _log.error("SLMOPS_METRICS_PORT=%d cannot be served: %s", settings.metrics_port, error)
        return 1
    clock = SystemClock()
    provider = build_provider(
        own=OwnPrometheus(
            url=settings.planner.prometheus_url,
            credentials_dir=settings.prometheus_credentials_dir,
            tenant=settings.prometheus_tenant,
        ),
        allowed_urls=settings.planner.allowed_prometheus_urls,
        kube=kube,
        clock=clock,
        # The pods are known to the operator, which is made below and asks only while it runs.
        targets=lambda *side: observe_targets(operator.world, *side),
    )
    feed = Feed()
    operator = Operator(
        Parts(
            kube=kube,
            provider=provider,
            resolver=build_resolver(AddressPolicy(allowed_hosts=settings.planner.allowed_source_hosts)),
            clock=clock,
            config=settings.planner,
            namespace=settings.namespace,
            identity=settings.identity,
            watch_namespaces=settings.watch_namespaces,
            metrics=metrics,
            on_gone=lambda key: provider.forget(key.namespace, key.name),
            onlooker=feed if settings.page_port else Onlooker(),
        )
    )
    page: Serving | None = None
    try:
        if settings.page_port:
            # It needs no Lease: it only reads.
            source = WorldSource(operator.world, feed, config=settings.planner, leads=operator.guard.held)
            page = await start_server(
                Page(source, feed),
                host=settings.page_host,
                port=settings.page_port,
                hosts=settings.page_hosts,
            )
        return await _run_beside_kopf(operator, settings)
    except PortTaken as error:
        _log.error("SLMOPS_PAGE_PORT=%d cannot be served: %s", settings.page_port, error)
        return 1
    finally:
        if page is not None:
            await page.cleanup()
        await provider.close()
        await kube.close()


def _serve_metrics(port: int, registry: CollectorRegistry) -> None:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # IPv6 may be switched off all the same
            start_http_server(port, addr="::", registry=registry)
            return
    start_http_server(port, registry=registry)


async def _run_beside_kopf(operator: Operator, settings: Settings) -> int:
    ended = asyncio.Event()
    loop = asyncio.create_task(operator.run(), name="operator")
    loop.add_done_callback(lambda _: ended.set())

    async def stop_loop() -> None:
        loop.cancel()
        await asyncio.wait({loop})

    port = settings.health_port
    host = f"[{settings.health_host}]" if ":" in settings.health_host else settings.health_host
    try:
        await kopf.operator(
            registry=build_registry(operator, on_stop=stop_loop),
            clusterwide=not settings.watch_namespaces,
            namespaces=settings.watch_namespaces,
            liveness_endpoint=f"http://{host}:{port}/healthz" if port else None,
            stop_flag=ended,
            # kopf would ask for the user's name otherwise, and the image's user has none.
            identity=settings.identity,  # type: ignore[arg-type]  # a NewType that kopf keeps to itself
        )
    finally:
        await stop_loop()
    if loop.cancelled():
        return 0
    error = loop.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    _log.error("the operator ends: %s: %s", type(error).__name__, error)
    return 1


if __name__ == "__main__":
    main()
