# SPDX-License-Identifier: Apache-2.0
"""The operator dies before its n-th write, for every n of a whole rollout: the end is the same."""

from copy import deepcopy
from typing import Any

import pytest

from tests.unit.planning.fleet_checks import watch
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_sim import FleetSim
from tests.unit.planning.fleet_spec import GIB, spec_body

WAVES: list[dict[str, Any]] = [
    {"name": "lab", "nodeSelector": {"matchLabels": {"site": "lab"}}},
    {"name": "half", "percent": 50},
    {"name": "rest", "percent": 100},
]


def installed() -> FleetSim:
    """v1 on four nodes: a lab and three shops, of which some can hold two versions and some cannot."""
    sim = watch(FleetSim(spec_body(waves=WAVES, maxUnavailable=2, soak="5s")), replan_every=0)
    for index in range(4):
        memory_bytes = 4 * GIB if index % 2 else GIB + GIB // 4
        labels = {"site": "lab" if index == 0 else "shop"}
        sim.add_node(f"n{index}", memory_bytes=memory_bytes, labels=labels)
    sim.settle()
    sim.looks = sim.looks[-1:]
    return sim


def rolled_out(
    before: FleetSim, *, score: float, fails_from_wave: int, kill_after: int | None
) -> tuple[FleetSim, int]:
    """A three-wave rollout of v2 with one kill, and how many writes it took."""
    sim = deepcopy(before)
    sim.cluster.behaviours["v2"] = Behaviour()

    def turn_bad(sim: FleetSim, look: object) -> None:
        if sim.wave >= fails_from_wave and sim.step == "Flipping":
            sim.cluster.behaviours["v2"].score = score

    sim.checks.append(turn_bad)
    if kill_after is not None:
        sim.kill_at = sim.writes + kill_after
    sim.set_version("v2")
    sim.settle()
    return sim, sim.writes - before.writes


def end_state(sim: FleetSim) -> object:
    """What must not depend on a kill: labels, objects, verdicts, history of each node, failures."""
    rollout = sim.status.rollout
    assert rollout is not None
    return (
        sim.our_labels(),
        sorted(sim.cluster.objects),
        sim.version,
        rollout.step,
        rollout.reason,
        [(wave.name, wave.verdict, wave.nodes, wave.updated, wave.ready) for wave in rollout.waves],
        [entry.revision for entry in sim.status.failed_revisions],
        sim.history,
        [(c.type, c.status, c.reason, c.message) for c in sim.status.conditions],
    )


@pytest.mark.parametrize(
    ("score", "fails_from_wave"),
    [(0.99, 9), (0.5, 2)],
    ids=["promoted", "rolled-back-in-the-last-wave"],
)
def test_scenario_10_kill_before_every_write(score: float, fails_from_wave: int) -> None:
    before = installed()
    undisturbed, writes = rolled_out(before, score=score, fails_from_wave=fails_from_wave, kill_after=None)
    expected = end_state(undisturbed)
    assert undisturbed.version == ("v2" if score > 0.9 else "v1")
    assert writes > 30, "every step of the rollout is among them"
    for n in range(writes):
        sim, _ = rolled_out(before, score=score, fails_from_wave=fails_from_wave, kill_after=n)
        assert sim.kills == 1, n
        assert end_state(sim) == expected, f"killed before write {n}"


def test_scenario_10_a_node_is_given_each_revision_once() -> None:
    sim, _ = rolled_out(installed(), score=0.5, fails_from_wave=2, kill_after=None)
    for name, given in sim.history.items():
        versions = [sim.cluster.version_of(revision) for revision in given]
        # A node that held both the old and the new version side by side need not be given the old one again.
        assert versions in (["v1"], ["v1", "v2"], ["v1", "v2", "v1"]), f"{name}: {versions}"


def test_kills_at_many_writes_of_one_rollout() -> None:
    sim = watch(FleetSim(spec_body(waves=WAVES, maxUnavailable=2)))
    for index in range(8):
        sim.add_node(f"n{index}", labels={"site": "lab" if index == 0 else "shop"})
    sim.settle()
    sim.set_version("v2")

    def kill_again(sim: FleetSim, look: object) -> None:
        if sim.kill_at is None:
            sim.kill_at = sim.writes + 7

    sim.checks.append(kill_again)
    sim.settle()
    assert sim.kills > 5
    assert set(sim.versions().values()) == {"v2"}
    assert all(len(given) == 2 for given in sim.history.values())
