# SPDX-License-Identifier: Apache-2.0
"""The ConfigMap of limits and neighbours on a real API server: kept up to date, and no pod notices."""

import json
from typing import Any

from slmops.adapters.resources import CONFIG_MAPS, DEPLOYMENTS, NODES
from slmwire.distribution import Distribution, parse_distribution
from tests.apiserver.harness import NAME, Cluster, until

SITE = "topology.kubernetes.io/zone"


async def test_limits_and_neighbours_are_kept_up_to_date(cluster: Cluster) -> None:
    namespace, name = cluster.namespace, f"{NAME}-distribution"

    async def read() -> dict[str, Any]:
        return await cluster.kube.get(CONFIG_MAPS, namespace=namespace, name=name)

    async def told() -> Distribution:
        return parse_distribution((await read())["data"]["distribution.json"])

    async with cluster.operator():
        await cluster.apply("v1")
        revision = await cluster.until_promoted("v1")
        await cluster.until_settled(revision, 4)
        assert (await told()).sites == {}
        pods = set(await cluster.serving_pods())

        members = [f"{namespace}-a", f"{namespace}-b"]
        for node in members:
            await cluster.kube.merge_patch(NODES, name=node, body={"metadata": {"labels": {SITE: "berlin"}}})

        async def shared() -> bool:
            return set((await told()).sites.get("berlin", {})) == set(members)

        await until("both being neighbours", shared)
        body = await cluster.kube.get(NODES, name=members[0])
        (address,) = [a["address"] for a in body["status"]["addresses"] if a["type"] == "InternalIP"]
        assert (await told()).sites["berlin"][members[0]] == address
        assert (await told()).peer_port == 8491

        limits = {"spec": {"distribution": {"rateLimit": "2M"}}}
        await cluster.kube.merge_patch(DEPLOYMENTS, namespace=namespace, name=NAME, body=limits)

        async def limited() -> bool:
            return (await told()).rate_limit_bytes_per_second == 2_000_000

        await until("the limit being told", limited)
        theirs = {"data": {"distribution.json": json.dumps({"sites": {"evil": {"a": "1.2.3.4"}}})}}
        await cluster.kube.merge_patch(CONFIG_MAPS, namespace=namespace, name=name, body=theirs)
        await until("what somebody wrote being put right", limited)
        version = (await read())["metadata"]["resourceVersion"]
        assert set(await cluster.serving_pods()) == pods
        assert (await cluster.status())["stableRevision"] == revision

    async with cluster.operator() as again:

        async def looked() -> bool:
            return any("daemonsets" in write for write in again.client.writes)

        await until("the next operator having written what may have changed", looked)
        await cluster.until_settled(revision, 4)
    assert not [write for write in again.client.writes if name in write]
    assert (await read())["metadata"]["resourceVersion"] == version, "nothing new, nothing written"
