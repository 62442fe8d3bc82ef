# SPDX-License-Identifier: Apache-2.0
"""DeviceProfiles in the operator's caches: known, unknown to the cluster, and changed."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from slmops.adapters.errors import NotFound
from slmops.adapters.resources import DEVICE_PROFILES, Resource
from slmops.adapters.trim import trim_profile
from slmops.model.config import OperatorConfig
from slmops.runtime.observe import observe
from tests.unit.runtime.test_world import KEY, Rig


def body(name: str, version: int = 1, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version)}, "spec": spec}


def test_a_profile_that_is_not_understood_is_left_out(caplog: Any) -> None:
    found = trim_profile(body("pi", priority=3))
    assert found is not None and (found.name, found.spec.priority) == ("pi", 3)
    assert trim_profile(body("new", variants={"strategy": "FromTheFuture"})) is None
    assert "DeviceProfile new is left out: spec.variants.strategy" in caplog.text


async def test_profiles_are_observed_by_name_and_wake_the_deployments() -> None:
    rig = Rig()
    for name in ("orin", "a53"):
        rig.kube.add(DEVICE_PROFILES, {"metadata": {"name": name}, "spec": {}})
    assert rig.world.profiles is None, "not read yet"
    await rig.sync()
    found = rig.world.profiles
    assert found is not None and [profile.name for profile in found] == ["a53", "orin"]
    (reflector,) = [r for r in rig.world.reflectors if r.resource is DEVICE_PROFILES]
    reflector.put(body("orin", 1000, priority=9))
    assert rig.woken == [KEY]
    stored = rig.world.stored(KEY)
    assert stored is not None
    config = OperatorConfig(runtime_image="image")
    seen = observe(rig.world, stored, config=config, resolutions={}, readings=())
    assert seen.profiles is not None and [p.spec.priority for p in seen.profiles] == [0, 9]
    assert seen.offer is None


async def test_a_cluster_without_the_kind_holds_nothing_up() -> None:
    rig = Rig()
    known = rig.kube.list

    async def list_known(resource: Resource, **options: Any) -> AsyncGenerator[dict[str, Any]]:
        if resource is DEVICE_PROFILES:
            raise NotFound("the server could not find the requested resource", status=404)
        async for page in known(resource, **options):
            yield page

    rig.kube.list = list_known  # type: ignore[method-assign]
    tasks = [asyncio.create_task(reflector.run()) for reflector in rig.world.reflectors]
    async with asyncio.timeout(5):
        await rig.world.wait_synced()
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert rig.world.profiles is None
