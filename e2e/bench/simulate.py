# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.bench.simulate`: how long it takes to simulate a rollout to 100,000 nodes.

A good version goes in three waves to all nodes of a fleet whose sites of ten nodes share 50 Mbit/s. It is
the planner of the operator that plans each look; the time is that of one process on one core.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from slmcli.simulate.fleet import uniform_groups
from slmcli.simulate.report import build_report
from slmcli.simulate.settings import Group, Settings
from slmcli.simulate.simulation import Simulation
from slmcli.simulate.stable import build_versions
from slmops.api import SLMDeploymentSpec
from slmops.planning.names import Names
from tests.unit.planning.fleet_spec import spec_body

RESULT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "simulate.json"
TARGET_SECONDS = 60.0
TARGET_NODES = 100_000
WAVES: list[dict[str, Any]] = [
    {"name": "canary", "percent": 1},
    {"name": "tenth", "percent": 10},
    {"name": "rest", "percent": 100},
]


def measure(nodes: int) -> tuple[dict[str, Any], float]:
    """Report of the rollout and the CPU seconds of all of it, the fleet's making included."""
    began = time.process_time()
    spec = SLMDeploymentSpec.model_validate(spec_body(waves=WAVES, maxUnavailable="10%"))
    versions = build_versions(Names("shop", "orders"), spec, {})
    groups = uniform_groups(spec, Group(name="edge", count=nodes, sites=max(1, nodes // 10)))
    simulation = Simulation(versions, groups, Settings(), seed=1)
    simulation.run()
    return build_report(simulation, seed=1), time.process_time() - began


def build_rows(report: dict[str, Any], seconds: float, nodes: int) -> list[dict[str, Any]]:
    """Time in all and in the planner, memory, and what was simulated; ValueError if it did not end well."""
    if report["verdict"] != "Completed":
        raise ValueError(f"the simulated rollout ended as {report['verdict']}: {report['message']}")
    load = f"{nodes} virtual nodes, {report['cost']['looks']} looks, {report['minutes']:.0f} virtual minutes"
    aimed = nodes == TARGET_NODES
    planner = report["cost"]["plannerCpuSeconds"]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows: list[tuple[str, str, float, str | None, bool | None]] = [
        (
            "simulate one rollout",
            "s CPU",
            round(seconds, 1),
            f"<= {TARGET_SECONDS:g}" if aimed else None,
            seconds <= TARGET_SECONDS if aimed else None,
        ),
        ("of it in the planner", "s CPU", round(planner, 1), None, None),
        ("memory at most", "MiB", round(memory), None, None),
    ]
    return [
        {
            "measure": f"{measure_}, {nodes} nodes",
            "unit": unit,
            "ours": value,
            "peer": None,
            "peer_name": "",
            "ratio": None,
            "target": target,
            "met": met,
            "load": load,
        }
        for measure_, unit, value, target, met in rows
    ]


def main() -> int:
    """Print and write the result; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, action="append", help="default 20000 and 100000")
    rows = []
    for nodes in parser.parse_args().nodes or [20_000, TARGET_NODES]:
        report, seconds = measure(nodes)
        rows += build_rows(report, seconds, nodes)
        for row in rows[-3:]:
            verdict = {None: "", True: "ok", False: "MISSED"}[row["met"]]
            print(
                f"{row['measure']:<44} {row['ours']:>9g} {row['unit']:<6} {row['load']} {verdict}", flush=True
            )
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if any(row["met"] is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
