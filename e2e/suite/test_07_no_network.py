# SPDX-License-Identifier: Apache-2.0
"""No network: a crashed server, even a whole pod, comes back from the node's cache and answers."""

import time
from collections.abc import Iterator

import pytest

from e2e.lib import Cluster, Deployment, NodeClient
from e2e.lib.manifests import FOLDER
from e2e.rig import Rig
from e2e.suite.conftest import Make
from e2e.suite.faults import (
    fetch_report,
    fetch_state,
    kill_sandbox,
    model_requests,
    wait_answer,
    wait_offline,
    wait_online,
)


@pytest.fixture(scope="module")
def orders(make_deployment: Make) -> Iterator[Deployment]:
    """v1 on all edge nodes."""
    deployment = make_deployment()
    deployment.apply("v1")
    deployment.wait_installed()
    yield deployment


def test_offline_crash_and_lost_pod_come_back_from_the_cache(
    orders: Deployment, cluster: Cluster, rig: Rig, clients: dict[str, NodeClient]
) -> None:
    node = cluster.edge_nodes[1]
    client = clients[node]
    found = orders.pod_on(node)
    pod = found["metadata"]["name"]
    (server,) = (c["containerID"] for c in found["status"]["containerStatuses"] if c["name"] == "server")
    rig.node_link_down(node)
    wait_offline(cluster, node)
    wait_answer(orders, client, timeout_seconds=60)

    # The inference process dies.
    rig.kill_container(orders.namespace, pod, container="server")
    cluster.wait_for(
        "the server being dead",
        lambda: server.rpartition("/")[2] not in rig.nodes[node].running_containers(),
        timeout_seconds=60,
    )
    wait_answer(orders, client)

    # The whole pod dies, so the fetcher runs again, with no link to anywhere.
    fetched = fetch_state(orders, node)["finishedAt"]
    address = kill_sandbox(cluster, node, namespace=orders.namespace, pod=pod)
    # It has a new address. The Service learns of that when the API server can be told (see the limits
    # in docs/operations.md), so the pod itself is asked.
    wait_answer(orders, client, service=f"http://{address}:8080", timeout_seconds=240)

    rig.node_link_up(node)
    wait_online(cluster, node)
    wait_answer(orders, client)
    orders.wait(
        "the kubelet telling of the second fetch",
        lambda: fetch_state(orders, node)["finishedAt"] > fetched,
        timeout_seconds=120,
    )
    assert fetch_report(orders, node).bytes_downloaded == 0
    after = orders.pod_on(node)
    assert after["metadata"]["name"] == pod, "nobody replaced the pod"
    restarts = {c["name"]: c["restartCount"] for c in after["status"]["containerStatuses"]}
    assert restarts["server"] >= 2


def test_a_new_pod_downloads_nothing(
    orders: Deployment, cluster: Cluster, clients: dict[str, NodeClient]
) -> None:
    node = cluster.edge_nodes[0]
    begin = time.time()
    old = orders.pod_on(node)["metadata"]
    cluster.delete("pod", old["name"], namespace=orders.namespace)

    def replaced() -> bool:
        try:
            new = orders.pod_on(node)
        except LookupError:
            return False
        states = new["status"].get("containerStatuses", [])
        return bool(new["metadata"]["uid"] != old["uid"] and states and all(c["ready"] for c in states))

    orders.wait("a new pod being ready", replaced, timeout_seconds=180)
    wait_answer(orders, clients[node], timeout_seconds=60)
    said = fetch_report(orders, node)
    assert said.bytes_downloaded == 0
    assert said.bytes_reused > 100_000
    if cluster.is_rig:
        # The model server's own log agrees, and it does show what is downloaded.
        assert model_requests(cluster.rig, since=0, path=f"/{FOLDER}/v1-int4/model.onnx")
        assert model_requests(cluster.rig, since=begin, path=f"/{FOLDER}/") == []


def test_a_second_deployment_of_the_same_model_downloads_nothing(
    orders: Deployment, cluster: Cluster, make_deployment: Make
) -> None:
    begin = time.time()
    second = make_deployment("orders-too")
    second.apply("v1")
    second.wait_installed()
    for node in cluster.edge_nodes:
        assert fetch_report(second, node).bytes_downloaded == 0, node
    if cluster.is_rig:
        asked = model_requests(cluster.rig, since=begin, path=f"/{FOLDER}/v1-int4/")
        # The operator reads the manifest and the model's geometry to resolve the source; no node a byte.
        read = {f"/{FOLDER}/v1-int4/{name}" for name in ("slm-manifest.json", "genai_config.json")}
        assert set(asked) <= read and len(asked) <= len(read), asked
