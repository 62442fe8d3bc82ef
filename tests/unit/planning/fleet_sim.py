# SPDX-License-Identifier: Apache-2.0
"""A virtual operator on the virtual cluster: looks, plans, writes, waits; it can be killed at any write.

It looks only when something that it watches has changed, when an answer has come, or when the time
that the plan asked for has passed. So a plan that forgets to ask for a timer stands still here as it
would in real life, and one that asks again and again without need is told off.
"""

import heapq
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from slmops.api import RETRY_ANNOTATION, SLMDeploymentSpec, SLMDeploymentStatus
from slmops.api.status import OperationStatus
from slmops.model.config import OperatorConfig
from slmops.model.observed import (
    Deployment,
    MetricQuery,
    Observed,
    OwnedKind,
    Reading,
    Resolved,
    ResolveFailure,
    Samples,
    SignatureCheck,
)
from slmops.model.plan import (
    AddFinalizer,
    ApplyObject,
    DeleteObject,
    MeasureRequest,
    PatchNodeLabels,
    Plan,
    RemoveFinalizer,
    ResolveRequest,
    Transition,
)
from slmops.planning.names import Names
from slmops.planning.plan import plan
from slmwire.reasons import Reason
from tests.unit.planning.fleet_cluster import Behaviour, Cluster, SimNode
from tests.unit.planning.fleet_samples import sample_of
from tests.unit.planning.fleet_spec import manifest_of, merged

EPOCH = 1_750_000_000.25
CONFIG = OperatorConfig(runtime_image="slmops/runtime:test", prometheus_url="http://prometheus:9090")
MAX_QUICK_LOOKS = 5


class Killed(Exception):
    """The operator process died before this write."""


SILENT_SECONDS = 3.0
"""From a node's return until the API server shows its pods as ready again."""


@dataclass(kw_only=True)
class Look:
    """What one look led to, for checks."""

    at: float
    observed: Observed
    plan: Plan


@dataclass(kw_only=True)
class _Memory:
    """All that the operator process holds; lost when it dies."""

    resolutions: dict[str, Resolved | ResolveFailure] = field(default_factory=dict)
    applied: set[tuple[OwnedKind, str]] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    readings: list[Reading] = field(default_factory=list)
    look_at: float | None = None
    seen: object = None


class FleetSim:
    """One SLMDeployment, its operator and its cluster."""

    def __init__(self, spec: Mapping[str, Any], *, behaviours: Mapping[str, Behaviour] | None = None) -> None:
        self.now = EPOCH
        self.cluster = Cluster(behaviours or {})
        self.names = Names("shop", "orders")
        self.spec_body: dict[str, Any] = json.loads(json.dumps(spec))
        self.generation = 1
        self.annotations: dict[str, str] = {}
        self.status = SLMDeploymentStatus()
        self.has_finalizer = False
        self.deleting_since: float | None = None
        self.gone = False
        self.config = CONFIG
        self.provider_error = ""
        self.answer_seconds: dict[str, float] = {}
        """How long the provider takes for a metric, where it is not 0.3 s."""
        self.unresolvable: set[str] = set()
        self.signed_by: dict[str, str] = {}
        """By part of a source's URL: the key that signed it."""
        self.writes = 0
        self.kill_at: int | None = None
        self.kills = 0
        self.looks: list[Look] = []
        self.transitions: list[Transition] = []
        self.history: dict[str, list[str]] = {}
        """Revisions that each node was given, in order."""
        self.checks: list[Callable[[FleetSim, Look], None]] = []
        self._parsed: tuple[int, SLMDeploymentSpec] | None = None
        self._memory = _Memory()
        self._quick_looks = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._event_number = 0

    # What a user and the world do

    def add_node(self, name: str, **fields: Any) -> SimNode:
        labels = {"slm": "yes"} | fields.pop("labels", {})
        node = SimNode(name=name, labels=labels, **{"memory_bytes": 4 << 30, **fields})
        self.cluster.nodes[name] = node
        return node

    def set_online(self, name: str, *, online: bool) -> None:
        node = self.cluster.nodes[name]
        if node.online != online:
            node.online, node.ready_since, node.silent = online, self.now, online
            if online:
                self.at(SILENT_SECONDS, lambda: setattr(node, "silent", False))

    def edit(self, **changes: Any) -> None:
        """Merge into spec: `edit(rollout={"paused": True})`."""
        self.spec_body = merged(self.spec_body, changes)
        self.generation += 1

    def set_version(self, version: str) -> None:
        """A new model version from a source of its own."""
        variants = [
            {**v, "source": {"http": {"url": f"http://models/{version}/{v['name']}.json"}}}
            for v in self.spec_body["variants"]
        ]
        self.edit(model={"name": "orders", "version": version}, variants=variants)

    def retry(self) -> None:
        self.annotations[RETRY_ANNOTATION] = f"{self.now}"

    def ask(self, operation: str, value: str) -> OperationStatus:
        """Annotate and let the operator answer."""
        self.annotations[f"slmops.dev/{operation}"] = value
        self.run(2)
        return next(entry for entry in self.status.operations if entry.operation == operation)

    def revision_of(self, version: str) -> str:
        """Revision of a model version that is in the history."""
        return next(r.revision for r in self.cluster.revision_views() if r.data["modelVersion"] == version)

    def delete(self) -> None:
        self.deleting_since = self.now

    def at(self, delay_seconds: float, do: Callable[[], None]) -> None:
        """Do something later."""
        self._event_number += 1
        heapq.heappush(self._events, (self.now + delay_seconds, self._event_number, do))

    def restart_operator(self) -> None:
        self._memory = _Memory()

    # Reads

    @property
    def spec(self) -> SLMDeploymentSpec:
        if self._parsed is None or self._parsed[0] != self.generation:
            self._parsed = self.generation, SLMDeploymentSpec.model_validate(self.spec_body)
        return self._parsed[1]

    def given(self, name: str) -> dict[str, str]:
        """revision -> variant, from the node's labels."""
        tails = {
            key.removeprefix(self.names.label_prefix): value
            for key, value in self.cluster.nodes[name].labels.items()
            if key.startswith(self.names.label_prefix)
        }
        return {
            tail: v for tail, v in tails.items() if tail != "moving" and "." not in tail and tail != "release"
        }

    def our_labels(self) -> dict[str, dict[str, str]]:
        """Every label of ours, by node."""
        found = {
            node.name: {k: v for k, v in node.labels.items() if k.startswith(self.names.label_prefix)}
            for node in self.cluster.nodes.values()
        }
        return {name: labels for name, labels in found.items() if labels}

    def versions(self) -> dict[str, str]:
        """Model versions that each node was given, joined by +."""
        return {
            name: "+".join(sorted(self.cluster.version_of(r) for r in self.given(name)))
            for name in self.cluster.nodes
        }

    def condition(self, kind: str) -> tuple[str, str]:
        found = next(c for c in self.status.conditions if c.type == kind)
        return found.status, found.reason

    @property
    def step(self) -> str:
        return self.status.rollout.step if self.status.rollout else ""

    @property
    def wave(self) -> int:
        return self.status.rollout.wave if self.status.rollout else -1

    @property
    def version(self) -> str:
        return self.status.model_version

    def events(self) -> list[str]:
        return [transition.reason for transition in self.transitions]

    def observed(self, readings: Iterable[Reading] = ()) -> Observed:
        cluster = self.cluster
        return Observed(
            deployment=Deployment(
                name=self.names.name,
                namespace=self.names.namespace,
                uid="uid-1",
                generation=self.generation,
                spec=self.spec,
                status=self.status,
                annotations=dict(self.annotations),
                deleting_since=self.deleting_since,
                has_finalizer=self.has_finalizer,
            ),
            config=self.config,
            nodes=cluster.node_views(),
            pods=cluster.pod_views(),
            owned=cluster.owned_views(self._drifted()),
            revisions=cluster.revision_views(),
            resolutions=dict(self._memory.resolutions),
            readings=tuple(readings),
        )

    def _drifted(self) -> set[tuple[OwnedKind, str]]:
        # What this process has not written itself may have been changed, unless it cannot be.
        fixed = (OwnedKind.CONFIG_MAP, OwnedKind.CONTROLLER_REVISION)
        return {k for k in self.cluster.objects if k not in self._memory.applied and k[0] not in fixed}

    # Time

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        self.run_until(lambda: False, limit_seconds=seconds)

    def run_until(self, done: Callable[[], bool], *, limit_seconds: float = 7200.0) -> bool:
        """Run until `done` holds; False when it did not within the limit."""
        end = self.now + limit_seconds
        while not self.gone:
            self._step()
            if done():
                return True
            upcoming = self._next_time()
            if upcoming is None or upcoming > end:
                self.now = end
                return False
            self.now = upcoming
        return done()

    def settled(self) -> bool:
        """Nothing is under way: every online matching node serves just what it was given."""
        return self.step in ("Completed", "Failed", "Cancelled") and not any(
            isinstance(action, PatchNodeLabels) for action in self.looks[-1].plan.actions
        )

    def settle(self, limit_seconds: float = 7200.0) -> None:
        """Run until the rollout has ended and whatever follows from it is done."""
        self.run(2)
        assert self.run_until(self.settled, limit_seconds=limit_seconds), self.explain()
        self.run(30)

    def explain(self) -> str:
        rollout = self.status.rollout
        says = [f"{c.type}={c.status} {c.reason}: {c.message}" for c in self.status.conditions]
        where = f"{rollout.step} wave {rollout.wave} {rollout.message}" if rollout else "no rollout"
        return "\n".join([where, *says, str(self.our_labels())])

    def _next_time(self) -> float | None:
        times = [self._events[0][0]] if self._events else []
        if self._memory.look_at is not None:
            times.append(self._memory.look_at)
        pods = self.cluster.next_event(self.now)
        if pods is not None:
            times.append(pods)
        return max(self.now, min(times)) if times else None

    def _step(self) -> None:
        while self._events and self._events[0][0] <= self.now:
            heapq.heappop(self._events)[2]()
        self.cluster.settle(self.now)
        memory = self._memory
        due = memory.look_at is not None and memory.look_at <= self.now
        while not self.gone and (due or memory.readings or self._fingerprint() != memory.seen):
            try:
                self._look()
            except Killed:
                self.kills += 1
                self.restart_operator()
            memory, due = self._memory, False

    def _fingerprint(self) -> object:
        """What the watches deliver. The operator's own status is not among it."""
        cluster = self.cluster
        return (
            self.generation,
            dict(self.annotations),
            self.deleting_since,
            self.has_finalizer,
            cluster.node_views(),
            cluster.pod_views(),
            cluster.owned_views(self._drifted()),
        )

    # The operator

    def _look(self) -> None:
        memory = self._memory
        before = memory.seen
        memory.seen = self._fingerprint()
        readings, memory.readings = tuple(memory.readings), []
        memory.look_at = None
        observed = self.observed(readings)
        outcome = plan(observed, self.now)
        look = Look(at=self.now, observed=observed, plan=outcome)
        self.looks.append(look)
        quick = before == memory.seen and not readings and (outcome.requeue_after_seconds or 9) < 0.5
        self._quick_looks = self._quick_looks + 1 if quick else 0
        assert self._quick_looks <= MAX_QUICK_LOOKS, f"busy: {self.explain()}"
        for check in self.checks:
            check(self, look)
        if outcome.requeue_after_seconds is not None:
            memory.look_at = self.now + outcome.requeue_after_seconds
        if outcome.status != self.status:
            self._write()
            # As the API server stores it.
            self.status = SLMDeploymentStatus.model_validate(json.loads(json.dumps(outcome.status.to_body())))
        for action in outcome.actions:
            self._write()
            self._act(action)
        self.transitions += outcome.transitions
        for request in outcome.resolve:
            self._resolve(request)
        for measure in outcome.measure:
            self._measure(measure)

    def _write(self) -> None:
        if self.writes == self.kill_at:
            self.kill_at = None
            raise Killed
        self.writes += 1

    def _act(self, action: Any) -> None:
        match action:
            case ApplyObject(kind=kind, name=name, body=body):
                new = json.loads(json.dumps(body))
                old = self.cluster.objects.get((kind, name))
                if old is not None and kind is OwnedKind.CONTROLLER_REVISION:
                    assert old["data"] == new["data"], "data of a ControllerRevision is immutable"
                self.cluster.objects[kind, name] = new
                self._memory.applied.add((kind, name))
                self.cluster.changed_labels_at = self.now
            case DeleteObject(kind=kind, name=name):
                self.cluster.objects.pop((kind, name), None)
                self._memory.applied.discard((kind, name))
                self.cluster.changed_labels_at = self.now
            case PatchNodeLabels():
                self._patch(action)
            case AddFinalizer():
                self.has_finalizer = True
            case RemoveFinalizer():
                self.has_finalizer = False
                self.gone = self.deleting_since is not None

    def _patch(self, action: PatchNodeLabels) -> None:
        node = self.cluster.nodes.get(action.node)
        if node is None:
            return
        before = set(self.given(node.name))
        for key, value in action.labels.items():
            if value is None:
                node.labels.pop(key, None)
            else:
                node.labels[key] = value
        self.history.setdefault(node.name, []).extend(sorted(set(self.given(node.name)) - before))
        self.cluster.changed_labels_at = self.now

    # Its slow helpers

    def _resolve(self, request: ResolveRequest) -> None:
        memory = self._memory
        if request.source_hash in memory.asked:
            return
        memory.asked.add(request.source_hash)
        url = request.source.http.url if request.source.http else ""

        def answer() -> None:
            memory.asked.discard(request.source_hash)
            # A signature that was read once is kept with the revision; others lie at the source.
            kept = request.known and request.known.signature and request.known.signature.text
            if not kept and any(part in url for part in self.unresolvable):
                memory.resolutions[request.source_hash] = ResolveFailure(
                    reason=Reason.SOURCE_UNAVAILABLE, message=f"{url}: 404", retry_at=self.now + 30
                )
            else:
                found = Resolved(manifest=manifest_of(url), reference=url)
                memory.resolutions[request.source_hash] = self._check_signature(request, found)
            memory.look_at = self.now  # the answer wakes the worker

        self.at(0.5, answer)

    def _check_signature(self, request: ResolveRequest, found: Resolved) -> Resolved | ResolveFailure:
        if request.signature is None:
            return found
        key = next((key for part, key in self.signed_by.items() if part in found.reference), "")
        if any(key and key in pem for pem in request.signature.public_keys):
            return replace(found, signature=SignatureCheck(text=key, key=key))
        if request.signature.policy == "Require" and request.known is None:
            return ResolveFailure(
                reason=Reason.SIGNATURE_INVALID, message="none of the keys", retry_at=self.now + 600
            )
        return replace(found, signature=SignatureCheck(text=key, error="none of the keys"))

    def _measure(self, request: MeasureRequest) -> None:
        memory = self._memory
        key = f"metric/{request.metric}"
        if key in memory.asked:
            return
        memory.asked.add(key)

        def answer() -> None:
            memory.asked.discard(key)
            canary = self.sample(request.canary)
            stable = self.sample(request.stable) if request.stable else {}
            memory.readings.append(
                Reading(
                    metric=request.metric,
                    canary=canary,
                    stable=stable,
                    at=self.now,
                    error=self.provider_error,
                    revision=request.canary.revision,
                )
            )

        self.at(self.answer_seconds.get(request.metric, 0.3), answer)

    def sample(self, query: MetricQuery) -> Samples:
        """What Prometheus would say: no series of pods that do not run or cannot be scraped."""
        variants = {
            pod.variant
            for pod in self.cluster.pods
            if pod.node in self.cluster.nodes
            and self.cluster.nodes[pod.node].online
            and pod.revision == query.revision in self.cluster.serving_revisions(pod.node)
        }
        behaviour = self.cluster.behaviour(self.cluster.version_of(query.revision))
        found = {variant: sample_of(behaviour, query.preset, variant) for variant in sorted(variants)}
        return {variant: sample for variant, sample in found.items() if sample is not None}
