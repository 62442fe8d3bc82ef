# SPDX-License-Identifier: Apache-2.0
"""Profiles in a fleet: each class its variant, changes in waves, and nothing moved without need."""

import pytest

from slmops.model.observed import OwnedKind
from slmops.model.plan import ApplyObject
from tests.unit.planning.fleet_checks import watch
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.profile_kit import GIB, ProfileSim, body_of, profile, variant


def fleet(*variants: dict[str, object], **changes: object) -> ProfileSim:
    """Two nodes of each of three classes."""
    sim = ProfileSim(body_of(*variants, **changes))
    watch(sim)
    for device in ("pi", "orin", "x86"):
        for index in range(2):
            sim.add_node(f"{device}{index}", labels={"device": device}, memory_bytes=4 * GIB)
    return sim


FORMS = (variant("fp16", "3Gi"), variant("int8", "1500Mi"), variant("int4", "800Mi"))
PI = profile("pi", budgets={"memory": "50%"}, variants={"strategy": "Smallest"})
ORIN = profile("orin", variants={"prefer": ["int4"]}, engine="onnxruntime")


def test_each_class_takes_its_variant_and_a_change_goes_out_in_waves() -> None:
    sim = fleet(*FORMS)
    sim.profiles = (PI, ORIN)
    sim.settle()
    # Files of the simulation are of equal size, so Smallest keeps the written order.
    assert sim.variants() == {
        "pi0": "int8-pi", "pi1": "int8-pi", "orin0": "int4-orin", "orin1": "int4-orin", "x860": "fp16",
        "x861": "fp16",
    }  # fmt: skip
    before = sim.status.stable_revision
    sim.profiles = (PI, profile("orin", variants={"prefer": ["int8"]}, engine="onnxruntime"))
    assert sim.run_until(lambda: sim.step == "Soaking")
    assert sorted(sim.variants().values()).count("int8-orin") <= 1, "one node is the first wave"
    sim.settle()
    assert sim.variants()["orin0"] == sim.variants()["orin1"] == "int8-orin"
    assert sim.status.stable_revision != before


def moved_by(sim: ProfileSim) -> list[str]:
    """What is written in five minutes beside status."""
    count = len(sim.looks)
    sim.run(300)
    return [
        f"{action.kind} {action.name}" if isinstance(action, ApplyObject) else str(action)
        for look in sim.looks[count:]
        for action in look.plan.actions
        if not (isinstance(action, ApplyObject) and action.kind is OwnedKind.CONFIG_MAP)
    ]


def test_a_profile_that_no_node_is_of_moves_nothing() -> None:
    sim = fleet(*FORMS)
    sim.settle()
    sim.profiles = (profile("nobody", priority=100),)
    assert moved_by(sim) == []
    sim.profiles = (profile("nobody", priority=100), profile("pi", priority=-1), profile("aa", device="pi"))
    sim.settle()
    sim.profiles = (*sim.profiles, profile("shadowed", device="pi", priority=-9))
    assert moved_by(sim) == [], "every node of it is of another one"


def test_nodes_that_come_and_go_roll_nothing_out() -> None:
    sim = fleet(*FORMS)
    late = profile("late")
    sim.profiles = (PI, ORIN, late)
    sim.settle()
    stable = sim.status.stable_revision
    sim.add_node("late0", labels={"device": "late"})
    del sim.cluster.nodes["orin0"], sim.cluster.nodes["orin1"]
    sim.settle()
    assert sim.variants()["late0"] == "fp16-late", "the class was known when the revision was made"
    assert sim.status.stable_revision == stable and sim.step == "Completed"


@pytest.mark.parametrize("restart", ["restarted", "running"])
def test_while_profiles_cannot_be_read_everything_stays_as_it_is(restart: str) -> None:
    sim = fleet(*FORMS)
    sim.profiles = (PI, ORIN)
    sim.settle()
    variants, stable = sim.variants(), sim.status.stable_revision
    sim.profiles = None
    if restart == "restarted":
        sim.restart_operator()
    sim.run(300)
    assert sim.condition("ModelResolved") == ("False", "ProfilesUnknown")
    sim.add_node("pi9", labels={"device": "pi"})
    sim.run(60)
    assert sim.variants() == variants | {"pi9": "int8-pi"} and sim.status.stable_revision == stable
    sim.profiles = (PI, ORIN)
    sim.run(60)
    assert sim.condition("ModelResolved")[0] == "True" and sim.status.stable_revision == stable


def test_a_cluster_that_knows_no_profiles_runs_as_before() -> None:
    sim = fleet(*FORMS)
    sim.profiles = None
    sim.settle()
    assert set(sim.variants().values()) == {"fp16"}
    stable = sim.status.stable_revision
    sim.profiles = ()
    sim.run(60)
    assert sim.status.stable_revision == stable and sim.step == "Completed"


def test_what_fits_nowhere_is_refused_before_anything_is_fetched() -> None:
    sim = fleet(variant("fp16", "9Gi"), variant("int8", "7Gi"))
    sim.profiles = (profile("pi", budgets={"memory": "25%"}),)
    sim.run(300)
    assert sim.our_labels() == {} and sim.cluster.pods == []
    (accepted,) = [c for c in sim.status.conditions if c.type == "Accepted"]
    assert (accepted.status, accepted.reason) == ("False", "NoVariantFits")
    assert "the smallest, int8, needs 7268 MiB (weights 7168, cache 0, engine 100)" in accepted.message
    assert "can give 4096 MiB" in accepted.message
    worst = {entry.node: entry.message for entry in sim.status.worst_nodes}
    assert set(worst) == set(sim.cluster.nodes)
    assert "can give 1024 MiB (budget 25% of DeviceProfile pi, allocatable 4096 MiB)" in worst["pi0"]


def test_a_version_that_fits_nowhere_leaves_the_stable_one_alone() -> None:
    sim = fleet(variant("int4", "800Mi"))
    sim.settle()
    pods = {pod.node for pod in sim.cluster.pods}
    sim.edit(model={"name": "orders", "version": "v2"}, variants=[variant("int4", "9Gi", version="v2")])
    sim.run(300)
    assert set(sim.versions().values()) == {"v1"} and {pod.node for pod in sim.cluster.pods} == pods
    assert sim.condition("Accepted") == ("False", "NoVariantFits")
    assert not any(key.endswith(".prefetch") for labels in sim.our_labels().values() for key in labels)
    sim.edit(variants=[variant("int4", "800Mi", version="v2")])
    sim.settle()
    assert set(sim.versions().values()) == {"v2"}


def test_one_node_that_nothing_fits_is_told_and_the_others_go_on() -> None:
    sim = fleet(variant("int4", "800Mi"))
    sim.add_node("tiny", memory_bytes=GIB // 2)
    sim.settle()
    assert sim.variants()["tiny"] == "" and sim.condition("Accepted")[0] == "True"
    (entry,) = sim.status.worst_nodes
    assert (entry.node, entry.reason) == ("tiny", "Unfit")
    assert "the smallest variant needs 900 MiB of memory, the node can give 512 MiB" in entry.message


def test_two_versions_stand_side_by_side_only_within_the_budget() -> None:
    """4 GiB hold two pods of 900 MiB, a budget of 1024 MiB does not: the old one goes first."""
    for budget, beside in (("1Gi", False), ("2Gi", True)):
        sim = ProfileSim(body_of(variant("int4", "800Mi")))
        watch(sim)
        sim.profiles = (profile("pi", budgets={"memory": budget}),)
        for index in range(3):
            sim.add_node(f"pi{index}", labels={"device": "pi"})
        sim.settle()
        seen: set[int] = set()
        sim.checks.append(lambda s, look, seen=seen: seen.update(len(s.given(n)) for n in s.cluster.nodes))  # type: ignore[misc]
        sim.edit(model={"name": "orders", "version": "v2"}, variants=[variant("int4", "800Mi", version="v2")])
        sim.settle()
        assert set(sim.versions().values()) == {"v2"}
        assert (2 in seen) is beside


def test_undo_by_hand_holds_although_the_classes_have_changed() -> None:
    sim = fleet(variant("int4", "800Mi"))
    sim.settle()
    first = sim.status.stable_revision
    sim.profiles = (profile("pi"),)
    sim.settle()
    second = sim.status.stable_revision
    assert second != first
    assert sim.ask("undo", first).outcome == "Done"
    sim.settle()
    for name in ("pi0", "pi1"):
        del sim.cluster.nodes[name]
    sim.run(300)
    assert sim.status.pinned is not None and sim.status.stable_revision == first
    assert sim.status.pinned.instead_of == second


def test_a_worse_version_is_told_although_its_variants_have_new_names() -> None:
    """The devices are compared with what the same devices had, whatever it was called."""
    sim = fleet(variant("int4", "800Mi"), variant("int8", "800Mi"))
    sim.cluster.behaviours["v2"] = Behaviour(score=0.5)
    sim.settle()
    sim.profiles = (profile("pi", variants={"prefer": ["int8"]}), profile("orin"), profile("x86"))
    sim.edit(
        model={"name": "orders", "version": "v2"},
        variants=[variant("int4", "800Mi", version="v2"), variant("int8", "800Mi", version="v2")],
    )
    sim.settle()
    assert sim.step == "Failed" and set(sim.versions().values()) == {"v1"}
    assert sim.condition("RolloutSucceeded") == ("False", "AnalysisFailed")


@pytest.mark.parametrize("kill_at", range(0, 24, 3))
def test_killed_at_any_write_it_comes_to_the_same_end(kill_at: int) -> None:
    sim = fleet(*FORMS)
    sim.profiles = (PI, ORIN)
    sim.settle()
    sim.kill_at = sim.writes + kill_at
    sim.profiles = (PI, profile("orin", variants={"prefer": ["int8"]}, engine="onnxruntime"))
    sim.settle()
    assert sim.kills == 1
    assert sim.variants()["orin0"] == sim.variants()["orin1"] == "int8-orin"
    assert sim.variants()["pi0"] == "int8-pi" and sim.variants()["x860"] == "fp16"
