# SPDX-License-Identifier: Apache-2.0
"""Rollouts under a signature policy, on a virtual fleet."""

from typing import Any

import pytest

from slmops.api.status import ConditionType
from tests.unit.planning.fleet_sim import FleetSim
from tests.unit.planning.fleet_situations import installed, reach
from tests.unit.planning.fleet_spec import spec_body


def pem(name: str) -> str:
    return f"-----BEGIN PUBLIC KEY-----\n{name}\n-----END PUBLIC KEY-----"


def wanting(*keys: str, policy: str = "Require") -> dict[str, Any]:
    return {"signature": {"policy": policy, "publicKeys": [pem(key) for key in keys]}}


def signed(sim: FleetSim) -> tuple[str, str]:
    return sim.condition(ConditionType.SIGNATURE_VERIFIED)


def resolved(sim: FleetSim) -> tuple[str, str]:
    return sim.condition(ConditionType.MODEL_RESOLVED)


@pytest.fixture
def sim() -> FleetSim:
    """Serves v1, signed by `old`, which a policy requires; v2 is signed by `new`."""
    sim = installed(3)
    sim.signed_by = {"/v1/": "old", "/v2/": "new"}
    sim.edit(model=wanting("old"))
    sim.run(5)
    assert signed(sim) == ("True", "Verified")
    return sim


def test_asking_for_a_signature_restarts_nothing(sim: FleetSim) -> None:
    revision = sim.status.stable_revision
    sim.edit(model=wanting("old", "new"))
    sim.run(60)
    assert sim.status.stable_revision == revision and len(sim.status.variants) == 1
    assert all(len(given) == 1 for given in sim.history.values()), "no node was given anything else"


def test_a_new_model_of_a_stranger_is_refused_and_what_serves_goes_on(sim: FleetSim) -> None:
    sim.set_version("v2")
    sim.run(300)
    assert set(sim.versions().values()) == {"v1"} and sim.version == "v1"
    assert resolved(sim) == ("False", "SignatureInvalid") == signed(sim)
    assert "SignatureInvalid" in sim.events()
    sim.edit(model=wanting("old", "new"))
    sim.settle()
    assert set(sim.versions().values()) == {"v2"} and signed(sim) == ("True", "Verified")


def test_warn_takes_it_and_says_so(sim: FleetSim) -> None:
    sim.edit(model=wanting("old", policy="Warn"))
    sim.set_version("v2")
    sim.settle()
    assert set(sim.versions().values()) == {"v2"}
    assert signed(sim) == ("False", "SignatureInvalid") and resolved(sim) == ("True", "Resolved")


def test_a_key_taken_out_leaves_what_is_stable_alone_and_new_nodes_get_it(sim: FleetSim) -> None:
    sim.edit(model=wanting("new"))
    sim.run(60)
    assert signed(sim) == ("False", "SignatureInvalid") and resolved(sim) == ("True", "Resolved")
    sim.add_node("late")
    sim.settle()
    assert set(sim.versions().values()) == {"v1"} and len(sim.versions()) == 4


def test_a_key_taken_out_under_way_sends_the_wave_back(sim: FleetSim) -> None:
    sim.edit(model=wanting("old", "new"))
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.edit(model=wanting("old"))
    sim.settle()
    assert set(sim.versions().values()) == {"v1"} and sim.step == "Cancelled"
    assert resolved(sim) == ("False", "SignatureInvalid")
    sim.edit(model=wanting("old", "new"))
    sim.settle()
    assert set(sim.versions().values()) == {"v2"}


def test_a_restart_under_way_while_the_source_is_away_stops_nothing(sim: FleetSim) -> None:
    sim.edit(model=wanting("old", "new"))
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.unresolvable = {"/v2/"}
    sim.restart_operator()
    sim.settle()
    assert set(sim.versions().values()) == {"v2"} and signed(sim) == ("True", "Verified")


def test_a_policy_that_is_asked_for_under_way_holds_the_rollout_until_it_is_checked() -> None:
    sim = installed(3)
    sim.signed_by = {"/v2/": "new"}
    sim.set_version("v2")
    reach(sim, "Soaking")
    taken = sorted(sim.versions().values())
    sim.unresolvable = {"/v2/"}
    sim.restart_operator()
    sim.edit(model=wanting("new"))
    sim.run(600)
    assert sorted(sim.versions().values()) == taken and sim.step == "Soaking", "neither on nor back"
    assert sim.condition("Progressing") == ("False", "NotAccepted")
    assert signed(sim) == ("Unknown", "Verifying")
    sim.restart_operator()
    sim.run(600)
    assert sorted(sim.versions().values()) == taken
    sim.unresolvable = set()
    sim.settle()
    assert set(sim.versions().values()) == {"v2"} and signed(sim) == ("True", "Verified")


def test_the_way_back_by_hand_is_held_up_by_no_signature_of_what_is_left() -> None:
    sim = installed(3)
    sim.signed_by = {"/v2/": "new"}
    sim.set_version("v2")
    sim.settle()
    before = sim.revision_of("v1")
    assert sim.ask("undo", before).outcome == "Done"
    reach(sim, "Soaking")
    sim.unresolvable = {"/v2/"}
    sim.restart_operator()
    sim.edit(model=wanting("new"))
    sim.settle()
    assert sim.status.stable_revision == before and set(sim.versions().values()) == {"v1"}


def test_a_bad_canary_is_taken_back_while_another_model_waits_for_its_source(sim: FleetSim) -> None:
    sim.edit(model=wanting("old", "new"))
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.unresolvable = {"/v3/"}
    sim.set_version("v3")
    sim.run(5)
    sim.cluster.behaviours["v2"].score = 0.1
    sim.run(600)
    assert set(sim.versions().values()) == {"v1"} and sim.step in ("Failed", "Cancelled"), sim.explain()


def test_a_key_taken_out_while_the_first_revision_is_installed_leaves_what_serves_alone() -> None:
    sim = FleetSim(spec_body())
    for index in range(3):
        sim.add_node(f"n{index}", fetch_seconds=300)
    sim.signed_by = {"/v1/": "old"}
    sim.set_version("v1")
    sim.edit(model=wanting("old"))
    sim.run(30)
    sim.edit(model=wanting("new"))
    sim.run(5)
    sim.add_node("late")
    sim.run(600)
    expected = {"n0": "v1", "n1": "v1", "n2": "v1", "late": ""}
    assert sim.versions() == expected, "there is nothing to go back to, and no other node gets it"
    assert sim.condition("Progressing") == ("False", "ModelNotResolved")


def test_a_restart_is_no_news(sim: FleetSim) -> None:
    events = len(sim.events())
    sim.restart_operator()
    sim.run(60)
    assert len(sim.events()) == events and signed(sim) == ("True", "Verified")
