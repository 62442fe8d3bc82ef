# SPDX-License-Identifier: Apache-2.0
"""A line of the decision log says what was decided and from what, once for each metric."""

from collections import Counter
from typing import Any

from slmops.runtime.decisions import describe_decision
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_sim import FleetSim
from tests.unit.planning.fleet_situations import installed


def decide(sim: FleetSim, version: str) -> list[dict[str, Any]]:
    """The lines of a rollout of `version`."""
    sim.looks.clear()
    sim.set_version(version)
    sim.settle()
    lines = [describe_decision(look.observed, look.plan, look.at) for look in sim.looks]
    for line, look in zip(lines, sim.looks, strict=True):
        assert (line is None) is (not look.plan.transitions)
    return [line for line in lines if line is not None]


def test_a_decision_is_logged_with_the_latest_measurement_of_each_metric() -> None:
    metric = {"name": "quality", "preset": "EvaluationScore", "maxDegradation": "0.03"}
    sim = installed(metrics=[metric], behaviours={"v3": Behaviour(score=0.1)})
    promoted = decide(sim, "v2")
    assert any(why.startswith("Promoted: ") for line in promoted for why in line["why"])
    after_a_wave = [line for line in promoted if "measurements" in line and not line["metrics"]]
    assert any(line["measurements"] for line in after_a_wave), "a wave that begins shows what passed the last"
    failed = decide(sim, "v3")
    for line in promoted + failed:
        counts = Counter(entry["metric"] for entry in line.get("measurements", []))
        assert set(counts.values()) <= {1}, line["to"]
    back = next(line for line in failed if "RollingBack" in line["to"] and "RollingBack" not in line["from"])
    assert [(entry["verdict"], entry["canary"]) for entry in back["measurements"]] == [("Fail", "0.1")]
