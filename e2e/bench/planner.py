# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.bench.planner`: how long one look at a fleet of 3,000 nodes takes to plan.

A virtual fleet goes through an installation, a promotion in three waves and a rollback; each look is
planned once more under the clock. Nothing but the planner is measured: no API server, no network, and
processor time, so that what else the machine does is left out.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from slmops.planning.plan import plan
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_sim import FleetSim, Look
from tests.unit.planning.fleet_spec import spec_body

RESULT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "planner.json"
TARGET_MILLISECONDS = 200.0
"""Of one look: at five looks a second a core is busy, and changes are gathered before a look."""
WAVES: list[dict[str, Any]] = [
    {"name": "lab", "nodeSelector": {"matchLabels": {"site": "s0"}}},
    {"name": "tenth", "percent": 10},
    {"name": "rest", "percent": 100},
]


def run_fleet(nodes: int) -> dict[str, list[float]]:
    """Milliseconds of each look, by what the deployment was doing."""
    taken: dict[str, list[float]] = {}

    def clock(sim: FleetSim, look: Look) -> None:
        began = time.process_time()
        outcome = plan(look.observed, look.at)
        spent = (time.process_time() - began) * 1000
        rollout = outcome.status.rollout
        taken.setdefault(rollout.step if rollout else "Accepted", []).append(spent)

    sim = FleetSim(spec_body(waves=WAVES, maxUnavailable="25%"), behaviours={"v3": Behaviour(score=0.5)})
    for index in range(nodes):
        address = f"10.{index % 300 // 250}.{index % 250}.{index // 300 + 1}"
        node = sim.add_node(f"edge-{index:05}", labels={"site": f"s{index % 300}"}, address=address)
        node.labels |= {f"example.com/label-{number}": "value" for number in range(15)}  # as real nodes have
    sim.checks.append(clock)
    for version in ("v1", "v2", "v3"):
        if version != "v1":
            sim.set_version(version)
        sim.settle()
        print(f"{version}: {sim.step} after {len(sim.looks)} looks", file=sys.stderr, flush=True)
        sim.looks = sim.looks[-1:]
    return taken


def build_rows(taken: dict[str, list[float]], nodes: int) -> list[dict[str, Any]]:
    """One row for each step: median and worst look."""
    rows: list[dict[str, Any]] = []
    for step, spent in taken.items():
        for name, value, target in (
            ("median", statistics.median(spent), TARGET_MILLISECONDS),
            ("worst", max(spent), None),
        ):
            rows.append(
                {
                    "measure": f"plan one look, {step}, {name}",
                    "unit": "ms CPU",
                    "ours": round(value, 1),
                    "peer": None,
                    "peer_name": "",
                    "ratio": None,
                    "target": f"<= {target:g}" if target else None,
                    "met": value <= target if target else None,
                    "load": f"{nodes} virtual nodes, {len(spent)} looks",
                }
            )
    return rows


def main() -> int:
    """Print and write the result; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=3000)
    nodes = parser.parse_args().nodes
    rows = build_rows(run_fleet(nodes), nodes)
    for row in rows:
        verdict = {None: "", True: "ok", False: "MISSED"}[row["met"]]
        print(f"{row['measure']:<44} {row['ours']:>9g} {row['unit']:<6} {row['load']:<36} {verdict}")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if any(row["met"] is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
