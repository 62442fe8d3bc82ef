# SPDX-License-Identifier: Apache-2.0
"""SLMModels around the planner: what is kept of Jobs, what is written, and what a restart finds."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from slmops.adapters.errors import Forbidden, NotFound
from slmops.adapters.resources import EVENTS, JOBS, MODELS, PODS
from slmops.adapters.trim_jobs import trim_job, trim_job_pod
from slmops.api import API_VERSION, MODEL_KIND
from slmops.api.source import Source
from slmops.model.config import OperatorConfig
from slmops.model.observed import Resolved
from slmops.planning import times
from slmops.planning.slmmodel.plan import plan_model
from slmops.runtime.events import EventPoster
from slmops.runtime.metrics import OperatorMetrics
from slmops.runtime.models.execute import ModelExecutor
from slmops.runtime.models.keeper import ModelKeeper
from slmops.runtime.models.worker import ModelServices
from slmops.runtime.models.world import ModelKey, ModelWorld
from slmops.runtime.resource import DeploymentKey
from slmops.runtime.world import World
from slmwire.jobs import PublishReport, to_message
from slmwire.manifest import ManifestFile
from tests.unit.planning.model_sim import GOOD, digest_of, resolved_of, spec_body
from tests.unit.runtime.fakes import NAMESPACE, FakeClock, FakeKube, deployment_body

KEY = ModelKey(NAMESPACE, "chat")


def model_body(**metadata: Any) -> dict[str, Any]:
    recipes = [{"name": "fp16"}, {"name": "int4", "steps": [{"quantizeInt4": {}}]}]
    return {
        "apiVersion": API_VERSION,
        "kind": MODEL_KIND,
        "metadata": {"name": "chat", "namespace": NAMESPACE, "uid": "model-uid", "generation": 1} | metadata,
        "spec": spec_body(recipes=recipes, jobs={"parallelism": 2}),
    }


class Resolver:
    """Answers by the source's text."""

    async def resolve(self, source: Source, *, secret: Mapping[str, str] | None = None) -> Resolved:
        if source.hf is not None:
            return resolved_of("source", "a" * 40)
        if source.http is not None:
            return resolved_of("dataset", digest_of("dataset"), "golden.jsonl")
        assert source.oci is not None
        return resolved_of(source.oci.image, source.oci.image)

    async def read_file(
        self, source: Source, file: ManifestFile, *, secret: Mapping[str, str] | None = None
    ) -> bytes:
        raise AssertionError("nobody asks for a signature")


@dataclass
class Bench:
    """A keeper over a fake API."""

    kube: FakeKube = field(default_factory=FakeKube)
    clock: FakeClock = field(default_factory=FakeClock)
    metrics: OperatorMetrics = field(default_factory=OperatorMetrics)
    offers: list[ModelKey] = field(default_factory=list)
    allowed: bool = True
    keeper: ModelKeeper | None = None

    @property
    def world(self) -> ModelWorld:
        assert self.keeper is not None
        return self.keeper.world

    @asynccontextmanager
    async def run(self) -> AsyncIterator[ModelKeeper]:
        kube: Any = self.kube
        keeper: ModelKeeper
        world = ModelWorld(
            kube,
            namespaces=(),
            on_wake=lambda key: keeper.wake(key),
            on_offer=self.offers.append,
            read_profiles=lambda: (),
        )
        events = EventPoster(kube, clock=self.clock, instance="test", may_write=lambda: True)
        keeper = ModelKeeper(
            ModelServices(
                kube=kube,
                world=world,
                executor=ModelExecutor(kube, world, self.metrics, may_write=lambda: self.allowed),
                events=events,
                metrics=self.metrics,
                planner=plan_model,
                resolver=Resolver(),
                clock=self.clock,
                config=OperatorConfig(runtime_image="runtime:1", optimizer_image="optimizer:1"),
                may_write=lambda: self.allowed,
                looks=asyncio.Semaphore(1),
                resolutions=asyncio.Semaphore(1),
                read_throughs=asyncio.Semaphore(1),
            ),
            namespaces=(),
            sweep_seconds=0.05,
        )
        self.keeper = keeper
        begin = asyncio.Event()
        begin.set()
        await keeper.sweep()
        tasks = [asyncio.create_task(keeper.run(begin)), asyncio.create_task(events.run())]
        try:
            yield keeper
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def jobs(self) -> dict[str, dict[str, Any]]:
        """Jobs in the API by `work/variant`."""
        return {
            "/".join(body["metadata"]["labels"][f"slmops.dev/{key}"] for key in ("work", "variant")): body
            for (plural, _, _), body in self.kube.objects.items()
            if plural == "jobs"
        }

    def status(self) -> dict[str, Any]:
        return self.kube.objects[(MODELS.plural, NAMESPACE, "chat")].get("status") or {}

    def reflect(self, body: dict[str, Any], kind: str = "jobs") -> None:
        """The watch brings a change: the fake's own watch tells only of what was there at its begin."""
        for reflector in self.world.reflectors:
            if reflector.resource.plural == kind:
                reflector._store(body)

    def finish(self, job: dict[str, Any], container: str, message: str) -> None:
        """The Job and its pod end well."""
        spec = job["spec"]["template"]["spec"]

        def ended(names: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [
                {
                    "name": c["name"],
                    "state": {
                        "terminated": {
                            "exitCode": 0,
                            "message": message if c["name"] == container else "",
                        }
                    },
                }
                for c in names
            ]

        pod = {
            "metadata": {
                "name": f"{job['metadata']['name']}-x",
                "namespace": NAMESPACE,
                "ownerReferences": [{"uid": job["metadata"]["uid"], "controller": True}],
                "labels": {
                    **job["metadata"]["labels"],
                    "batch.kubernetes.io/job-name": job["metadata"]["name"],
                },
            },
            "spec": {"initContainers": spec["initContainers"], "containers": spec["containers"]},
            "status": {
                "initContainerStatuses": ended(spec["initContainers"]),
                "containerStatuses": ended(spec["containers"]),
            },
        }
        self.reflect(self.kube.add(PODS, pod), "pods")
        job["status"] = {
            "conditions": [
                {"type": "Complete", "status": "True", "lastTransitionTime": "2023-11-14T22:13:20Z"}
            ]
        }
        self.reflect(self.kube.add(JOBS, job))

    async def until(self, test: Callable[[], bool], seconds: float = 8) -> None:
        async with asyncio.timeout(seconds):
            while not test():  # noqa: ASYNC110 - what is waited for has no event of its own
                await asyncio.sleep(0.01)


async def test_a_model_is_looked_after_to_its_offer_and_forgotten() -> None:
    bench = Bench()
    bench.kube.add(MODELS, model_body())
    async with bench.run() as keeper:
        await bench.until(lambda: {"optimise/int4", "evaluate/fp16"} <= set(bench.jobs()))
        job = bench.jobs()["optimise/int4"]
        assert job["metadata"]["ownerReferences"][0]["uid"] == "model-uid"
        digest = digest_of("made")
        reference = f"oci://registry.example/models/chat@{digest}"
        report = PublishReport(digest=digest, reference=reference, size_bytes=1, files=1)
        bench.finish(job, "publish", to_message(report))
        bench.finish(bench.jobs()["evaluate/fp16"], "evaluate", to_message(GOOD))
        await bench.until(lambda: "evaluate/int4" in bench.jobs())
        bench.finish(bench.jobs()["evaluate/int4"], "evaluate", to_message(GOOD))
        await bench.until(lambda: bool(bench.status().get("acceptedVersion")))
        offer = bench.world.offer_of(KEY)
        assert offer is not None and offer.versions[0].accepted
        assert bench.offers.count(KEY) >= 2
        value = bench.metrics.registry.get_sample_value
        labels = {"namespace": NAMESPACE, "model": "chat"}
        assert value("slmops_model_versions", labels | {"state": "Accepted"}) == 1
        jobs = labels | {"work": "optimise", "outcome": "Succeeded"}
        assert value("slmops_model_jobs_total", jobs) == 1
        await bench.until(lambda: any(key[0] == EVENTS.plural for key in bench.kube.objects))
        events = [body for (plural, _, _), body in bench.kube.objects.items() if plural == EVENTS.plural]
        assert {event["regarding"]["kind"] for event in events} == {MODEL_KIND}
        keeper.gone(bench.kube.objects[(MODELS.plural, NAMESPACE, "chat")])
        assert bench.world.offer_of(KEY) is None and bench.offers[-1] == KEY
        assert value("slmops_model_versions", labels | {"state": "Accepted"}) is None


async def test_a_restart_finds_its_jobs_and_makes_none_twice() -> None:
    bench = Bench()
    bench.kube.add(MODELS, model_body())
    async with bench.run():
        await bench.until(lambda: len(bench.jobs()) == 2)
    before = {name: body["metadata"]["uid"] for name, body in bench.jobs().items()}
    async with bench.run():
        await bench.until(lambda: bench.world.stored(KEY) is not None)
        await asyncio.sleep(0.5)
    assert {name: body["metadata"]["uid"] for name, body in bench.jobs().items()} == before


async def test_a_job_that_the_cache_does_not_know_is_found_and_a_strangers_is_left_alone() -> None:
    bench = Bench()
    bench.kube.add(MODELS, model_body())
    async with bench.run():
        await bench.until(lambda: len(bench.jobs()) == 2)
    ours, strange = sorted(body["metadata"]["name"] for body in bench.jobs().values())
    bench.kube.objects[("jobs", NAMESPACE, strange)]["metadata"]["ownerReferences"] = []
    bench.kube.log.clear()
    async with bench.run():
        errors = bench.metrics.errors.labels("ForeignObject")
        await bench.until(lambda: errors._value.get() > 0)
        assert ("jobs", NAMESPACE, ours) in bench.kube.objects
        assert "owners" not in bench.kube.objects[("jobs", NAMESPACE, strange)]["metadata"]
    assert not [line for line in bench.kube.log if line.startswith("delete jobs")]


async def test_nothing_is_written_without_the_lease() -> None:
    bench = Bench(allowed=False)
    bench.kube.add(MODELS, model_body())
    async with bench.run():
        await asyncio.sleep(0.3)
    assert not bench.jobs() and not bench.status()


@pytest.mark.parametrize("error", [NotFound("no such kind", status=404), Forbidden("no", status=403)])
async def test_a_cluster_without_the_kind_or_the_rights_ends_nothing(error: Any) -> None:
    bench = Bench()

    async def refuse(*_: Any, **__: Any) -> Any:
        raise error
        yield {}

    listing = bench.kube.list

    def list_all(resource: Any, **options: Any) -> Any:
        return refuse() if resource is MODELS else listing(resource, **options)

    bench.kube.list = list_all  # type: ignore[method-assign]
    async with bench.run() as keeper:
        await bench.until(lambda: all(r.synced.is_set() for r in bench.world.reflectors))
        await asyncio.sleep(0.2)
        assert not bench.world.is_listed, "that nothing is seen is not that nothing is there"
        # It appears later, and kopf tells of it.
        bench.kube.list = listing  # type: ignore[method-assign]
        keeper.seen(bench.kube.add(MODELS, model_body()))
        await bench.until(lambda: len(bench.jobs()) == 2 and bench.world.is_listed)


async def test_a_job_that_is_refused_is_said_and_made_later() -> None:
    bench = Bench()
    bench.kube.add(MODELS, model_body())
    create = bench.kube.create

    async def refuse(resource: Any, **options: Any) -> Any:
        if resource is JOBS:
            raise Forbidden("exceeded quota", status=403)
        return await create(resource, **options)

    bench.kube.create = refuse  # type: ignore[method-assign]
    async with bench.run():
        await bench.until(lambda: "exceeded quota" in str(bench.status().get("conditions")))
        reasons = {c["type"]: c["reason"] for c in bench.status()["conditions"]}
        assert reasons["Optimised"] == reasons["Evaluated"] == "WriteFailed"
        bench.kube.create = create  # type: ignore[method-assign]
        await bench.until(lambda: len(bench.jobs()) == 2)
        await bench.until(lambda: "WriteFailed" not in str(bench.status()))


@pytest.mark.parametrize(
    "version",
    [
        {"version": 7},
        # A metric of a later release, and a number that is none: the offer is made of them.
        {"version": "1.0", "metric": "Rouge", "variants": []},
        {
            "version": "1.0",
            "metric": "ExactMatch",
            "variants": [
                {
                    "name": "x",
                    "step": "Accepted",
                    "source": {"hf": {"repo": "a/b"}},
                    "evaluations": [{"verdict": "Pass", "exactMatch": "much"}],
                }
            ],
        },
    ],
)
async def test_a_status_that_cannot_be_read_is_left_alone(version: dict[str, Any]) -> None:
    bench = Bench()
    body = model_body() | {"status": {"versions": [version]}}
    bench.kube.add(MODELS, body)
    async with bench.run():
        await bench.until(lambda: bench.metrics.errors.labels("StatusUnreadable")._value.get() > 0)
    assert bench.status() == {"versions": [version]} and not bench.jobs()


def test_followers_of_an_offer_are_woken_and_nobody_else() -> None:
    woken: list[DeploymentKey] = []
    world = World(FakeKube(), namespaces=(), on_wake=woken.append)  # type: ignore[arg-type]
    world.take_in_deployment(deployment_body(resourceVersion="1"))
    world.wake_followers(NAMESPACE, "chat")
    assert woken == [], "it has a source of its own"
    follower = deployment_body(resourceVersion="1", name="follower", uid="follower")
    follower["spec"]["model"] = {"name": "orders", "from": {"name": "chat", "version": "1.0"}}
    follower["status"] = {"modelVersion": "0.9"}
    world.take_in_deployment(follower)
    world.wake_followers(NAMESPACE, "chat")
    world.wake_followers("elsewhere", "chat")
    assert woken == [DeploymentKey(NAMESPACE, "follower")]
    assert world.versions_in_use(NAMESPACE, "chat") == {"1.0", "0.9"}
    assert not world.versions_in_use(NAMESPACE, "other")
    assert world.look_asked_at(NAMESPACE, "chat") == 0.0
    for version, at in (("2", "2026-01-01T00:00:00Z"), ("3", "2026-01-02T00:00:00Z")):
        asking = deployment_body(resourceVersion=version, name=f"asks{version}", uid=f"asks{version}")
        asking["spec"]["model"] = {"name": "orders", "from": {"name": "chat"}}
        asking["status"] = {"feedback": {"lookAskedAt": at}}
        world.take_in_deployment(asking)
    assert world.look_asked_at(NAMESPACE, "chat") == times.to_seconds("2026-01-02T00:00:00Z")
    assert world.look_asked_at(NAMESPACE, "other") == 0.0
    assert world.offer_of(NAMESPACE, "chat") is None


def test_what_is_kept_of_a_job() -> None:
    body = {
        "metadata": {
            "name": "chat-opt-1-0",
            "namespace": "shop",
            "uid": "u",
            "labels": {"slmops.dev/model": "chat", "slmops.dev/work": "optimise"},
            "ownerReferences": [{"uid": "model-uid"}],
        },
        "status": {
            "conditions": [
                {"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded"},
                {
                    "type": "Failed",
                    "status": "True",
                    "reason": "DeadlineExceeded",
                    "lastTransitionTime": "2023-11-14T22:13:20Z",
                },
            ]
        },
    }
    job = trim_job(body)
    assert (job.view.state, job.view.reason, job.view.work) == ("Failed", "DeadlineExceeded", "optimise")
    assert job.view.finished_at == 1_700_000_000 and job.owner_uids == {"model-uid"}
    assert trim_job({"metadata": {"name": "x"}}).view.state == "Active"


def test_what_is_kept_of_a_pod_is_in_the_order_in_which_containers_run() -> None:
    body = {
        "metadata": {
            "name": "p",
            "namespace": "shop",
            "labels": {"job-name": "j", "slmops.dev/model": "chat"},
        },
        "spec": {
            "initContainers": [{"name": "fetch"}, {"name": "step-0"}],
            "containers": [{"name": "publish"}],
        },
        "status": {
            "initContainerStatuses": [
                {"name": "step-0", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}},
                {"name": "fetch", "state": {"terminated": {"exitCode": 0, "message": "x" * 9000}}},
            ],
            "containerStatuses": [{"name": "publish", "state": {"waiting": {"reason": "PodInitializing"}}}],
            "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
            ],
        },
    }
    view = trim_job_pod(body).view
    assert [(c.name, c.state, c.reason) for c in view.containers] == [
        ("fetch", "Done", ""), ("step-0", "Failed", "OOMKilled"), ("publish", "Waiting", "PodInitializing"),
    ]  # fmt: skip
    assert view.job == "j" and view.unschedulable == "0/1 nodes"
    assert len(view.containers[0].message) == 4096
    assert all(c.state == "Waiting" for c in trim_job_pod(body | {"status": {}}).view.containers)
