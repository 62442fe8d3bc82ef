# SPDX-License-Identifier: Apache-2.0
"""Windows: when they are open, and what a rollout does outside them."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.api.rollout import Window
from slmops.planning.windows import is_open, seconds_to_change
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_sim import FleetSim
from tests.unit.planning.fleet_situations import installed, reach
from tests.unit.planning.fleet_spec import GIB

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def window(start: str, end: str, *days: str, zone: str = "UTC") -> Window:
    return Window.model_validate({"startTime": start, "endTime": end, "days": list(days), "timeZone": zone})


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("windows", "now", "expected"),
    [
        ([], at("2026-03-02T12:00"), True),
        ([window("22:00", "05:00")], at("2026-03-02T23:00"), True),
        ([window("22:00", "05:00")], at("2026-03-02T04:59"), True),
        ([window("22:00", "05:00")], at("2026-03-02T05:00"), False),
        ([window("22:00", "05:00", "Sun")], at("2026-03-02T04:00"), True),  # a Monday morning
        ([window("22:00", "05:00", "Mon")], at("2026-03-02T04:00"), False),
        ([window("00:00", "24:00", "Mon")], at("2026-03-02T23:59:59"), True),
        ([window("00:00", "24:00", "Mon")], at("2026-03-03T00:00"), False),
        ([window("08:00", "09:00", zone="Asia/Tokyo")], at("2026-03-01T23:30"), True),
        ([window("02:00", "03:00", zone="Europe/Berlin")], at("2026-03-28T02:30", "Europe/Berlin"), True),
        # 2026-03-29: clocks go from 02:00 to 03:00, so this window is empty that day.
        ([window("02:00", "03:00", zone="Europe/Berlin")], at("2026-03-29T03:00", "Europe/Berlin"), False),
        # 2026-10-25: 02:30 comes twice; the window from 01:00 to 04:00 is four hours long.
        ([window("01:00", "04:00", zone="Europe/Berlin")], at("2026-10-25T01:30", "UTC"), True),
    ],
)
def test_open(windows: list[Window], now: float, expected: bool) -> None:
    assert is_open(windows, now) is expected


hours = st.integers(0, 23).map(lambda hour: f"{hour:02}:{hour % 4 * 15:02}")
some_windows = st.lists(
    st.builds(
        window,
        hours,
        hours,
        st.sampled_from(DAYS),
        zone=st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu"]),
    ).filter(lambda w: w.start_time != w.end_time),
    min_size=1,
    max_size=4,
)


@given(some_windows, st.integers(0, 366 * 24 * 60))
def test_nothing_changes_before_the_time_that_is_told(windows: list[Window], minute: int) -> None:
    now = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)).timestamp()
    change = seconds_to_change(windows, now)
    assert change is not None and change > 0
    before = is_open(windows, now)
    for share in (0.1, 0.5, 0.9):
        assert is_open(windows, now + share * change) is before
    assert is_open(windows, now + change) is not before


def test_a_weekly_window_that_the_clocks_skip_is_waited_for_till_the_week_after() -> None:
    windows = [window("02:00", "03:00", "Sun", zone="Europe/Berlin")]
    change = seconds_to_change(windows, at("2026-03-24T12:00"))
    assert change == at("2026-04-05T02:00", "Europe/Berlin") - at("2026-03-24T12:00")


def test_always_open_asks_for_no_timer() -> None:
    assert seconds_to_change([window("00:00", "24:00")], at("2026-03-02T12:00")) is None
    assert seconds_to_change([], 0.0) is None


def minutes_from_now(sim: FleetSim, first: float, last: float) -> dict[str, str]:
    def text(minutes: float) -> str:
        return (datetime.fromtimestamp(sim.now, tz=UTC) + timedelta(minutes=minutes)).strftime("%H:%M")

    return {"startTime": text(first), "endTime": text(last)}


def test_a_wave_waits_for_its_window_with_its_models_fetched() -> None:
    sim = installed()
    sim.edit(rollout={"windows": [minutes_from_now(sim, 120, 300)]})
    sim.set_version("v2")
    sim.run(110 * 60)
    assert set(sim.versions().values()) == {"v1"}
    assert sim.condition("Progressing") == ("False", "OutsideWindow")
    revision = sim.revision_of("v2")
    assert any(f"{revision}/int4" in node.cache for node in sim.cluster.nodes.values())
    sim.run(60 * 60)
    assert set(sim.versions().values()) == {"v2"}, sim.explain()


def test_a_window_that_closes_midway_keeps_the_others_and_the_deadline_waiting() -> None:
    sim = installed(
        20, waves=[{"name": "all", "percent": 100}], progressDeadline="10m", onDeadline="Rollback"
    )
    sim.edit(rollout={"windows": [minutes_from_now(sim, -60, 1)]})
    sim.cluster.behaviours["v2"] = Behaviour(start_seconds=20)
    sim.set_version("v2")
    sim.run(4 * 3600)
    versions = sim.versions().values()
    assert {"v1", "v2"} == set(versions), "moves that had begun are finished"
    assert sim.condition("Progressing") == ("False", "OutsideWindow") and sim.step == "Flipping"
    assert not sim.status.failed_revisions
    sim.edit(rollout={"windows": []})
    sim.settle()
    assert set(sim.versions().values()) == {"v2"}


def test_a_rollback_waits_for_no_window() -> None:
    sim = installed(10, maxUnavailable=3)
    sim.set_version("v2")
    reach(sim, "Soaking", wave=1)
    sim.edit(rollout={"windows": [minutes_from_now(sim, 600, 660)]})
    sim.cluster.behaviours["v2"].score = 0.1
    sim.run(600)
    assert sim.step == "Failed" and set(sim.versions().values()) == {"v1"}


def test_a_skip_outside_the_windows_begins_the_next_wave_now() -> None:
    waves = [{"name": "half", "percent": 50}, {"name": "rest", "percent": 100}]
    sim = installed(20, waves=waves, behaviours={"v2": Behaviour(start_seconds=20)})
    sim.edit(rollout={"windows": [minutes_from_now(sim, -60, 1)]})
    sim.set_version("v2")
    sim.run(4 * 3600)
    assert sim.step == "Flipping"
    assert sim.ask("skip", sim.revision_of("v2")).outcome == "Done"
    sim.run(60)
    looks = len(sim.looks)
    sim.run(600)
    assert len(sim.looks) - looks < 30, "readings that are older than the wave are asked for again and again"
    assert sim.status.rollout and sim.status.rollout.paused_at is None and sim.wave == 1


def test_a_node_that_returns_after_the_promotion_follows_in_a_window() -> None:
    sim = installed(memory_bytes=GIB + GIB // 4, behaviours={"v3": Behaviour(score=0.1)})
    sim.edit(rollout={"windows": [minutes_from_now(sim, -60, 20)]})
    sim.set_online("n3", online=False)
    sim.set_version("v2")
    sim.settle(limit_seconds=1200)
    sim.run(1200)
    sim.set_online("n3", online=True)
    sim.run(600)
    assert sim.versions()["n3"] == "v1" and sim.cluster.serving("n3")
    assert sim.condition("Progressing") == ("False", "OutsideWindow")
    sim.run(24 * 3600)
    assert set(sim.versions().values()) == {"v2"} and sim.condition("Progressing") == ("False", "Complete")


def test_a_skip_of_the_last_wave_moves_no_node_outside_the_windows() -> None:
    sim = installed(20, waves=[{"name": "all", "percent": 100}])
    sim.edit(rollout={"windows": [minutes_from_now(sim, -60, 1)]})
    sim.cluster.behaviours["v2"] = Behaviour(start_seconds=20)
    sim.set_version("v2")
    sim.run(3600)
    before = sim.versions()
    assert sim.step == "Flipping" and set(before.values()) == {"v1", "v2"}
    assert sim.ask("skip", sim.revision_of("v2")).outcome == "Done"
    sim.add_node("new")
    sim.run(3600)
    assert sim.version == "v2" and sim.versions() == before | {"new": "v2"}, "it had nothing to lose"
    sim.run(24 * 3600)
    assert set(sim.versions().values()) == {"v2"}


def test_a_deadline_stands_still_outside_the_windows_also_while_a_quorum_is_missing() -> None:
    sim = installed(4, waves=[{"name": "all", "percent": 100}], onDeadline="Rollback", progressDeadline="10m")
    sim.set_version("v2")
    reach(sim, "Flipping")
    sim.edit(rollout={"windows": [minutes_from_now(sim, 300, 600)]})
    away = [name for name, version in sim.versions().items() if version == "v1"]
    for name in away:
        sim.set_online(name, online=False)
    sim.run(3600)
    assert sim.condition("Progressing") == ("False", "QuorumMissing") and not sim.status.failed_revisions
    for name in away:
        sim.set_online(name, online=True)
    sim.run(5 * 3600)
    assert set(sim.versions().values()) == {"v2"}
