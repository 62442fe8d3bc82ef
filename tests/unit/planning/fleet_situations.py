# SPDX-License-Identifier: Apache-2.0
"""Ready-made situations on a virtual fleet."""

from typing import Any

from tests.unit.planning.fleet_checks import watch
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_sim import FleetSim
from tests.unit.planning.fleet_spec import GIB, spec_body

ERRORS = {"name": "errors", "preset": "ErrorRate", "max": "0.05", "test": "Threshold"}
PROVEN_ERRORS = {"name": "errors", "preset": "ErrorRate", "max": "0.05"}
"""The same with the default test, Sequential."""


def installed(nodes: int = 5, *, behaviours: dict[str, Behaviour] | None = None, **spec: Any) -> FleetSim:
    """A checked fleet that serves v1 on every node."""
    memory_bytes = spec.pop("memory_bytes", 4 * GIB)
    sim = watch(FleetSim(spec_body(**spec), behaviours=behaviours))
    for index in range(nodes):
        sim.add_node(f"n{index}", memory_bytes=memory_bytes)
    sim.settle()
    assert set(sim.versions().values()) == {"v1"} and sim.version == "v1"
    return sim


def canary_node(sim: FleetSim) -> str:
    """The one node that has the new version."""
    (node,) = [name for name, version in sim.versions().items() if "v2" in version]
    return node


def reach(sim: FleetSim, step: str, *, wave: int = 0) -> None:
    assert sim.run_until(lambda: sim.step == step and sim.wave == wave), sim.explain()
