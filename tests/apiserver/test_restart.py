# SPDX-License-Identifier: Apache-2.0
"""The operator dies, the API server goes away, the spec changes midway (scenarios 10-14, 27, 33)."""

import asyncio

import pytest

from slmops.adapters.resources import DAEMON_SETS
from slmops.model.observed import Preset
from tests.apiserver.harness import SOAKS_ON, Cluster, step_of, until, verdicts


@pytest.mark.parametrize("writes", [1, 4])
async def test_killed_after_any_write_ends_the_same(cluster: Cluster, writes: int) -> None:
    """Killed at the n-th write again and again; each life goes on where the last one ended."""
    lives = 0
    async with cluster.operator():
        await cluster.apply("v1")
        first = await cluster.until_promoted("v1")
        await cluster.until_settled(first, 4)
    await cluster.apply("v2")

    async def ended() -> bool:
        return bool((await cluster.status()).get("modelVersion") == "v2")

    waves: list[int] = []
    while lives < 60:
        status = await cluster.status()
        if (rollout := status.get("rollout")) and rollout["revision"] != first:
            waves.append(rollout["wave"])
        if status.get("modelVersion") == "v2":
            break
        lives += 1
        # The first writes of a life only repeat what exists (drift is not known across lives).
        async with cluster.operator(die_before=writes + (lives // 3)) as running:
            await cluster.until_over(running, ended)
    async with cluster.operator():
        second = await cluster.until_promoted("v2")
        await cluster.until_settled(second, 4)
        status = await cluster.status()
    assert lives > 1
    assert waves == sorted(waves), "a wave was repeated"
    assert verdicts(status) == {"pilot": "Pass", "half": "Pass", "all": "Pass"}
    assert "failedRevisions" not in status or status["failedRevisions"] == []


async def test_restart_without_a_change_touches_no_pod_and_no_status(cluster: Cluster) -> None:
    async with cluster.operator() as running:
        await cluster.apply("v1")
        revision = await cluster.until_promoted("v1")
        await cluster.until_settled(revision, 4)
        await cluster.until_status("all ready", lambda s: s["readyNodes"] == "4/4")
        await cluster.until_quiet(running)
    pods = await cluster.serving_pods()
    sets = {
        d["metadata"]["name"]: d["metadata"]["generation"]
        for d in await cluster.items(DAEMON_SETS, namespace=cluster.namespace)
    }
    version = (await cluster.read())["metadata"]["resourceVersion"]
    async with cluster.operator() as running:

        async def looked() -> bool:
            return any("daemonsets" in write for write in running.client.writes)

        await until("the second operator having looked", looked)
        await cluster.until_quiet(running)
        written = list(running.client.writes)
    assert await cluster.serving_pods() == pods
    assert {
        d["metadata"]["name"]: d["metadata"]["generation"]
        for d in await cluster.items(DAEMON_SETS, namespace=cluster.namespace)
    } == sets
    assert (await cluster.read())["metadata"]["resourceVersion"] == version
    assert all(w.startswith("apply ") for w in written), written
    # Each object once at most: the revision's two, the Service and the two NetworkPolicies.
    assert len(written) == len(set(written)) <= 5, written


async def test_new_revision_midway_begins_with_the_first_wave(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        first = await cluster.until_promoted("v1")
        await cluster.until_settled(first, 4)
        await cluster.apply("v2", **SOAKS_ON)
        await cluster.until_status("v2 soaking", lambda s: step_of(s) == "Soaking")
        second = (await cluster.status())["updateRevision"]
        cluster.provider.silent = True
        await cluster.apply("v3")
        status = await cluster.until_status(
            "v3 taking over", lambda s: s["rollout"]["revision"] not in (first, second)
        )
        assert status["rollout"]["wave"] == 0
        assert status["stableRevision"] == first
        cluster.provider.silent = False
        third = await cluster.until_promoted("v3")
        await cluster.until_settled(third, 4)


async def test_going_back_to_stable_midway_returns_at_once(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        first = await cluster.until_promoted("v1")
        await cluster.until_settled(first, 4)
        await cluster.apply("v2", **SOAKS_ON)
        await cluster.until_status("v2 soaking", lambda s: step_of(s) == "Soaking")
        await cluster.apply("v1", **SOAKS_ON)
        status = await cluster.until_status("the end", lambda s: step_of(s) == "Cancelled")
        await cluster.until_settled(first, 4)
    assert not status.get("failedRevisions")


async def test_failed_revision_is_not_tried_again_until_asked(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        first = await cluster.until_promoted("v1")
        await cluster.until_settled(first, 4)
        cluster.provider.silent = True
        await cluster.apply("v2")
        status = await cluster.until_status("v2 being known", lambda s: s["updateRevision"] != first)
        bad = status["updateRevision"]
        cluster.provider.script(Preset.ERROR_RATE, bad, 0.9)
        cluster.provider.silent = False
        await cluster.until_status("the rollback", lambda s: step_of(s) == "Failed")
        await cluster.until_settled(first, 4)
        cluster.provider.samples.clear()
        await cluster.apply("v2", soak="2s")  # GitOps applies it once more
        generation = (await cluster.read())["metadata"]["generation"]
        await cluster.until_status("it being seen", lambda s: s["observedGeneration"] == generation)
        await asyncio.sleep(2)
        assert step_of(await cluster.status()) == "Failed"
        await cluster.annotate(retry="1")
        await cluster.until_promoted("v2")
        await cluster.until_settled(bad, 4)


async def test_object_that_cannot_be_written_does_not_stop_the_rest(cluster: Cluster) -> None:
    async with cluster.operator() as running:
        await cluster.apply("v1")
        first = await cluster.until_promoted("v1")
        await cluster.until_settled(first, 4)
        running.client.broken = lambda verb, path: verb == "patch" and path.endswith("-a")
        policy = {"onDeadline": "Rollback", "progressDeadline": "5s", "prefetchDeadline": "5s"}
        await cluster.apply("v2", **policy)
        status = await cluster.until_status("the deadline", lambda s: bool(s.get("failedRevisions")))
        assert status["failedRevisions"][0]["reason"] == "DeadlineExceeded"
        running.client.broken = lambda verb, path: False
        await cluster.until_settled(first, 4)


async def test_apiserver_restart_during_a_rollout(cluster: Cluster, control_plane) -> None:  # type: ignore[no-untyped-def]
    async with cluster.operator():
        await cluster.apply("v1")
        first = await cluster.until_promoted("v1")
        await cluster.until_settled(first, 4)
        pods = await cluster.serving_pods()
        cluster.provider.silent = True
        await cluster.apply("v2")
        await cluster.until_judged()
        await asyncio.to_thread(control_plane.restart_apiserver, downtime_seconds=2)
        untouched = set(pods) & set(await cluster.serving_pods())
        assert len(untouched) == 3, "only the pilot node may have another pod"
        cluster.provider.silent = False
        second = await cluster.until_promoted("v2")
        await cluster.until_settled(second, 4)
