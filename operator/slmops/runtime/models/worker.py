# SPDX-License-Identifier: Apache-2.0
"""One task per SLMModel: look, plan, write."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from slmops.adapters.errors import Forbidden, Invalid, KubeError
from slmops.adapters.kube import KubeClient
from slmops.api import MODEL_KIND, RETRY_ANNOTATION
from slmops.model.config import OperatorConfig
from slmops.model.observed import Resolved
from slmops.model.plan import Transition
from slmops.model.slmmodel import ModelObject, ModelObserved, ModelPlan
from slmops.ports.clock import Clock
from slmops.ports.sources import SourceResolver
from slmops.runtime.events import EventPoster
from slmops.runtime.loop import Loop, StatusUnreadable
from slmops.runtime.metrics import OperatorMetrics
from slmops.runtime.models.execute import ModelExecutor, ModelFailure
from slmops.runtime.models.world import ModelKey, ModelWorld
from slmops.runtime.refusals import ForeignObject
from slmops.runtime.resolve import Resolutions

_log = logging.getLogger("slmops")
ModelPlanner = Callable[[ModelObserved, float], ModelPlan]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelServices:
    """What all workers of SLMModels share."""

    kube: KubeClient
    world: ModelWorld
    executor: ModelExecutor
    events: EventPoster
    metrics: OperatorMetrics
    planner: ModelPlanner
    resolver: SourceResolver
    clock: Clock
    config: OperatorConfig
    may_write: Callable[[], bool]
    looks: asyncio.Semaphore
    resolutions: asyncio.Semaphore
    read_throughs: asyncio.Semaphore


class ModelWorker(Loop):
    """Looks after one SLMModel while `run` runs."""

    def __init__(self, key: ModelKey, services: ModelServices) -> None:
        super().__init__(
            key, kind="model", metrics=services.metrics, may_write=services.may_write, looks=services.looks
        )
        self._services = services
        self._shown = False
        self._retry_token: str | None = None
        self._refused: dict[str, str] = {}
        """By name: what the API server said about Jobs at the last look."""
        self._manifests: dict[str, Resolved] = {}
        """By digest: what was resolved and is still needed; the sources are asked again after a restart."""
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
        self._resolutions.stop()

    async def _look(self) -> tuple[float | None, list[Any]]:
        services = self._services
        stored = services.world.stored(self.key)
        if stored is None:
            return None, []
        model = stored.model
        if stored.status_error:
            message = (
                f"{stored.status_error}; correct the status, nothing is done about this object until then"
            )
            services.events.post(
                model, Transition(kind="Warning", reason="StatusUnreadable", message=message)
            )
            raise StatusUnreadable(message)
        self._heed_retry(model)
        outcomes = dict(self._resolutions.outcomes)
        observed = ModelObserved(
            model=model,
            config=services.config,
            jobs=services.world.jobs_of(self.key, model.uid),
            pods=services.world.pods_of(self.key),
            resolutions=outcomes,
            manifests=dict(self._manifests),
            profiles=services.world.profiles(),
            refused=dict(self._refused),
            in_use=services.world.in_use(self.key),
            look_asked_at=services.world.look_asked_at(self.key),
        )
        now = services.clock.now()
        plan = services.planner(observed, now)
        changed = plan.status != model.status
        if changed:
            await services.executor.apply_status(stored, plan.status)
        self._remember(plan, outcomes)
        self._tell(observed, plan, now, changed=changed)
        failures = await services.executor.apply_actions(model, plan.actions)
        refused = {f.action.name: str(f.error) for f in failures if _is_lasting(f)}
        news, self._refused = refused != self._refused, refused
        self._resolutions.keep_only(plan.questions)
        self._resolutions.request(plan.resolve)
        if changed or news or len(failures) < len(plan.actions):
            self.wake()
        # Status counts, too: a CustomResourceDefinition of before leaves out what it does not know.
        self._busy_looks = self._busy_looks + 1 if changed or plan.actions else 0
        return plan.requeue_after_seconds, failures

    def _remember(self, plan: ModelPlan, outcomes: Mapping[str, object]) -> None:
        found = [outcome for outcome in outcomes.values() if isinstance(outcome, Resolved)]
        known = self._manifests | {resolved.manifest.digest: resolved for resolved in found}
        # What was just resolved may be wanted only after the status of this look is read again.
        kept = plan.digests | {resolved.manifest.digest for resolved in found}
        self._manifests = {digest: resolved for digest, resolved in known.items() if digest in kept}

    def _heed_retry(self, model: ModelObject) -> None:
        token = model.annotations.get(RETRY_ANNOTATION, "")
        if self._retry_token not in (None, token):
            self._resolutions.forget_failures()
        self._retry_token = token

    def _tell(self, observed: ModelObserved, plan: ModelPlan, now: float, *, changed: bool) -> None:
        services, model = self._services, observed.model
        if plan.transitions:
            _log.info("decided", extra=self._fields(decision=describe_model_decision(observed, plan, now)))
        if changed or not self._shown:
            services.metrics.show_model(model, plan.status)
            self._shown = True
        for outcome in plan.outcomes:
            services.metrics.model_jobs.labels(
                model.namespace, model.name, outcome.work, outcome.outcome
            ).inc()
        for transition in plan.transitions:
            level = logging.WARNING if transition.kind == "Warning" else logging.INFO
            fields = self._fields(reason=transition.reason, version=plan.status.latest_version)
            _log.log(level, "%s", transition.message, extra=fields)
            services.events.post(model, transition)

    def _report(self, failures: list[ModelFailure]) -> None:
        stored = self._services.world.stored(self.key)
        for failure in failures:
            name = failure.action.name
            self._warn(type(failure.error).__name__, str(failure.error), kind="Job", object=name)
            if stored is not None and _is_lasting(failure):
                message = f"Job {name}: {failure.error}"
                self._services.events.post(
                    stored.model, Transition(kind="Warning", reason="WriteFailed", message=message)
                )

    async def _refresh(self) -> None:
        try:
            if await self._services.executor.refresh(self.key) is None:
                self._services.world.forget_model(self.key)
        except KubeError as error:
            _log.debug("%s", error, extra=self._fields())


def _is_lasting(failure: ModelFailure) -> bool:
    """Others come and go and need nobody's attention."""
    return isinstance(failure.error, ForeignObject | Forbidden | Invalid)


def describe_model_decision(observed: ModelObserved, plan: ModelPlan, now: float) -> dict[str, Any]:
    """Fields of the decision log's line: what the newest version left and entered, why, and what was seen."""
    old, new = observed.model.status, plan.status
    newest = new.versions[0] if new.versions else None
    return {
        "kind": MODEL_KIND,
        "generation": observed.model.generation,
        "at": now,
        "from": f"{old.latest_version} {old.progress}".strip(),
        "to": f"{new.latest_version} {new.progress}".strip(),
        "offered": new.accepted_version,
        "why": [f"{t.reason}: {t.message}" for t in plan.transitions],
        "variants": [
            {"name": v.name, "step": v.step, "progress": v.progress, "reason": v.reason}
            for v in (newest.variants if newest else ())
        ],
        "writes": len(plan.actions),
        "seen": {"jobs": len(observed.jobs), "pods": len(observed.pods)},
    }
