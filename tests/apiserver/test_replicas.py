# SPDX-License-Identifier: Apache-2.0
"""`placement.mode: Replicas` on a real API server with its Deployment controller and scheduler."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from e2e.rig import ControlPlane, RigError
from slmops.adapters.resources import APPS_DEPLOYMENTS, DEPLOYMENTS, PODS
from slmops.model.observed import Preset
from slmwire.labels import ROLE, SITE
from tests.apiserver.harness import (
    NAME,
    SOAKS_ON,
    Body,
    Cluster,
    condition,
    deployment,
    step_of,
    until,
    verdicts,
)
from tests.apiserver.specs import changed
from tests.apiserver.specs import deployment as small_deployment

WAVES: list[Body] = [
    {"name": "canary", "count": 1},
    {"name": "half", "percent": 50},
    {"name": "rest", "percent": 100},
]


async def apply(cluster: Cluster, version: str, *, placement: Body, **rollout: Any) -> None:
    """Apply the SLMDeployment with mode Replicas."""
    body = deployment(cluster.namespace, version, waves=WAVES, **rollout)
    body["spec"]["placement"] |= {"mode": "Replicas", **placement}
    await cluster.kube.apply(DEPLOYMENTS, namespace=cluster.namespace, body=body)


async def asked(cluster: Cluster) -> Counter[str]:
    """Replicas that the Deployments of each revision ask for."""
    result: Counter[str] = Counter()
    for body in await cluster.items(APPS_DEPLOYMENTS, namespace=cluster.namespace):
        result[body["metadata"]["labels"]["slmops.dev/revision"]] += body["spec"]["replicas"]
    return result


async def until_pods(cluster: Cluster, wanted: dict[str, int]) -> None:
    """Wait until just these pods are there and asked for, by revision."""
    seen: object = None

    async def there() -> bool:
        nonlocal seen
        seen = Counter((await cluster.serving_pods()).values()), await asked(cluster)
        return seen == (Counter(wanted), Counter(wanted))

    await until(f"pods {wanted}", there, seen=lambda: seen)


async def kubectl(plane: ControlPlane, cluster: Cluster, *arguments: str) -> str:
    """kubectl in the namespace of the test, as a user would."""
    return await asyncio.to_thread(plane.kubectl, *arguments, "-n", cluster.namespace)


async def test_a_revision_goes_out_by_shares_of_the_replicas(cluster: Cluster) -> None:
    async with cluster.operator():
        await apply(cluster, "v1", placement={"replicas": 4})
        first = await cluster.until_promoted("v1")
        await until_pods(cluster, {first: 4})
        await cluster.until_status("all ready", lambda s: s["readyNodes"] == "4/4")
        assert not any((await cluster.node_labels()).values()), "nodes are not labelled in this mode"
        pods = await cluster.items(PODS, namespace=cluster.namespace, label_selector=f"{ROLE}=serve")
        assert len({pod["spec"]["nodeName"] for pod in pods}) == 4, "the pods are spread over the nodes"
        cluster.provider.silent = True
        await apply(cluster, "v2", placement={"replicas": 4})
        second = (await cluster.until_judged())["updateRevision"]
        assert await asked(cluster) == {first: 3, second: 1}
        cluster.provider.silent = False
        assert await cluster.until_promoted("v2") == second
        await until_pods(cluster, {second: 4})
        status = await cluster.until_status("the number of pods", lambda s: s["replicas"] == 4)
    assert condition(status, "Ready")["status"] == "True"
    assert verdicts(status) == {"canary": "Pass", "half": "Pass", "rest": "Pass"}
    assert status["readyNodes"] == "4/4"
    assert status["replicaCounts"] == [
        {"site": "", "revision": second, "variant": "int4", "replicas": 4, "beside": [], "moving": ""}
    ]


async def test_a_regression_is_rolled_back(cluster: Cluster) -> None:
    async with cluster.operator():
        await apply(cluster, "v1", placement={"replicas": 1})
        first = await cluster.until_promoted("v1")
        await until_pods(cluster, {first: 1})
        (before,) = await cluster.serving_pods()
        cluster.provider.silent = True
        await apply(cluster, "v2", placement={"replicas": 1})
        bad = (await cluster.until_judged())["updateRevision"]
        assert await asked(cluster) == {first: 1, bad: 1}, "the stable replica stays until it is judged"
        cluster.provider.script(Preset.EVALUATION_SCORE, bad, 0.5)
        cluster.provider.silent = False
        await cluster.until_status("the rollback", lambda s: step_of(s) == "Failed")
        await until_pods(cluster, {first: 1})
        assert set(await cluster.serving_pods()) == {before}, "it is the pod that served all the time"


async def test_scaling_by_the_subresource_and_by_hand(cluster: Cluster, control_plane: ControlPlane) -> None:
    async with cluster.operator():
        await apply(cluster, "v1", placement={"replicas": 3})
        first = await cluster.until_promoted("v1")
        await until_pods(cluster, {first: 3})
        await kubectl(control_plane, cluster, "scale", f"slmd/{NAME}", "--replicas=6", "--current-replicas=3")
        await until_pods(cluster, {first: 6})
        await cluster.until_status("the number of pods", lambda s: s.get("replicas") == 6)
        scale = await kubectl(
            control_plane, cluster, "get", f"slmd/{NAME}", "--subresource=scale", "-o",
            "jsonpath={.spec.replicas} {.status.replicas} {.status.selector}",
        )  # fmt: skip
        numbers, _, selector = scale.rpartition(" ")
        assert numbers == "6 6"
        found = await kubectl(control_plane, cluster, "get", "pods", "-l", selector, "-o", "name")
        assert len(found.split()) == 6, "the selector finds the pods, for a HorizontalPodAutoscaler"

        (workload,) = await cluster.items(APPS_DEPLOYMENTS, namespace=cluster.namespace)
        ours = f"deployment/{workload['metadata']['name']}"
        for number in (1, 9):
            await kubectl(control_plane, cluster, "scale", ours, f"--replicas={number}")
            await until_pods(cluster, {first: 6})
        await kubectl(control_plane, cluster, "delete", ours)
        await until_pods(cluster, {first: 6})

        # Who scales leaves replicas out of what is applied.
        await apply(cluster, "v2", placement={}, **SOAKS_ON)
        status = await cluster.until_status("the canary", lambda s: step_of(s) == "Soaking")
        second = status["updateRevision"]
        await until_pods(cluster, {first: 5, second: 1})
        await kubectl(control_plane, cluster, "scale", f"slmd/{NAME}", "--replicas=2")
        await until_pods(cluster, {first: 1, second: 1})
        await kubectl(control_plane, cluster, "scale", f"slmd/{NAME}", "--replicas=0")
        await until_pods(cluster, {})
        status = await cluster.until_status("scaled to zero", lambda s: s.get("replicas") == 0)
        assert condition(status, "Ready")["reason"] == "ScaledToZero"


async def test_it_goes_on_after_a_kill_before_any_write(cluster: Cluster) -> None:
    async with cluster.operator():
        await apply(cluster, "v1", placement={"replicas": 2})
        first = await cluster.until_promoted("v1")
        await until_pods(cluster, {first: 2})
        await cluster.until_status("quiet", lambda s: condition(s, "Ready").get("status") == "True")
    await apply(cluster, "v2", placement={"replicas": 2})

    async def ended() -> bool:
        return bool((await cluster.status()).get("modelVersion") == "v2")

    for _ in range(12):
        async with cluster.operator(die_before=2) as running:
            await cluster.until_over(running, ended)
            pods = Counter((await cluster.serving_pods()).values())
            assert sum(pods.values()) >= 2
        if await ended():
            break
    async with cluster.operator():
        second = await cluster.until_promoted("v2")
        await until_pods(cluster, {second: 2})


async def test_each_site_has_its_own_replicas(cluster: Cluster) -> None:
    for name, site in (("e", "north"), ("f", "north"), ("g", "south")):
        await cluster.add_node(name, site=site)
    placement = {"replicas": 2, "replicaScope": "PerSite", "siteLabel": "site"}
    async with cluster.operator():
        await apply(cluster, "v1", placement=placement)
        first = await cluster.until_promoted("v1")
        await until_pods(cluster, {first: 4})
        status = await cluster.until_status("all ready", lambda s: s["readyNodes"] == "4/4")
        pods = await cluster.items(PODS, namespace=cluster.namespace, label_selector=f"{ROLE}=serve")
        placed = Counter(
            (pod["metadata"]["labels"][SITE], pod["spec"]["nodeName"].rpartition("-")[2]) for pod in pods
        )
        assert placed == {("north", "e"): 1, ("north", "f"): 1, ("south", "g"): 2}
        assert {p["reason"] for p in status["worstNodes"]} == {"NoSite"} and status["nodes"]["unfit"] == 4


async def test_deletion_leaves_nothing(cluster: Cluster) -> None:
    async with cluster.operator():
        await apply(cluster, "v1", placement={"replicas": 2})
        first = await cluster.until_promoted("v1")
        await until_pods(cluster, {first: 2})
        await cluster.kube.delete(DEPLOYMENTS, namespace=cluster.namespace, name=NAME)

        async def gone() -> bool:
            left = await cluster.items(DEPLOYMENTS, namespace=cluster.namespace)
            return not left and not await cluster.serving_pods()

        await until("everything being gone", gone)
        assert not any((await cluster.node_labels()).values())


def test_what_would_take_all_pods_away_is_refused(control_plane: ControlPlane) -> None:
    body = small_deployment("modes")
    body["spec"]["placement"] |= {"mode": "Replicas", "replicas": 2, "replicaScope": "PerSite"}
    other = small_deployment("nodes")
    control_plane.kubectl.apply(body, other)
    try:
        for path, value, words in (
            ("spec.placement.mode", "PerNode", "mode cannot be changed"),
            ("spec.placement.replicaScope", "Total", "replicaScope cannot be changed"),
            ("spec.placement.siteLabel", "site", "siteLabel cannot be changed"),
        ):
            with pytest.raises(RigError, match=words):
                control_plane.kubectl.apply(changed(body, path, value))
        with pytest.raises(RigError, match="mode cannot be changed"):
            control_plane.kubectl.apply(changed(other, "spec.placement.mode", "Replicas"))
        with pytest.raises(RigError, match="replicas needs mode: Replicas"):
            control_plane.kubectl("scale", "slmd/nodes", "--replicas=3")
        with pytest.raises(RigError, match="PerSite needs mode: Replicas"):
            control_plane.kubectl.apply(
                changed(small_deployment("x"), "spec.placement.replicaScope", "PerSite")
            )
        with pytest.raises(RigError, match="less than or equal to 1000"):
            control_plane.kubectl.apply(changed(body, "spec.placement.replicas", 1001))
        control_plane.kubectl.apply(changed(body, "spec.placement.replicas", 5))
    finally:
        control_plane.kubectl("delete", "slmd", "modes", "nodes")
