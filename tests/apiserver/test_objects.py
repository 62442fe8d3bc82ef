# SPDX-License-Identifier: Apache-2.0
"""Drift is repaired, foreign objects are left alone, deletion leaves nothing (scenarios 28, 34)."""

import asyncio
import json

from e2e.rig import ControlPlane
from slmops.adapters.resources import (
    CONFIG_MAPS,
    CONTROLLER_REVISIONS,
    DAEMON_SETS,
    DEPLOYMENTS,
    EVENTS,
    NETWORK_POLICIES,
    NODES,
    SERVICES,
)
from slmops.planning.names import Names
from tests.apiserver.harness import NAME, Cluster, condition, until


async def test_drift_is_repaired(cluster: Cluster, control_plane: ControlPlane) -> None:
    namespace = cluster.namespace
    async with cluster.operator():
        await cluster.apply("v1")
        revision = await cluster.until_promoted("v1")
        await cluster.until_settled(revision, 4)
        workload = Names(namespace, NAME).workload(revision, "int4")

        await cluster.kube.delete(SERVICES, namespace=namespace, name=NAME)
        await cluster.kube.delete(CONFIG_MAPS, namespace=namespace, name=workload)

        async def restored() -> bool:
            await cluster.kube.get(SERVICES, namespace=namespace, name=NAME)
            await cluster.kube.get(CONFIG_MAPS, namespace=namespace, name=workload)
            return True

        await until("Service and ConfigMap being back", restored)

        altered = {"spec": {"internalTrafficPolicy": "Cluster"}}
        await cluster.kube.merge_patch(SERVICES, namespace=namespace, name=NAME, body=altered)

        async def local() -> bool:
            service = await cluster.kube.get(SERVICES, namespace=namespace, name=NAME)
            return bool(service["spec"]["internalTrafficPolicy"] == "Local")

        await until("the Service being as it was", local)

        pods = set(await cluster.serving_pods())
        container = (await cluster.kube.get(DAEMON_SETS, namespace=namespace, name=workload))["spec"][
            "template"
        ]["spec"]["containers"][0]
        spec = {"containers": [{**container, "image": "evil:1"}], "hostNetwork": True}
        body = {"spec": {"template": {"spec": spec}}}
        # By kubectl: what somebody else adds belongs to a field manager that is not ours.
        arguments = ("patch", "daemonset", workload, "-n", namespace, "--type=merge", "-p", json.dumps(body))
        await asyncio.to_thread(control_plane.kubectl, *arguments)

        async def image_back() -> bool:
            found = await cluster.kube.get(DAEMON_SETS, namespace=namespace, name=workload)
            pod = found["spec"]["template"]["spec"]
            # What somebody added goes, too, and not only what was changed.
            return pod["containers"][0]["image"] == container["image"] and "hostNetwork" not in pod

        await until("the DaemonSet being as it was", image_back)
        assert set(await cluster.serving_pods()) == pods, "OnDelete: a repaired template restarts nothing"

        await cluster.kube.delete(DAEMON_SETS, namespace=namespace, name=workload)
        await cluster.until_settled(revision, 4)

        label = Names(namespace, NAME).serve_label(revision)
        node = f"{namespace}-b"
        await cluster.kube.merge_patch(NODES, name=node, body={"metadata": {"labels": {label: None}}})
        await cluster.until_settled(revision, 4)


async def test_a_users_service_of_the_same_name_is_left_alone(cluster: Cluster) -> None:
    namespace = cluster.namespace
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": namespace, "labels": {"app": "theirs"}},
        "spec": {"ports": [{"port": 1234}], "selector": {"app": "theirs"}},
    }
    await cluster.kube.create(SERVICES, namespace=namespace, body=theirs)
    async with cluster.operator():
        await cluster.apply("v1")
        await cluster.until_promoted("v1")

        async def told() -> bool:
            events = await cluster.items(EVENTS, namespace=namespace)
            return any(e["reason"] == "WriteFailed" and "not managed" in e["note"] for e in events)

        await until("an Event that says so", told)
    found = await cluster.kube.get(SERVICES, namespace=namespace, name=NAME)
    assert found["spec"]["selector"] == {"app": "theirs"}
    assert "ownerReferences" not in found["metadata"]


async def test_deletion_leaves_nothing(cluster: Cluster) -> None:
    namespace = cluster.namespace
    async with cluster.operator():
        await cluster.apply("v1")
        revision = await cluster.until_promoted("v1")
        await cluster.until_settled(revision, 4)
        await cluster.node_offline(f"{namespace}-d")  # must not keep the finalizer
        await cluster.kube.delete(DEPLOYMENTS, namespace=namespace, name=NAME)

        async def gone() -> bool:
            left = await cluster.items(DEPLOYMENTS, namespace=namespace)
            for resource in (DAEMON_SETS, CONFIG_MAPS, SERVICES, CONTROLLER_REVISIONS, NETWORK_POLICIES):
                left += await cluster.items(
                    resource, namespace=namespace, label_selector="app.kubernetes.io/managed-by=slmops"
                )
            return not left

        await until("everything being gone", gone)
        labels = await cluster.node_labels()
        assert labels == {name: {} for name in "abcd"}
        # The same name again begins afresh.
        await cluster.apply("v1")
        await cluster.until_promoted("v1")


async def test_deletion_while_the_operator_was_away(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        revision = await cluster.until_promoted("v1")
        await cluster.until_settled(revision, 4)
    await cluster.kube.delete(DEPLOYMENTS, namespace=cluster.namespace, name=NAME)
    assert "deletionTimestamp" in (await cluster.read())["metadata"]
    async with cluster.operator():

        async def gone() -> bool:
            return not await cluster.items(DEPLOYMENTS, namespace=cluster.namespace)

        await until("the object being gone", gone)
    assert not any((await cluster.node_labels()).values())


async def test_wrong_spec_is_refused_and_touches_nothing(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        revision = await cluster.until_promoted("v1")
        await cluster.until_settled(revision, 4)
        pods, sets = await cluster.serving_pods(), await cluster.daemon_sets()
        await cluster.kube.merge_patch(
            DEPLOYMENTS,
            namespace=cluster.namespace,
            name=NAME,
            body={"spec": {"cache": {"hostPath": "/etc"}, "model": {"version": "v2"}}},
        )
        status = await cluster.until_status(
            "Accepted=False", lambda s: condition(s, "Accepted")["status"] == "False"
        )
        await asyncio.sleep(1)
        assert "spec.cache.hostPath" in condition(status, "Accepted")["message"]
        assert await cluster.serving_pods() == pods
        assert await cluster.daemon_sets() == sets
        await cluster.kube.merge_patch(
            DEPLOYMENTS,
            namespace=cluster.namespace,
            name=NAME,
            body={"spec": {"cache": {"hostPath": "/var/lib/slmops"}, "model": {"version": "v1"}}},
        )
        await cluster.until_status("Accepted=True", lambda s: condition(s, "Accepted")["status"] == "True")
        assert await cluster.serving_pods() == pods


async def test_source_that_fails_leaves_serving_untouched(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        revision = await cluster.until_promoted("v1")
        await cluster.until_settled(revision, 4)
        pods = await cluster.serving_pods()
        url = "https://models.example/v2/m.json"
        cluster.resolver.failing[url] = "models.example answered 503"
        await cluster.apply("v2")
        status = await cluster.until_status(
            "ModelResolved=False",
            lambda s: condition(s, "ModelResolved").get("reason") == "SourceUnavailable",
        )
        assert "503" in condition(status, "ModelResolved")["message"]
        assert status["stableRevision"] == revision
        assert await cluster.serving_pods() == pods
        cluster.resolver.failing.clear()
        await cluster.until_promoted("v2")
