# SPDX-License-Identifier: Apache-2.0
"""A deployment's document: the state of each node, waves, plots, bounded problems."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.model.plan import Transition
from slmops.page.detail import MAX_PROBLEMS
from slmops.page.history import MAX_EVENTS
from slmops.runtime.resource import DeploymentKey
from tests.unit.page.kit import (
    START,
    KitFleet,
    at,
    condition,
    measurement,
    rolling_status,
    settled_status,
)

KEY = DeploymentKey("ns", "orders")


def detail(fleet: KitFleet) -> dict[str, Any]:
    build = fleet.source.take_deployment(KEY)
    assert build is not None
    document: dict[str, Any] = json.loads(build())
    return document


def cells(document: dict[str, Any]) -> dict[str, tuple[str, str, str, str]]:
    """Node -> state, revision, site, reason."""
    grid = document["grid"]
    return {
        name: (
            grid["states"][state],
            grid["revisions"][revision] if revision >= 0 else "",
            site["name"],
            grid["problems"][problem][0] if problem >= 0 else "",
        )
        for site in grid["sites"]
        for name, state, revision, _, problem in site["cells"]
    }


def rolling(**rollout: Any) -> KitFleet:
    """Two revisions that any node with memory can run, in a rollout whose wave takes all nodes."""
    fleet = KitFleet()
    fleet.revision(KEY, "one")
    fleet.revision(KEY, "two")
    spec = {"rollout": {"waves": [{"name": "all", "percent": 100}]}}
    waves = [{"name": "all", "nodes": 6, "verdict": "Pending", "startedAt": at(5)}]
    fleet.deployment(KEY, rolling_status(waves=waves, **rollout), spec=spec)
    return fleet


def test_states_of_nodes() -> None:
    fleet = rolling()
    fleet.node("stable", site="a")
    fleet.pod(KEY, "stable", "one")
    fleet.node("canary", site="a")
    fleet.pod(KEY, "canary", "one")
    fleet.pod(KEY, "canary", "two")
    fleet.node("moving", site="b")
    fleet.give(KEY, "moving", "two")
    fleet.node("waiting", site="b")
    fleet.node("failing")
    fleet.pod(KEY, "failing", "two", ready=False, waiting="CrashLoopBackOff")
    fleet.node("deferred", ready=False)
    fleet.pod(KEY, "deferred", "one")
    fleet.node("killed", ready=False)
    fleet.pod(KEY, "killed", "two", created=7)
    fleet.node("unfit", memory="1Mi")
    document = detail(fleet)
    assert cells(document) == {
        "stable": ("stable", "one", "a", ""),
        "canary": ("canary", "two", "a", ""),
        "moving": ("moving", "two", "b", ""),
        "waiting": ("waiting", "", "b", ""),
        "failing": ("failing", "two", "", "CrashLoopBackOff"),
        "deferred": ("deferred", "one", "", "NodeNotReady"),
        "killed": ("failing", "two", "", "NodeNotReady"),
        "unfit": ("unfit", "", "", "Unfit"),
    }
    assert [site["name"] for site in document["grid"]["sites"]] == ["a", "b", ""]


def test_a_node_that_is_away_while_nothing_is_rolled_out_is_offline() -> None:
    fleet = KitFleet()
    fleet.revision(KEY, "one")
    fleet.deployment(KEY, settled_status())
    fleet.node("away", ready=False)
    fleet.pod(KEY, "away", "one")
    assert cells(detail(fleet)) == {"away": ("offline", "one", "", "NodeNotReady")}


def test_replicas_are_where_their_pods_are() -> None:
    fleet = KitFleet()
    placement = {"mode": "Replicas", "replicas": 1, "nodeSelector": {"matchLabels": {"edge": "true"}}}
    fleet.revision(KEY, "one")
    fleet.deployment(KEY, settled_status(), spec={"placement": placement})
    fleet.node("one", site="a")
    fleet.pod(KEY, "one", "one")
    fleet.node("two", site="a")
    assert {name: state for name, (state, *_) in cells(detail(fleet)).items()} == {
        "one": "stable",
        "two": "spare",
    }


@pytest.mark.parametrize(
    ("rollout", "states"),
    [
        ({}, ["current", "next"]),
        ({"wave": 1}, ["done", "current"]),
        ({"step": "Failed"}, ["failed", "unreached"]),
        ({"step": "Completed", "wave": 1}, ["done", "done"]),
        ({"step": "Cancelled"}, ["unreached", "unreached"]),
    ],
)
def test_states_of_waves(rollout: dict[str, Any], states: list[str]) -> None:
    fleet = KitFleet()
    fleet.deployment(KEY, rolling_status(**rollout))
    waves = detail(fleet)["rollout"]["waves"]
    assert [wave["state"] for wave in waves] == states


def test_a_wave_that_waits_for_approval_says_so() -> None:
    fleet = KitFleet()
    status = rolling_status()
    status["conditions"][1] = condition("Progressing", "False", "AwaitingApproval", "approve it")
    fleet.deployment(KEY, status)
    assert [wave["awaits"] for wave in detail(fleet)["rollout"]["waves"]] == [True, False]


def test_plots_have_the_bounds_of_the_spec() -> None:
    fleet = KitFleet()
    taken = [
        measurement("quality", 20, "0.9", "0.95", verdict="Fail", message="below"),
        measurement("errors", 20, "0.01", "0.02"),
        measurement("latency", 20, "1.1", "1.0"),
        measurement("gone", 20, "1", None),
        measurement("errors", 50, "NaN", "0.03", verdict="NoData"),
    ]
    fleet.deployment(KEY, rolling_status(measurements=taken))
    plots = detail(fleet)["plots"]
    assert [plot["metric"] for plot in plots] == ["errors", "latency", "quality", "gone"]
    errors, latency, quality, gone = plots
    first = START + 20
    assert errors["marks"] == [
        [first, 0.01, 0.02, pytest.approx(0.04), "Pass"],
        [first + 30, None, 0.03, pytest.approx(0.05), "NoData"],
    ]
    assert (errors["maximum"], errors["unit"], errors["higherIsBetter"]) == (0.05, "share", False)
    assert latency["marks"][0][3] == pytest.approx(1.2)
    assert quality["marks"][0][3] == pytest.approx(0.92)
    assert (quality["minimum"], quality["higherIsBetter"], quality["verdict"]) == (0.8, True, "Fail")
    assert (gone["maximum"], gone["degradation"]) == (None, "")


def test_events_are_the_latest_ones_and_bounded() -> None:
    fleet = KitFleet()
    fleet.deployment(KEY, settled_status())
    stored = fleet.world.stored(KEY)
    assert stored is not None
    for number in range(3 * MAX_EVENTS):
        told = Transition(kind="Warning", reason="NodeFailed", message=f"number {number}")
        fleet.feed.event_posted(stored.deployment, told, START + number)
    events = detail(fleet)["events"]
    assert len(events) == MAX_EVENTS
    assert (events[0]["message"], events[0]["at"]) == (f"number {3 * MAX_EVENTS - 1}", at(3 * MAX_EVENTS - 1))
    assert events[0]["warning"] is True


@given(st.lists(st.text(max_size=60), min_size=1, max_size=8))
def test_what_devices_report_is_told_as_text(messages: list[str]) -> None:
    fleet = rolling()
    for number, message in enumerate(messages):
        fleet.node(f"n{number}")
        report = json.dumps({"reason": "IntegrityMismatch", "message": message})
        fleet.pod(KEY, f"n{number}", "two", ready=False, message=report)
    grid = detail(fleet)["grid"]
    told = {entry[1] for entry in grid["problems"]}
    assert len(told) <= len(messages)
    assert {state for state, *_ in cells(detail(fleet)).values()} == {"failing"}


def test_different_problems_are_bounded() -> None:
    fleet = rolling()
    for number in range(MAX_PROBLEMS + 20):
        fleet.node(f"n{number:03d}")
        report = json.dumps({"reason": "IntegrityMismatch", "message": f"file {number}"})
        fleet.pod(KEY, f"n{number:03d}", "two", ready=False, message=report)
    document = detail(fleet)
    assert len(document["grid"]["problems"]) == MAX_PROBLEMS + 1
    assert {reason for *_, reason in cells(document).values()} == {"IntegrityMismatch"}


def test_an_unknown_deployment_is_none() -> None:
    assert KitFleet().source.take_deployment(KEY) is None


def test_a_spec_that_does_not_parse_has_no_grid() -> None:
    fleet = KitFleet()
    fleet.deployment(KEY, {}, spec={"variants": "none"})
    document = detail(fleet)
    assert document["row"]["reason"] == "InvalidSpec"
    assert document["grid"]["sites"] == []
