# SPDX-License-Identifier: Apache-2.0
"""Adapters trained at a site, on a real API server: from the wish to the nodes that serve it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final

import pytest

from slmops.adapters.resources import DEPLOYMENTS, NETWORK_POLICIES
from slmwire import paths
from tests.apiserver import harness
from tests.apiserver.adaptation_kit import (
    ADAPTATION,
    NORTH,
    REFUSED,
    SITES,
    SOUTH,
    TOO_FEW,
    Body,
    Fleet,
    accepted,
    check_pod,
    fleet_of,
    is_beyond,
    jobs,
    node_of,
    pods,
    sha,
    site_of,
    until_no_jobs,
)
from tests.apiserver.conftest import MakeCluster
from tests.apiserver.harness import NAME, until

PARALLEL: Final = 4


@pytest.fixture
async def fleet(make_cluster: MakeCluster) -> AsyncIterator[Fleet]:
    """Two nodes at each of two sites."""
    async with fleet_of(make_cluster, "") as found:
        yield found


async def test_a_site_trains_an_adapter_and_serves_it(fleet: Fleet) -> None:
    cluster, namespace = fleet.cluster, fleet.cluster.namespace
    async with cluster.operator():
        await fleet.apply()
        first = await cluster.until_promoted("v1")
        await fleet.until_given(NORTH | SOUTH)
        env = await fleet.server_env(first, "int4-north")
        assert env["SLM_EXAMPLES_DIR"] == paths.EXAMPLES_DIR
        assert "SLM_EXAMPLES_DIR" not in await fleet.server_env(first, "int4")
        policy = await cluster.kube.get(NETWORK_POLICIES, namespace=namespace, name=f"{NAME}-train")
        assert "egress" not in policy["spec"] and policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert await jobs(cluster) == [], "nobody has asked"

        await cluster.annotate(train="1")
        (job,) = await fleet.until_job()
        state = await fleet.until_site("the training", lambda s: s.get("phase") == "Training")
        assert (state["job"], state["askedBy"]) == (job["metadata"]["name"], "Annotation")
        (pod,) = await pods(cluster)
        node = node_of(cluster, pod)
        assert (state["node"], SITES[node]) == (f"{namespace}-{node}", "north")
        check_pod(pod)
        assert pod["metadata"]["labels"]["slmops.dev/site"] == "north"
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        (owner,) = job["metadata"]["ownerReferences"]
        assert owner["uid"] == (await cluster.read())["metadata"]["uid"] and owner["controller"]
        assert pod["metadata"]["uid"] not in await cluster.serving_pods()

        fleet.kubelet.reports.append(accepted("one"))
        second = await fleet.until_adapted(first, "one")
        await fleet.until_given(NORTH | SOUTH)
        state = site_of(await cluster.status(), "north")
        assert (state["phase"], state["lastOutcome"], state["adapter"]["sha256"]) == (
            "Accepted", "Accepted", sha("one"),
        )  # fmt: skip
        assert "waiting" not in state
        env = await fleet.server_env(second, "int4-north")
        assert env["SLM_DEFAULT_ADAPTER"] == "local"
        assert await fleet.files_of(second, "int4") == {"model.onnx": ""}, "the south has nothing of it"
        assert "SLM_DEFAULT_ADAPTER" not in await fleet.server_env(second, "int4")
        assert fleet.kubelet.ended and len(await jobs(cluster)) == 1

        # Another model has other files: the adapter falls away, and the site trains anew without being asked.
        await fleet.apply("v2")
        third = await cluster.until_promoted("v2")
        assert await fleet.files_of(third, "int4-north") == {"model.onnx": ""}
        state = await fleet.until_site(
            "another training", lambda s: s.get("phase") == "Training" and s["job"] != state["job"]
        )
        assert state["askedBy"] == "NewModel"
        fleet.kubelet.reports.append(accepted("two", version="v2"))
        await fleet.until_adapted(third, "two")


async def test_a_site_that_is_taken_out_is_as_others_are(fleet: Fleet) -> None:
    cluster = fleet.cluster
    async with cluster.operator():
        await fleet.apply()
        first = await cluster.until_promoted("v1")
        await cluster.annotate(train="1")
        await fleet.until_job()
        await fleet.apply(adaptation=ADAPTATION | {"sites": ["south"]})
        await fleet.until_given({"a": "int4", "b": "int4", "c": "int4-south", "d": "int4-south"})
        status = await cluster.until_status(
            "the new sites being promoted",
            lambda s: is_beyond(first, s),
        )
        assert [(e["site"], e["phase"]) for e in status["adaptation"]["sites"]] == [("south", "Collecting")]
        await until_no_jobs(cluster)
        await fleet.apply(adaptation=None)
        await fleet.until_given(dict.fromkeys(SITES, "int4"))
        assert "adaptation" not in await cluster.status()

        async def no_policy() -> bool:
            found = await cluster.items(NETWORK_POLICIES, namespace=cluster.namespace)
            return f"{NAME}-train" not in [policy["metadata"]["name"] for policy in found]

        await until("the policy of trainings being gone", no_policy)


async def test_a_node_with_too_few_examples_is_followed_by_the_next_and_a_refusal_ends_it(
    fleet: Fleet,
) -> None:
    cluster = fleet.cluster
    async with cluster.operator():
        await fleet.apply()
        first = await cluster.until_promoted("v1")
        fleet.kubelet.reports += [TOO_FEW, TOO_FEW]
        await cluster.annotate(train="1")
        state = await fleet.until_site("the end of it", lambda s: s.get("phase") == "Refused")
        assert sorted(fleet.kubelet.ended) == ["a", "b"], "each node once"
        assert (state["reason"], state["attempt"]) == ("TooFewExamples", 2)

        fleet.kubelet.reports += [TOO_FEW, REFUSED]
        await cluster.annotate(train="2")
        state = await fleet.until_site(
            "the refusal", lambda s: s.get("phase") == "Refused" and s["reason"] == "NoGain"
        )
        assert (state["before"], state["after"], state["examples"]) == ("0.4000", "0.4000", 60)
        assert state["attempt"] == 4
        assert (await cluster.status())["stableRevision"] == first and "adapter" not in state


async def test_an_adapter_that_fails_its_rollout_is_dropped(fleet: Fleet) -> None:
    cluster = fleet.cluster
    async with cluster.operator() as running:
        await fleet.apply()
        fleet.provider.only_good = first = await cluster.until_promoted("v1")
        fleet.kubelet.reports.append(accepted("worse than it looks"))
        await cluster.annotate(train="1")
        state = await fleet.until_site("its end", lambda s: s.get("phase") == "RolledBack")
        assert "adapter" not in state and state["lastOutcome"] == "Accepted"
        await cluster.until_settled(first, 4)
        status = await cluster.until_status(
            "what serves being what is wanted",
            lambda s: s["stableRevision"] == s["updateRevision"] == first,
        )
        assert harness.condition(status, "AdaptationHealthy")["reason"] == "AdapterRolledBack"
        assert len(await jobs(cluster)) == 1, "nobody trains the same again"
        counted = running.operator._parts.metrics.adapter_trainings.labels(
            cluster.namespace, NAME, "Accepted"
        )
        assert counted._value.get() == 1


async def test_a_rule_asks_the_site_that_decided(fleet: Fleet) -> None:
    cluster = fleet.cluster
    rule = {
        "name": "score",
        "metric": {"preset": "FeedbackScore"},
        "min": "0.6",
        "for": "1s",
        "action": "TrainAdapter",
    }
    both = ADAPTATION | {"sites": ["north", "south"]}
    async with cluster.operator():
        await fleet.apply(adaptation=both, feedback={"interval": "10s", "rules": [rule]})
        await cluster.until_promoted("v1")
        fleet.provider.judged["int4-south"] = 0.3
        state = await fleet.until_site("the training", lambda s: s.get("phase") == "Training", site="south")
        assert state["askedBy"] == "Rule"
        (job,) = await fleet.until_job()
        assert job["metadata"]["labels"]["slmops.dev/site"] == "south"
        assert site_of(await cluster.status(), "north")["phase"] == "Collecting"


async def test_a_deployment_that_is_deleted_takes_its_job_along(fleet: Fleet) -> None:
    cluster = fleet.cluster
    async with cluster.operator():
        await fleet.apply()
        await cluster.until_promoted("v1")
        await cluster.annotate(train="1")
        await fleet.until_job()
        await cluster.kube.delete(DEPLOYMENTS, namespace=cluster.namespace, name=NAME)
        await until_no_jobs(cluster)

        async def gone() -> bool:
            return not await cluster.items(DEPLOYMENTS, namespace=cluster.namespace)

        await until("the deployment being gone", gone)
        assert not any((await cluster.node_labels()).values())


@dataclass(frozen=True)
class End:
    """What must not depend on a kill."""

    sha256: str
    attempts: int
    jobs: int
    ended: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]


async def adapt(fleet: Fleet, die_before: int | None) -> tuple[End, list[str]]:
    """A training and the rollout of what it left, with one death; the end, and what was written before it."""
    cluster = fleet.cluster
    async with cluster.operator():
        await fleet.apply()
        first = await cluster.until_promoted("v1")
    fleet.kubelet.reports.append(accepted("one"))

    def ended(status: Body) -> bool:
        return is_beyond(first, status)

    async with cluster.operator(die_before=die_before) as running:
        task = running.task
        assert task is not None

        async def over() -> bool:
            return task.done() or ended(await cluster.status())

        await cluster.annotate(train="1")
        await until("the end or death", over, seconds=90)
    async with cluster.operator():
        await cluster.until_status("the end", ended)
        revision = await fleet.until_adapted(first, "one")
        await cluster.until_settled(revision, 2)
        state = site_of(await cluster.status(), "north")
        end = End(
            sha256=state["adapter"]["sha256"],
            attempts=state["attempt"],
            jobs=len(await jobs(cluster)),
            ended=tuple(fleet.kubelet.ended),
            labels={node: tuple(found.values()) for node, found in (await cluster.node_labels()).items()},
        )
    return end, running.client.writes


@pytest.mark.timeout(600)
async def test_there_is_one_job_whichever_write_was_the_last(make_cluster: MakeCluster) -> None:
    """What follows once the revision with the adapter is there is any rollout's business."""
    async with fleet_of(make_cluster, "whole", nodes="ac") as fleet:
        whole, writes = await adapt(fleet, None)
    assert whole == End(
        sha256=sha("one"), attempts=1, jobs=1, ended=("a",), labels={"a": ("int4-north",), "c": ("int4",)}
    )
    begins = next(index for index, write in enumerate(writes) if "controllerrevisions" in write)
    assert sum("/jobs" in write for write in writes[:begins]) == 1
    slots = asyncio.Semaphore(PARALLEL)

    async def kill(number: int) -> None:
        async with slots, fleet_of(make_cluster, f"kill{number}", nodes="ac") as fleet:
            end, writes = await adapt(fleet, number)
        assert len(writes) == number and end == whole, f"killed before write {number}"

    async with asyncio.TaskGroup() as group:
        for number in range(begins + 2):
            group.create_task(kill(number))
