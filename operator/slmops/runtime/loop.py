# SPDX-License-Identifier: Apache-2.0
"""The loop of a worker: wait for a wake or a timer, look, and wait again. What a look is, a subclass says."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

from slmops.adapters.errors import Conflict, KubeError
from slmops.runtime.backoff import Backoff
from slmops.runtime.logs import fields_of
from slmops.runtime.metrics import OperatorMetrics
from slmops.runtime.refusals import WritesForbidden
from slmops.runtime.resource import DeploymentKey

COALESCE_SECONDS: Final = 0.05
"""Wakes that come this close together are one look."""
BUSY_SECONDS: Final = 1.0
"""Least time between two looks once `BUSY_LOOKS` in a row have written: somebody writes against us."""
BUSY_LOOKS: Final = 20
REST_FACTOR: Final = 4.0
"""Rest after a look, as a multiple of the time that planning took."""
_log = logging.getLogger("slmops")


class StatusUnreadable(Exception):
    """The stored status does not parse; planning from an empty one would forget what was decided."""


class Loop(ABC):
    """Looks after one object while `run` runs.

    `kind` is the log field that holds the object's name; `looks` bounds the looks at the same time.
    """

    def __init__(
        self,
        key: DeploymentKey,
        *,
        kind: str,
        metrics: OperatorMetrics,
        may_write: Callable[[], bool],
        looks: asyncio.Semaphore,
    ) -> None:
        self.key = key
        self._kind = kind
        self._metrics = metrics
        self._may_write = may_write
        self._looks = looks
        self._woken = asyncio.Event()
        self._woken.set()
        self._backoff = Backoff()
        self._busy_looks = 0
        self._look_seconds = 0.0
        self._woken_at: float | None = None

    @abstractmethod
    async def _look(self) -> tuple[float | None, list[Any]]:
        """One look: seconds until the next one if nothing happens, and the writes that failed."""

    @abstractmethod
    def _report(self, failures: list[Any]) -> None:
        """Tell of writes that failed."""

    @abstractmethod
    async def _refresh(self) -> None:
        """Read the object: it is newer than what was planned from."""

    def _stop(self) -> None:  # noqa: B027 - most have nothing to stop
        """End what runs in the background."""

    def wake(self) -> None:
        """Something may have changed: look soon."""
        if self._woken_at is None:
            self._woken_at = time.perf_counter()
        self._woken.set()

    async def run(self) -> None:
        """Look until cancelled."""
        wait: float | None = None
        try:
            while True:
                await self._wait(wait)
                wait = await self._look_safely()
        finally:
            self._stop()

    async def _wait(self, seconds: float | None) -> None:
        # After an error the delay is cut short by a wake, but never to nothing: what failed may be
        # what wakes us. A look at a large fleet takes a while; most of the time is left to others.
        least = max(COALESCE_SECONDS, REST_FACTOR * self._look_seconds)
        if self._backoff.failures:
            least = max(least, min(1.0, seconds or 1.0))
        if self._busy_looks > BUSY_LOOKS:
            least = max(least, BUSY_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
        await asyncio.sleep(least)

    async def _look_safely(self) -> float | None:
        """One look; seconds until the next one if nothing happens."""
        if not self._may_write():
            return 1.0
        requeue: float | None = None
        try:
            requeue, failures = await self._look_in_turn()
            if not failures:
                self._backoff.reset()
                return requeue
            self._report(failures)
        except WritesForbidden:
            return 1.0
        except Conflict as error:
            # The object is newer than what was planned from: read it and look again.
            _log.debug("%s; looking again", error, extra=self._fields())
            self._metrics.errors.labels("Conflict").inc()
            await self._refresh()
            self.wake()
        except (KubeError, StatusUnreadable) as error:
            self._warn(type(error).__name__, str(error))
        except Exception as error:
            self._metrics.errors.labels(type(error).__name__).inc()
            _log.exception("look failed", extra=self._fields())
        delay = self._backoff.fail()
        # A write that fails must not keep a deadline from firing: the plan's own timer still counts.
        return delay if requeue is None else min(delay, max(requeue, COALESCE_SECONDS))

    async def _look_in_turn(self) -> tuple[float | None, list[Any]]:
        with self._metrics.waiting.track_inprogress():
            await self._looks.acquire()
        try:
            self._woken.clear()
            with self._metrics.reconcile_seconds.time():
                return await self._look()
        finally:
            self._looks.release()

    def _warn(self, reason: str, message: str, **values: str) -> None:
        self._metrics.errors.labels(reason).inc()
        _log.warning("%s", message, extra=self._fields(reason=reason, **values))

    def _fields(self, **values: object) -> dict[str, dict[str, object]]:
        return fields_of(**{"namespace": self.key.namespace, self._kind: self.key.name, **values})
