# SPDX-License-Identifier: Apache-2.0
"""One task per SLMDeployment: wait for a wake or a timer, look, plan, write, and wait again."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from slmops.adapters.errors import Conflict, Forbidden, Invalid, KubeError, NamespaceEnding
from slmops.adapters.kube import KubeClient
from slmops.api import RETRY_ANNOTATION
from slmops.model.config import OperatorConfig
from slmops.model.observed import Deployment, Observed
from slmops.model.plan import Plan, Transition
from slmops.ports.clock import Clock
from slmops.ports.metrics import MetricsProvider
from slmops.ports.sources import SourceResolver
from slmops.runtime.backoff import Backoff
from slmops.runtime.decisions import describe_decision
from slmops.runtime.economy import StatusPace, Traffic
from slmops.runtime.events import EventPoster
from slmops.runtime.execute import Executor, Failure, ForeignObject, WritesForbidden, describe
from slmops.runtime.logs import fields_of
from slmops.runtime.measure import Meter
from slmops.runtime.metrics import OperatorMetrics
from slmops.runtime.observe import observe
from slmops.runtime.resolve import Resolutions
from slmops.runtime.resource import DeploymentKey
from slmops.runtime.world import World

COALESCE_SECONDS: Final = 0.05
"""Wakes that come this close together are one look."""
BUSY_SECONDS: Final = 1.0
"""Least time between two looks once `BUSY_LOOKS` in a row have written: somebody writes against us."""
BUSY_LOOKS: Final = 20
REST_FACTOR: Final = 4.0
"""Rest after a look, as a multiple of the time that planning took."""
_log = logging.getLogger("slmops")

Planner = Callable[[Observed, float], Plan]


class StatusUnreadable(Exception):
    """The stored status does not parse; planning from an empty one would forget the stable revision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What all workers share."""

    kube: KubeClient
    world: World
    executor: Executor
    events: EventPoster
    metrics: OperatorMetrics
    planner: Planner
    provider: MetricsProvider
    resolver: SourceResolver
    clock: Clock
    config: OperatorConfig
    may_write: Callable[[], bool]
    looks: asyncio.Semaphore
    """Looks at the same time."""
    measurements: asyncio.Semaphore
    resolutions: asyncio.Semaphore
    read_throughs: asyncio.Semaphore
    """Of the resolutions, those that may take as long as a download."""
    traffic: Traffic = field(default_factory=Traffic)


class Worker:
    """Looks after one SLMDeployment while `run` runs."""

    def __init__(self, key: DeploymentKey, services: Services) -> None:
        self.key = key
        self._services = services
        self._woken = asyncio.Event()
        self._woken.set()
        self._backoff = Backoff()
        self._busy_looks = 0
        self._look_seconds = 0.0
        self._woken_at: float | None = None
        self._pace = StatusPace(services.traffic)
        self._shown = False
        self._retry_token: str | None = None
        self._ending_uid = ""
        """Of the deployment whose namespace was found to be on its way out."""
        self._meter = Meter(
            services.provider,
            clock=services.clock,
            slots=services.measurements,
            on_reading=self.wake,
        )
        self._resolutions = Resolutions(
            services.resolver,
            services.kube,
            namespace=key.namespace,
            clock=services.clock,
            slots=services.resolutions,
            long_slots=services.read_throughs,
            on_outcome=self.wake,
        )

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
            self._meter.stop()
            self._resolutions.stop()

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
        services = self._services
        if not services.may_write():
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
            services.metrics.errors.labels("Conflict").inc()
            await self._refresh()
            self.wake()
        except (KubeError, StatusUnreadable) as error:
            self._warn(type(error).__name__, str(error))
        except Exception as error:
            services.metrics.errors.labels(type(error).__name__).inc()
            _log.exception("look failed", extra=self._fields())
        delay = self._backoff.fail()
        # A write that fails must not keep a deadline from firing: the plan's own timer still counts.
        return delay if requeue is None else min(delay, max(requeue, COALESCE_SECONDS))

    async def _look_in_turn(self) -> tuple[float | None, list[Failure]]:
        services = self._services
        with services.metrics.waiting.track_inprogress():
            await services.looks.acquire()
        try:
            self._woken.clear()
            with services.metrics.reconcile_seconds.time():
                return await self._look()
        finally:
            services.looks.release()

    async def _look(self) -> tuple[float | None, list[Failure]]:
        services = self._services
        woken_at, self._woken_at = self._woken_at, None
        stored = services.world.stored(self.key)
        if stored is None:
            return None, []
        deployment = stored.deployment
        # A deletion does not depend on status, and must not be held up by it for ever.
        if stored.status_error and deployment.deleting_since is None:
            message = (
                f"{stored.status_error}; correct the status, nothing is done about this object until then"
            )
            services.events.post(
                deployment, Transition(kind="Warning", reason="StatusUnreadable", message=message)
            )
            raise StatusUnreadable(message)
        self._heed_retry(deployment)
        rollout = deployment.status.rollout
        readings = self._meter.fresh(rollout.revision if rollout else "")
        observed = observe(
            services.world,
            stored,
            config=services.config,
            resolutions=self._resolutions.outcomes,
            readings=readings,
            namespace_ending=self._ending_uid == stored.deployment.uid,
        )
        started = time.perf_counter()
        now = services.clock.now()
        plan = services.planner(observed, now)
        self._look_seconds = time.perf_counter() - started
        services.metrics.plan_seconds.observe(self._look_seconds)

        changed = plan.status != deployment.status
        wait = self._pace.wait_seconds(deployment.status, plan.status) if changed else 0.0
        if wait:
            # Counters alone: they are written with what comes next. Readings are kept until then.
            changed = False
        if changed:
            await services.executor.apply_status(stored, plan.status)
            self._pace.written()
        if not wait:
            self._meter.consume(readings)
        if changed or plan.actions:
            self._count_latency(woken_at)
        self._tell(observed, plan, now, changed=changed)
        failures = await services.executor.apply_actions(deployment, plan.actions)
        failures = self._notice_namespace_ending(deployment, failures)
        self._request(plan)
        if changed or plan.actions:
            # What was written is in the caches now and may allow the next step.
            self.wake()
        self._busy_looks = self._busy_looks + 1 if plan.actions else 0
        requeue = plan.requeue_after_seconds
        return (min(wait, requeue or wait) if wait else requeue), failures

    def _count_latency(self, woken_at: float | None) -> None:
        if woken_at is not None:
            self._services.metrics.event_to_write.observe(time.perf_counter() - woken_at)

    def _notice_namespace_ending(self, deployment: Deployment, failures: list[Failure]) -> list[Failure]:
        """The failures that another attempt may cure; what a namespace refuses as it ends is none."""
        curable = [failure for failure in failures if not isinstance(failure.error, NamespaceEnding)]
        if len(curable) < len(failures) and self._ending_uid != deployment.uid:
            self._ending_uid = deployment.uid
            _log.info("the namespace is being deleted: nothing new can be made", extra=self._fields())
        return curable

    def _heed_retry(self, deployment: Deployment) -> None:
        """A new value of the retry annotation asks for failed sources, too: a Secret was put right, say."""
        token = deployment.annotations.get(RETRY_ANNOTATION, "")
        if self._retry_token not in (None, token):
            self._resolutions.forget_failures()
        self._retry_token = token

    def _request(self, plan: Plan) -> None:
        if plan.sources is not None:
            self._resolutions.keep_only(plan.sources)
        self._resolutions.request(plan.resolve)
        self._meter.request(plan.measure)

    def _tell(self, observed: Observed, plan: Plan, now: float, *, changed: bool) -> None:
        services, deployment = self._services, observed.deployment
        decision = describe_decision(observed, plan, now)
        if decision is not None:
            _log.info("decided", extra=self._fields(decision=decision))
        if changed or not self._shown:
            services.metrics.show_status(deployment, plan.status)
            self._shown = True
        for transition in plan.transitions:
            level = logging.WARNING if transition.kind == "Warning" else logging.INFO
            rollout = plan.status.rollout
            _log.log(
                level,
                "%s",
                transition.message,
                extra=self._fields(
                    reason=transition.reason,
                    revision=rollout.revision if rollout else plan.status.update_revision,
                    step=rollout.step if rollout else "",
                    wave=rollout.waves[rollout.wave].name if rollout and rollout.waves else "",
                ),
            )
            services.metrics.count_transition(deployment, transition)
            services.events.post(deployment, transition)
        seen = deployment.status.rollout.measurements if deployment.status.rollout else []
        for measurement in plan.status.rollout.measurements if plan.status.rollout else []:
            if changed and measurement not in seen:
                _log.info(
                    "measured %s: %s",
                    measurement.metric,
                    measurement.message,
                    extra=self._fields(**measurement.to_body()),
                )

    def _report(self, failures: list[Failure]) -> None:
        stored = self._services.world.stored(self.key)
        for failure in failures:
            kind, name = describe(failure.action)
            self._warn(type(failure.error).__name__, str(failure.error), kind=kind, object=name)
            lasting = isinstance(failure.error, ForeignObject | Forbidden | Invalid)
            if stored is not None and lasting:  # others come and go and need nobody's attention
                message = f"{kind} {name}: {failure.error}"
                transition = Transition(kind="Warning", reason="WriteFailed", message=message)
                self._services.events.post(stored.deployment, transition)

    def _warn(self, reason: str, message: str, **values: str) -> None:
        self._services.metrics.errors.labels(reason).inc()
        _log.warning("%s", message, extra=self._fields(reason=reason, **values))

    async def _refresh(self) -> None:
        try:
            if await self._services.executor.refresh(self.key) is None:
                self._services.world.forget_deployment(self.key)
        except KubeError as error:
            _log.debug("%s", error, extra=self._fields())

    def _fields(self, **values: object) -> dict[str, dict[str, object]]:
        return fields_of(namespace=self.key.namespace, deployment=self.key.name, **values)
