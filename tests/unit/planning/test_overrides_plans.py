# SPDX-License-Identifier: Apache-2.0
"""Overrides in a fleet: each site its settings, changes in waves, and nodes moved one after another."""

from typing import Any

import pytest

from tests.unit.planning.fleet_checks import watch
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.profile_kit import GIB, ProfileSim, body_of, profile, variant

NORTH: dict[str, Any] = {"name": "tight", "sites": ["north"], "runtime": {"slots": 1}}


def fleet(**changes: Any) -> ProfileSim:
    """Four nodes at each of two sites."""
    sim = ProfileSim(body_of(variant("int4", "800Mi"), **changes))
    watch(sim)
    for site in ("north", "south"):
        for index in range(4):
            sim.add_node(f"{site}{index}", labels={"site": site}, memory_bytes=4 * GIB)
    return sim


def of_site(sim: ProfileSim, site: str) -> set[str]:
    return {name for node, name in sim.variants().items() if node.startswith(site)}


def test_an_override_goes_out_in_waves_and_so_does_a_change_of_it() -> None:
    sim = fleet()
    sim.settle()
    first = sim.status.stable_revision
    sim.edit(overrides=[NORTH])
    assert sim.run_until(lambda: sim.step == "Soaking")
    assert sum(first in sim.given(node) for node in sim.cluster.nodes) >= 6, "one wave has gone out"
    sim.settle()
    second = sim.status.stable_revision
    assert of_site(sim, "north") == {"int4-tight"} and of_site(sim, "south") == {"int4"}
    assert second != first
    sim.edit(overrides=[NORTH | {"resources": {"requests": {"memory": "1Gi"}}}])
    sim.settle()
    assert sim.status.stable_revision not in (first, second) and sim.step == "Completed"
    sim.edit(overrides=None)
    sim.settle()
    assert sim.status.stable_revision == first, "without overrides it is the revision that it was"


def test_a_node_that_comes_to_another_override_is_moved_without_a_rollout() -> None:
    sim = fleet(overrides=[NORTH])
    sim.settle()
    stable = sim.status.stable_revision
    away: set[int] = set()
    for name in ("south0", "south1", "south2"):
        sim.cluster.nodes[name].labels["site"] = "north"
    sim.checks.append(lambda s, _look: away.add(sum(not s.cluster.serving(n) for n in s.cluster.nodes)))
    sim.run(600)
    assert of_site(sim, "south") == {"int4", "int4-tight"}
    assert [sim.variants()[f"south{i}"] for i in range(4)] == ["int4-tight"] * 3 + ["int4"]
    assert sim.status.stable_revision == stable and sim.step == "Completed"
    assert max(away) <= 1, "one after another, within maxUnavailable"


def test_a_change_of_selectors_is_a_revision_that_goes_out_in_waves() -> None:
    sim = fleet(overrides=[NORTH])
    sim.settle()
    stable = sim.status.stable_revision
    sim.edit(overrides=[NORTH | {"sites": ["north", "south"]}])
    assert sim.run_until(lambda: sim.step == "Soaking")
    assert sum(stable in sim.given(node) for node in sim.cluster.nodes) >= 6
    sim.settle()
    assert of_site(sim, "south") == {"int4-tight"} and sim.status.stable_revision != stable


def test_another_order_of_overrides_that_cannot_meet_moves_nothing() -> None:
    other = {"name": "other", "sites": ["south"], "runtime": {"slots": 2}}
    sim = fleet(overrides=[NORTH, other])
    sim.settle()
    stable = sim.status.stable_revision
    sim.edit(overrides=[other, NORTH])
    sim.run(300)
    assert sim.status.stable_revision == sim.status.update_revision == stable


def test_a_worse_version_at_the_site_of_an_override_is_told_and_taken_back() -> None:
    """The override is new: the site's nodes are compared with what they had without it."""
    sim = fleet()
    sim.cluster.behaviours["v2"] = Behaviour(score=0.5)
    sim.settle()
    first = sim.status.stable_revision
    sim.edit(
        model={"name": "orders", "version": "v2"},
        variants=[variant("int4", "800Mi", version="v2")],
        overrides=[NORTH],
    )
    sim.settle()
    assert sim.step == "Failed" and sim.status.stable_revision == first
    assert set(sim.variants().values()) == {"int4"} and set(sim.versions().values()) == {"v1"}


def test_while_profiles_cannot_be_read_overrides_go_on() -> None:
    sim = fleet(overrides=[NORTH])
    sim.settle()
    stable = sim.status.stable_revision
    sim.profiles = None
    sim.run(120)
    assert sim.condition("ModelResolved")[0] == "True" and sim.status.stable_revision == stable


def test_an_override_for_a_profile_that_is_not_there_is_told_and_stops_nothing() -> None:
    sim = fleet(overrides=[NORTH, {"name": "small", "profiles": ["pie"], "runtime": {"slots": 1}}])
    sim.profiles = (profile("pi"),)
    sim.settle()

    def accepted() -> str:
        return next(c.message for c in sim.status.conditions if c.type == "Accepted")

    assert "spec.overrides[small].profiles: there is no DeviceProfile pie" in accepted()
    assert sim.condition("Accepted") == ("True", "Accepted")
    sim.profiles = (profile("pi"), profile("pie"))
    sim.run(60)
    assert "DeviceProfile" not in accepted()


def test_too_many_combinations_leave_everything_alone() -> None:
    sim = fleet(overrides=[NORTH])
    sim.profiles = tuple(profile(f"p{i}", device=f"p{i}") for i in range(3))
    sim.settle()
    before, stable = sim.variants(), sim.status.stable_revision
    sim.edit(overrides=[NORTH, *({"name": f"o{i}", "sites": [f"s{i}"], "engine": "auto"} for i in range(20))])
    sim.run(300)
    assert sim.condition("Accepted") == ("False", "InvalidSpec")
    assert sim.variants() == before and sim.status.stable_revision == stable


@pytest.mark.parametrize("kill_at", range(0, 20, 4))
def test_killed_at_any_write_it_comes_to_the_same_end(kill_at: int) -> None:
    sim = fleet()
    sim.settle()
    sim.kill_at = sim.writes + kill_at
    sim.edit(overrides=[NORTH])
    sim.settle()
    assert sim.kills == 1
    assert of_site(sim, "north") == {"int4-tight"} and of_site(sim, "south") == {"int4"}
