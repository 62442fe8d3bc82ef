# SPDX-License-Identifier: Apache-2.0
"""The main job on a real API server: install, promote in waves, roll back."""

from slmops.adapters.resources import CONTROLLER_REVISIONS, EVENTS
from slmops.model.observed import Preset
from tests.apiserver.harness import Cluster, condition, step_of, until, verdicts


async def test_install_serves_on_every_matching_node(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        revision = await cluster.until_promoted("v1")
        await cluster.until_settled(revision, 4)
        status = await cluster.until_status("Ready", lambda s: condition(s, "Ready").get("status") == "True")
    assert status["readyNodes"] == "4/4"
    assert condition(status, "Accepted")["status"] == "True"
    assert condition(status, "ModelResolved")["status"] == "True"


async def test_waves_are_promoted_one_by_one(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        first = await cluster.until_promoted("v1")
        await cluster.until_settled(first, 4)
        cluster.provider.silent = True
        await cluster.apply("v2")
        status = await cluster.until_judged()
        labels = await cluster.node_labels()
        assert set(labels["a"]) - {f"{status['updateRevision']}.prefetch"} == {status["updateRevision"]}
        assert all(first in labels[name] for name in "bcd")
        cluster.provider.silent = False
        second = await cluster.until_promoted("v2")
        await cluster.until_settled(second, 4)
        status = await cluster.status()
        revisions = await cluster.items(CONTROLLER_REVISIONS, namespace=cluster.namespace)
        reasons: set[str] = set()

        async def told() -> bool:
            events = await cluster.items(EVENTS, namespace=cluster.namespace)
            reasons.update(e["reason"] for e in events if e["regarding"]["kind"] == "SLMDeployment")
            return reasons >= {"Installing", "RolloutStarted", "WavePassed", "Promoted"}

        await until("the events", told, seen=lambda: reasons)
    assert verdicts(status) == {"pilot": "Pass", "half": "Pass", "all": "Pass"}
    assert {"pilot", "half", "all"} <= {m["wave"] for m in status["rollout"]["measurements"]}
    names = {
        r["metadata"]["labels"]["slmops.dev/revision"] for r in revisions if "deletionTimestamp" not in r
    }
    assert {first, second} <= names


async def test_a_regression_is_rolled_back(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        first = await cluster.until_promoted("v1")
        await cluster.until_settled(first, 4)
        cluster.provider.silent = True
        await cluster.apply("v2")
        status = await cluster.until_status("a rollout", lambda s: s["updateRevision"] not in ("", first))
        bad = status["updateRevision"]
        cluster.provider.script(Preset.EVALUATION_SCORE, bad, 0.5)
        cluster.provider.silent = False
        status = await cluster.until_status("the rollback", lambda s: step_of(s) == "Failed")
        await cluster.until_settled(first, 4)
    assert status["stableRevision"] == first
    assert [f["revision"] for f in status["failedRevisions"]] == [bad]
    assert condition(status, "RolloutSucceeded")["status"] == "False"
    assert "quality" in status["rollout"]["message"]
    assert verdicts(status)["half"] == ""
