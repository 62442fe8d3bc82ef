# SPDX-License-Identifier: Apache-2.0
"""What `status` and its live view show, at every step and in every size."""

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmcli.render.status import render_change, render_live, render_status, share_rows
from slmcli.terminal import to_text
from slmcli.view import DeploymentView, read_deployment, read_events
from slmops.api.status import RolloutStatus
from tests.unit.slmcli.cli_objects import (
    NOW,
    STABLE,
    UPDATE,
    Body,
    ago,
    build_body,
    build_event,
    build_rollout,
    build_status,
    condition,
    widest,
)

STEPS = get_args(RolloutStatus.model_fields["step"].annotation)


def _shown(body: Body, *, width: int = 80, **options: Any) -> str:
    view = read_deployment(body)
    return to_text(tuple(render_status(view, (), now=NOW, width=width, **options)), width=width)


def test_a_rollout_in_progress_is_shown_whole() -> None:
    text = _shown(build_body(build_status()))
    assert f"shop/orders  model orders v2  stable {STABLE} (v1)" in text
    assert "nodes 4 of 4 ready, 3 stable, 1 updated" in text
    assert f"rollout {UPDATE}  Soaking in wave pilot (1 of 3) for 20s, begun 5m ago" in text
    assert "0.9812" in text and "40/120" in text and "0.4312" in text
    assert "errors: no requests in the window" in text
    assert "within bounds" not in text
    assert "within bounds" in _shown(build_body(build_status()), wide=("messages",))


@pytest.mark.parametrize(
    ("judge", "says"),
    [("Direct", "judged by the operator itself (Direct)"), ("Prometheus", "judged by Prom")],
)
def test_who_measured_is_shown_with_the_metrics(judge: str, says: str) -> None:
    assert says in _shown(build_body(build_status(build_rollout(judgedBy=judge))))
    assert "judged by" not in _shown(build_body(build_status()))


def test_no_status_yet_says_where_to_look() -> None:
    text = _shown(build_body())
    assert "has not looked at it yet" in text
    assert "app.kubernetes.io/name=slmops" in text


def test_a_deletion_under_way_is_said() -> None:
    assert "being deleted" in _shown(build_body(build_status(), deletionTimestamp=ago(3)))


def test_a_spec_that_was_not_seen_yet_is_said() -> None:
    assert "generation 5, seen 2" in _shown(build_body(build_status(), generation=5))


def test_pause_pin_and_failures_are_shown() -> None:
    status = build_status(
        pinned={"revision": STABLE, "insteadOf": UPDATE, "at": ago(9)},
        failedRevisions=[{"revision": UPDATE, "reason": "NodesFailed", "message": "boom", "at": ago(3600)}],
    )
    text = _shown(build_body(status, annotations={"slmops.dev/paused": "true"}))
    assert f"pinned to {STABLE} instead of {UPDATE}" in text
    assert "paused by the annotation slmops.dev/paused" in text
    assert "boom" in text and "60m" in text


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("wave", [0, 1, 2])
def test_every_step_fits_eighty_columns(step: str, wave: int) -> None:
    view = read_deployment(build_body(build_status(build_rollout(step, wave=wave))))
    lines = render_status(view, (), now=NOW, width=80)
    assert widest(lines) <= 80
    assert step in to_text(tuple(lines), width=80)


def test_unknown_fields_and_values_of_a_newer_operator_are_no_error() -> None:
    status = build_status(build_rollout("Teleporting"), brandNew={"x": 1})
    text = _shown(build_body(status))
    assert "status.rollout is not understood" in text
    assert f"stable {STABLE}" in text


def _crowded(nodes: int = 10, waves: int = 20, metrics: int = 20, operations: int = 5) -> DeploymentView:
    long = "n" * 250
    rollout = build_rollout(
        wave=waves // 2,
        waves=[{"name": f"wave-of-nodes-{i}", "nodes": 99999, "ready": 4711} for i in range(waves)],
        metrics=[{"name": f"metric-with-a-name{i}", "verdict": "Pass"} for i in range(metrics)],
        measurements=[
            {"metric": f"metric-with-a-name{i}", "wave": "x", "at": ago(1), "verdict": "Inconclusive",
             "canary": "123456.789", "stable": "0.000012345", "canarySamples": 10**9, "stableSamples": 10**9,
             "message": "m" * 500, "variant": "jetson-orin-nano-8gb", "pValue": "0.000000012"}
            for i in range(metrics)
        ],
    )  # fmt: skip
    status = build_status(
        rollout,
        worstNodes=[
            {"node": f"{long}-{i}", "reason": "CrashLoopBackOff", "message": long * 2} for i in range(nodes)
        ],
        operations=[
            {"operation": f"op{i}", "token": "t", "outcome": "Refused", "message": long, "at": ago(i)}
            for i in range(operations)
        ],
        conditions=[condition(kind, "False", "R" * 128, "x" * 2000) for kind in "ABCDE"],
    )
    return read_deployment(build_body(status, name="o" * 200))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 12), (40, 24), (200, 50), (80, 5)])
def test_the_live_view_fits_any_terminal(width: int, height: int) -> None:
    events = read_events([build_event("WavePassed", "x" * 900, seconds_ago=i) for i in range(40)])
    lines = render_live(_crowded(), events, now=NOW, width=width, height=height, note="lost")
    assert len(lines) <= height
    assert widest(lines) <= width
    assert lines[-1].plain == "lost"


def test_huge_names_do_not_break_the_whole_status() -> None:
    assert widest(render_status(_crowded(), (), now=NOW, width=80)) <= 80


def test_the_live_view_shows_every_section_at_80x24() -> None:
    events = read_events([build_event("RolloutStarted", "rolling out", seconds_ago=9)])
    status = build_status(worstNodes=[{"node": "shop-7", "reason": "OOMKilled", "message": "too much"}])
    lines = render_live(read_deployment(build_body(status)), events, now=NOW, width=80, height=24)
    text = to_text(tuple(lines), width=80)
    for word in (
        "shop/orders",
        "Accepted yes",
        "pilot",
        "half",
        "quality",
        "0.9812",
        "shop-7",
        "RolloutStarted",
    ):
        assert word in text


def test_the_live_view_keeps_the_current_wave_in_sight() -> None:
    lines = render_live(_crowded(), (), now=NOW, width=80, height=24)
    text = to_text(tuple(lines), width=80)
    assert "wave-of-nodes-10" in text
    assert "more waves" in text


def test_a_pipe_gets_whole_names() -> None:
    view = _crowded()
    text = to_text(tuple(render_status(view, (), now=NOW, width=4000)), width=4000)
    assert "n" * 250 + "-0" in text


@given(
    wanted=st.fixed_dictionaries({k: st.integers(0, 50) for k in ("waves", "metrics", "worst", "log")}),
    available=st.integers(-5, 100),
)
def test_rows_are_shared_within_what_there_is(wanted: dict[str, int], available: int) -> None:
    rows = share_rows(wanted, available)
    assert all(0 <= rows[name] <= wanted[name] for name in wanted)
    assert sum(rows.values()) <= max(0, available)
    if available >= sum(wanted.values()) + 8:
        assert rows == wanted


def test_the_line_for_a_log_tells_changes_apart() -> None:
    before = render_change(read_deployment(build_body(build_status())))
    after = render_change(read_deployment(build_body(build_status(build_rollout("Analysing")))))
    assert before != after
    assert f"rollout {UPDATE} Soaking wave pilot (1/3)" in before
    assert "has not looked" in render_change(read_deployment(build_body()))


def test_events_are_sorted_and_survive_missing_times() -> None:
    events = read_events(
        [build_event("B", "b", seconds_ago=1), {"reason": "A"}, build_event("C", "c", seconds_ago=9)]
    )
    assert [event.reason for event in events] == ["A", "C", "B"]
