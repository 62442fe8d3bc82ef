# SPDX-License-Identifier: Apache-2.0
"""`--watch`: a watch that survives broken links, and output for pipes."""

import json
import re
from typing import Any

import pytest
import yaml

from slmcli.errors import ForbiddenError, GoneError, NotFoundError, UnreachableError
from slmcli.follow import PATIENCE_SECONDS, Deleted, Lost, Seen, follow
from tests.unit.slmcli.cli_double import ScriptedCluster, run_cli
from tests.unit.slmcli.cli_objects import UPDATE, Body, ago, build_body, build_rollout, build_status


def _event(kind: str, step: str, version: int, **status: Any) -> Body:
    return {"type": kind, "object": build_body(build_status(build_rollout(step), **status), version=version)}


def _follow(cluster: ScriptedCluster) -> tuple[list[str], list[float]]:
    """What was seen until the script ended: resource versions, `lost` and `deleted`; and the sleeps."""
    seen: list[str] = []
    slept: list[float] = []
    try:
        for update in follow(cluster, "shop", "orders", sleep=slept.append):
            match update:
                case Seen(body=body):
                    seen.append(body["metadata"]["resourceVersion"])
                case Lost():
                    seen.append("lost")
                case Deleted():
                    seen.append("deleted")
    except KeyboardInterrupt:
        pass
    return seen, slept


@pytest.fixture
def cluster() -> ScriptedCluster:
    found = ScriptedCluster()
    found.put(build_body(build_status()))
    return found


def test_changes_are_seen_until_it_is_deleted(cluster: ScriptedCluster) -> None:
    cluster.watches = [
        [_event("MODIFIED", "Soaking", 2)],
        [_event("MODIFIED", "Analysing", 3), _event("DELETED", "Analysing", 4)],
    ]
    assert _follow(cluster) == (["1", "2", "3", "deleted"], [])


def test_an_expired_version_is_read_anew_at_once(cluster: ScriptedCluster) -> None:
    cluster.watches = [[GoneError("too old")]]
    assert _follow(cluster) == (["1", "1"], [])


def test_a_broken_link_is_tried_again_with_patience(cluster: ScriptedCluster) -> None:
    cluster.watches = [[UnreachableError("link")] for _ in range(6)]
    seen, slept = _follow(cluster)
    assert seen == ["1", *["lost", "1"] * 6]
    assert slept == [*PATIENCE_SECONDS, PATIENCE_SECONDS[-1], PATIENCE_SECONDS[-1]]


def test_a_server_that_ends_every_watch_is_not_asked_in_a_circle(cluster: ScriptedCluster) -> None:
    cluster.watches = [[], [], []]
    assert _follow(cluster)[1] == [1.0, 1.0, 1.0]


def test_what_was_made_anew_under_the_name_is_another_object(cluster: ScriptedCluster) -> None:
    cluster.watches = [[GoneError("too old")]]
    updates = follow(cluster, "shop", "orders", sleep=lambda seconds: None)
    next(updates)
    cluster.put(build_body(build_status(), uid="uid-2"))
    assert isinstance(next(updates), Deleted)


def test_it_may_be_gone_after_the_link_was_lost(cluster: ScriptedCluster) -> None:
    cluster.watches = [[UnreachableError("link")]]
    updates = follow(cluster, "shop", "orders", sleep=lambda seconds: cluster.objects.clear())
    assert [type(update) for update in updates] == [Seen, Lost, Deleted]


def test_missing_and_forbidden_are_errors(cluster: ScriptedCluster) -> None:
    with pytest.raises(NotFoundError):
        next(follow(cluster, "shop", "nobody", sleep=lambda seconds: None))
    cluster.watches = [[ForbiddenError("no watch")]]
    with pytest.raises(ForbiddenError):
        list(follow(cluster, "shop", "orders", sleep=lambda seconds: None))


def test_a_pipe_gets_a_line_per_change(cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    done = {
        "operation": "skip",
        "token": "t1",
        "outcome": "Done",
        "message": "wave pilot skipped",
        "at": ago(0),
    }
    cluster.watches = [
        [_event("MODIFIED", "Soaking", 2), _event("MODIFIED", "Analysing", 3, operations=[done])],
        [UnreachableError("no route")],
    ]
    ran = run_cli(cluster, "status", "orders", "--watch", capsys=capsys)
    lines = ran.out.splitlines()
    assert ran.code == 130
    assert len(lines) == 4, lines  # begin; operation; Analysing; back to Soaking after the link was lost
    assert lines[0].startswith("2026-03-01T12:00:00Z ready 4/4; ")
    assert lines[1].endswith("skip t1 Done: wave pilot skipped")
    assert f"rollout {UPDATE} Analysing" in lines[2]
    assert "no route; trying again" in ran.err
    assert "\x1b" not in ran.out


def test_a_deleted_object_ends_the_watch(
    cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.watches = [[_event("DELETED", "Soaking", 2)]]
    ran = run_cli(cluster, "status", "orders", "--watch", capsys=capsys)
    assert ran.code == 0
    assert ran.out.splitlines()[-1].endswith("deleted")


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_documents_can_be_streamed(
    cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    cluster.watches = [[_event("MODIFIED", "Analysing", 2), _event("DELETED", "Analysing", 3)]]
    ran = run_cli(cluster, "status", "orders", "-w", "-o", output, capsys=capsys)
    documents = (
        [json.loads(line) for line in ran.out.splitlines()]
        if output == "json"
        else list(yaml.safe_load_all(ran.out))
    )
    assert [document["rollout"]["step"] for document in documents] == ["Soaking", "Analysing"]


def test_the_redrawn_view_shows_changes_and_leaves_the_last_picture(
    cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    cluster.watches = [[_event("MODIFIED", "Analysing", 2), _event("DELETED", "Analysing", 3)]]
    ran = run_cli(cluster, "status", "orders", "--watch", capsys=capsys, live=True)
    drawn, _, left = ran.out.rpartition("\x1b[?1049l")  # back from the alternate screen
    left = re.sub(r"\x1b\[[0-9;]*m", "", left)
    assert ran.code == 0
    assert "Soaking" in drawn and "Analysing" in drawn
    assert "Analysing in wave pilot" in left and "Soaking in wave" not in left
    assert "it was deleted" in ran.err


def test_the_redrawn_view_ends_with_what_went_wrong(
    cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.watches = [[ForbiddenError("you may not watch")]]
    ran = run_cli(cluster, "status", "orders", "--watch", capsys=capsys, live=True)
    assert ran.code == 3
    assert ran.err == "error: you may not watch\n"
