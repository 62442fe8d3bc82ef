# SPDX-License-Identifier: Apache-2.0
"""`history` and `diff`."""

import json
from typing import Any

import pytest

from slmcli.errors import RefusedError, UsageError
from slmcli.revisions import describe_data, diff_lines, find_revision, read_revisions, revision_before
from slmcli.view import read_deployment
from tests.unit.slmcli.cli_double import ScriptedCluster, run_cli
from tests.unit.slmcli.cli_objects import STABLE, UPDATE, ago, build_body, build_revision, build_status

OLD, OLDEST = "0123456789", "aa00bb11cc"


def _cluster(**status: Any) -> ScriptedCluster:
    cluster = ScriptedCluster()
    cluster.put(build_body(build_status(**status)))
    cluster.stored = [
        build_revision(3, STABLE, "v1"),
        build_revision(1, OLDEST, "v0"),
        build_revision(4, UPDATE, "v2"),
        build_revision(2, OLD, "v0.5"),
        build_revision(9, "ffffffffff", "v9", uid="uid-of-an-object-of-that-name-before"),
    ]
    return cluster


def test_history_names_states(capsys: pytest.CaptureFixture[str]) -> None:
    failed = [{"revision": OLD, "reason": "NodesFailed", "at": ago(1)}]
    pinned = {"revision": STABLE, "insteadOf": UPDATE, "at": ago(9)}
    ran = run_cli(
        _cluster(failedRevisions=failed, pinned=pinned), "history", "orders", capsys=capsys, width=80
    )
    rows = [line.split() for line in ran.out.splitlines()[1:]]
    assert [row[:4] for row in rows] == [
        ["4", UPDATE, "v2", "update"],
        ["3", STABLE, "v1", "stable,pinned"],
        ["2", OLD, "v0.5", "failed"],
        ["1", OLDEST, "v0", "-"],
    ]
    assert max(map(len, ran.out.splitlines())) <= 80


def test_history_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(_cluster(), "history", "orders", "-o", "json", capsys=capsys)
    items = json.loads(ran.out)["items"]
    assert [item["number"] for item in items] == [1, 2, 3, 4]
    assert items[3]["states"] == ["update"]
    assert items[0]["variants"][0]["digest"].startswith("sha256:")
    assert items[0]["variants"][0]["sizeBytes"] == 10


def test_a_record_of_a_newer_operator_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = _cluster()
    cluster.stored[2]["data"] = {"schema": 99}
    ran = run_cli(cluster, "history", "orders", capsys=capsys)
    assert ran.code == 0
    assert "not understood" in ran.out


def test_revisions_are_found_by_name_number_and_beginning() -> None:
    cluster = _cluster()
    stored = read_revisions(read_deployment(cluster.get("shop", "orders")), cluster.stored)
    assert find_revision(stored, STABLE).number == 3
    assert find_revision(stored, "2").revision == OLD
    assert find_revision(stored, "0123").revision == OLD
    with pytest.raises(UsageError, match=rf"no such revision is kept; kept are 1 \({OLDEST}\)"):
        find_revision(stored, "ffffffffff")


def test_an_ambiguous_beginning_is_refused() -> None:
    view = read_deployment(build_body(build_status()))
    stored = read_revisions(
        view, [build_revision(1, "abcd000000", "a"), build_revision(2, "abcd111111", "b")]
    )
    with pytest.raises(UsageError, match="several"):
        find_revision(stored, "abcd")


def test_the_revision_before_is_no_failed_one() -> None:
    failed = [{"revision": OLD, "reason": "NodesFailed", "at": ago(1)}]
    cluster = _cluster(failedRevisions=failed)
    view = read_deployment(cluster.get("shop", "orders"))
    assert revision_before(view, read_revisions(view, cluster.stored)).revision == OLDEST
    with pytest.raises(RefusedError, match="revisionHistoryLimit"):
        revision_before(view, read_revisions(view, cluster.stored[:1]))


def test_diff_shows_what_changed_and_no_noise(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(_cluster(), "diff", "orders", capsys=capsys)
    changed = [line for line in ran.out.splitlines() if line[:1] in "+-"]
    assert changed[0] == f"--- {STABLE} (number 3, stable)"
    assert changed[1] == f"+++ {UPDATE} (number 4, update)"
    assert "-modelVersion: v1" in changed and "+modelVersion: v2" in changed
    assert any("SLM_MODEL_VERSION: v2" in line for line in changed)
    assert not any("SLM_REVISION" in line or "configMap" in line for line in changed)
    assert "prefetch pod" not in ran.out


def test_diff_full_has_the_fetching_pod() -> None:
    cluster = _cluster()
    view = read_deployment(cluster.get("shop", "orders"))
    stored = read_revisions(view, cluster.stored)
    described = describe_data(stored[0], ("serve", "prefetch"))
    assert "prefetch pod" in described["variants"]["int4"]
    assert diff_lines(described, described, old_name="a", new_name="b") == ()


def test_diff_of_two_named_revisions(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(_cluster(), "diff", "orders", "1", "0123", capsys=capsys)
    assert ran.out.splitlines()[0] == f"--- {OLDEST} (number 1)"
    assert ran.out.splitlines()[1] == f"+++ {OLD} (number 2)"


def test_diff_falls_back_to_spec(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = _cluster(updateRevision="")
    ran = run_cli(cluster, "diff", "orders", capsys=capsys)
    assert "comparing the stable one with spec" in ran.err
    assert "+modelVersion: v2" in ran.out
    assert "sourceHash" in ran.out
    again = run_cli(_cluster(), "diff", "orders", "--spec", capsys=capsys)
    assert "+++ spec (generation 2)" in again.out


def test_diff_of_equal_things_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(_cluster(), "diff", "orders", "3", "3", capsys=capsys)
    assert ran.code == 0
    assert "no difference" in ran.err


def test_diff_takes_no_more_than_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(_cluster(), "diff", "orders", "1", "2", "3", capsys=capsys).code == 2
    assert run_cli(_cluster(), "diff", "orders", "1", "--spec", capsys=capsys).code == 2
