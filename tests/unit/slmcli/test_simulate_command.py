# SPDX-License-Identifier: Apache-2.0
"""`kubectl slm simulate`: what goes in, what comes out, and what it says of bad input."""

import argparse
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jsonschema
import pytest
import yaml

from slmcli.simulate.command import add_arguments, run
from slmops.api import API_VERSION, KIND
from tests.unit.planning.fleet_spec import spec_body

NUMBER = {"type": "number"}
COUNT = {"type": "integer", "minimum": 0}
TIME = {"type": ["number", "null"]}
REPORT = {
    "type": "object",
    "required": [
        "seed", "verdict", "message", "minutes", "nodes", "waves", "bytes", "exposure", "requests", "moves",
        "cost", "history", "notes",
    ],
    "additionalProperties": False,
    "properties": {
        "seed": {"type": "integer"},
        "verdict": {"enum": ["Completed", "RolledBack", "Cancelled", "Held", "Unfinished"]},
        "message": {"type": "string"},
        "minutes": NUMBER,
        "nodes": {"type": "object", "additionalProperties": COUNT},
        "waves": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "nodes", "updated", "deferred", "failed", "verdict"],
                "properties": {"nodes": COUNT, "beginMinutes": TIME, "endMinutes": TIME},
            },
        },
        "bytes": {"type": "object", "additionalProperties": COUNT},
        "exposure": {
            "type": "object",
            "properties": {"atDecision": COUNT, "most": COUNT, "nodeMinutes": NUMBER, "decidedMinutes": TIME},
            "additionalProperties": False,
        },
        "requests": {"type": "object", "additionalProperties": COUNT},
        "moves": COUNT,
        "cost": {"type": "object", "additionalProperties": NUMBER},
        "history": {"type": "array", "items": {"type": "object", "required": ["minutes", "byWave"]}},
        "notes": {"type": "array", "items": {"type": "string"}},
    },
}  # fmt: skip


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def deployment(tmp_path: Path) -> Path:
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "orders"}, "spec": spec_body()}
    path = tmp_path / "deployment.yaml"
    path.write_text("kind: ConfigMap\n---\n" + yaml.safe_dump(body))
    return path


def failure(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a command with wrong input says."""
    assert run(arguments(*words)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_json_follows_its_schema(deployment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments("-f", str(deployment), "--nodes", "20", "--runs", "2", "-o", "json")) == 0
    body = json.loads(capsys.readouterr().out)
    assert set(body) == {"runs", "summary"}
    for report in body["runs"]:
        jsonschema.validate(report, REPORT)
    assert [report["seed"] for report in body["runs"]] == [1, 2]
    assert body["summary"]["runs"] == 2
    assert body["summary"]["verdicts"] == {"Completed": 2}
    assert body["summary"]["minutes"]["p95"] == max(report["minutes"] for report in body["runs"])


def test_yaml_is_the_same(deployment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("-f", str(deployment), "--nodes", "10")
    run(arguments(*words, "-o", "json"))
    as_json = json.loads(capsys.readouterr().out)
    run(arguments(*words, "-o", "yaml"))
    as_yaml = yaml.safe_load(capsys.readouterr().out)
    for body in (as_json, as_yaml):
        del body["runs"][0]["cost"]
    assert as_json == as_yaml


def test_text_tells_the_verdict_and_each_wave(deployment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments("-f", str(deployment), "--nodes", "20", "--bad", "score=0.5")) == 0
    text = capsys.readouterr().out
    assert text.startswith("RolledBack after ")
    assert "AnalysisFailed" in text
    assert "canary" in text
    assert "when the rollback began" in text


def test_several_runs_give_a_distribution(deployment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments("-f", str(deployment), "--nodes", "10", "--runs", "3")) == 0
    assert capsys.readouterr().out.startswith("3 runs: 3 Completed\n")


def test_plot_is_an_svg(deployment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "plot.svg"
    assert run(arguments("-f", str(deployment), "--nodes", "20", "--plot", str(plot))) == 0
    root = ElementTree.fromstring(plot.read_text())  # noqa: S314
    assert root.tag.endswith("svg")
    assert len([e for e in root if e.tag.endswith("polygon")]) == 2  # one for each wave


def test_a_fleet_of_groups(deployment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = tmp_path / "fleet.yaml"
    groups = [
        {"name": "shop", "count": 12, "labels": {"slm": "yes"}, "sites": 3, "memory": "4Gi", "linkMbps": 20},
        {"name": "office", "count": 5},
    ]
    fleet.write_text(yaml.safe_dump({"groups": groups}))
    assert run(arguments("-f", str(deployment), "--fleet", str(fleet), "-o", "json")) == 0
    (report,) = json.loads(capsys.readouterr().out)["runs"]
    assert report["nodes"] == {"total": 17, "matching": 12, "onNewVersion": 12, "offline": 0}
    assert report["notes"] == ["5 node(s) do not match placement or have no variant; they take no part"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("kind: Service\n", "no object of kind SLMDeployment"),
        ("kind: SLMDeployment\nspec: {}\n", "metadata.name is missing"),
        ("kind: SLMDeployment\nmetadata: {name: orders}\nspec: {}\n", "spec.model: Field required"),
        ("a: [\n", "is not YAML"),
        ("", "no object of kind SLMDeployment"),
    ],
)
def test_a_wrong_deployment_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, wanted: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    line = failure(capsys, "-f", str(path))
    assert str(path) in line
    assert wanted in line


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such file" in failure(capsys, "-f", str(tmp_path / "none.yaml"))


def test_a_spec_that_the_operator_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_body(waves=[{"name": "half", "percent": 50}])
    path = tmp_path / "refused.yaml"
    path.write_text(yaml.safe_dump({"kind": KIND, "metadata": {"name": "orders"}, "spec": spec}))
    assert "InvalidWaves" in failure(capsys, "-f", str(path), "--nodes", "5")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--bad", "colour=3"], "--bad colour=3: must be one of error-rate=NUMBER"),
        (["--bad", "error-rate=-1"], "--bad error-rate: -1 must be from 0 to 1"),
        (["--bad", "score"], "--bad score: '' is not a number"),
        (["--bad", "latency=nan"], "--bad latency: nan must be from"),
        (["--size-gb", "huge=1"], "there is no variant 'huge'"),
        (["--size-gb", "-2"], "--size-gb: -2 must be from"),
        (["--plot", "plot.png"], "name a file that ends in .svg"),
    ],
)
def test_wrong_options_are_named(
    deployment: Path, capsys: pytest.CaptureFixture[str], words: list[str], wanted: str
) -> None:
    line = failure(capsys, "-f", str(deployment), "--nodes", "5", *words)
    assert wanted in line


@pytest.mark.parametrize(
    "words",
    [
        ["--nodes", "-5"],
        ["--nodes", "many"],
        ["--link-mbps", "0"],
        ["--offline-percent", "101"],
        ["--runs", "0"],
        ["--until", "-1"],
        ["--start", "tomorrow"],
    ],
)
def test_numbers_out_of_bounds_are_usage_errors(
    deployment: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        arguments("-f", str(deployment), *words)
    assert stop.value.code == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("group", "wanted"),
    [
        ({"name": "a", "count": -1}, "groups[0].count: -1 is not a whole number"),
        ({"name": "a", "count": 1, "linkMbps": 0}, "groups[0].linkMbps: 0 must be from"),
        ({"name": "a", "count": 1, "memory": "lots"}, "groups[0].memory"),
        ({"name": "a", "count": 1, "labels": {"a": True}}, "groups[0].labels"),
        ({"name": "a", "count": 1, "colour": "red"}, "groups[0].colour: unknown"),
        ({"count": 1}, "groups[0].name"),
        ("a", "groups[0]: must be an object"),
    ],
)
def test_a_wrong_fleet_is_named(
    deployment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], group: object, wanted: str
) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(yaml.safe_dump({"groups": [group]}))
    assert wanted in failure(capsys, "-f", str(deployment), "--fleet", str(fleet))


def test_fleet_and_nodes_exclude_each_other(
    deployment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--nodes: the fleet comes from" in failure(
        capsys, "-f", str(deployment), "--fleet", "x.yaml", "--nodes", "3"
    )


def test_too_many_overrides_are_refused_with_the_cure(
    deployment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = list(yaml.safe_load_all(deployment.read_text()))[1]
    form = body["spec"]["variants"][0]
    body["spec"]["variants"] = [form | {"name": f"v{index}"} for index in range(16)]
    body["spec"]["overrides"] = [
        {"name": f"o{index}", "sites": [f"s{index}"], "engine": "auto"} for index in range(4)
    ]
    deployment.write_text(yaml.safe_dump(body))
    assert "let one override name several sites" in failure(capsys, "-f", str(deployment), "--nodes", "10")
