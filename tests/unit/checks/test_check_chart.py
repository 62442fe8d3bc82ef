# SPDX-License-Identifier: Apache-2.0
"""The chart's checks find loose ends, and its notes say what comes next."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from e2e.checks.chart import find_loose_ends
from e2e.checks.helm import CHART, helm, objects, render_chart

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "object", "additionalProperties": False, "properties": {"a": {"description": "x"}}}, []),
        ({"type": "object", "additionalProperties": False, "properties": {"a": {}}}, ["a: no description"]),
        ({"properties": {"a": {"type": "object", "description": "x"}}}, ["a: does not say whether"]),
        (
            {
                "properties": {
                    "a": {
                        "description": "x",
                        "type": "array",
                        "items": {"properties": {"b": {"type": "string"}}},
                    }
                }
            },
            ["a.items.b: no description"],
        ),
        ({"definitions": {"d": {"properties": {"b": {}}}}}, ["definitions.d.b: no description"]),
    ],
)
def test_loose_ends_of_the_schema_are_named(schema: Mapping[str, Any], said: list[str]) -> None:
    problems = find_loose_ends(schema)
    assert len(problems) == len(said)
    assert all(problem.startswith(text) for problem, text in zip(problems, said, strict=True)), problems


def test_the_longest_name_leaves_room_for_the_endings() -> None:
    values = {
        "fullnameOverride": "n" * 52,
        "serviceMonitor": {"enabled": True},
        "networkPolicy": {"enabled": True},
        "monitoring": {"dashboards": {"enabled": True}, "prometheusRule": {"enabled": True}},
    }
    bodies = objects(render_chart(values))
    names = [(body["kind"], body["metadata"]["name"]) for body in bodies]
    assert len(names) == len(set(names))
    assert all(len(name) <= 63 for kind, name in names if kind == "Service")


def notes(*arguments: str) -> str:
    text = helm("install", "slmops", str(CHART), "--dry-run=client", "--namespace", "edge", *arguments)
    return text.partition("\nNOTES:\n")[2]


def test_the_notes_begin_with_three_commands_that_lead_to_a_model() -> None:
    commands = re.findall(r"^  (kubectl .*)$", notes(), re.MULTILINE)
    assert [command.split()[1] for command in commands[:3]] == ["label", "apply", "get"]
    named = re.search(r"-f (\S+)", commands[1])
    assert named is not None and (ROOT / named[1]).is_file()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("--set", "storeAgent.enabled=false"), "storeAgent.enabled is off"),
        (("--set", "prometheus.url=http://p:9090"), "set podMonitor.enabled=true"),
        (("--set", "monitoring.dashboards.enabled=true"), "set monitoring.prometheusRule.enabled=true"),
        (("--set", "rbac.readSecrets=false"), "rbac.readSecrets is off"),
    ],
)
def test_the_notes_follow_the_values(values: tuple[str, ...], said: str) -> None:
    assert said in notes(*values)
    assert said not in notes()
