# SPDX-License-Identifier: Apache-2.0
"""Jobs that train adapters for an SLMDeployment: what is seen of them, who is woken, what is written."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from slmops.adapters.errors import Forbidden, KubeError, Unavailable
from slmops.adapters.resources import JOBS, PODS
from slmops.api import SLMDeploymentStatus
from slmops.model.config import OperatorConfig
from slmops.model.jobs import CreateJob, DeleteJob
from slmops.model.observed import Observed, OwnedKind
from slmops.model.plan import ApplyObject, RemoveFinalizer
from slmops.planning.network import MISSING
from slmops.runtime.execute import Executor, describe
from slmops.runtime.metrics import OperatorMetrics
from slmops.runtime.observe import observe
from slmops.runtime.refusals import ForeignObject
from slmops.runtime.resource import DeploymentKey
from slmops.runtime.world import World
from slmwire.labels import ADAPTATION, MANAGED_BY, MANAGED_BY_VALUE, MODEL, WORK
from tests.unit.runtime.fakes import NAME, NAMESPACE, FakeKube, store_deployment

KEY = DeploymentKey(NAMESPACE, NAME)
TAGS = {MANAGED_BY: MANAGED_BY_VALUE, ADAPTATION: NAME, WORK: "train"}


def job(name: str = "orders-train", *, owner: str = "uid", **labels: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": TAGS | labels,
            "ownerReferences": [{"uid": owner}],
        },
        "status": {},
    }


def pod(name: str = "orders-train-x", **labels: str) -> dict[str, Any]:
    tags = TAGS | {"batch.kubernetes.io/job-name": "orders-train"} | labels
    return {
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": tags},
        "spec": {"nodeName": "a", "initContainers": [{"name": "prepare"}], "containers": [{"name": "keep"}]},
    }


CREATE = CreateJob(
    name="orders-train",
    work="train",
    body={"metadata": {"name": "orders-train", "namespace": NAMESPACE, "labels": TAGS}},
    why="asked for",
)
DELETE = DeleteJob(name="orders-train", why="not wanted any more")


class Bench:
    """World and executor over a fake API that holds one SLMDeployment."""

    def __init__(self, **metadata: Any) -> None:
        self.kube = FakeKube()
        self.woken: list[DeploymentKey] = []
        kube: Any = self.kube
        self.world = World(kube, namespaces=(), on_wake=self.woken.append)
        self.world.take_in_deployment(store_deployment(self.kube, **metadata))
        self.metrics = OperatorMetrics()
        self.executor = Executor(kube, self.world, self.metrics, may_write=lambda: True)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """With caches that have listed once; nothing that is added later is seen."""
        tasks = [asyncio.create_task(reflector.run()) for reflector in self.world.reflectors]
        try:
            await asyncio.wait_for(self.world.wait_synced(), 5)
            await asyncio.sleep(0.01)
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def observed(self) -> Observed:
        stored = self.world.stored(KEY)
        assert stored is not None
        config = OperatorConfig(runtime_image="runtime:1")
        return observe(self.world, stored, config=config, resolutions={}, readings=())

    async def act(self, *actions: Any) -> list[type[KubeError]]:
        failures = await self.executor.apply_actions(self.observed().deployment, actions)
        return [type(failure.error) for failure in failures]

    def written(self, verb: str) -> float:
        value: float = self.metrics.writes.labels("Job", verb)._value.get()
        return value


async def test_a_deployment_sees_its_own_jobs_and_their_pods() -> None:
    bench = Bench()
    bench.kube.add(JOBS, job())
    bench.kube.add(JOBS, job("earlier", owner="another uid"))
    bench.kube.add(JOBS, job("others", **{ADAPTATION: "others"}))
    bench.kube.add(PODS, pod())
    bench.kube.add(PODS, pod("others-x", **{ADAPTATION: "others"}))
    async with bench.run():
        seen = bench.observed()
        assert [(view.name, view.work) for view in seen.jobs] == [("orders-train", "train")]
        assert [(view.job, view.node) for view in seen.job_pods] == [("orders-train", "a")]
        assert [container.name for container in seen.job_pods[0].containers] == ["prepare", "keep"]
        assert seen.are_jobs_known


async def test_a_change_wakes_the_deployment_and_the_last_one_leaves_nothing_behind() -> None:
    bench = Bench()
    async with bench.run():
        assert bench.observed().jobs == () and bench.observed().job_pods == ()
        body = bench.kube.add(JOBS, job())
        bench.world.trainings.take_in(body)
        assert set(bench.woken) == {KEY}
        bench.woken.clear()
        (jobs, _) = bench.world.trainings.reflectors
        jobs._remove((NAMESPACE, "orders-train"), until=10**6)
        assert bench.woken == [KEY] and bench.observed().jobs == ()


async def test_pods_of_trainings_are_not_taken_for_pods_that_serve() -> None:
    selectors = {reflector._selector for reflector in Bench().world.reflectors if reflector.resource is PODS}
    assert selectors == {
        f"{MANAGED_BY}={MANAGED_BY_VALUE},!{MODEL},!{ADAPTATION}",
        f"{MANAGED_BY}={MANAGED_BY_VALUE},{ADAPTATION}",
    }


async def test_a_job_is_made_with_its_owner_and_seen_at_once() -> None:
    bench = Bench()
    assert await bench.act(CREATE) == []
    stored = bench.kube.objects[("jobs", NAMESPACE, "orders-train")]
    (owner,) = stored["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["kind"], owner["controller"]) == ("uid", "SLMDeployment", True)
    assert owner["blockOwnerDeletion"] is False
    assert [view.name for view in bench.observed().jobs] == ["orders-train"]
    assert bench.written("create") == 1


async def test_a_job_of_ours_that_exists_is_fine_and_a_strangers_is_refused() -> None:
    bench = Bench()
    bench.kube.add(JOBS, job())
    assert await bench.act(CREATE) == []
    assert [view.name for view in bench.observed().jobs] == ["orders-train"] and bench.written("create") == 0
    strange = Bench()
    strange.kube.add(JOBS, job(owner="somebody"))
    assert await strange.act(CREATE) == [ForeignObject]
    assert strange.observed().jobs == () and describe(CREATE) == ("Job", "orders-train")


async def test_only_the_job_that_was_seen_is_deleted() -> None:
    bench = Bench()
    await bench.act(CREATE)
    # Deleted and made anew by somebody, which no stream has told yet.
    bench.kube.objects[("jobs", NAMESPACE, "orders-train")]["metadata"]["uid"] = "another"
    assert await bench.act(DELETE) == []
    assert ("jobs", NAMESPACE, "orders-train") in bench.kube.objects and bench.written("delete") == 0
    bench.kube.objects[("jobs", NAMESPACE, "orders-train")]["metadata"]["uid"] = bench.observed().jobs[0].uid
    assert await bench.act(DELETE) == []
    assert ("jobs", NAMESPACE, "orders-train") not in bench.kube.objects and bench.written("delete") == 1
    assert await bench.act(DELETE) == [], "gone already"


async def test_the_finalizer_waits_for_a_job_that_cannot_be_deleted() -> None:
    bench = Bench(deletionTimestamp="2026-01-01T00:00:00Z")
    await bench.act(CREATE)
    bench.kube.fails = lambda line: Unavailable("no", status=503) if line.startswith("delete jobs") else None
    assert await bench.act(DELETE, RemoveFinalizer()) == [Unavailable]
    stored = bench.kube.objects[("slmdeployments", NAMESPACE, NAME)]
    assert stored["metadata"]["finalizers"] == ["slmops.dev/cleanup"]
    bench.kube.fails = lambda line: None
    assert await bench.act(DELETE, RemoveFinalizer()) == []
    assert stored["metadata"]["finalizers"] == []


async def test_an_account_without_rights_to_jobs_looks_after_the_rest() -> None:
    bench = Bench()
    listing = bench.kube.list

    async def refuse() -> Any:
        raise Forbidden("no", status=403)
        yield {}

    def list_all(resource: Any, **options: Any) -> Any:
        return refuse() if resource is JOBS else listing(resource, **options)

    bench.kube.list = list_all  # type: ignore[method-assign]
    async with bench.run():
        assert not bench.observed().are_jobs_known


async def test_no_training_goes_out_without_the_policy_that_keeps_it_to_itself() -> None:
    bench = Bench()
    bench.kube.fails = lambda line: Forbidden("no", status=403) if "networkpolicies" in line else None
    body = {"metadata": {"name": f"{NAME}-train", "labels": {}}}
    policy = ApplyObject(kind=OwnedKind.NETWORK_POLICY, name=f"{NAME}-train", body=body, why=MISSING)
    assert await bench.act(policy, CREATE) == [Forbidden]
    assert ("jobs", NAMESPACE, "orders-train") not in bench.kube.objects
    assert await bench.act(replace(policy, why="changed by somebody else"), CREATE) == [Forbidden]
    assert ("jobs", NAMESPACE, "orders-train") in bench.kube.objects, "the one that is there holds"


def test_each_end_of_a_training_is_counted_once() -> None:
    metrics = OperatorMetrics()

    def show(before: SLMDeploymentStatus, **site: Any) -> SLMDeploymentStatus:
        fields = {"site": "north", "adapter": None} | site
        after = SLMDeploymentStatus.model_validate({"adaptation": {"sites": [fields]}})
        metrics.show_status(replace(Bench().observed().deployment, status=before), after)
        return after

    def counted() -> dict[str, float]:
        samples = next(iter(metrics.adapter_trainings.collect())).samples
        return {s.labels["outcome"]: s.value for s in samples if s.name.endswith("_total")}

    first, second, third = (f"2026-01-01T0{hour}:00:00Z" for hour in range(3))
    status = show(SLMDeploymentStatus(), phase="Training", reason="Running")
    assert counted() == {}
    status = show(status, phase="Refused", reason="NoGain", finishedAt=first)
    status = show(status, phase="Refused", reason="NoGain", finishedAt=first, message="in other words")
    assert counted() == {"NoGain": 1}
    status = show(status, phase="Training", reason="Running", finishedAt=first)
    status = show(status, phase="Accepted", reason="AdapterAccepted", finishedAt=second)
    status = show(status, phase="RolledBack", reason="RolloutFailed", finishedAt=third)
    assert counted() == {"NoGain": 1, "Accepted": 1}, "a rollout that failed is no training"
    phases = {s.labels["phase"]: s.value for s in next(iter(metrics.adapter_sites.collect())).samples}
    assert phases == {"RolledBack": 1}
    metrics.forget(NAMESPACE, NAME)
    assert counted() == {} and not next(iter(metrics.adapter_sites.collect())).samples
