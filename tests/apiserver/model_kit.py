# SPDX-License-Identifier: Apache-2.0
"""An operator that is told of SLMModels, and the end of their Jobs' pods, which is a kubelet's to say."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from slmops.adapters.reflector import Reflector
from slmops.adapters.resources import MODELS, PODS
from tests.apiserver.harness import Cluster, Running

Body = dict[str, Any]


@asynccontextmanager
async def operator(cluster: Cluster, *, die_before: int | None = None) -> AsyncIterator[Running]:
    """An operator that is told of SLMModels, which is kopf's part in production."""
    async with cluster.operator(die_before=die_before) as running:

        def feed(_: Any, old: Body | None, new: Body | None) -> None:
            if new is not None:
                running.operator.models.seen(new)
            elif old is not None:
                running.operator.models.gone(old)

        stream: Reflector[Body] = Reflector(
            running.client, MODELS, trim=dict, on_change=feed, namespace=cluster.namespace
        )
        task = asyncio.create_task(stream.run())
        try:
            yield running
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def end_pod(cluster: Cluster, pod: Body, messages: Mapping[str, str], *, failed: str = "") -> None:
    """Its containers end, with these messages; from `failed` on, badly and not at all."""
    states: dict[str, list[Body]] = {"init": [], "": []}
    over = False
    for kind, field in (("init", "initContainers"), ("", "containers")):
        for container in pod["spec"][field]:
            name = container["name"]
            ended = {
                "exitCode": 1 if name == failed else 0,
                "reason": "Error" if name == failed else "Completed",
                "message": messages.get(name, ""),
                "finishedAt": "2026-01-01T00:00:00Z",
                "startedAt": "2026-01-01T00:00:00Z",
            }
            state = {"waiting": {"reason": "PodInitializing"}} if over else {"terminated": ended}
            over = over or name == failed
            states[kind].append(
                {
                    "name": name,
                    "ready": False,
                    "restartCount": 0,
                    "image": container["image"],
                    "imageID": "",
                    "state": state,
                }
            )
    del pod["metadata"]["resourceVersion"]  # the scheduler writes to it, too
    pod["status"] |= {
        "phase": "Failed" if failed else "Succeeded",
        "initContainerStatuses": states["init"],
        "containerStatuses": states[""],
    }
    await cluster.kube.replace(PODS, namespace=cluster.namespace, body=pod, subresource="status")
