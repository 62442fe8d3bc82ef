# SPDX-License-Identifier: Apache-2.0
"""Who may fetch ahead: windows, so many nodes of a site at a time, and what broken nodes may not block."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from slmops.model.observed import PodView
from slmops.planning.places import TURN_SECONDS
from slmops.planning.windows import next_opening
from slmwire.labels import Role
from slmwire.reasons import Reason
from tests.unit.planning.fleet_checks import watch
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_sim import FleetSim
from tests.unit.planning.fleet_situations import installed, reach
from tests.unit.planning.fleet_spec import spec_body
from tests.unit.planning.test_windows import at, minutes_from_now, window

ALL = [{"name": "all", "percent": 100}]


def fleet(*, sites: int = 2, nodes: int = 8, distribution: dict[str, Any], **rollout: Any) -> FleetSim:
    """A checked fleet on which nothing has happened yet."""
    sim = watch(FleetSim(spec_body(**rollout) | {"distribution": distribution}))
    for index in range(nodes):
        sim.add_node(f"n{index}", memory_bytes=4 << 30, labels={"site": f"s{index % sites}"})
    return sim


def fetching(sim: FleetSim) -> list[str]:
    """Nodes with a pod that is not done with fetching ahead."""
    return sorted(
        pod.node
        for pod in sim.cluster.pods
        if pod.role is Role.PREFETCH and pod.phase != "Ready" and pod.gone_at is None
    )


def message(sim: FleetSim, kind: str = "Progressing") -> str:
    return next(c.message for c in sim.status.conditions if c.type == kind)


def test_the_next_opening_is_the_minute_of_the_window() -> None:
    windows = [window("22:00", "05:00", "Sun"), window("02:00", "03:00", "Sat")]
    assert next_opening(windows, at("2026-03-02T12:00")) == at("2026-03-07T02:00")
    assert next_opening(windows, at("2026-03-08T23:00")) == at("2026-03-14T02:00"), "open now: the one after"
    assert next_opening([], at("2026-03-02T12:00")) is None


def test_so_many_nodes_of_a_site_fetch_at_a_time() -> None:
    sim = fleet(distribution={"maxConcurrentPerSite": 2}, waves=ALL)
    most = 0
    for _ in range(200):
        sim.run(0.5)
        sites = [sim.cluster.nodes[name].labels["site"] for name in fetching(sim)]
        most = max(most, *map(sites.count, ("s0", "s1")))
        assert max(map(sites.count, ("s0", "s1"))) <= 2
    assert most == 2 and sim.step == "Completed", sim.explain()
    assert set(sim.versions().values()) == {"v1"}, "the first installation is limited, too"
    sim.set_version("v2")
    sim.settle()
    assert set(sim.versions().values()) == {"v2"}


def test_nodes_that_return_fetch_under_the_same_limit() -> None:
    sim = fleet(sites=1, nodes=6, distribution={"maxConcurrentPerSite": 1})
    sim.settle()
    for name in ("n1", "n2", "n3"):
        sim.set_online(name, online=False)
    sim.edit(rollout={"quorumPercent": 1})
    sim.set_version("v2")
    sim.settle()
    for name in ("n1", "n2", "n3"):
        sim.set_online(name, online=True)
    sim.run(1)
    assert len(fetching(sim)) == 1
    sim.run(120)
    assert set(sim.versions().values()) == {"v2"}


@pytest.mark.parametrize("cause", ["no pod", "failing"])
def test_a_node_that_cannot_fetch_does_not_block_its_site(cause: str) -> None:
    sim = fleet(sites=1, nodes=5, distribution={"maxConcurrentPerSite": 1}, waves=ALL, quorumPercent=50)
    sim.settle()
    broken = {"n0", "n1", "n2"}
    wanted, run = sim.cluster._wanted, sim.cluster._next_phase

    def tolerated() -> set[tuple[str, str]]:
        # As if the nodes had a taint that the pods do not tolerate.
        return {pair for pair in wanted() if pair[1] not in broken or not pair[0].endswith("-prefetch")}

    def next_phase(pod: Any, node: Any, behaviour: Behaviour) -> None:
        error = Reason.INSUFFICIENT_CAPACITY if node.name in broken else None
        run(pod, node, Behaviour(fetch_error=error))

    if cause == "failing":
        sim.cluster._next_phase = next_phase  # type: ignore[method-assign]
    else:
        sim.cluster._wanted = tolerated  # type: ignore[method-assign]
    sim.set_version("v2")
    sim.run(20 * TURN_SECONDS)
    revision = sim.revision_of("v2")
    held = {node.name for node in sim.cluster.nodes.values() if f"{revision}/int4" in node.cache}
    assert held == {"n3", "n4"}, sim.explain()


def test_a_source_that_is_away_costs_few_writes() -> None:
    sim = fleet(sites=1, nodes=10, distribution={"maxConcurrentPerSite": 1}, waves=ALL)
    sim.settle()
    sim.cluster.behaviours["v2"] = Behaviour(fetch_error=Reason.SOURCE_UNAVAILABLE)
    sim.set_version("v2")
    sim.run(60)
    writes = sim.writes
    sim.run(10 * TURN_SECONDS)
    patches = [
        a for look in sim.looks for a in look.plan.actions if getattr(a, "why", "") == "may not fetch now"
    ]
    assert 1 <= len(patches) <= 12 and sim.writes - writes < 80


def test_outside_the_windows_nothing_is_fetched_and_no_deadline_passes() -> None:
    sim = fleet(nodes=4, distribution={}, waves=ALL, onDeadline="Rollback", prefetchDeadline="20m")
    sim.settle()
    for node in sim.cluster.nodes.values():
        node.fetch_seconds = 240
    sim.edit(distribution={"windows": [minutes_from_now(sim, -60, 3)]})
    sim.set_version("v2")
    sim.run(60)
    assert len(fetching(sim)) == 4
    sim.run(3600)
    assert not fetching(sim) and not sim.status.failed_revisions
    assert sim.condition("Progressing") == ("False", "OutsideWindow")
    opens = datetime.fromtimestamp(next_opening(sim.spec.distribution.windows, sim.now) or 0, tz=UTC)
    assert f"opens at {opens:%Y-%m-%dT%H:%M:00Z}" in message(sim)
    assert sim.events().count("OutsideWindow") == 1
    assert sim.run_until(lambda: sim.step == "Completed", limit_seconds=24 * 3600), sim.explain()
    assert set(sim.versions().values()) == {"v2"}


def test_a_wave_waits_without_a_deadline_for_nodes_that_may_not_fetch_yet() -> None:
    sim = fleet(nodes=10, distribution={}, waves=ALL, onDeadline="Rollback", progressDeadline="10m")
    sim.settle()
    late = ("n0", "n1", "n2")
    for name in late:
        sim.set_online(name, online=False)
    sim.set_version("v2")
    reach(sim, "Flipping")
    sim.edit(distribution={"windows": [minutes_from_now(sim, 60, 120)]})
    waiting = next(name for name, version in sim.versions().items() if version == "v1" and name not in late)
    sim.set_online(waiting, online=False)
    for name in late:
        sim.set_online(name, online=True)
    sim.run(30 * 60)
    assert not sim.status.failed_revisions, sim.explain()
    assert sim.condition("Progressing") == ("False", "OutsideWindow")
    assert "3 node(s) lack the model" in message(sim)
    assert sim.run_until(lambda: sim.step == "Completed", limit_seconds=4 * 3600), sim.explain()


def test_a_first_installation_waits_for_its_window() -> None:
    sim = fleet(nodes=4, distribution={})
    sim.edit(distribution={"windows": [minutes_from_now(sim, 60, 120)]})
    sim.run(30 * 60)
    assert sim.our_labels() == {} and not sim.cluster.pods
    assert sim.condition("Progressing") == ("False", "OutsideWindow")
    assert "4 node(s) wait to fetch the model" in message(sim)
    assert message(sim, "Ready").endswith("n0: waits until it may fetch the model")
    sim.settle()
    assert set(sim.versions().values()) == {"v1"}


def test_a_node_that_returns_waits_for_a_window_with_what_it_has() -> None:
    sim = installed(8)
    sim.set_online("n3", online=False)
    sim.set_version("v2")
    sim.settle()
    sim.edit(distribution={"windows": [minutes_from_now(sim, 60, 120)]})
    sim.set_online("n3", online=True)
    sim.run(600)
    assert sim.versions()["n3"] == "v1" and sim.cluster.serving("n3")
    assert sim.condition("Progressing") == ("False", "OutsideWindow")
    sim.run(2 * 3600)
    assert sim.versions()["n3"] == "v2" and sim.condition("Progressing") == ("False", "Complete")


def test_a_rollback_fetches_nothing_and_waits_for_no_window() -> None:
    sim = installed(10, maxUnavailable=3)
    sim.set_version("v2")
    reach(sim, "Soaking", wave=1)
    sim.edit(distribution={"windows": [minutes_from_now(sim, 600, 660)], "maxConcurrentPerSite": 1})
    sim.cluster.behaviours["v2"].score = 0.1
    sim.run(600)
    assert sim.step == "Failed" and set(sim.versions().values()) == {"v1"}


def test_the_way_back_by_hand_waits_for_no_window_and_late_nodes_do() -> None:
    sim = installed(4, waves=ALL)
    sim.set_version("v2")
    sim.settle()
    before = sim.revision_of("v1")
    sim.set_online("n3", online=False)
    sim.edit(distribution={"windows": [minutes_from_now(sim, 600, 660)], "maxConcurrentPerSite": 1})
    assert sim.ask("undo", before).outcome == "Done"
    assert sim.run_until(lambda: sim.step == "Completed", limit_seconds=1800), sim.explain()
    assert sim.versions() == {"n0": "v1", "n1": "v1", "n2": "v1", "n3": "v2"}
    sim.set_online("n3", online=True)
    sim.run(600)
    assert sim.versions()["n3"] == "v2" and sim.condition("Progressing") == ("False", "OutsideWindow")


def test_what_is_fetched_already_is_rolled_out_outside_the_windows() -> None:
    sim = installed(4, waves=[{"name": "all", "percent": 100, "approval": "Manual"}])
    sim.set_version("v2")
    sim.run(60)
    sim.edit(distribution={"windows": [minutes_from_now(sim, 600, 660)]})
    sim.run(60)
    assert sim.condition("Progressing") == ("False", "AwaitingApproval")
    assert sim.ask("promote", sim.revision_of("v2")).outcome == "Done"
    sim.settle()
    assert set(sim.versions().values()) == {"v2"}


@pytest.mark.parametrize("cause", ["link", "kubelet"])
@pytest.mark.parametrize("paused", [False, True])
def test_what_was_fetched_in_a_window_is_not_lost_to_a_moments_silence(cause: str, paused: bool) -> None:
    sim = installed(4, waves=[{"name": "all", "percent": 100, "approval": "Manual"}])
    sim.set_version("v2")
    sim.run(120)
    sim.edit(distribution={"windows": [minutes_from_now(sim, 600, 660)], "maxConcurrentPerSite": 1})
    sim.edit(rollout={"paused": paused})
    sim.run(10)
    views, silent_at = sim.cluster.pod_views, sim.now
    if cause == "link":
        sim.set_online("n1", online=False)
        sim.run(60)
        sim.set_online("n1", online=True)
        silent_at = sim.now

    def silent_for(seconds: float) -> Callable[[], tuple[PodView, ...]]:
        def pod_views() -> tuple[PodView, ...]:
            return tuple(
                replace(v, ready=False, ready_changed_at=silent_at if cause == "kubelet" else 0.0)
                if v.node == "n1" and 0 <= sim.now - silent_at < seconds
                else v
                for v in views()
            )

        return pod_views

    held = {node for node, labels in sim.our_labels().items() if any("prefetch" in key for key in labels)}
    assert held == {"n0", "n1", "n2", "n3"}
    sim.cluster.pod_views = silent_for(10)  # type: ignore[method-assign]
    sim.run(60)
    assert {n for n, labels in sim.our_labels().items() if any("prefetch" in k for k in labels)} == held
    if cause == "link":
        sim.set_online("n1", online=False)
        sim.run(5)
        sim.set_online("n1", online=True)
    silent_at = sim.now
    sim.cluster.pod_views = silent_for(9999)  # type: ignore[method-assign]
    sim.run(60)
    left = {n for n, labels in sim.our_labels().items() if any("prefetch" in k for k in labels)}
    assert left == held - {"n1"}, "it does not hold the model after all, and the window is closed"


def test_a_fetch_does_not_outlast_its_window_because_of_a_pause() -> None:
    sim = installed(4, waves=ALL)
    for node in sim.cluster.nodes.values():
        node.fetch_seconds = 3600
    sim.edit(distribution={"windows": [minutes_from_now(sim, -60, 10)]})
    sim.set_version("v2")
    sim.run(60)
    sim.edit(rollout={"paused": True})
    sim.run(60)
    assert len(fetching(sim)) == 4
    sim.run(900)
    assert not fetching(sim) and sim.condition("Progressing") == ("False", "Paused")
