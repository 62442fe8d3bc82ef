# SPDX-License-Identifier: Apache-2.0
"""Deletion: labels, workloads and caches are gone, no finalizer is stuck, and Helm leaves nothing."""

import pytest

from e2e.lib import Cluster, Deployment, uninstall_operator
from e2e.lib.release import NAMESPACE
from e2e.rig import Rig
from e2e.suite.conftest import STORE, Make
from e2e.suite.faults import wait_offline, wait_online

OWNED = "daemonsets,configmaps,services,controllerrevisions.apps,pods"


def install(make_deployment: Make, *, policy: str, name: str = "orders") -> Deployment:
    """v1 on all edge nodes with a deletion policy."""
    store = f"{STORE}/e2e-deletion-{policy.lower()}"
    deployment = make_deployment(name, cache={"deletionPolicy": policy, "hostPath": store})
    deployment.apply("v1")
    deployment.wait_installed()
    return deployment


def store_files(node: str, deployment: Deployment) -> list[str]:
    """Files of models in the deployment's store on a node of the rig."""
    store = deployment.cluster.rig.node_path(node, deployment.options["cache"]["hostPath"])
    return sorted(
        str(path.relative_to(store))
        for part in ("blobs", "trees", "partial", "refs")
        for path in (store / part).rglob("*")
        if path.is_file()
    )


def check_gone(deployment: Deployment) -> None:
    """Nothing of the deployment is left in the API server."""
    assert deployment.labels() == {}
    left = deployment.cluster.find_all(
        OWNED, namespace=deployment.namespace, selector=f"slmops.dev/deployment={deployment.name}"
    )
    assert [f"{item['kind']}/{item['metadata']['name']}" for item in left] == []


def wait_pods_gone(deployment: Deployment) -> None:
    """Wait until the garbage collector and the kubelets have done their part."""
    selector = f"slmops.dev/deployment={deployment.name}"
    deployment.cluster.wait_for(
        "owned objects being gone",
        lambda: not deployment.cluster.find_all(OWNED, namespace=deployment.namespace, selector=selector),
        timeout_seconds=180,
        describe=lambda: str(
            [
                item["metadata"]["name"]
                for item in deployment.cluster.find_all(
                    OWNED, namespace=deployment.namespace, selector=selector
                )
            ]
        ),
    )


def test_deletion_takes_labels_workloads_and_caches_along(make_deployment: Make, cluster: Cluster) -> None:
    orders = install(make_deployment, policy="Delete")
    # The stores can be looked into on the rig only.
    seen = cluster.edge_nodes if cluster.is_rig else ()
    for node in seen:
        assert store_files(node, orders), f"{node} has no cache to begin with"
    orders.delete(wait_seconds=240)
    wait_pods_gone(orders)
    check_gone(orders)
    for node in seen:
        assert store_files(node, orders) == [], node


def test_retain_keeps_the_cache_and_an_offline_node_sticks_no_finalizer(
    make_deployment: Make, cluster: Cluster, rig: Rig
) -> None:
    orders = install(make_deployment, policy="Retain")
    away = cluster.edge_nodes[-1]
    rig.node_link_down(away)
    wait_offline(cluster, away)
    orders.delete(wait_seconds=120)
    assert orders.labels() == {}
    rig.node_link_up(away)
    wait_online(cluster, away)
    wait_pods_gone(orders)
    check_gone(orders)
    for node in cluster.edge_nodes:
        assert store_files(node, orders), f"{node} was to keep its cache"


def test_helm_uninstall_leaves_nothing_behind(cluster: Cluster, operator: object) -> None:
    # No test may come after this one: it needs the operator, which is gone then.
    others = cluster.find_all("slmdeployments.slmops.dev")
    if others and not cluster.is_rig:
        pytest.skip("deployments of somebody else exist on this cluster")
    assert not others
    uninstall_operator(cluster)
    kinds = (
        "deployments,pods,serviceaccounts,services,configmaps,roles,rolebindings,clusterroles,"
        "clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings"
    )
    cluster.wait_for(
        "the release being gone",
        lambda: not cluster.find_all(kinds, selector="app.kubernetes.io/name=slmops"),
        timeout_seconds=180,
        describe=lambda: cluster.kubectl("get", kinds, "-A", "-l", "app.kubernetes.io/name=slmops"),
    )
    assert not [
        key
        for node in cluster.find_all("nodes")
        for key in node["metadata"]["labels"]
        if key.split("/")[0].endswith(".slmops.dev")
    ]
    left = cluster.find_all("leases.coordination.k8s.io", namespace=NAMESPACE)
    cluster.delete("namespace", NAMESPACE, wait_seconds=180)
    assert cluster.get("namespace", NAMESPACE) is None, left
