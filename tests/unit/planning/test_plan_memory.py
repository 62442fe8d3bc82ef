# SPDX-License-Identifier: Apache-2.0
"""A memory from look to look changes no plan."""

import pytest

from slmops.planning.nodes import NodeMemory
from slmops.planning.plan import plan
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_sim import FleetSim, Look
from tests.unit.planning.fleet_spec import GIB, spec_body


@pytest.mark.parametrize("bad", [Behaviour(score=0.5), Behaviour(crashes=True), Behaviour(oom=True)])
def test_a_memory_changes_no_plan(bad: Behaviour) -> None:
    """Through an installation, a promotion, a rollback, nodes that come, go and break, and new specs."""
    memory = NodeMemory()
    looks: list[Look] = []

    def compare(sim: FleetSim, look: Look) -> None:
        looks.append(look)
        assert plan(look.observed, look.at, memory=memory) == look.plan

    sim = FleetSim(spec_body(maxUnavailable=2), behaviours={"v3": bad})
    for index in range(10):
        sim.add_node(f"edge-{index}", memory_bytes=(3 + index % 3) * GIB // 2)
    sim.checks.append(compare)
    for version in ("v1", "v2", "v3"):
        if version != "v1":
            sim.set_version(version)
        sim.at(20, lambda: sim.set_online("edge-3", online=False))
        sim.at(90, lambda: sim.set_online("edge-3", online=True))
        sim.settle()
    sim.cluster.nodes.pop("edge-5")
    sim.add_node("edge-11")
    sim.edit(placement={"nodeSelector": {"matchLabels": {"slm": "yes", "kind": "none"}}})
    sim.run(60)
    assert len(looks) > 50
