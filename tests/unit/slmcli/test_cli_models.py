# SPDX-License-Identifier: Apache-2.0
"""`models`: the table, the documents and the page, from what the planner itself wrote."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from slmops.api import API_VERSION, MODEL_KIND
from tests.unit.planning.model_sim import GOOD, ModelSim
from tests.unit.slmcli.cli_double import ScriptedCluster, run_cli
from tests.unit.slmcli.cli_objects import EVIL, Body


def cluster_of(sim: ModelSim, name: str = "chat") -> ScriptedCluster:
    body: Body = {
        "apiVersion": API_VERSION,
        "kind": MODEL_KIND,
        "metadata": {"name": name, "namespace": "shop", "creationTimestamp": "2026-03-01T11:00:00Z"},
        "spec": sim.spec,
        "status": sim.status.to_body(),
    }
    return ScriptedCluster(slmmodels=[body])


class Tags(HTMLParser):
    """Which tags there are, and which of them are never closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def judged() -> ModelSim:
    sim = ModelSim()
    sim.work_off(
        lambda name: replace(GOOD, exact_match=0.8) if sim.labels(name)["variant"] == "int4" else GOOD
    )
    return sim


def test_one_line_for_each_measurement(judged: ModelSim, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(cluster_of(judged), "models", "chat", capsys=capsys)
    assert ran.code == 0
    lines = [line.split() for line in ran.out.splitlines() if line.startswith("aaaaaaaaaa*")]
    assert [(line[1], line[2]) for line in lines] == [
        ("fp16", "pi5"), ("fp16", "nuc"), ("int4", "pi5"), ("int4", "nuc"),
    ]  # fmt: skip
    assert "Pass" in lines[0] and "0.9" in lines[0] and "20" in lines[0]
    assert "GateFailed: quality loss 0.1 is above 0.01" in ran.out


def test_a_version_under_way_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    sim = ModelSim()
    sim.settle()
    ran = run_cli(cluster_of(sim), "models", capsys=capsys)
    assert "Optimising" in ran.out and "Pass" not in ran.out
    assert "aaaaaaaaaa*" not in ran.out, "it is not offered"


def test_the_document_has_what_status_has(judged: ModelSim, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(cluster_of(judged), "models", "-o", "json", capsys=capsys)
    document = json.loads(ran.out)
    assert document["kind"] == "ModelList"
    item = document["items"][0]
    assert item["acceptedVersion"] == "a" * 10
    assert item["versions"][0]["variants"][1]["evaluations"][0]["exactMatch"] == "0.8"


def test_the_page_is_whole_and_harmless(
    judged: ModelSim, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = cluster_of(judged)
    variant = cluster.slmmodels[0]["status"]["versions"][0]["variants"][1]
    variant["evaluations"][0]["message"] = f"<script>alert(1)</script>{EVIL}"
    page = tmp_path / "models.html"
    ran = run_cli(cluster, "models", "chat", "--report", str(page), capsys=capsys)
    assert ran.code == 0 and str(page) in ran.err
    text = page.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and "\x1b" not in text
    page_tags = Tags()
    page_tags.feed(text)
    assert page_tags.open == [] and page_tags.seen.isdisjoint({"script", "img", "link", "iframe"})
    assert text.count("<svg") == 1 and text.count("<tr") == 5


def test_what_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(ScriptedCluster(), "models", capsys=capsys)
    assert ran.code == 0 and "no SLMModel in namespace shop" in ran.err
    assert run_cli(ScriptedCluster(), "models", "chat", capsys=capsys).code == 3
    ran = run_cli(cluster_of(ModelSim()), "models", "--report", str(tmp_path), capsys=capsys)
    assert ran.code == 2 and "--report" in ran.err
    ran = run_cli(cluster_of(ModelSim()), "models", capsys=capsys)
    assert "no version yet" in ran.err


def test_a_status_of_a_newer_operator_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = cluster_of(ModelSim())
    cluster.slmmodels[0]["status"] = {"versions": [{"version": 7}]}
    ran = run_cli(cluster, "models", capsys=capsys)
    assert ran.code == 0 and "not understood" in ran.err
