# SPDX-License-Identifier: Apache-2.0
"""Takes measurements in the background: a slow provider delays no plan and no other deployment."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from slmops.model.observed import Reading, Samples
from slmops.model.plan import MeasureRequest
from slmops.ports.clock import Clock
from slmops.ports.metrics import MetricsProvider, ProviderError

PARALLEL_MEASUREMENTS: Final = 4
"""Of one deployment: one whose provider hangs leaves slots to the others."""
READ_LIMIT_SECONDS: Final = 40.0
"""The provider bounds itself (a Secret and two queries of 15 s); this is for one that does not."""
_log = logging.getLogger(__name__)


class Meter:
    """Asks the provider for one deployment; `slots` is shared by all deployments."""

    def __init__(
        self,
        provider: MetricsProvider,
        *,
        clock: Clock,
        slots: asyncio.Semaphore,
        on_reading: Callable[[], None],
    ) -> None:
        self._provider = provider
        self._clock = clock
        self._slots = slots
        self._own_slots = asyncio.Semaphore(PARALLEL_MEASUREMENTS)
        self._on_reading = on_reading
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._readings: list[tuple[str, Reading]] = []

    def request(self, requests: Iterable[MeasureRequest]) -> None:
        """Start what is not under way yet, and give up what belongs to another revision."""
        for request in requests:
            key = (request.metric, request.canary.revision)
            for known in [k for k in self._running if k[0] == key[0] and k[1] != key[1]]:
                self._running.pop(known).cancel()
            if key not in self._running:
                self._running[key] = asyncio.create_task(self._measure(request, key))

    def fresh(self, *revisions: str) -> tuple[Reading, ...]:
        """Readings about these revisions that no plan was stored with yet; others are dropped."""
        self._readings = [entry for entry in self._readings if entry[0] in revisions]
        return tuple(reading for _, reading in self._readings)

    def consume(self, readings: Iterable[Reading]) -> None:
        """The plan made with these readings is stored: do not hand them in again."""
        used = {id(reading) for reading in readings}
        self._readings = [entry for entry in self._readings if id(entry[1]) not in used]

    def stop(self) -> None:
        """Give up everything under way."""
        for task in self._running.values():
            task.cancel()
        self._running.clear()

    async def _measure(self, request: MeasureRequest, key: tuple[str, str]) -> None:
        try:
            async with self._own_slots, self._slots:
                reading = await self._read(request)
            self._readings.append((request.canary.revision, reading))
        finally:
            if self._running.get(key) is asyncio.current_task():
                del self._running[key]
        self._on_reading()

    async def _read(self, request: MeasureRequest) -> Reading:
        # Dated by its beginning: an answer that was asked for before a wave began is not about it.
        at = self._clock.now()
        try:
            async with asyncio.timeout(READ_LIMIT_SECONDS):
                canary, stable = await self._read_both(request)
            return Reading(
                metric=request.metric, canary=canary, stable=stable, at=at, revision=request.canary.revision
            )
        except ProviderError as error:
            message = str(error)
        except TimeoutError:
            message = f"the metrics provider gave no answer within {READ_LIMIT_SECONDS:g} s"
        except Exception:
            # A bug in a provider must look like an outage, which holds, and never end the loop.
            _log.exception("metrics provider failed")
            message = "the metrics provider failed; the operator's log has the details"
        return Reading(
            metric=request.metric,
            canary={},
            stable={},
            at=at,
            error=message[:512],
            revision=request.canary.revision,
        )

    async def _read_both(self, request: MeasureRequest) -> tuple[Samples, Samples]:
        if request.stable is None:
            return await self._provider.read(request.canary, request.provider), {}
        # At the same time, so that both sides are of one moment; a failure of one ends the other.
        canary = asyncio.ensure_future(self._provider.read(request.canary, request.provider))
        stable = asyncio.ensure_future(self._provider.read(request.stable, request.provider))
        try:
            return await asyncio.gather(canary, stable)
        finally:
            for side in (canary, stable):
                side.cancel()
            await asyncio.gather(canary, stable, return_exceptions=True)
