# SPDX-License-Identifier: Apache-2.0
"""Nothing from the cluster reaches the terminal as a control code, by whatever way."""

import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmcli.safe import clean, clean_tree
from tests.unit.slmcli.cli_double import ScriptedCluster, run_cli
from tests.unit.slmcli.cli_objects import (
    EVIL,
    STABLE,
    UPDATE,
    build_body,
    build_event,
    build_node,
    build_pod,
    build_revision,
    build_rollout,
    build_spec,
    build_status,
)

_FORBIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_FREE_TEXTS = {
    *("message", "reason", "node", "name", "revision", "modelVersion", "metric", "wave", "verdict", "canary"),
    *("stable", "stableRevision", "updateRevision", "reference", "readyNodes", "token"),
}


def _poisoned(value: Any, path: str = "") -> Any:
    """Every free text with an escape sequence behind it; enumerations and times as they are."""
    if isinstance(value, dict):
        return {key: _poisoned(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [_poisoned(inner, path) for inner in value]
    return value + EVIL if isinstance(value, str) and path in _FREE_TEXTS else value


def _poisoned_cluster() -> ScriptedCluster:
    cluster = ScriptedCluster()
    status = build_status(
        build_rollout(message="m", reason="r"),
        worstNodes=[{"node": "n", "reason": "OOMKilled", "message": "too much"}],
        operations=[{"operation": "abort", "token": "t", "outcome": "Refused", "message": "no", "at": "x"}],
        failedRevisions=[{"revision": "aaaa", "reason": "NodesFailed", "message": "m", "at": "y"}],
        variants=[{"name": "int4", "sourceHash": "h", "digest": "d", "reference": "main", "sizeBytes": 1}],
    )
    body = build_body(_poisoned(status), annotations={"x" + EVIL: EVIL})
    body["spec"]["model"]["name"] += EVIL
    cluster.put(body)
    cluster.stored = [build_revision(1, STABLE, "v1"), build_revision(2, UPDATE, "v2")]
    for stored in cluster.stored:
        stored["data"]["modelVersion"] += EVIL
        stored["data"]["variants"][0]["serve"]["metadata"] = {"annotations": {EVIL: EVIL}}
    cluster.occurred = [build_event("Evil" + EVIL, EVIL, seconds_ago=5)]
    cluster.fleet = [build_node("node-1" + EVIL, {STABLE: EVIL}, site=EVIL)]
    cluster.running = [
        build_pod("node-1" + EVIL, STABLE + EVIL, ready=False, waiting="CrashLoopBackOff" + EVIL)
    ]
    return cluster


@pytest.mark.parametrize(
    "argv",
    [
        ["status", "orders"],
        ["status", "orders", "-o", "wide"],
        ["status", "orders", "-o", "json"],
        ["status", "orders", "-o", "yaml"],
        ["status", "orders", "--watch"],
        ["explain", "orders"],
        ["nodes", "orders"],
        ["nodes", "orders", "-o", "json"],
        ["history", "orders", "-o", "wide"],
        ["diff", "orders", "1", "2"],
        ["list"],
        ["abort", "orders", "--dry-run"],
        ["promote", "orders", "--timeout", "0"],
        ["undo", "orders", "--to", "9"],
        ["status", "nobody" + EVIL],
    ],
)
def test_no_command_lets_control_codes_through(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(_poisoned_cluster(), *argv, capsys=capsys)
    shown = ran.out + ran.err
    assert shown
    bad = {c for c in shown if unicodedata.category(c) in _FORBIDDEN and c != "\n"}
    assert not bad, f"{argv} lets {bad!r} through"
    assert "owned" not in argv[1:] and ran.code in (0, 1, 2, 3, 130)


@given(st.text())
def test_clean_keeps_text_and_drops_what_a_terminal_acts_on(text: str) -> None:
    cleaned = clean(text)
    assert not {unicodedata.category(c) for c in cleaned} & (_FORBIDDEN | {"Cn"})
    assert clean(cleaned) == cleaned
    assert [c for c in cleaned if c.isalnum()] == [c for c in text if c.isalnum()]


def test_clean_keeps_letters_of_all_scripts_in_one_line() -> None:
    assert clean("Größe\nπ\t模型") == "Größe π 模型"


def test_clean_tree_cleans_keys_and_survives_depth() -> None:
    tree: Any = "\x1b"
    for _ in range(500):
        tree = {"a\x1b": [tree]}
    assert "\\u001b" not in json.dumps(clean_tree(tree))


def test_a_spec_with_evil_names_is_still_shown(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = ScriptedCluster()
    spec = build_spec()
    spec["rollout"]["waves"][0]["name"] = "pilot" + EVIL
    cluster.put(build_body(build_status(), spec=spec))
    ran = run_cli(cluster, "explain", "orders", capsys=capsys)
    assert ran.code == 0
    assert "\x1b" not in ran.out
