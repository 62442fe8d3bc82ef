# SPDX-License-Identifier: Apache-2.0
"""Analysis of a fleet of two device classes, and of counts off the pods, in virtual time."""

from typing import Any

import pytest

from tests.unit.planning.fleet_checks import watch
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_sim import FleetSim
from tests.unit.planning.fleet_situations import installed, reach
from tests.unit.planning.fleet_spec import merged, spec_body

WORSE = {"name": "errors", "preset": "ErrorRate", "maxDegradation": "0.02"}


def two_classes(behaviours: dict[str, Behaviour], **rollout: Any) -> FleetSim:
    """Three nodes for int4 and three for fp32; both serve v1."""
    body = spec_body(metrics=[WORSE], **rollout)
    (int4,) = body["variants"]
    fp32 = merged(int4, {"name": "fp32", "nodeSelector": {"matchLabels": {"big": "yes"}}})
    fp32["source"] = {"http": {"url": "http://models/v1/fp32.json"}}
    sim = watch(FleetSim(body | {"variants": [fp32, int4]}, behaviours=behaviours))
    for index in range(6):
        sim.add_node(f"n{index}", labels={"big": "yes"} if index % 2 else {})
    sim.settle()
    assert sim.version == "v1"
    return sim


def test_classes_that_differ_pass_when_each_is_as_before() -> None:
    same = {"fp32": 0.0, "int4": 0.2}
    sim = two_classes({"v1": Behaviour(error_rates=same), "v2": Behaviour(error_rates=same)})
    sim.set_version("v2")
    sim.settle()
    assert set(sim.versions().values()) == {"v2"}
    rollout = sim.status.rollout
    assert rollout and [(b.metric, b.variant) for b in rollout.baseline] == [
        ("errors", "fp32"),
        ("errors", "int4"),
    ]


@pytest.mark.parametrize("bad", ["fp32", "int4"])
def test_one_bad_class_rolls_all_back_and_is_named(bad: str) -> None:
    sim = two_classes({"v2": Behaviour(error_rates={bad: 0.3})})
    sim.set_version("v2")
    sim.settle()
    assert sim.step == "Failed" and set(sim.versions().values()) == {"v1"}
    assert f"{bad}: 0.3 against 0 on stable" in sim.status.failed_revisions[0].message
    fails = [
        m for m in (sim.status.rollout.measurements if sim.status.rollout else ()) if m.verdict == "Fail"
    ]
    assert [m.variant for m in fails] == [bad] and fails[0].p_value


def test_class_that_turns_bad_in_the_last_wave_is_held_against_what_was_kept() -> None:
    sim = two_classes({"v2": Behaviour()}, waves=[{"name": "all", "percent": 100}])
    sim.set_version("v2")
    reach(sim, "Soaking")
    assert set(sim.versions().values()) == {"v2"}, "no stable node is left"
    sim.cluster.behaviours["v2"].error_rates = {"int4": 0.3}
    sim.settle()
    assert sim.step == "Failed" and set(sim.versions().values()) == {"v1"}


def test_restarts_are_read_off_the_pods_and_fail_the_wave() -> None:
    restarts = {"name": "restarts", "preset": "Restarts", "max": "0"}
    sim = installed(metrics=[restarts], behaviours={"v2": Behaviour(restarts_later=1)})
    sim.set_version("v2")
    sim.provider_error = "nobody is to be asked"
    sim.settle()
    assert sim.step == "Failed" and set(sim.versions().values()) == {"v1"}
    assert sim.status.failed_revisions[0].message == "restarts: 1 is above max 0"


@pytest.mark.parametrize("preset", ["Restarts", "OOMKills"])
def test_pods_without_trouble_pass_by_themselves(preset: str) -> None:
    metrics = [{"name": "pods", "preset": preset, "max": "0"}]
    sim = installed(metrics=metrics)
    sim.set_version("v2")
    sim.settle()
    assert sim.version == "v2"
    last = sim.status.rollout.measurements[-1] if sim.status.rollout else None
    assert last and (last.variant, last.canary, last.canary_samples) == ("int4", "0", 5)


def test_scenario_29_memory_kills_are_counted() -> None:
    metrics = [{"name": "kills", "preset": "OOMKills", "max": "0", "failureLimit": 1}]
    sim = installed(metrics=metrics, maxFailures=5, behaviours={"v2": Behaviour(oom=True)})
    sim.set_version("v2")
    sim.settle()
    assert sim.step == "Failed" and set(sim.versions().values()) == {"v1"}
    assert sim.status.failed_revisions[0].message.startswith("kills: ")
