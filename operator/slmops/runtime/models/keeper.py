# SPDX-License-Identifier: Apache-2.0
"""All SLMModels: their caches and workers, started and stopped with the operator.

A cluster without that CustomResourceDefinition, or an operator without the rights to Jobs, keeps SLMModels
from working and nothing else.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from slmops.adapters.errors import KubeError, NotFound
from slmops.adapters.resources import MODELS
from slmops.runtime.models.worker import ModelServices, ModelWorker
from slmops.runtime.models.world import ModelKey, ModelWorld
from slmops.runtime.resource import key_of_body

UNLISTED_SECONDS: Final = 10.0
"""Between two lists while none has come through."""
_log = logging.getLogger("slmops")


class ModelKeeper:
    """Looks after all SLMModels while `run` runs. They are made known by `seen`."""

    def __init__(
        self,
        services: ModelServices,
        *,
        namespaces: tuple[str, ...],
        sweep_seconds: float,
        on_listed: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_listed` is called once all SLMModels have been seen."""
        self._on_listed = on_listed
        self._warned = ""
        self._services = services
        self._namespaces = namespaces
        self._sweep_seconds = sweep_seconds
        self._tasks: dict[ModelKey, tuple[ModelWorker, asyncio.Task[None]]] = {}
        self._group: asyncio.TaskGroup | None = None

    @property
    def world(self) -> ModelWorld:
        """What is known of them."""
        return self._services.world

    async def run(self, begin: asyncio.Event) -> None:
        """Until cancelled. Nothing is planned before `begin` is set: profiles and followers are known
        then."""
        try:
            async with asyncio.TaskGroup() as group:
                for reflector in self.world.reflectors:
                    group.create_task(
                        reflector.run(), name=f"reflector {reflector.resource.plural} of models"
                    )
                await self.world.wait_synced()
                await begin.wait()
                self._group = group
                for key in self.world.keys:
                    self._start(key)
                while True:
                    soon = self._sweep_seconds if self.world.is_listed else UNLISTED_SECONDS
                    await asyncio.sleep(min(soon, self._sweep_seconds))
                    await self.sweep()
                    self.wake_all()
        finally:
            self._group = None
            self._tasks.clear()

    def seen(self, body: Mapping[str, Any]) -> None:
        """A body from the stream: start looking after it, or wake its worker. Never blocks."""
        if self.world.take_in_model(body):
            key = key_of_body(body)
            self._start(key)
            self.wake(key)

    def gone(self, body: Mapping[str, Any]) -> None:
        """The object was removed from the store; an older removal than what is known is ignored."""
        key = key_of_body(body)
        known = self.world.stored(key)
        if known is not None and known.model.uid == body["metadata"].get("uid"):
            self._stop(key)

    def wake(self, key: ModelKey) -> None:
        """Something about one of them may have changed."""
        entry = self._tasks.get(key)
        if entry is not None:
            entry[0].wake()

    def wake_all(self) -> None:
        """Something about all of them may have changed, a DeviceProfile, say."""
        for key in self._tasks:
            self.wake(key)

    def _start(self, key: ModelKey) -> None:
        if self._group is None or key in self._tasks:
            return
        worker = ModelWorker(key, self._services)
        self._tasks[key] = (worker, self._group.create_task(worker.run(), name=f"model worker {key}"))

    def _stop(self, key: ModelKey) -> None:
        self.world.forget_model(key)
        entry = self._tasks.pop(key, None)
        if entry is not None:
            entry[1].cancel()
        self._services.metrics.forget_model(key.namespace, key.name)

    async def sweep(self) -> None:
        """Compare what is known with a list; one that fails is told of."""
        try:
            await self._sweep()
            self._warned = ""
        except NotFound:
            self._warn(
                "the CustomResourceDefinition of SLMModel is not installed: models are not looked after"
            )
        except KubeError as error:
            self._warn(f"sweep of SLMModels: {error}")

    def _warn(self, text: str) -> None:
        if text != self._warned:
            _log.warning("%s", text)
        self._warned = text

    async def _sweep(self) -> None:
        """Compare what is known with a list: a stream that was cut off tells of no deletion."""
        before = self.world.keys
        present: set[ModelKey] = set()
        for namespace in self._namespaces or ("",):
            async for page in self._services.kube.list(MODELS, namespace=namespace):
                for body in page.get("items") or ():
                    present.add(key_of_body(body))
                    self.seen(body)
        if not self.world.is_listed:
            self.world.is_listed = True
            self._on_listed()
        for key in before:
            if key not in present and await self._services.executor.refresh(key) is None:
                self._stop(key)
