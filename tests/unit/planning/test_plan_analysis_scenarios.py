# SPDX-License-Identifier: Apache-2.0
"""Scenarios 1 to 14: analysis, promotion and rollback on a virtual fleet in virtual time."""

import math

import pytest

from slmops.model.observed import OwnedKind
from slmops.model.plan import ApplyObject, PatchNodeLabels
from slmwire.labels import Role
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_situations import ERRORS, PROVEN_ERRORS, canary_node, installed, reach


def test_promotion_gives_every_node_the_new_version_and_leaves_nothing_else() -> None:
    sim = installed()
    sim.set_version("v2")
    sim.settle()
    assert set(sim.versions().values()) == {"v2"} and sim.version == "v2"
    assert all(list(labels.values()) == ["int4"] for labels in sim.our_labels().values())
    workloads = [name for kind, name in sim.cluster.objects if kind is OwnedKind.DAEMON_SET]
    assert len(workloads) == 1
    assert sim.condition("RolloutSucceeded") == ("True", "Promoted")
    assert sim.events().count("WavePassed") == 2


@pytest.mark.parametrize("score", [None, math.nan])
def test_scenario_01_no_data_holds(score: float | None) -> None:
    sim = installed(behaviours={"v2": Behaviour(score=score)})
    sim.set_version("v2")
    reach(sim, "Analysing")
    sim.run(1200)
    assert (sim.step, sim.wave) == ("Analysing", 0)
    assert list(sim.versions().values()).count("v2") == 1
    assert not sim.status.failed_revisions
    assert sim.condition("Progressing") == ("False", "NoData")


def test_scenario_02_no_data_is_called_so() -> None:
    sim = installed(behaviours={"v2": Behaviour(score=math.nan)})
    sim.set_version("v2")
    reach(sim, "Analysing")
    sim.run(60)
    progressing = next(c for c in sim.status.conditions if c.type == "Progressing")
    assert "quality: no data" in progressing.message
    assert sim.status.rollout and sim.status.rollout.measurements[-1].verdict == "NoData"
    sim.cluster.behaviours["v2"].score = 0.99
    sim.settle()
    assert sim.version == "v2"


def test_scenario_03_provider_outage_holds_then_goes_on() -> None:
    sim = installed(behaviours={"v2": Behaviour(score=0.5)})
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.provider_error = "503 Service Unavailable"
    sim.run(300)
    assert (sim.step, sim.wave) == ("Analysing", 0)
    assert sim.condition("Progressing") == ("False", "ProviderError")
    sim.cluster.behaviours["v2"].score = 0.99
    failures = [m.consecutive_failures for m in sim.status.rollout.metrics] if sim.status.rollout else []
    sim.provider_error = ""
    sim.run(25)
    assert sum(failures) <= 1, "an outage is no failure"
    sim.settle()
    assert sim.version == "v2"


def test_scenario_03_outage_before_the_wave_moves_nothing() -> None:
    sim = installed()
    sim.provider_error = "connection refused"
    sim.set_version("v2")
    sim.run(600)
    assert set(sim.versions().values()) == {"v1"}
    assert sim.condition("Progressing") == ("False", "NoBaseline")
    sim.provider_error = ""
    sim.settle()
    assert sim.version == "v2"


@pytest.mark.parametrize(("policy", "version"), [("Hold", "v2"), ("Rollback", "v1")])
def test_scenario_05_deadline_policy_decides_after_an_outage(policy: str, version: str) -> None:
    sim = installed(progressDeadline="10m", onDeadline=policy)
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.provider_error = "timeout"
    sim.run(900)
    if policy == "Hold":
        assert sim.condition("Progressing") == ("False", "DeadlineExceeded")
        assert sim.versions()[canary_node(sim)] == "v2"
    else:
        assert sim.condition("RolloutSucceeded") == ("False", "DeadlineExceeded")
    sim.provider_error = ""
    sim.settle()
    assert set(sim.versions().values()) == {version}


@pytest.mark.parametrize("errors", [ERRORS, PROVEN_ERRORS])
def test_scenario_06_a_small_sample_never_fails_a_large_one_does(errors: dict[str, str]) -> None:
    sim = installed(metrics=[errors], behaviours={"v2": Behaviour(error_rate=1 / 3, samples=3)})
    sim.set_version("v2")
    reach(sim, "Analysing")
    sim.run(300)
    assert sim.step == "Analysing" and sim.condition("Progressing") == ("False", "Inconclusive")
    sim.cluster.behaviours["v2"].samples = 3000
    sim.settle()
    assert sim.step == "Failed" and set(sim.versions().values()) == {"v1"}
    assert sim.condition("RolloutSucceeded") == ("False", "AnalysisFailed")


def test_scenario_07_alternating_results_neither_pass_nor_fail() -> None:
    sim = installed(metrics=[ERRORS], progressDeadline="90h", behaviours={"v2": Behaviour(error_rate=0.5)})
    sim.set_version("v2")
    behaviour = sim.cluster.behaviours["v2"]

    def swap() -> None:
        behaviour.error_rate = 0.0 if behaviour.error_rate else 0.5
        sim.at(10, swap)

    reach(sim, "Soaking")
    swap()
    sim.run(3600)
    assert sim.step == "Analysing" and sim.wave == 0
    verdicts = {m.verdict for m in (sim.status.rollout.measurements if sim.status.rollout else ())}
    assert verdicts == {"Pass", "Fail"}


def test_scenario_07_two_failures_in_a_row_roll_back() -> None:
    sim = installed(metrics=[ERRORS], behaviours={"v2": Behaviour(error_rate=0.5)})
    sim.set_version("v2")
    sim.settle()
    fails = [
        m for m in (sim.status.rollout.measurements if sim.status.rollout else ()) if m.verdict == "Fail"
    ]
    assert len(fails) == 2 and sim.step == "Failed"


@pytest.mark.parametrize("errors", [ERRORS, PROVEN_ERRORS])
def test_scenario_08_equally_bad_stable_takes_no_blame(errors: dict[str, str]) -> None:
    bad = {"v1": Behaviour(error_rate=0.5), "v2": Behaviour(error_rate=0.5)}
    sim = installed(metrics=[errors], behaviours=bad)
    sim.set_version("v2")
    reach(sim, "Analysing")
    sim.run(600)
    assert sim.step == "Analysing" and not sim.status.failed_revisions
    assert sim.condition("Progressing") == ("False", "Inconclusive")


def test_scenario_09_others_under_way_are_shown_terminated() -> None:
    slow = {"name": "slow", "preset": "LatencyP95", "max": "5"}
    sim = installed(metrics=[PROVEN_ERRORS, slow], behaviours={"v2": Behaviour(error_rate=0.5)})
    sim.answer_seconds["slow"] = 8.0
    sim.set_version("v2")
    sim.settle()
    rollout = sim.status.rollout
    assert rollout and sim.step == "Failed" and set(sim.versions().values()) == {"v1"}
    assert {state.name: state.verdict for state in rollout.metrics} == {
        "errors": "Fail",
        "slow": "Terminated",
    }
    assert [m.metric for m in rollout.measurements if m.verdict == "Terminated"] == ["slow"]
    assert sim.status.failed_revisions[0].message.startswith("errors: ")


def test_scenario_10_killed_between_status_and_label_write() -> None:
    sim = installed()
    sim.set_version("v2")
    sim.run(1)
    while sim.step != "Flipping":
        sim.kill_at = sim.writes + 1  # after the next status write, before the first action
        sim.run(1)
    sim.settle()
    assert sim.kills >= 1
    assert set(sim.versions().values()) == {"v2"}
    assert all(len(given) == 2 for given in sim.history.values()), sim.history


def test_scenario_10_soak_timer_survives_a_restart() -> None:
    sim = installed()
    sim.set_version("v2")
    reach(sim, "Soaking")
    began = sim.now
    sim.run(20)
    sim.restart_operator()
    assert sim.run_until(lambda: sim.wave == 1)
    assert 29 <= sim.now - began <= 45


def test_scenario_11_new_revision_starts_again_at_the_first_wave() -> None:
    sim = installed()
    sim.set_version("v2")
    reach(sim, "Soaking", wave=1)
    assert list(sim.versions().values()).count("v2") >= 4
    sim.set_version("v3")
    assert sim.run_until(lambda: "v3" in sim.versions().values())
    assert sim.wave == 0 and sim.version == "v1", "stable stays the last promoted"
    reach(sim, "Soaking")
    began = sim.now
    assert sim.run_until(lambda: sim.wave == 1)
    assert sim.now - began >= 29, "the soak starts again"
    assert list(sim.versions().values()).count("v3") == 1
    sim.settle()
    assert set(sim.versions().values()) == {"v3"}


def test_scenario_12_revert_returns_at_once_without_a_fetch() -> None:
    sim = installed(20, maxUnavailable=3)
    sim.set_version("v2")
    reach(sim, "Flipping", wave=1)
    sim.run(20)
    sim.set_version("v1")
    began = sim.now
    assert sim.run_until(lambda: set(sim.versions().values()) == {"v1"}, limit_seconds=60), sim.explain()
    assert sim.now - began < 60
    assert not [p for p in sim.cluster.pods if p.role is Role.PREFETCH and p.version == "v1"]
    sim.settle()
    assert sim.step == "Cancelled" and not sim.status.failed_revisions
    assert sim.condition("RolloutSucceeded") == ("True", "Promoted")


def test_scenario_13_failed_revision_needs_a_retry() -> None:
    sim = installed(behaviours={"v2": Behaviour(score=0.5)})
    sim.set_version("v2")
    sim.settle()
    assert sim.step == "Failed" and set(sim.versions().values()) == {"v1"}
    sim.set_version("v1")  # GitOps puts the old spec back and then the same bad one again
    sim.run(120)
    sim.set_version("v2")
    sim.run(3600)
    assert set(sim.versions().values()) == {"v1"}
    assert sim.condition("RolloutSucceeded") == ("False", "AnalysisFailed")
    given = sum(map(len, sim.history.values()))
    sim.cluster.behaviours["v2"].score = 0.99
    sim.retry()
    sim.settle()
    assert sum(map(len, sim.history.values())) > given
    assert set(sim.versions().values()) == {"v2"} and not sim.status.failed_revisions


def test_scenario_13_retry_counts_once() -> None:
    sim = installed(behaviours={"v2": Behaviour(score=0.5)})
    sim.set_version("v2")
    sim.settle()
    sim.retry()
    sim.settle()
    assert sim.step == "Failed" and sim.events().count("RolledBack") == 2
    sim.restart_operator()
    sim.run(3600)
    assert sim.events().count("RolledBack") == 2


def test_scenario_13_retry_survives_until_the_revision_is_known() -> None:
    sim = installed(behaviours={"v2": Behaviour(score=0.5)})
    sim.set_version("v2")
    sim.settle()
    sim.set_version("v1")
    sim.run(60)
    # Its record is long gone, and with the retry comes a source that takes a while to be found out.
    for key in [
        k for k in sim.cluster.objects if sim.cluster.objects[k].get("data", {}).get("modelVersion") == "v2"
    ]:
        del sim.cluster.objects[key]
    sim.restart_operator()
    sim.cluster.behaviours["v2"].score = 0.99
    sim.set_version("v2")
    sim.retry()
    sim.settle()
    assert sim.version == "v2"


def test_scenario_14_deadline_fires_though_every_write_fails() -> None:
    sim = installed(progressDeadline="5m", onDeadline="Rollback")
    sim.set_version("v2")
    reach(sim, "Flipping")
    apply = sim._act

    def broken(action: object) -> None:
        if not isinstance(action, (PatchNodeLabels, ApplyObject)):
            apply(action)

    sim._act = broken  # type: ignore[method-assign]
    sim.run(600)
    assert sim.step == "RollingBack" and sim.status.failed_revisions[0].reason == "DeadlineExceeded"


def test_scenario_14_crash_loop_fails_the_wave() -> None:
    sim = installed(behaviours={"v2": Behaviour(crashes=True)})
    sim.set_version("v2")
    sim.settle()
    assert sim.step == "Failed" and set(sim.versions().values()) == {"v1"}
    assert "CrashLoopBackOff" in sim.status.failed_revisions[0].message
