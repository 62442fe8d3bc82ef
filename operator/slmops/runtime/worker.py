# SPDX-License-Identifier: Apache-2.0
"""One task per SLMDeployment: look, plan, write."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from slmops.adapters.errors import Forbidden, Invalid, KubeError, NamespaceEnding
from slmops.adapters.kube import KubeClient
from slmops.api import RETRY_ANNOTATION
from slmops.model.config import OperatorConfig
from slmops.model.observed import Deployment, Observed
from slmops.model.plan import Plan, Transition
from slmops.ports.clock import Clock
from slmops.ports.metrics import MetricsProvider
from slmops.ports.sources import SourceResolver
from slmops.runtime.decisions import describe_decision
from slmops.runtime.economy import StatusPace, Traffic
from slmops.runtime.events import EventPoster
from slmops.runtime.execute import Executor, Failure, describe
from slmops.runtime.loop import Loop, StatusUnreadable
from slmops.runtime.measure import Meter
from slmops.runtime.metrics import OperatorMetrics
from slmops.runtime.observe import observe
from slmops.runtime.refusals import ForeignObject
from slmops.runtime.resolve import Resolutions
from slmops.runtime.resource import DeploymentKey
from slmops.runtime.world import World

_log = logging.getLogger("slmops")

Planner = Callable[[Observed, float], Plan]


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


class Worker(Loop):
    """Looks after one SLMDeployment while `run` runs."""

    def __init__(self, key: DeploymentKey, services: Services) -> None:
        super().__init__(
            key,
            kind="deployment",
            metrics=services.metrics,
            may_write=services.may_write,
            looks=services.looks,
        )
        self._services = services
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

    def _stop(self) -> None:
        self._meter.stop()
        self._resolutions.stop()

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
        readings = self._meter.fresh(rollout.revision if rollout else "", deployment.status.stable_revision)
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

    async def _refresh(self) -> None:
        try:
            if await self._services.executor.refresh(self.key) is None:
                self._services.world.forget_deployment(self.key)
        except KubeError as error:
            _log.debug("%s", error, extra=self._fields())
