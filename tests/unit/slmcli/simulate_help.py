# SPDX-License-Identifier: Apache-2.0
"""Small simulated fleets for the tests of `kubectl slm simulate`."""

from collections.abc import Mapping, Sequence
from typing import Any

from slmcli.simulate.fleet import uniform_groups
from slmcli.simulate.report import build_report
from slmcli.simulate.settings import Effect, Group, Settings
from slmcli.simulate.simulation import Planner, Simulation
from slmcli.simulate.stable import build_versions
from slmops.api import SLMDeploymentSpec
from slmops.planning.names import Names
from tests.unit.planning.fleet_spec import spec_body

WAVES: list[dict[str, Any]] = [
    {"name": "canary", "percent": 5},
    {"name": "quarter", "percent": 25},
    {"name": "rest", "percent": 100},
]


def simulate(
    *,
    seed: int = 1,
    group: Mapping[str, Any] | None = None,
    effect: Effect | None = None,
    settings: Mapping[str, Any] | None = None,
    rollout: Mapping[str, Any] | None = None,
    distribution: Mapping[str, Any] | None = None,
    overrides: Sequence[Mapping[str, Any]] = (),
    adaptation: Mapping[str, Any] | None = None,
    planner: Planner | None = None,
) -> tuple[Simulation, dict[str, Any]]:
    """A rollout to 60 nodes in three waves, and its report."""
    body = spec_body(**{"waves": WAVES, "maxUnavailable": "25%", **(rollout or {})})
    body["distribution"] = dict(distribution or {})
    if overrides:
        body["overrides"] = list(overrides)
    if adaptation:
        body["adaptation"] = dict(adaptation)
    spec = SLMDeploymentSpec.model_validate(body)
    options = Settings(effect=effect or Effect(), **(settings or {}))
    versions = build_versions(Names("shop", "orders"), spec, options.size_bytes)
    base = Group(**{"name": "edge", "count": 60, "sites": 6, **(group or {})})
    simulation = Simulation(versions, uniform_groups(spec, base), options, seed=seed, planner=planner)
    simulation.run()
    return simulation, build_report(simulation, seed=seed)


def without_cost(report: Mapping[str, Any]) -> dict[str, Any]:
    """All but the processor time, which no seed decides."""
    return {key: value for key, value in report.items() if key != "cost"}
