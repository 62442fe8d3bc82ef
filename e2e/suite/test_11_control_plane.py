# SPDX-License-Identifier: Apache-2.0
"""The API server goes away, watches expire, the operator is upgraded: no pod is churned by any of it."""

import signal
import time
from collections.abc import Iterator

import pytest

from e2e.bench.fleet_numbers import Page, growth, read_page
from e2e.lib import Cluster, Deployment, NodeClient, OperatorImages, Traffic, install_operator
from e2e.lib.release import NAMESPACE, operator_pod, retag
from e2e.rig import Rig, RigError
from e2e.suite.conftest import OPERATOR_VALUES, Make

AWAY_SECONDS = 30.0
"""Longer than a node may be silent before it counts as lost."""
REQUESTS = "slmops_kubernetes_requests_total"
METRICS_PORT = 9090
LISTS = 2
"""Most whole lists of a resource that one loss of the API server explains."""
LISTS_OF = {"pods": 3}
"""Of one with more caches: serving pods, those of an SLMModel's Jobs, and those of trainings."""


@pytest.fixture(scope="module")
def orders(make_deployment: Make) -> Iterator[Deployment]:
    """v1 on all edge nodes."""
    deployment = make_deployment()
    deployment.apply("v1")
    deployment.wait_installed()
    yield deployment


def observe_lives(orders: Deployment) -> dict[str, tuple[str, int]]:
    """Per serving pod its identity and the restarts of its containers."""
    return {
        pod["metadata"]["name"]: (
            pod["metadata"]["uid"],
            sum(c["restartCount"] for c in pod["status"].get("containerStatuses", [])),
        )
        for pod in orders.pods()
    }


def observe_generations(orders: Deployment) -> dict[str, int]:
    """Per DaemonSet of the deployment its generation, which grows when its spec is changed."""
    selector = f"slmops.dev/deployment={orders.name}"
    found = orders.cluster.find_all("daemonsets", namespace=orders.namespace, selector=selector)
    return {item["metadata"]["name"]: item["metadata"]["generation"] for item in found}


def operator_page(cluster: Cluster) -> Page:
    """The operator's own counters."""
    name = operator_pod(cluster)["metadata"]["name"]
    return read_page(
        cluster.kubectl.raw(f"/api/v1/namespaces/{NAMESPACE}/pods/{name}:{METRICS_PORT}/proxy/metrics")
    )


def lists_by_resource(before: Page, after: Page) -> dict[str, float]:
    """Whole lists that the operator has taken in between, by resource."""

    def count(resource: str) -> float:
        return growth(
            before, after, REQUESTS,
            lambda labels: (labels["verb"], labels["resource"], labels["code"]) == ("list", resource, "200"),
        )  # fmt: skip

    resources = {series.labels["resource"] for series in after if series.name == REQUESTS}
    return {resource: count(resource) for resource in resources if count(resource)}


def find_storms(lists: dict[str, float]) -> dict[str, float]:
    """Resources that were listed more often than their caches explain."""
    return {what: count for what, count in lists.items() if count > LISTS_OF.get(what, LISTS)}


def settled(orders: Deployment) -> bool:
    """Whether every node is ready, and the operator has seen it."""
    status = orders.status()
    return bool(status.get("nodes", {}).get("ready") == len(orders.cluster.edge_nodes))


def wait_answers(orders: Deployment, clients: dict[str, NodeClient]) -> None:
    """Wait until the Service answers on every node."""
    service = orders.service_address()
    orders.wait(
        "the Service answering on every node",
        lambda: all(client.ask(service, "hello", timeout_seconds=20).ok for client in clients.values()),
        timeout_seconds=180,
    )


def test_an_api_server_that_is_away_churns_no_pod(
    orders: Deployment, cluster: Cluster, rig: Rig, clients: dict[str, NodeClient]
) -> None:
    lives, generations = observe_lives(orders), observe_generations(orders)
    operator = operator_pod(cluster)["metadata"]["uid"]
    before = operator_page(cluster)
    with Traffic(clients.values(), orders.service_address(), interval_seconds=0.5) as traffic:
        rig.restart_apiserver(downtime_seconds=AWAY_SECONDS)
        report = traffic.stop()
    assert not report.failures, report.describe()
    assert report.ok > 3 * AWAY_SECONDS

    cluster.wait_for(
        "every node being Ready",
        # A kubelet may find out late that its connection is dead: Kubernetes' own time, not the operator's.
        lambda: set(cluster.edge_nodes) <= cluster.access.ready_nodes(),
        timeout_seconds=420,
    )
    orders.wait("every node counting as ready", lambda: settled(orders), timeout_seconds=180)
    assert operator_pod(cluster)["metadata"]["uid"] == operator
    lists = lists_by_resource(before, operator_page(cluster))
    assert not find_storms(lists)
    cluster.hold_for(
        "the pods being the same",
        lambda: (observe_lives(orders), observe_generations(orders)) == (lives, generations),
        seconds=6,
    )
    wait_answers(orders, clients)


def test_watches_that_expired_are_listed_anew_and_a_deletion_is_noticed(
    orders: Deployment, cluster: Cluster, rig: Rig, clients: dict[str, NodeClient]
) -> None:
    lives, generations = observe_lives(orders), observe_generations(orders)
    pod = operator_pod(cluster)["metadata"]["name"]
    since = time.time()
    before = operator_page(cluster)
    old = cluster.need("service", orders.name, namespace=orders.namespace)["metadata"]["uid"]
    # A frozen operator misses the end of its watches and what is deleted after it. A new API server knows
    # no history, so the version that the operator watched from is expired when it comes back.
    rig.signal_container(NAMESPACE, pod, signal.SIGSTOP)
    try:
        rig.restart_apiserver()
        cluster.wait_for("the Service being deleted", lambda: delete_service(orders), timeout_seconds=60)
    finally:
        cluster.wait_for("the operator going on", lambda: thaw(rig, pod), timeout_seconds=60)
    orders.wait(
        "the Service being made anew",
        lambda: (
            (cluster.get("service", orders.name, namespace=orders.namespace) or {})
            .get("metadata", {})
            .get("uid", old)
            != old
        ),
        # Most of it is kube-proxy finding the API server's address again, which a busy machine draws out.
        timeout_seconds=300,
    )
    said = cluster.kubectl("logs", "-n", NAMESPACE, pod, f"--since={round(time.time() - since) + 5}s")
    assert "services: the watch expired, listing again" in said
    orders.wait("every node counting as ready", lambda: settled(orders), timeout_seconds=180)
    lists = lists_by_resource(before, operator_page(cluster))
    assert lists["services"] >= 1
    assert not find_storms(lists)
    # The nodes' own kube-proxies hear of the new Service when their watches are back, too.
    wait_answers(orders, clients)
    assert (observe_lives(orders), observe_generations(orders)) == (lives, generations)


def delete_service(orders: Deployment) -> bool:
    """Delete the deployment's Service behind the operator's back; whether it is gone."""
    orders.cluster.delete("service", orders.name, namespace=orders.namespace)
    return orders.cluster.get("service", orders.name, namespace=orders.namespace) is None


def thaw(rig: Rig, pod: str) -> bool:
    """Let the operator go on; False when it cannot be reached just now."""
    try:
        rig.signal_container(NAMESPACE, pod, signal.SIGCONT)
    except RigError:
        return False
    return True


def test_an_upgrade_of_the_operator_restarts_no_model(
    orders: Deployment, cluster: Cluster, rig: Rig, images: OperatorImages, clients: dict[str, NodeClient]
) -> None:
    lives, generations = observe_lives(orders), observe_generations(orders)
    revision = orders.status()["stableRevision"]
    first = operator_pod(cluster)["metadata"]["uid"]
    # What a release changes: the operator's image, and the runtime that new revisions are given.
    newer = OperatorImages(
        operator=retag(images.operator, "e2e-newer"), runtime=retag(images.runtime, "e2e-newer")
    )
    try:
        with Traffic(clients.values(), orders.service_address(), interval_seconds=0.5) as traffic:
            install_operator(cluster, images=newer, values=OPERATOR_VALUES)
            assert operator_pod(cluster)["metadata"]["uid"] != first
            assert operator_pod(cluster)["spec"]["containers"][0]["image"] == newer.operator
            cluster.hold_for(
                "the pods being the same",
                lambda: (observe_lives(orders), observe_generations(orders)) == (lives, generations),
                seconds=10,
            )
            report = traffic.stop()
        assert not report.failures, report.describe()
        assert orders.status()["stableRevision"] == revision
        orders.wait_promoted("v1", timeout_seconds=120)
    finally:
        install_operator(cluster, images=images, values=OPERATOR_VALUES)
    assert (observe_lives(orders), observe_generations(orders)) == (lives, generations)
