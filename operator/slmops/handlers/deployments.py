# SPDX-License-Identifier: Apache-2.0
"""kopf's part: it streams the SLMDeployments, and every event only wakes the operator's own loop.

kopf neither retries `on.event` handlers nor stores anything for them: no finalizer, no annotation.
The finalizer of our own is part of the plan.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import kopf
from kubernetes.aio.client.configuration import Configuration

from slmops.adapters.kube import load_configuration
from slmops.api import GROUP, MODEL_PLURAL, PLURAL, VERSION
from slmops.runtime.operator import Operator

SERVER_TIMEOUT_SECONDS: Final = 240
PAGE_SIZE: Final = 100
EXIT_SECONDS: Final = 20.0


def build_registry(operator: Operator, *, on_stop: Callable[[], Awaitable[None]]) -> kopf.OperatorRegistry:
    """Handlers that feed `operator`; `on_stop` ends it before kopf ends what it takes for its own."""
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(registry=registry)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.peering.standalone = True
        settings.watching.server_timeout = SERVER_TIMEOUT_SECONDS
        settings.watching.connect_timeout = 10
        settings.watching.chunk_size = PAGE_SIZE
        settings.process.ultimate_exiting_timeout = EXIT_SECONDS

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return build_connection(await load_configuration())

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def wake(event: kopf.RawEvent, **_: Any) -> None:
        if event["type"] == "DELETED":
            operator.deployment_gone(event["object"])
        else:
            operator.deployment_seen(event["object"])

    # Where the CustomResourceDefinition of SLMModels is missing, kopf says so once and begins to watch them
    # when it appears; SLMDeployments are not affected.
    @kopf.on.event(GROUP, VERSION, MODEL_PLURAL, registry=registry)
    async def wake_model(event: kopf.RawEvent, **_: Any) -> None:
        if event["type"] == "DELETED":
            operator.models.gone(event["object"])
        else:
            operator.models.seen(event["object"])

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        await on_stop()

    return registry


def build_connection(configuration: Configuration) -> kopf.ConnectionInfo:
    """The same credentials in kopf's terms; kopf asks again when they are refused, as tokens rotate."""
    bearer = str(configuration.api_key.get("BearerToken") or "")
    token = bearer.split(" ", 1)[-1].strip()
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        scheme="Bearer" if token else None,
        token=token or None,
    )
