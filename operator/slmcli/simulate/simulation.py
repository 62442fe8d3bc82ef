# SPDX-License-Identifier: Apache-2.0
"""One simulated rollout: the planner looks, its plan is carried out on the virtual cluster, time goes on.

The operator looks as the real one does: when something has changed, an answer has come or the plan's
timer has passed, and then rests for a multiple of the time that planning takes at this size. A
look also waits for a small share of the time that the present step has taken so far (look_share): 2 % in
a small fleet, 8 % from 60,000 nodes on, where a step of an hour may be seen to end five minutes late. And
it waits until part of the pods that were on their way are there (six such shares of them), though never
longer than four shares more of the step's age. Together this saves most of the looks.
"""

import gc
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Final

from slmcli.simulate.cluster import Cluster
from slmcli.simulate.fleet import Node, build_nodes, draw_nodes
from slmcli.simulate.settings import Group, Settings
from slmcli.simulate.stable import CONFIG, Versions, stable_status
from slmcli.simulate.traffic import Traffic
from slmops.api import PROMOTE_ANNOTATION, SLMDeploymentStatus
from slmops.api.status import ConditionType
from slmops.model.observed import Deployment, Observed, OwnedKind, OwnedView, Reading, RevisionView
from slmops.model.plan import ApplyObject, DeleteObject, MeasureRequest, PatchNodeLabels, Plan
from slmops.planning.distribution import content_of
from slmops.planning.network import digest_of
from slmops.planning.nodes import NodeMemory
from slmops.planning.plan import plan
from slmwire.labels import REVISION

Planner = Callable[[Observed, float], Plan]

COALESCE_SECONDS: Final = 0.05
REST_FACTOR: Final = 4.0
"""Both as in the operator's worker."""
PLAN_SECONDS_PER_NODE: Final = 25e-6
"""What a look is taken to cost in virtual time: a fixed figure, so that a seed gives one result."""
PATIENT_NODES: Final = 5000
"""In larger fleets a measurement taken while nodes still move is looked at together with what moved."""
READING_SECONDS: Final = 0.3
_FINISHED: Final = {"Completed": "Completed", "Failed": "RolledBack", "Cancelled": "Cancelled"}


@dataclass(kw_only=True)
class Record:
    """What has happened, for the report."""

    verdict: str = "Unfinished"
    looks: int = 0
    plan_cpu_seconds: float = 0.0
    cpu_seconds: float = 0.0
    patches: int = 0
    moves: int = 0
    """Patches that gave a node another revision to serve."""
    exposed_at_decision: int = 0
    decided_at: float | None = None
    steps: Counter[str] = field(default_factory=Counter)
    """Looks by step."""


class Simulation:
    """One rollout. `run` may be called once."""

    def __init__(
        self,
        versions: Versions,
        groups: Sequence[Group],
        settings: Settings,
        *,
        seed: int,
        planner: Planner | None = None,
    ) -> None:
        random = Random(seed)
        self.versions, self.settings = versions, settings
        nodes = build_nodes(groups, site_label=versions.spec.placement.site_label)
        draw_nodes(nodes, random, crash_percent=settings.effect.crash_percent)
        self.cluster = Cluster(nodes, versions, settings, random)
        self.traffic = Traffic(
            self.cluster.tally,
            settings,
            target=versions.target.revision,
            metrics=tuple(versions.spec.rollout.analysis.metrics),
            random=random,
        )
        self.status: SLMDeploymentStatus = stable_status(versions)
        self.record = Record()
        self._planner: Planner = planner or partial(plan, memory=NodeMemory())
        self._uid = f"simulation-{seed}"
        self._annotations: dict[str, str] = {}
        self._owned: dict[tuple[OwnedKind, str], OwnedView] = {}
        self._revisions = {versions.stable.revision: versions.stable_view}
        self._readings: list[Reading] = []
        self._asked: set[str] = set()
        self._approved: set[str] = set()
        self._step: tuple[str, int, bool] = ("", 0, False)
        self._step_began = self._not_before = self.cluster.now
        self._timer: float | None = self.cluster.now
        self._woken = True
        self._seen = 0
        self._enough = 1
        self._at_latest = self.cluster.now

    @property
    def nodes(self) -> list[Node]:
        return self.cluster.nodes

    def run(self) -> None:
        """Until the rollout has ended, nothing more can happen, or the time is up."""
        # Millions of objects live, and none of them in a cycle: looking for cycles would double the time.
        collects = gc.isenabled()
        gc.disable()
        try:
            self._run()
        finally:
            if collects:
                gc.enable()

    def _run(self) -> None:
        began = time.process_time()
        cluster, end = self.cluster, self.settings.start_seconds + self.settings.until_seconds
        while self.record.verdict == "Unfinished":
            due = self._next_look()
            upcoming = cluster.next_time()
            if due is not None and (upcoming is None or due <= upcoming):
                if due > end:
                    break
                cluster.run_until(due)
                self._look()
            elif upcoming is None or upcoming > end:
                break
            else:
                cluster.run_until(upcoming)
        if self.record.verdict == "Unfinished":
            self.record.verdict = self._why_unfinished()
            if self._next_look() is not None or cluster.next_time() is not None:
                cluster.run_until(end)
        self.traffic.advance(cluster.now)
        cluster.tally.take(cluster.now)
        self.record.cpu_seconds = time.process_time() - began

    # When to look

    def _next_look(self) -> float | None:
        now = self.cluster.now
        # While a large fleet is still moving, measurements alone would ask for a look every few seconds.
        patient = len(self.nodes) > PATIENT_NODES and self._step[0] in ("Prefetching", "Flipping")
        answered = bool(self._readings)
        enough = self.cluster.changes - self._seen >= self._enough
        if self._woken or enough or (answered and not patient):
            return max(now, self._not_before)
        least = self._at_latest if patient else self._not_before
        times = [] if self._timer is None else [max(self._timer, least)]
        if answered or self.cluster.changes != self._seen:
            times.append(self._at_latest)
        return max(now, min(times)) if times else None

    def _rest_seconds(self) -> float:
        nodes = len(self.nodes)
        age = self.cluster.now - self._step_began
        return max(COALESCE_SECONDS, REST_FACTOR * PLAN_SECONDS_PER_NODE * nodes, look_share(nodes) * age)

    # A look

    def _look(self) -> None:
        cluster, record = self.cluster, self.record
        now = cluster.now
        self.traffic.advance(now)
        observed = self._observe()
        self._readings, self._woken, self._seen = [], False, cluster.changes
        began = time.process_time()
        outcome = self._planner(observed, now)
        record.plan_cpu_seconds += time.process_time() - began
        record.looks += 1
        self.status = outcome.status
        stepped = self._follow_step(now)
        patched = self._act(outcome)
        self._seen -= patched > 0  # what was patched may allow the next step, even if no pod follows
        for request in outcome.measure:
            self._measure(request)
        wait = outcome.requeue_after_seconds
        self._timer = None if wait is None else now + wait
        self._woken = self._woken or stepped or patched < len(outcome.actions)
        rest = self._rest_seconds()
        self._not_before = now + max(rest, patched / self.settings.patches_per_second)
        share = look_share(len(self.nodes))
        self._at_latest = self._not_before + 4 * max(rest, share * (self._not_before - self._step_began))
        coming = cluster.on_the_way
        self._enough = max(1, int(6 * share * coming), min(coming, len(self.nodes) // 2000))
        cluster.tally.take(now)
        self._approve()

    def _observe(self) -> Observed:
        names = self.versions.names
        return Observed(
            deployment=Deployment(
                name=names.name,
                namespace=names.namespace,
                uid=self._uid,
                generation=2,
                spec=self.versions.spec,
                status=self.status,
                annotations=dict(self._annotations),
                has_finalizer=True,
            ),
            config=CONFIG,
            nodes=self.cluster.node_views(),
            pods=self.cluster.pod_views(),
            owned=tuple(self._owned.values()),
            revisions=tuple(self._revisions.values()),
            resolutions=self.versions.resolutions,
            readings=tuple(self._readings),
        )

    def _follow_step(self, now: float) -> bool:
        """Note where the rollout is; whether it has come to another step."""
        record, rollout = self.record, self.status.rollout
        if rollout is None:
            if any(c.type == ConditionType.ACCEPTED and c.status == "False" for c in self.status.conditions):
                record.verdict = "Refused"
            return False
        record.steps[rollout.step] += 1
        # A night that a window was waited for is no reason to look rarely once it is open.
        closed = any(c.reason == "OutsideWindow" for c in self.status.conditions)
        step = (rollout.step, rollout.wave, closed)
        stepped = step != self._step
        if stepped:
            self._step, self._step_began = step, now
        self.cluster.wave = rollout.wave
        if rollout.step in ("RollingBack", "Failed", "Cancelled") and record.decided_at is None:
            record.decided_at = now
            record.exposed_at_decision = round(self.cluster.tally.exposed.value)
        record.verdict = _FINISHED.get(rollout.step, "Unfinished")
        return stepped

    def _act(self, outcome: Plan) -> int:
        """Carry the plan out; the number of node patches in it."""
        patched, prefix = 0, self.versions.names.label_prefix
        serve = {prefix + r.revision for r in (self.versions.stable, self.versions.target)}
        for action in outcome.actions:
            if isinstance(action, PatchNodeLabels):
                self.cluster.patch(
                    action.node, action.labels, delay_seconds=patched / self.settings.patches_per_second
                )
                patched += 1
                self.record.moves += any(
                    key in serve and value is not None for key, value in action.labels.items()
                )
            elif isinstance(action, ApplyObject):
                self._apply(action)
            elif isinstance(action, DeleteObject):
                self._owned.pop((action.kind, action.name), None)
                self._revisions = {
                    r: view
                    for r, view in self._revisions.items()
                    if action.kind is not OwnedKind.CONTROLLER_REVISION
                    or self.versions.names.controller_revision(r) != action.name
                }
        self.record.patches += patched
        return patched

    def _apply(self, action: ApplyObject) -> None:
        self._owned[action.kind, action.name] = OwnedView(
            kind=action.kind,
            name=action.name,
            content=content_of(action.body),
            digest=digest_of(action.body),
        )
        if action.kind is OwnedKind.CONTROLLER_REVISION:
            body: Any = action.body
            revision = body["metadata"]["labels"][REVISION]
            self._revisions[revision] = RevisionView(
                revision=revision, number=body["revision"], data=body["data"]
            )

    def _measure(self, request: MeasureRequest) -> None:
        if request.metric in self._asked:
            return
        self._asked.add(request.metric)
        at = self.cluster.now

        def answer() -> None:
            self._asked.discard(request.metric)
            now = self.cluster.now
            self.traffic.advance(now)
            self._readings.append(
                Reading(
                    metric=request.metric,
                    canary=self.traffic.read(request.metric, request.canary, now),
                    stable=self.traffic.read(request.metric, request.stable, now) if request.stable else {},
                    at=at,
                    revision=request.canary.revision,
                )
            )

        self.cluster.at(READING_SECONDS, answer)

    def _approve(self) -> None:
        rollout = self.status.rollout
        waits = any(
            c.type == ConditionType.PROGRESSING and c.reason == "AwaitingApproval"
            for c in self.status.conditions
        )
        if rollout is None or not waits:
            return
        wave = rollout.waves[rollout.wave].name
        if wave in self._approved:
            return
        self._approved.add(wave)

        def approve() -> None:
            self._annotations[PROMOTE_ANNOTATION] = f"{rollout.revision}/{wave}@simulation"
            self._woken = True

        self.cluster.at(self.settings.approve_after_seconds, approve)

    def _why_unfinished(self) -> str:
        progressing = next((c for c in self.status.conditions if c.type == ConditionType.PROGRESSING), None)
        return "Held" if progressing is not None and progressing.status == "False" else "Unfinished"


def look_share(nodes: int) -> float:
    """Part of a step's age by which a look may be late, 0.02 to 0.08."""
    return min(0.08, 0.02 + 1e-6 * nodes)
