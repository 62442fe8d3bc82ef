# SPDX-License-Identifier: Apache-2.0
"""A node on its own: its credentials are void by now, or it has even been switched off and on."""

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.lib import Cluster, Deployment, NodeClient
from e2e.lib.chat import is_expected
from e2e.lib.manifests import FOLDER, golden_cases
from e2e.rig import Rig
from e2e.suite.conftest import Make, need_rig
from e2e.suite.faults import (
    fetch_report,
    fetch_state,
    kill_sandbox,
    model_requests,
    put_token,
    wait_offline,
    wait_online,
)

SECRET = "model-token"
DARK_SECONDS = 25.0
"""How long a node that was switched on without its server is watched: containers start within five."""
UNKNOWING_SECONDS = 8.0
"""Time for a kubelet that was restarted to do what it can."""


@pytest.fixture(scope="module")
def node(cluster: Cluster) -> str:
    """The node that is left alone."""
    need_rig(cluster)
    return cluster.edge_nodes[-1]


@pytest.fixture(scope="module")
def orders(make_deployment: Make, cluster: Cluster, node: str) -> Iterator[Deployment]:
    """v1 on one node, fetched with a token."""
    deployment = make_deployment(nodes={"matchLabels": {"kubernetes.io/hostname": node}})
    guard(cluster.rig, "first-token")
    put_token(deployment, SECRET, "first-token")
    body: dict[str, Any] = deployment.manifest("v1")
    body["spec"]["variants"][0]["source"]["http"]["secretRef"] = {"name": SECRET}
    cluster.apply(body)
    deployment.wait_installed()
    yield deployment


def guard(rig: Rig, token: str) -> None:
    """The model server wants this token from now on."""
    rig.set_model_faults({f"/{FOLDER}/v1-int4": {"token": token}})


def wait_right_answer(
    orders: Deployment, client: NodeClient, *, service: str = "", timeout_seconds: float = 180
) -> None:
    """Wait until the Service (or what is at `service`) gives a right answer on the node."""
    url, case = service or orders.service_address(), golden_cases()[0]

    def answers() -> bool:
        answer = client.chat(url, case["messages"], timeout_seconds=20)
        return answer.ok and is_expected(case, answer.text)

    orders.wait(f"an answer on {client.node}", answers, timeout_seconds=timeout_seconds)


def test_a_secret_rotated_while_the_node_is_away_stops_nothing(
    orders: Deployment, cluster: Cluster, rig: Rig, node: str, clients: dict[str, NodeClient]
) -> None:
    pod = orders.pod_on(node)["metadata"]
    fetched = fetch_state(orders, node)["finishedAt"]
    begin = time.time()
    rig.node_link_down(node)
    wait_offline(cluster, node)
    guard(rig, "second-token")
    put_token(orders, SECRET, "second-token")
    # Everything of the pod ends, so the fetcher runs again, with a token that opens nothing any more.
    address = kill_sandbox(cluster, node, namespace=orders.namespace, pod=pod["name"])
    wait_right_answer(orders, clients[node], service=f"http://{address}:8080", timeout_seconds=240)

    # Back on the line, with a token that is wrong for good: what is cached needs none.
    put_token(orders, SECRET, "wrong-token")
    rig.node_link_up(node)
    wait_online(cluster, node)
    wait_right_answer(orders, clients[node])
    orders.wait(
        "the kubelet telling of the second fetch",
        lambda: fetch_state(orders, node)["finishedAt"] > fetched,
        timeout_seconds=120,
    )
    assert fetch_report(orders, node).bytes_downloaded == 0
    after = orders.pod_on(node)["metadata"]
    assert after["uid"] == pod["uid"], "nobody replaced the pod"
    asked = model_requests(rig, since=begin, path=f"/{FOLDER}/v1-int4/")
    assert [path for path in asked if not path.endswith("slm-manifest.json")] == []


def test_a_node_switched_on_without_its_server_starts_nothing_until_it_is_back(
    orders: Deployment, cluster: Cluster, rig: Rig, node: str, clients: dict[str, NodeClient]
) -> None:
    # docs/autonomy.md promises what this finds; if Kubernetes ever does better, say so there.
    guard(rig, "second-token")
    service = orders.service_address()
    pod = orders.pod_on(node)["metadata"]
    rig.node_link_down(node)
    wait_offline(cluster, node)
    wait_right_answer(orders, clients[node], timeout_seconds=60)

    # The kubelet alone: what runs goes on, but what dies from now on stays dead.
    rig.restart_kubelet(node)
    time.sleep(UNKNOWING_SECONDS)
    wait_right_answer(orders, clients[node], timeout_seconds=60)
    (server,) = (c for c in orders.pod_on(node)["status"]["containerStatuses"] if c["name"] == "server")
    rig.nodes[node].signal_container(server["containerID"], signal.SIGKILL)
    time.sleep(UNKNOWING_SECONDS)
    assert not clients[node].ask(service, "hello", timeout_seconds=2).ok

    # The whole node.
    rig.reboot_node(node)
    cluster.hold_for(
        "the node having no container while its server is away",
        lambda: not rig.nodes[node].running_containers(),
        seconds=DARK_SECONDS,
    )
    assert rig.nodes[node].daemon("kubelet").alive, "the kubelet waits, it does not end"
    assert not clients[node].ask(service, "hello", timeout_seconds=2).ok

    begin = time.time()
    rig.node_link_up(node)
    wait_online(cluster, node)
    wait_right_answer(orders, clients[node], timeout_seconds=240)
    orders.wait(
        "the pod being ready again",
        lambda: all(c["ready"] for c in orders.pod_on(node)["status"]["containerStatuses"]),
        timeout_seconds=180,
    )
    assert orders.pod_on(node)["metadata"]["uid"] == pod["uid"], "nobody replaced the pod"
    assert fetch_report(orders, node).bytes_downloaded == 0
    assert model_requests(rig, since=begin, path=f"/{FOLDER}/v1-int4/model") == []
