# SPDX-License-Identifier: Apache-2.0
"""Measurements in the background: who waits for whom, and what an outage looks like."""

import asyncio

from slmops.model.observed import MetricQuery, Preset, ProviderSettings, Sample, Samples
from slmops.model.plan import MeasureRequest
from slmops.ports.metrics import ProviderError
from slmops.runtime.measure import PARALLEL_MEASUREMENTS, Meter
from tests.unit.runtime.fakes import FakeClock


class Provider:
    """Hangs for the namespaces that it is told, fails for one revision."""

    def __init__(self, *, hanging: str = "", failing: str = "") -> None:
        self.hanging, self.failing = hanging, failing
        self.under_way = 0

    async def read(self, query: MetricQuery, settings: ProviderSettings) -> Samples:
        if query.revision == self.failing:
            raise ProviderError("Prometheus: HTTP 503")
        if query.namespace == self.hanging:
            self.under_way += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.under_way -= 1
        return {settings.tenant: Sample(value=0.0, samples=1)}


def _requests(namespace: str, count: int) -> list[MeasureRequest]:
    def query(revision: str) -> MetricQuery:
        return MetricQuery(
            preset=Preset.ERROR_RATE,
            namespace=namespace,
            deployment="d",
            revision=revision,
            window_seconds=1,
        )

    return [
        MeasureRequest(
            metric=f"m{i}",
            canary=query("r2"),
            stable=query("r1"),
            provider=ProviderSettings(tenant="team-a"),
        )
        for i in range(count)
    ]


def _meter(provider: Provider, slots: asyncio.Semaphore) -> tuple[Meter, asyncio.Event]:
    there = asyncio.Event()
    return Meter(provider, clock=FakeClock(), slots=slots, on_reading=there.set), there


async def test_a_deployment_whose_provider_hangs_leaves_slots_to_others() -> None:
    provider, slots = Provider(hanging="slow"), asyncio.Semaphore(PARALLEL_MEASUREMENTS + 1)
    slow, _ = _meter(provider, slots)
    quick, there = _meter(provider, slots)
    slow.request(_requests("slow", 3 * PARALLEL_MEASUREMENTS))
    quick.request(_requests("quick", 1))
    async with asyncio.timeout(5):
        await there.wait()
    (reading,) = quick.fresh("r2")
    assert set(reading.canary) == set(reading.stable) == {"team-a"}
    # Both sides of each are asked at the same time.
    assert provider.under_way == 2 * PARALLEL_MEASUREMENTS
    slow.stop()
    for _ in range(5):
        await asyncio.sleep(0)
    assert provider.under_way == 0


async def test_an_error_of_one_side_is_the_reading_s_and_ends_the_other() -> None:
    provider = Provider(hanging="slow", failing="r1")
    meter, there = _meter(provider, asyncio.Semaphore(1))
    meter.request(_requests("slow", 1))
    async with asyncio.timeout(5):
        await there.wait()
    (reading,) = meter.fresh("r2")
    assert (reading.error, reading.canary, reading.stable) == ("Prometheus: HTTP 503", {}, {})
    assert provider.under_way == 0
