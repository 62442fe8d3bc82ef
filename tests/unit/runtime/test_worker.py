# SPDX-License-Identifier: Apache-2.0
"""The loop around the planner: when it looks, what it hands in, how it goes on after errors."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from slmops.adapters.errors import KubeError, Unavailable
from slmops.adapters.resources import DEPLOYMENTS, NODES
from slmops.api.status import RolloutStatus
from slmops.model.config import OperatorConfig
from slmops.model.observed import (
    MetricQuery,
    Observed,
    Preset,
    ProviderSettings,
    Resolved,
    ResolveFailure,
    Sample,
    Samples,
)
from slmops.model.plan import MeasureRequest, PatchNodeLabels, Plan, ResolveRequest, Transition
from slmops.planning.revision import source_hash
from slmops.ports.sources import SourceError
from slmops.runtime import loop as worker_module
from slmops.runtime.events import EventPoster
from slmops.runtime.execute import Executor
from slmops.runtime.metrics import OperatorMetrics
from slmops.runtime.resource import DeploymentKey
from slmops.runtime.worker import Services, Worker
from slmops.runtime.world import World
from slmwire.manifest import Manifest
from slmwire.reasons import Reason
from tests.unit.runtime.fakes import NAME, NAMESPACE, FakeClock, FakeKube, store_deployment

KEY = DeploymentKey(NAMESPACE, NAME)
Planner = Callable[[Observed, float], Plan]


@dataclass
class Bench:
    """A worker over a fake API, with a planner of the test's own."""

    planner: Planner
    kube: FakeKube = field(default_factory=FakeKube)
    clock: FakeClock = field(default_factory=FakeClock)
    looks: list[Observed] = field(default_factory=list)
    allowed: bool = True
    read: Callable[[MetricQuery], Any] = lambda query: Sample(value=0.0, samples=9)
    resolve: Callable[[], Resolved] = lambda: Resolved(manifest=Manifest(files=()), reference="ref")
    cancel: Callable[[], object] = lambda: None

    def plan(self, observed: Observed, now: float) -> Plan:
        self.looks.append(observed)
        return self.planner(observed, now)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[Worker]:
        bench = self

        class Provider:
            async def read(self, query: MetricQuery, settings: ProviderSettings) -> Samples:
                result = bench.read(query)
                if asyncio.iscoroutine(result):
                    result = await result
                assert isinstance(result, Sample)
                return {"int4": result}

        class Resolver:
            async def resolve(self, *_: Any, **__: Any) -> Resolved:
                return bench.resolve()

            async def read_file(self, *_: Any, **__: Any) -> bytes:
                raise AssertionError("nobody asks for a signature")

        world = World(self.kube, namespaces=(), on_wake=lambda _: worker.wake())  # type: ignore[arg-type]
        world.take_in_deployment(store_deployment(self.kube))
        metrics = OperatorMetrics()
        kube: Any = self.kube
        services = Services(
            kube=kube,
            world=world,
            executor=Executor(kube, world, metrics, may_write=lambda: self.allowed),
            events=EventPoster(kube, clock=self.clock, instance="test", may_write=lambda: True),
            metrics=metrics,
            planner=self.plan,
            provider=Provider(),
            resolver=Resolver(),
            clock=self.clock,
            config=OperatorConfig(runtime_image="image"),
            may_write=lambda: self.allowed,
            looks=asyncio.Semaphore(1),
            measurements=asyncio.Semaphore(1),
            resolutions=asyncio.Semaphore(1),
            read_throughs=asyncio.Semaphore(1),
        )
        worker = Worker(KEY, services)
        task = asyncio.create_task(worker.run())
        self.cancel = task.cancel
        try:
            yield worker
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def until(self, test: Callable[[], bool], seconds: float = 5) -> None:
        async with asyncio.timeout(seconds):
            while not (self.looks and test()):  # noqa: ASYNC110 - what is waited for has no event of its own
                await asyncio.sleep(0.005)


def same(observed: Observed, _: float) -> Plan:
    """A plan that changes nothing."""
    return Plan(status=observed.deployment.status)


async def test_looks_once_and_waits_for_a_wake() -> None:
    bench = Bench(same)
    async with bench.run() as worker:
        await asyncio.sleep(0.3)
        assert len(bench.looks) == 1
        for _ in range(100):
            worker.wake()
        await asyncio.sleep(0.3)
        assert len(bench.looks) == 2, "wakes that come together are one look"


async def test_looks_again_when_the_timer_of_the_plan_is_over() -> None:
    bench = Bench(lambda o, _: Plan(status=o.deployment.status, requeue_after_seconds=0.1))
    async with bench.run():
        await asyncio.sleep(0.7)
    assert 3 <= len(bench.looks) <= 6


async def test_counters_are_written_together_a_little_later_and_never_forgotten() -> None:
    ready = 0

    def plan(observed: Observed, _: float) -> Plan:
        counts = observed.deployment.status.nodes.model_copy(update={"ready": ready})
        return Plan(status=observed.deployment.status.model_copy(update={"nodes": counts}))

    def written() -> list[str]:
        return [line for line in bench.kube.log if "status" in line]

    def stored() -> int:
        body = bench.kube.objects[(DEPLOYMENTS.plural, NAMESPACE, NAME)]
        return int(((body.get("status") or {}).get("nodes") or {}).get("ready", 0))

    bench = Bench(plan)
    async with bench.run() as worker:
        for ready in range(1, 9):  # noqa: B007 - the planner reads it
            worker.wake()
            await asyncio.sleep(0.1)
        assert 1 <= len(written()) <= 2, "eight looks within a second"
        await bench.until(lambda: stored() == 8)


async def test_status_is_written_before_actions_and_seen_by_the_next_look() -> None:
    def plan(observed: Observed, _: float) -> Plan:
        status = observed.deployment.status
        if status.stable_revision:
            return Plan(status=status)
        patch = PatchNodeLabels(node="n", labels={"x.slmops.dev/r": "v"}, why="test")
        return Plan(status=status.model_copy(update={"stable_revision": "r1"}), actions=(patch,))

    bench = Bench(plan)
    bench.kube.add(NODES, {"metadata": {"name": "n", "labels": {}}})
    async with bench.run():
        await asyncio.sleep(0.4)
    writes = [line for line in bench.kube.log if not line.startswith("get")]
    assert writes == ["replacestatus slmdeployments/orders", "patch nodes/n"]
    assert [look.deployment.status.stable_revision for look in bench.looks] == ["", "r1"]


async def test_no_action_without_the_status() -> None:
    def plan(observed: Observed, _: float) -> Plan:
        status = observed.deployment.status.model_copy(update={"stable_revision": "r1"})
        patch = PatchNodeLabels(node="n", labels={"x.slmops.dev/r": "v"}, why="test")
        return Plan(status=status, actions=(patch,))

    bench = Bench(plan)
    bench.kube.fails = lambda line: Unavailable("away", status=503) if "status" in line else None
    async with bench.run():
        await bench.until(lambda: len(bench.looks) >= 2)
    assert not any("nodes" in line for line in bench.kube.log)


async def test_spec_that_changed_meanwhile_is_read_before_the_next_look() -> None:
    def plan(observed: Observed, _: float) -> Plan:
        status = observed.deployment.status
        return Plan(status=status.model_copy(update={"observed_generation": observed.deployment.generation}))

    bench = Bench(plan)
    async with bench.run():
        body = bench.kube.objects[("slmdeployments", NAMESPACE, NAME)]
        body["metadata"]["generation"] = 2
        bench.kube.add(DEPLOYMENTS, body)  # no event comes for it: the conflict alone must do
        await bench.until(
            lambda: (
                bench.kube.objects[("slmdeployments", NAMESPACE, NAME)]
                .get("status", {})
                .get("observedGeneration")
                == 2
            )
        )
    assert [look.deployment.generation for look in bench.looks][:2] == [1, 2]


async def test_failing_action_does_not_hide_the_timer_and_stays_awake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patch = PatchNodeLabels(node="n", labels={"x.slmops.dev/r": "v"}, why="test")
    bench = Bench(lambda o, _: Plan(status=o.deployment.status, actions=(patch,), requeue_after_seconds=0.2))
    bench.kube.fails = lambda line: KubeError("no", status=500) if "nodes" in line else None
    async with bench.run():
        await asyncio.sleep(2.5)
    assert 5 <= len(bench.looks) <= 16, "the plan's timer counts although the back-off is longer"


async def test_repeated_failure_backs_off_and_a_wake_cuts_it_short() -> None:
    failing = True

    def plan(observed: Observed, _: float) -> Plan:
        if failing:
            raise RuntimeError("a bug")
        return Plan(status=observed.deployment.status)

    bench = Bench(plan)
    async with bench.run() as worker:
        await asyncio.sleep(2.2)
        assert 2 <= len(bench.looks) <= 4
        failing = False
        worker.wake()
        before = len(bench.looks)
        await bench.until(lambda: len(bench.looks) > before, seconds=1.6)


async def test_unreadable_status_is_not_planned_from() -> None:
    broken = Bench(same)
    async with broken.run() as worker:
        await broken.until(lambda: len(broken.looks) == 1)
        body = broken.kube.objects[("slmdeployments", NAMESPACE, NAME)]
        body["status"] = {"nodes": "many"}
        worker._services.world.take_in_deployment(broken.kube.add(DEPLOYMENTS, body))
        worker.wake()
        await asyncio.sleep(0.3)
    assert len(broken.looks) == 1
    assert not any("status" in line for line in broken.kube.log)


async def test_unreadable_status_does_not_keep_a_deletion_waiting() -> None:
    bench = Bench(same)
    async with bench.run() as worker:
        await bench.until(lambda: len(bench.looks) == 1)
        body = bench.kube.objects[("slmdeployments", NAMESPACE, NAME)]
        body["status"] = {"nodes": "many"}
        body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        worker._services.world.take_in_deployment(bench.kube.add(DEPLOYMENTS, body))
        worker.wake()
        await bench.until(lambda: bench.looks[-1].deployment.deleting_since is not None)


async def test_a_look_that_is_cancelled_in_the_queue_waits_no_longer() -> None:
    bench = Bench(same)
    async with bench.run() as worker:
        await bench.until(lambda: len(bench.looks) == 1)
        services = worker._services
        async with services.looks:
            worker.wake()
            await asyncio.sleep(0.3)
            assert services.metrics.registry.get_sample_value("slmops_reconciles_waiting") == 1
            bench.cancel()
            await asyncio.sleep(0.05)
            assert services.metrics.registry.get_sample_value("slmops_reconciles_waiting") == 0


async def test_nothing_is_done_without_the_lease() -> None:
    bench = Bench(same, allowed=False)
    async with bench.run():
        await asyncio.sleep(0.2)
        assert bench.looks == []


def _measuring(revision: str = "r2") -> Planner:
    def query(which: str) -> MetricQuery:
        return MetricQuery(
            preset=Preset.ERROR_RATE,
            namespace=NAMESPACE,
            deployment=NAME,
            revision=which,
            window_seconds=10,
        )

    def plan(observed: Observed, _: float) -> Plan:
        status = observed.deployment.status
        if status.rollout is None:
            at = "2026-01-01T00:00:00Z"
            rollout = RolloutStatus(
                revision=revision, step="Soaking", step_started_at=at, wave_started_at=at, started_at=at
            )
            return Plan(status=status.model_copy(update={"rollout": rollout}))
        if observed.readings:
            return Plan(status=status.model_copy(update={"canary": observed.readings[0].error or "measured"}))
        if status.canary:
            return Plan(status=status)
        request = MeasureRequest(
            metric="errors", canary=query(revision), stable=query("r1"), provider=ProviderSettings()
        )
        return Plan(status=status, measure=(request,))

    return plan


async def test_reading_is_handed_in_once_it_is_there_and_only_once() -> None:
    bench = Bench(_measuring())
    async with bench.run():
        await bench.until(lambda: any(look.deployment.status.canary for look in bench.looks))
        await asyncio.sleep(0.3)
    with_readings = [look for look in bench.looks if look.readings]
    assert len(with_readings) == 1
    (reading,) = with_readings[0].readings
    assert (reading.metric, reading.error, reading.canary["int4"].samples) == ("errors", "", 9)
    assert reading.at == bench.clock.now()


async def test_reading_is_handed_in_again_when_the_status_could_not_be_stored() -> None:
    bench = Bench(_measuring())
    refused = 0

    def fails(line: str) -> KubeError | None:
        nonlocal refused
        if "status" in line and any(look.readings for look in bench.looks) and refused < 1:
            refused += 1
            return Unavailable("away", status=503)
        return None

    bench.kube.fails = fails
    async with bench.run():
        await bench.until(lambda: any(look.deployment.status.canary for look in bench.looks))
    assert refused == 1
    assert len([look for look in bench.looks if look.readings]) == 2


async def test_provider_that_hangs_or_breaks_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmops.runtime.measure.READ_LIMIT_SECONDS", 0.3)
    bench = Bench(_measuring(), read=lambda _: asyncio.sleep(3600))
    async with bench.run() as worker:
        await bench.until(lambda: len(bench.looks) >= 2)
        before = len(bench.looks)
        worker.wake()
        await bench.until(lambda: len(bench.looks) > before, seconds=0.25)
        await bench.until(lambda: "no answer" in bench.looks[-1].deployment.status.canary)

    def broken(_: MetricQuery) -> Sample:
        raise ZeroDivisionError

    bench = Bench(_measuring(), read=broken)
    async with bench.run():
        await bench.until(lambda: "failed" in bench.looks[-1].deployment.status.canary)


def _resolving(observed: Observed, now: float) -> Plan:
    spec = observed.deployment.spec
    assert spec is not None
    variant = spec.variants[0]
    identity = source_hash(variant.source)
    outcome = observed.resolutions.get(identity)
    request = ResolveRequest(source_hash=identity, variant="int4", source=variant.source)
    due = outcome is None or (isinstance(outcome, ResolveFailure) and outcome.retry_at <= now)
    return Plan(status=observed.deployment.status, resolve=(request,) if due else ())


async def test_source_is_resolved_in_the_background_and_tried_again() -> None:
    attempts = 0

    def resolve() -> Resolved:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise SourceError(Reason.RATE_LIMITED, "slow down", retry_after_seconds=30)
        return Resolved(manifest=Manifest(files=()), reference="ref")

    bench = Bench(_resolving, resolve=resolve)
    async with bench.run() as worker:
        await bench.until(lambda: bool(bench.looks and bench.looks[-1].resolutions))
        (failure,) = bench.looks[-1].resolutions.values()
        assert isinstance(failure, ResolveFailure)
        assert (failure.reason, failure.message) == (Reason.RATE_LIMITED, "slow down")
        assert failure.retry_at >= bench.clock.now() + 30
        worker.wake()
        await asyncio.sleep(0.2)
        assert attempts == 1
        bench.clock.seconds += 31
        worker.wake()
        await bench.until(lambda: any(isinstance(v, Resolved) for v in bench.looks[-1].resolutions.values()))


async def test_the_retry_annotation_tries_a_failed_source_at_once() -> None:
    attempts = 0

    def resolve() -> Resolved:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise SourceError(Reason.ACCESS_DENIED, "the token was refused", permanent=True)
        return Resolved(manifest=Manifest(files=()), reference="ref")

    bench = Bench(_resolving, resolve=resolve)
    async with bench.run() as worker:
        await bench.until(lambda: bool(bench.looks[-1].resolutions))
        body = bench.kube.objects[("slmdeployments", NAMESPACE, NAME)]
        for token, expected in (("", 1), ("now", 2)):
            body["metadata"]["annotations"] = {"slmops.dev/retry": token} if token else {}
            worker._services.world.take_in_deployment(bench.kube.add(DEPLOYMENTS, body))
            worker.wake()
            await asyncio.sleep(0.3)
            assert attempts == expected
        assert any(isinstance(v, Resolved) for v in bench.looks[-1].resolutions.values())


async def test_secret_that_is_missing_is_named() -> None:
    bench = Bench(_resolving)
    async with bench.run() as worker:
        body = bench.kube.objects[("slmdeployments", NAMESPACE, NAME)]
        body["metadata"]["generation"] = 2
        body["spec"]["variants"][0]["source"]["http"]["secretRef"] = {"name": "hub", "key": "token"}
        worker._services.world.take_in_deployment(bench.kube.add(DEPLOYMENTS, body))
        worker.wake()
        await bench.until(
            lambda: any(
                isinstance(v, ResolveFailure) and "Secret hub does not exist" in v.message
                for v in bench.looks[-1].resolutions.values()
            )
        )


async def test_a_fight_over_an_object_is_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "BUSY_LOOKS", 3)
    monkeypatch.setattr(worker_module, "COALESCE_SECONDS", 0.001)
    patch = PatchNodeLabels(node="missing", labels={"x.slmops.dev/r": "v"}, why="test")
    transition = Transition(kind="Normal", reason="Test", message="test")
    bench = Bench(lambda o, _: Plan(status=o.deployment.status, actions=(patch,), transitions=(transition,)))
    async with bench.run():
        await asyncio.sleep(1.0)
    assert len(bench.looks) <= 7
