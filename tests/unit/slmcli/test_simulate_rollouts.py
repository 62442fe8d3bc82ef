# SPDX-License-Identifier: Apache-2.0
"""Simulated rollouts: what a good and a bad version, outages, delays and weak links lead to."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from slmcli.simulate.settings import DEFAULT_START_SECONDS, Effect
from slmops.api import PROMOTE_ANNOTATION
from slmops.api.status import ConditionType
from slmops.model.observed import Observed
from slmops.model.plan import Plan
from slmops.planning.plan import plan
from tests.unit.slmcli.simulate_help import simulate, without_cost

GOOD = Effect()
GB = 1_000_000_000


def test_a_good_version_reaches_all_nodes() -> None:
    simulation, report = simulate()
    assert report["verdict"] == "Completed"
    assert report["nodes"]["onNewVersion"] == 60
    assert [wave["verdict"] for wave in report["waves"]] == ["Pass", "Pass", "Pass"]
    assert sum(wave["nodes"] for wave in report["waves"]) == 60
    assert report["moves"] == 60
    assert all(simulation.versions.target.revision in dict(node.counted) for node in simulation.nodes)


def test_waves_follow_each_other() -> None:
    _, report = simulate()
    ends = 0.0
    for wave in report["waves"]:
        assert ends <= wave["beginMinutes"] < wave["endMinutes"] <= report["minutes"]
        ends = wave["endMinutes"]


def test_each_node_downloads_the_model_once() -> None:
    _, report = simulate(settings={"size_bytes": {"": 2 * GB}})
    assert report["bytes"]["total"] == pytest.approx(60 * 2 * GB, rel=1e-6)
    assert report["bytes"]["largestSite"] == pytest.approx(10 * 2 * GB, rel=1e-6)


def test_a_shared_link_is_the_bottleneck() -> None:
    """10 nodes of a site share 10 Mbit/s: 1 GB each takes 8000 s."""
    _, fast = simulate(group={"link_mbps": 1000.0})
    _, slow = simulate(group={"link_mbps": 10.0})
    assert slow["minutes"] > fast["minutes"] + 8000 / 60 * 0.9


@pytest.mark.parametrize("effect", [Effect(score=0.5), Effect(crash_percent=100.0)])
def test_a_bad_version_is_rolled_back_in_the_first_wave(effect: Effect) -> None:
    simulation, report = simulate(effect=effect)
    assert report["verdict"] == "RolledBack"
    canary = report["waves"][0]
    assert canary["verdict"] == "Fail"
    assert 0 < report["exposure"]["most"] <= canary["nodes"] == 3
    assert report["exposure"]["atDecision"] <= report["exposure"]["most"]
    assert report["waves"][1]["verdict"] == "NotBegun"
    stable = simulation.versions.stable.revision
    assert all(stable in dict(node.counted) for node in simulation.nodes)


def test_errors_are_found_by_the_traffic() -> None:
    metrics = [{"name": "errors", "preset": "ErrorRate", "max": "0.05", "maxDegradation": "0.02"}]
    rollout = {"metrics": metrics}
    _, bad = simulate(effect=Effect(error_rate=0.3), rollout=rollout)
    _, good = simulate(effect=Effect(error_rate=0.002), rollout=rollout)
    assert bad["verdict"] == "RolledBack"
    assert bad["message"].startswith("AnalysisFailed")
    assert bad["requests"]["failedOnNewVersion"] > 0
    assert good["verdict"] == "Completed"


def test_what_only_few_nodes_show_gets_further() -> None:
    """A crash on one node in ten is not always in the first wave of three nodes."""
    reports = [simulate(effect=Effect(crash_percent=10.0), seed=seed)[1] for seed in range(4)]
    assert {report["verdict"] for report in reports} == {"RolledBack"}
    assert max(report["exposure"]["most"] for report in reports) > 3
    assert all("CrashLoopBackOff" in report["message"] for report in reports)


def test_offline_nodes_are_deferred() -> None:
    """They stay offline for years: the rollout ends without them."""
    group = {"offline_percent": 15.0, "mean_outage_minutes": 1e6}
    simulation, report = simulate(group=group, rollout={"quorumPercent": 50})
    offline = sum(not node.online for node in simulation.nodes)
    assert offline > 0
    assert report["verdict"] == "Completed"
    assert sum(wave["deferred"] for wave in report["waves"]) == offline
    assert report["nodes"]["onNewVersion"] == 60 - offline


def test_without_a_quorum_it_says_so() -> None:
    group = {"offline_percent": 100.0}
    _, report = simulate(group=group, settings={"until_seconds": 7200.0})
    assert report["verdict"] == "Held"
    assert "QuorumMissing" in report["message"]
    assert report["nodes"]["onNewVersion"] == 0


def test_the_time_is_up() -> None:
    _, report = simulate(group={"link_mbps": 0.01}, settings={"until_seconds": 3600.0})
    assert report["verdict"] == "Unfinished"
    assert report["minutes"] == 60.0


def test_equal_seeds_give_equal_results() -> None:
    options: dict[str, Any] = {
        "group": {"offline_percent": 10.0, "mean_outage_minutes": 20.0},
        "effect": Effect(error_rate=0.05),
        "rollout": {"maxFailures": 30},
    }
    first, second = (simulate(seed=7, **options)[1] for _ in range(2))
    assert without_cost(first) == without_cost(second)
    assert first["cost"]["looks"] == second["cost"]["looks"]


def test_other_seeds_give_other_results() -> None:
    results = {simulate(seed=seed)[1]["minutes"] for seed in range(3)}
    assert len(results) > 1


@hypothesis_settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    crash=st.sampled_from([0.0, 3.0, 30.0]),
    offline=st.sampled_from([0.0, 5.0, 20.0]),
    memory_gib=st.sampled_from([1, 8]),
)
def test_counts_agree_with_the_nodes(seed: int, crash: float, offline: float, memory_gib: int) -> None:
    """Whatever happens: the gauges are what a count of the nodes gives, and no node holds too much."""
    simulation, report = simulate(
        seed=seed,
        effect=Effect(crash_percent=crash),
        group={"count": 30, "offline_percent": offline, "memory_bytes": (memory_gib << 30) + (1 << 29)},
        settings={"until_seconds": 4 * 3600.0},
        rollout={"maxFailures": 6},
    )
    tally, nodes = simulation.cluster.tally, simulation.nodes
    assert round(tally.idle.value) == sum(not node.counted for node in nodes)
    assert round(tally.exposed.value) == sum(node.exposed is not None for node in nodes)
    assert round(sum(g.value for g in tally.serving.values())) == sum(bool(node.counted) for node in nodes)
    for node in nodes:
        assert node.used_bytes == sum(pod.memory_bytes for pod in node.pods if pod.scheduled)
        assert node.used_bytes <= node.group.memory_bytes
    downloaded = sum((simulation.versions.target.revision, "int4") in node.cache for node in nodes)
    assert report["bytes"]["total"] >= downloaded * GB * 0.999


def _with_approval(observed: Observed, now: float, *, log: list[tuple[float, str]]) -> Plan:
    """A planner whose rollout waits in its first wave until somebody approves."""
    outcome = plan(observed, now)
    annotation = observed.deployment.annotations.get(PROMOTE_ANNOTATION, "")
    log.append((now, annotation))
    if annotation or outcome.status.rollout is None or outcome.status.rollout.step != "Flipping":
        return outcome
    held = [
        c.model_copy(update={"status": "False", "reason": "AwaitingApproval"})
        if c.type == ConditionType.PROGRESSING
        else c
        for c in outcome.status.conditions
    ]
    return replace(
        outcome,
        status=observed.deployment.status.model_copy(update={"conditions": held}),
        actions=(),
        requeue_after_seconds=None,
    )


def test_an_approval_comes_after_its_delay() -> None:
    log: list[tuple[float, str]] = []
    simulation, report = simulate(
        settings={"approve_after_seconds": 1800.0},
        planner=lambda observed, now: _with_approval(observed, now, log=log),
    )
    approved = next((at, value) for at, value in log if value)
    assert approved[1] == f"{simulation.versions.target.revision}/canary@simulation"
    assert approved[0] - DEFAULT_START_SECONDS >= 1800.0
    assert report["verdict"] == "Completed"
    assert report["minutes"] > 30


def test_the_planner_is_told_the_virtual_time_and_woken_by_its_timers() -> None:
    """So windows of the week, which it judges by that time, are kept."""
    times: list[float] = []

    def planner(observed: Observed, now: float) -> Plan:
        times.append(now)
        return Plan(status=observed.deployment.status, requeue_after_seconds=3600.0)

    start = DEFAULT_START_SECONDS + 86400.0
    simulate(settings={"start_seconds": start, "until_seconds": 4 * 3600.0 + 60}, planner=planner)
    assert times[0] == start
    assert [round(at - start) for at in times] == [0, 3600, 7200, 10800, 14400]


def test_windows_for_fetching_are_simulated() -> None:
    """1 GB over 10 Mbit/s takes 800 s, a night has 600 s. The simulation begins at eight on a Monday."""
    _, report = simulate(
        distribution={"windows": [{"startTime": "22:00", "endTime": "22:10"}]},
        group={"count": 12, "sites": 12, "link_mbps": 10.0},
        settings={"size_bytes": {"": GB}, "until_seconds": 9 * 86400.0},
    )
    assert report["verdict"] == "Completed"
    assert report["waves"][0]["endMinutes"] > (14 + 24) * 60, "the canary needs a second night"
    assert report["bytes"]["total"] == pytest.approx(12 * GB, rel=1e-6), "and goes on where it was"


def test_turns_for_fetching_are_simulated() -> None:
    """10 nodes of a site share 10 Mbit/s: with one at a time the first holds its model after 800 s."""
    _, together = simulate(group={"link_mbps": 10.0}, settings={"size_bytes": {"": GB}})
    _, in_turn = simulate(
        distribution={"maxConcurrentPerSite": 1},
        group={"link_mbps": 10.0},
        settings={"size_bytes": {"": GB}},
    )
    assert in_turn["verdict"] == together["verdict"] == "Completed"
    assert in_turn["bytes"] == together["bytes"]
    assert in_turn["minutes"] == pytest.approx(together["minutes"], rel=0.05), "the link is as busy"


def test_overrides_are_worked_in_as_the_operator_does() -> None:
    """Otherwise the revision that the planner rolls out would be none that the simulation knows."""
    simulation, report = simulate(
        overrides=[{"name": "all", "nodeSelector": {}, "adapters": [ADAPTER], "runtime": {"slots": 1}}]
    )
    assert report["verdict"] == "Completed" and report["nodes"]["onNewVersion"] == 60
    assert [variant.name for variant in simulation.versions.target.variants] == ["int4-all", "int4"]


def test_sites_that_adapt_are_worked_in_as_the_operator_does() -> None:
    simulation, report = simulate(adaptation={"sites": ["edge-1"]})
    assert report["verdict"] == "Completed" and report["nodes"]["onNewVersion"] == 60
    assert [variant.name for variant in simulation.versions.target.variants] == ["int4-edge-1", "int4"]


ADAPTER = {"name": "a", "url": "https://models.example/a.gguf", "sha256": "0" * 64, "size": 5}
