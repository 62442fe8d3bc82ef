# SPDX-License-Identifier: Apache-2.0
"""A node that goes offline after it took the new revision is a failure: the next wave never begins."""

from collections.abc import Iterator

import pytest

from e2e.lib import Cluster, Deployment, History
from e2e.lib.manifests import PILOT_WAVE
from e2e.lib.observe import rollout_of
from e2e.rig import Rig
from e2e.suite.conftest import Make
from e2e.suite.faults import wait_online

ROLLOUT = {"waves": [PILOT_WAVE, {"name": "all", "percent": 100}], "soak": "2m"}


@pytest.fixture(scope="module")
def orders(make_deployment: Make) -> Iterator[Deployment]:
    """v1 on all edge nodes, with a soak that outlasts the test."""
    deployment = make_deployment(rollout=ROLLOUT)
    deployment.apply("v1")
    deployment.wait_installed()
    yield deployment


def test_a_node_lost_after_the_flip_fails_the_wave(orders: Deployment, cluster: Cluster, rig: Rig) -> None:
    (pilot,) = (n["metadata"]["name"] for n in cluster.find_all("nodes", selector="slmops.dev/ring=pilot"))
    stable = orders.status()["stableRevision"]
    with History(orders) as history:
        orders.apply("v2")
        orders.wait_step("Soaking", wave=0)
        rig.node_link_down(pilot)
        found = orders.wait_rolled_back()
        failed = rollout_of(found)["revision"]
        assert rollout_of(found)["reason"] == "NodesFailed"
        assert pilot in rollout_of(found)["message"]
        assert found["status"]["stableRevision"] == stable
        assert [f["revision"] for f in found["status"]["failedRevisions"]] == [failed]
        assert failed in orders.assigned()[pilot], "a node that is away is not touched"

        rig.node_link_up(pilot)
        wait_online(cluster, pilot)
        orders.wait(
            "the node returning to the stable revision",
            lambda: (
                orders.assigned()[pilot] == {stable}
                and orders.status()["nodes"]["ready"] == len(cluster.edge_nodes)
            ),
            timeout_seconds=240,
        )
    for frame in history.of(failed):
        assert frame.nodes_given(failed) <= {pilot}, history.describe()
