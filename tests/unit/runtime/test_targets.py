# SPDX-License-Identifier: Apache-2.0
"""Which pods of the cache may be scraped."""

import asyncio
from typing import Any

from slmops.adapters.direct import PodTarget
from slmops.adapters.resources import PODS
from slmops.runtime.targets import observe_targets
from slmops.runtime.world import World
from slmwire.labels import DEPLOYMENT, REVISION, ROLE, VARIANT
from tests.unit.runtime.fakes import NAME, NAMESPACE, FakeKube


def _pod(name: str, *, ip: str = "10.42.0.7", role: str = "serve", **labels: str) -> dict[str, Any]:
    tags = {DEPLOYMENT: NAME, REVISION: "r1", VARIANT: "int4", ROLE: role} | labels
    return {
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "creationTimestamp": "1970-01-01T00:01:00Z",
            "labels": tags,
        },
        "spec": {"nodeName": f"node-{name}"},
        "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
    }


async def test_serving_pods_of_the_revision_with_an_address() -> None:
    kube = FakeKube()
    leaving = _pod("leaving")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    secure = _pod("secure")
    secure["spec"]["containers"] = [{"name": "server", "ports": [{"name": "https"}]}]
    for body in (
        _pod("a"),
        secure,
        _pod("unborn", ip=""),
        _pod("fetch", role="prefetch"),
        _pod("old", **{REVISION: "r0"}),
        _pod("other", **{DEPLOYMENT: "other"}),
        leaving,
    ):
        kube.add(PODS, body)
    world = World(kube, namespaces=(), on_wake=lambda _: None)  # type: ignore[arg-type]
    tasks = [asyncio.create_task(r.run()) for r in world.reflectors]
    await world.wait_synced()
    for task in tasks:
        task.cancel()
    assert observe_targets(world, NAMESPACE, NAME, "r1") == (
        PodTarget(name="a", ip="10.42.0.7", variant="int4", node="node-a", ready=True, created_at=60.0),
        PodTarget(
            name="secure",
            ip="10.42.0.7",
            variant="int4",
            node="node-secure",
            scheme="https",
            ready=True,
            created_at=60.0,
        ),
    )
    assert observe_targets(world, NAMESPACE, "unknown", "r1") == ()
