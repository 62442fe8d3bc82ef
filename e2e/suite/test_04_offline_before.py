# SPDX-License-Identifier: Apache-2.0
"""A node that is offline when its wave comes is deferred, keeps serving, and converges on its return."""

from collections.abc import Iterator

import pytest

from e2e.lib import Cluster, Deployment, NodeClient
from e2e.lib.chat import is_expected, need_ok
from e2e.lib.manifests import PILOT_WAVE, golden_cases
from e2e.lib.observe import rollout_of
from e2e.rig import Rig
from e2e.suite.conftest import Make
from e2e.suite.faults import wait_offline, wait_online

ROLLOUT = {"waves": [PILOT_WAVE, {"name": "all", "percent": 100}], "quorumPercent": 50}


@pytest.fixture(scope="module")
def orders(make_deployment: Make) -> Iterator[Deployment]:
    """v1 on all edge nodes; half of a wave is enough."""
    deployment = make_deployment(rollout=ROLLOUT)
    deployment.apply("v1")
    deployment.wait_installed()
    yield deployment


def test_a_node_offline_before_its_wave_is_deferred_and_converges(
    orders: Deployment, cluster: Cluster, rig: Rig, clients: dict[str, NodeClient]
) -> None:
    away = cluster.edge_nodes[-1]
    service, case = orders.service_address(), golden_cases()[0]
    stable = orders.status()["stableRevision"]
    pod = orders.pod_on(away)["metadata"]["uid"]
    rig.node_link_down(away)
    wait_offline(cluster, away)

    orders.apply("v2")
    found = orders.wait_promoted("v2")
    revision = found["status"]["stableRevision"]
    waves = {wave["name"]: wave for wave in rollout_of(found)["waves"]}
    assert waves["all"]["deferred"] == 1
    assert waves["all"]["failed"] == 0
    assert waves["all"]["verdict"] == "Pass"
    assert found["status"]["nodes"]["offline"] == 1
    assert orders.assigned()[away] == {stable}, "nobody moves a node that cannot answer"

    # Alone, the node still answers with what it has.
    answer = need_ok(clients[away].chat(service, case["messages"]), f"chat on {away}, offline")
    assert is_expected(case, answer.text)

    rig.node_link_up(away)
    wait_online(cluster, away)
    orders.wait(
        "the node converging to the stable revision",
        lambda: (
            orders.assigned()[away] == {revision}
            and orders.status()["nodes"]["ready"] == len(cluster.edge_nodes)
        ),
        timeout_seconds=300,
    )
    assert orders.pod_on(away)["metadata"]["uid"] != pod
    cluster.wait_for(
        f"the Service answering on {away}, back",
        lambda: clients[away].chat(service, case["messages"], timeout_seconds=20).ok,
        timeout_seconds=60,
    )
    assert rollout_of(orders.read())["step"] == "Completed", "the return of a node starts no rollout"
