# SPDX-License-Identifier: Apache-2.0
"""The Lease: one writer at a time, outages survived, and a clean hand-over."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from slmops.adapters.errors import KubeError, Unavailable
from slmops.adapters.resources import LEASES
from slmops.runtime.guard import LEASE_NAME, LeaseGuard, LeaseLost
from tests.unit.runtime.fakes import FakeKube


def _guard(kube: FakeKube, identity: str, seconds: float = 0.5) -> LeaseGuard:
    client: Any = kube
    return LeaseGuard(client, namespace="ops", identity=identity, duration_seconds=seconds)


def _spec(kube: FakeKube) -> dict[str, Any]:
    spec: dict[str, Any] = kube.objects[("leases", "ops", LEASE_NAME)]["spec"]
    return spec


async def test_first_takes_it_and_second_waits_until_it_is_given_back() -> None:
    kube = FakeKube()
    first, second = _guard(kube, "first"), _guard(kube, "second")
    await first.acquire()
    assert first.held()
    keeper = asyncio.create_task(first.keep())
    waiter = asyncio.create_task(second.acquire())
    await asyncio.sleep(0.8)
    assert not waiter.done() and not second.held()
    assert first.held(), "renewed meanwhile"
    keeper.cancel()
    await first.release()
    assert not first.held()
    await asyncio.wait_for(waiter, 1.5)
    assert second.held()
    assert _spec(kube)["holderIdentity"] == "second"


async def test_holder_that_died_is_followed_after_its_time() -> None:
    kube = FakeKube()
    await _guard(kube, "dead", seconds=1).acquire()
    second = _guard(kube, "second", seconds=1)
    started = asyncio.get_running_loop().time()
    await asyncio.wait_for(second.acquire(), 4)
    assert asyncio.get_running_loop().time() - started >= 1.0
    assert _spec(kube)["leaseTransitions"] == 1


async def test_restarted_process_of_the_same_identity_goes_on_at_once() -> None:
    kube = FakeKube()
    await _guard(kube, "pod-1", seconds=100).acquire()
    await asyncio.wait_for(_guard(kube, "pod-1", seconds=100).acquire(), 1)


async def test_outage_forbids_writes_and_is_survived() -> None:
    kube = FakeKube()
    changes: list[bool] = []
    client: Any = kube
    guard = LeaseGuard(
        client,
        namespace="ops",
        identity="first",
        duration_seconds=0.5,
        on_change=lambda: changes.append(guard.held()),
    )
    await guard.acquire()
    keeper = asyncio.create_task(guard.keep())
    away: KubeError | None = Unavailable("away", status=0)
    kube.fails = lambda line: away
    await asyncio.sleep(0.6)
    assert not guard.held()
    away = None
    await asyncio.sleep(0.3)
    assert guard.held()
    assert changes == [True, False, True]
    assert not keeper.done()
    keeper.cancel()


async def test_holder_that_was_replaced_ends() -> None:
    kube = FakeKube()
    guard = _guard(kube, "first")
    await guard.acquire()
    keeper = asyncio.create_task(guard.keep())
    lease = await kube.get(LEASES, namespace="ops", name=LEASE_NAME)
    lease["spec"] |= {"holderIdentity": "other", "leaseDurationSeconds": 60}
    await kube.replace(LEASES, namespace="ops", body=lease)
    with pytest.raises(LeaseLost, match="taken by other"):
        await asyncio.wait_for(keeper, 2)
    assert not guard.held()
    with suppress(KubeError):
        await guard.release()
    assert _spec(kube)["holderIdentity"] == "other"
