# SPDX-License-Identifier: Apache-2.0
"""The chart's checks find loose ends, and its notes say what comes next."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

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
    text = notes()
    commands = re.findall(r"^  (kubectl .*)$", text, re.MULTILINE)
    assert [command.split()[1:3] for command in commands[:3]] == [
        ["apply", "-f"],
        ["slm", "chat"],
        ["slm", "status"],
    ]
    named = re.search(r"-f (\S+)", commands[0])
    assert named is not None and (ROOT / named[1]).is_file()
    bodies = list(yaml.safe_load_all((ROOT / named[1]).read_text()))
    assert f"{bodies[1]['metadata']['name']} -n {bodies[1]['metadata']['namespace']}" in commands[1]
    in_release = [command for command in commands[3:] if "get pods" in command or "logs" in command]
    assert len(in_release) == 2 and all("-n edge" in command for command in in_release)


def test_the_notes_name_the_images_that_are_pulled() -> None:
    given = "image.registry=r.example,runtimeImage.digest=sha256:" + "a" * 64
    text = notes("--set", given, "--set", "runtime.engineImages.openvino=r.example/openvino:2")
    assert "r.example/slmops-operator:0.1.0" in text and f"slmops-runtime@sha256:{'a' * 64}" in text
    assert re.search(r"openvino +r.example/openvino:2", text)
    assert "No registry is set" in notes() and "No registry is set" not in text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("--set", "storeAgent.enabled=false"), "storeAgent.enabled is off"),
        (("--set", "prometheus.url=http://p:9090"), "set podMonitor.enabled=true"),
        (("--set", "prometheus.url=http://p:9090"), "judged with the metrics of http://p:9090"),
        (("--set", "crds.keep=false"), "deletes the CustomResourceDefinitions"),
        (("--set", "monitoring.dashboards.enabled=true"), "set monitoring.prometheusRule.enabled=true"),
        (("--set", "rbac.readSecrets=false"), "rbac.readSecrets is off"),
    ],
)
def test_the_notes_follow_the_values(values: tuple[str, ...], said: str) -> None:
    assert said in notes(*values)
    assert said not in notes()


def test_without_a_prometheus_the_notes_warn_and_say_who_judges() -> None:
    assert "WARNING: no Prometheus is set" in notes() and "(Direct)" in notes()
    assert "WARNING" not in notes("--set", "prometheus.url=http://p:9090")
