# SPDX-License-Identifier: Apache-2.0
"""Nodes that come, go, lose their labels and their link (scenarios 15, 18, 20)."""

from slmops.adapters.resources import NODES
from slmops.planning.names import Names
from tests.apiserver.harness import NAME, SOAKS_ON, Cluster, step_of, until, verdicts


async def test_node_offline_before_its_wave_is_deferred_and_converges(cluster: Cluster) -> None:
    async with cluster.operator():
        # A wave of offline nodes alone would hold: which node is in which share is not up to the test.
        pilot = {"name": "pilot", "nodeSelector": {"matchLabels": {"pilot": "true"}}}
        quorum = {"quorumPercent": 50, "waves": [pilot, {"name": "all", "percent": 100}]}
        await cluster.apply("v1", **quorum)
        first = await cluster.until_promoted("v1")
        await cluster.until_settled(first, 4)
        node = f"{cluster.namespace}-d"
        await cluster.node_offline(node)
        await cluster.apply("v2", **quorum)
        second = await cluster.until_promoted("v2")
        status = await cluster.status()
        assert sum(wave["deferred"] for wave in status["rollout"]["waves"]) == 1
        assert sum(wave["failed"] for wave in status["rollout"]["waves"]) == 0
        assert first in (await cluster.node_labels())["d"]
        await cluster.node_online(node)
        await cluster.until_settled(second, 4)


async def test_node_that_goes_offline_after_its_flip_fails_the_wave(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        first = await cluster.until_promoted("v1")
        await cluster.until_settled(first, 4)
        await cluster.apply("v2", **SOAKS_ON)
        await cluster.until_status("the pilot wave soaking", lambda s: step_of(s) == "Soaking")
        node = f"{cluster.namespace}-a"
        await cluster.node_offline(node)
        status = await cluster.until_status("the failure", lambda s: bool(s.get("failedRevisions")))
        assert status["failedRevisions"][0]["reason"] == "NodesFailed"
        assert "a: " in status["failedRevisions"][0]["message"]
        assert verdicts(status) == {"pilot": "Fail", "half": "", "all": ""}
        await cluster.node_online(node)
        await cluster.until_settled(first, 4)


async def test_nodes_are_added_relabelled_and_removed(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        revision = await cluster.until_promoted("v1")
        await cluster.until_settled(revision, 4)
        await cluster.add_node("e")
        await cluster.until_settled(revision, 5)
        # Taken out by its labels: the pod goes and the label with it.
        name = f"{cluster.namespace}-d"
        await cluster.kube.merge_patch(NODES, name=name, body={"metadata": {"labels": {"test": None}}})

        async def left() -> bool:
            labels = (await cluster.kube.get(NODES, name=name))["metadata"]["labels"]
            return not any(key.startswith(Names(cluster.namespace, NAME).label_prefix) for key in labels)

        await until("the label leaving the node", left)
        await cluster.until_settled(revision, 4)
        await cluster.kube.delete(NODES, name=f"{cluster.namespace}-e")
        status = await cluster.until_status("three nodes", lambda s: s["readyNodes"] == "3/3")
        assert status["nodes"]["offline"] == 0
