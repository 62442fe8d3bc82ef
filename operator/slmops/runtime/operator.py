# SPDX-License-Identifier: Apache-2.0
"""The operator put together: caches, workers, events and the guard, started and stopped as one."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from slmops.adapters.errors import KubeError, NotFound
from slmops.adapters.kube import KubeClient
from slmops.adapters.resources import DEPLOYMENTS
from slmops.model.config import OperatorConfig
from slmops.planning.plan import plan
from slmops.planning.slmmodel.plan import plan_model
from slmops.ports.clock import Clock
from slmops.ports.metrics import MetricsProvider
from slmops.ports.sources import SourceResolver
from slmops.runtime.events import EventPoster
from slmops.runtime.execute import Executor
from slmops.runtime.guard import DURATION_SECONDS, LeaseGuard
from slmops.runtime.metrics import OperatorMetrics
from slmops.runtime.models.execute import ModelExecutor
from slmops.runtime.models.keeper import ModelKeeper
from slmops.runtime.models.worker import ModelServices
from slmops.runtime.models.world import ModelWorld
from slmops.runtime.onlooker import Onlooker
from slmops.runtime.resource import DeploymentKey, key_of_body
from slmops.runtime.worker import Planner, Services, Worker
from slmops.runtime.world import World

PARALLEL_LOOKS: Final = 16
PARALLEL_MEASUREMENTS: Final = 32
PARALLEL_RESOLUTIONS: Final = 4
PARALLEL_READ_THROUGHS: Final = 2
SWEEP_SECONDS: Final = 600.0
_log = logging.getLogger("slmops")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an operator is made of; tests put doubles at the ports."""

    kube: KubeClient
    provider: MetricsProvider
    resolver: SourceResolver
    clock: Clock
    config: OperatorConfig
    namespace: str
    identity: str
    watch_namespaces: tuple[str, ...] = ()
    planner: Planner = plan
    metrics: OperatorMetrics = field(default_factory=OperatorMetrics)
    on_gone: Callable[[DeploymentKey], None] = lambda key: None
    """Called when a deployment is gone, for what others remember of it."""
    onlooker: Onlooker = field(default_factory=Onlooker)
    """Who looks on: the fleet page."""
    lease_seconds: float = DURATION_SECONDS
    sweep_seconds: float = SWEEP_SECONDS


class Operator:
    """Looks after all SLMDeployments while `run` runs. They are made known by `deployment_seen`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._tasks: dict[DeploymentKey, tuple[Worker, asyncio.Task[None]]] = {}
        self._group: asyncio.TaskGroup | None = None
        self.world = World(
            parts.kube,
            namespaces=parts.watch_namespaces,
            on_wake=self._wake,
            on_profile=lambda: self.models.wake_all(),
            onlooker=parts.onlooker,
        )
        self.guard = LeaseGuard(
            parts.kube,
            namespace=parts.namespace,
            identity=parts.identity,
            duration_seconds=parts.lease_seconds,
            on_change=self._lease_changed,
        )
        model_world = ModelWorld(
            parts.kube,
            namespaces=parts.watch_namespaces,
            on_wake=lambda key: self.models.wake(key),
            on_offer=lambda key: self.world.wake_followers(key.namespace, key.name),
            read_profiles=lambda: self.world.profiles,
            read_in_use=lambda key: self.world.versions_in_use(key.namespace, key.name),
            read_look_asked_at=lambda key: self.world.look_asked_at(key.namespace, key.name),
            on_seen=lambda: parts.onlooker.changed(None),
        )
        self.world.models = model_world
        self._events = EventPoster(
            parts.kube,
            clock=parts.clock,
            instance=parts.identity,
            may_write=self.guard.held,
            on_drop=parts.metrics.events_dropped.inc,
            on_post=parts.onlooker.event_posted,
        )
        looks = asyncio.Semaphore(PARALLEL_LOOKS)
        resolutions = asyncio.Semaphore(PARALLEL_RESOLUTIONS)
        read_throughs = asyncio.Semaphore(PARALLEL_READ_THROUGHS)
        self._services = Services(
            kube=parts.kube,
            world=self.world,
            executor=Executor(parts.kube, self.world, parts.metrics, may_write=self.guard.held),
            events=self._events,
            metrics=parts.metrics,
            planner=parts.planner,
            provider=parts.provider,
            resolver=parts.resolver,
            clock=parts.clock,
            config=parts.config,
            may_write=self.guard.held,
            looks=looks,
            measurements=asyncio.Semaphore(PARALLEL_MEASUREMENTS),
            resolutions=resolutions,
            read_throughs=read_throughs,
        )
        self.models = ModelKeeper(
            ModelServices(
                kube=parts.kube,
                world=model_world,
                executor=ModelExecutor(parts.kube, model_world, parts.metrics, may_write=self.guard.held),
                events=self._events,
                metrics=parts.metrics,
                planner=plan_model,
                resolver=parts.resolver,
                clock=parts.clock,
                config=parts.config,
                may_write=self.guard.held,
                looks=looks,
                resolutions=resolutions,
                read_throughs=read_throughs,
            ),
            namespaces=parts.watch_namespaces,
            sweep_seconds=parts.sweep_seconds,
            on_listed=self._wake_all,
        )

    async def run(self) -> None:
        """Until cancelled. Raises LeaseLost (in an ExceptionGroup) when another process took over."""
        await self.guard.acquire()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.guard.keep(), name="lease")
                for reflector in self.world.reflectors:
                    group.create_task(reflector.run(), name=f"reflector {reflector.resource.plural}")
                group.create_task(self._events.run(), name="events")
                begin = asyncio.Event()
                group.create_task(self.models.run(begin), name="models")
                await self.world.wait_synced()
                self._parts.onlooker.all_changed()
                # Before the first look at a follower: a model that is not known yet is not one that is gone.
                await self.models.sweep()
                await self._sweep_safely()
                begin.set()
                self._group = group
                for key in self.world.keys:
                    self._start(key)
                _log.info("looking after %d SLMDeployment(s)", len(self._tasks))
                group.create_task(self._sweep_now_and_then(), name="sweep")
        finally:
            self._group = None
            self._tasks.clear()
            await self.guard.release()

    def deployment_seen(self, body: Mapping[str, Any]) -> None:
        """A body from the stream: start looking after it, or wake its worker. Never blocks."""
        if self.world.take_in_deployment(body):
            key = key_of_body(body)
            self._start(key)
            self._wake(key)

    def deployment_gone(self, body: Mapping[str, Any]) -> None:
        """The object was removed from the store; an older removal than what is known is ignored."""
        key = key_of_body(body)
        known = self.world.stored(key)
        if known is not None and known.deployment.uid == body["metadata"].get("uid"):
            self._stop(key)

    def _start(self, key: DeploymentKey) -> None:
        if self._group is None or key in self._tasks:
            return
        worker = Worker(key, self._services)
        self._tasks[key] = (worker, self._group.create_task(worker.run(), name=f"worker {key}"))
        self._parts.metrics.workers.set(len(self._tasks))

    def _stop(self, key: DeploymentKey) -> None:
        self.world.forget_deployment(key)
        entry = self._tasks.pop(key, None)
        if entry is not None:
            entry[1].cancel()
        self._parts.metrics.forget(key.namespace, key.name)
        self._parts.on_gone(key)
        self._parts.metrics.workers.set(len(self._tasks))

    def _wake(self, key: DeploymentKey) -> None:
        entry = self._tasks.get(key)
        if entry is not None:
            entry[0].wake()

    def _lease_changed(self) -> None:
        self._parts.metrics.holds_lease.set(1 if self.guard.held() else 0)
        self._parts.onlooker.all_changed()
        self._wake_all()
        self.models.wake_all()

    def _wake_all(self) -> None:
        for key in self._tasks:
            self._wake(key)

    async def _sweep_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._parts.sweep_seconds)
            await self._sweep_safely()
            self._wake_all()

    async def _sweep_safely(self) -> None:
        try:
            await self._sweep()
        except NotFound:
            _log.error("the CustomResourceDefinition of SLMDeployment is not installed; waiting for it")
        except KubeError as error:
            _log.warning("sweep: %s", error)

    async def _sweep(self) -> None:
        """Compare what is known with a list: a stream that was cut off tells of no deletion."""
        before = self.world.keys
        present: set[DeploymentKey] = set()
        for namespace in self._parts.watch_namespaces or ("",):
            async for page in self._parts.kube.list(DEPLOYMENTS, namespace=namespace):
                for body in page.get("items") or ():
                    present.add(key_of_body(body))
                    self.deployment_seen(body)
        for key in before:
            if key not in present and await self._services.executor.refresh(key) is None:
                self._stop(key)
