# SPDX-License-Identifier: Apache-2.0
"""NetworkPolicies and allowed sites on a real API server, by the operator's own account."""

import asyncio
import json
from typing import Any

from e2e.rig import ControlPlane
from slmops.adapters.resources import DEPLOYMENTS, NETWORK_POLICIES, NODES
from slmwire.labels import MANAGED_BY
from tests.apiserver.harness import NAME, Cluster, condition, until

CONFINE, FETCH = f"{NAME}-confine", f"{NAME}-fetch"
SITE = "topology.kubernetes.io/zone"


async def set_privacy(cluster: Cluster, privacy: dict[str, Any]) -> None:
    await cluster.kube.merge_patch(
        DEPLOYMENTS, namespace=cluster.namespace, name=NAME, body={"spec": {"privacy": privacy}}
    )


async def policies(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Specs of the operator's policies by name."""
    found = await cluster.items(
        NETWORK_POLICIES, namespace=cluster.namespace, label_selector=f"{MANAGED_BY}=slmops"
    )
    return {body["metadata"]["name"]: body["spec"] for body in found}


async def test_policies_are_kept_as_spec_wants_them(cluster: Cluster, control_plane: ControlPlane) -> None:
    async def are(names: set[str]) -> bool:
        return set(await policies(cluster)) == names

    async with cluster.operator():
        await cluster.apply("v1")
        revision = await cluster.until_promoted("v1")
        await cluster.until_settled(revision, 4)
        written = await policies(cluster)
        assert set(written) == {CONFINE, FETCH}
        assert "egress" not in written[CONFINE] and set(written[CONFINE]["policyTypes"]) == {
            "Ingress",
            "Egress",
        }
        assert written[FETCH]["egress"], "the source is open"

        await cluster.kube.delete(NETWORK_POLICIES, namespace=cluster.namespace, name=CONFINE)

        async def same() -> bool:
            return await policies(cluster) == written

        await until("the policy being back", same)
        # By kubectl: what somebody else adds belongs to a field manager that is not ours.
        hole: dict[str, Any] = {"spec": {"egress": [{}]}}
        command = ("patch", "networkpolicy", CONFINE, "-n", cluster.namespace, "--type=merge", "-p")
        await asyncio.to_thread(control_plane.kubectl, *command, json.dumps(hole))
        await until("the hole being closed", same)

        await set_privacy(cluster, {"clients": [{}], "egress": "Denied"})

        async def narrowed() -> bool:
            found = await policies(cluster)
            first = found[CONFINE]["ingress"][0].get("from")
            roles = found[FETCH]["podSelector"]["matchExpressions"][0]["values"]
            return bool(first == [{"podSelector": {}}] and roles == ["prefetch"])

        await until("the policies being narrowed", narrowed)
        await cluster.until_settled(revision, 4)

        await set_privacy(cluster, {"clients": None, "egress": None, "networkPolicy": "None"})
        await until("the policies being gone", lambda: are(set()))
        await set_privacy(cluster, {"networkPolicy": "Managed"})
        await until("the policies being back", lambda: are({CONFINE, FETCH}))
        await cluster.kube.delete(DEPLOYMENTS, namespace=cluster.namespace, name=NAME)
        await until("the policies going with the deployment", lambda: are(set()))


async def test_nodes_at_other_sites_are_left_out_and_emptied(cluster: Cluster) -> None:
    async def move(node: str, site: str) -> None:
        body = {"metadata": {"labels": {SITE: site}}}
        await cluster.kube.merge_patch(NODES, name=f"{cluster.namespace}-{node}", body=body)

    async def have(*nodes: str) -> bool:
        labels = await cluster.node_labels()
        return {name for name, own in labels.items() if own} == set(nodes)

    async def serve(number: int) -> bool:
        return len(await cluster.serving_pods()) == number

    for node, site in (("a", "paris"), ("b", "paris"), ("c", "berlin")):  # d has no site
        await move(node, site)
    async with cluster.operator():
        await cluster.apply("v1")
        await set_privacy(cluster, {"allowedSites": ["paris", "lyon"]})

        async def allowed_only() -> bool:
            return await have("a", "b") and await serve(2)

        await until("the allowed nodes serving alone", allowed_only)

        async def told() -> bool:
            status = await cluster.status()
            reasons = {entry["reason"]: entry["nodes"] for entry in status.get("reasons", [])}
            return reasons == {"SiteNotAllowed": 2} and condition(status, "Ready")["status"] == "True"

        await until("the others being reported", told)
        await move("b", "berlin")

        async def emptied() -> bool:
            return await have("a") and await serve(1)

        await until("the node that moved out being emptied", emptied)
        await move("d", "lyon")
        await until("the node that moved in serving", lambda: have("a", "d"))
