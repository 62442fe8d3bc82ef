# SPDX-License-Identifier: Apache-2.0
"""The documents of `-o json` and `-o yaml` keep the keys that docs/cli.md promises."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from slmcli.errors import ForbiddenError
from slmcli.output import to_yaml
from tests.unit.slmcli.cli_double import ScriptedCluster, run_cli
from tests.unit.slmcli.cli_objects import (
    STABLE,
    ago,
    build_body,
    build_event,
    build_node,
    build_pod,
    build_revision,
    build_status,
)
from tests.unit.slmcli.test_cli_chat import build_stream
from tests.unit.slmcli.test_cli_cost import build_metrics

SUMMARY = (
    "namespace name createdAt generation observedGeneration deleting pausedBy model specVersion "
    "stableVersion stableRevision updateRevision nodes conditions"
)
COSTS = (
    "nodes pods sinceSeconds countedInputTokens countedOutputTokens inputTokens outputTokens busyShareAtMost "
    "kilowattHours energyCost deviceCost totalCost costPerThousandTokens cloudCost"
)
KEYS = {
    "DeploymentStatus": f"{SUMMARY} pinned rollout variants worstNodes reasons failedRevisions operations "
    "adaptation events notes",
    "DeploymentList": "items",
    "NodeList": "namespace name items",
    "RevisionList": "namespace name items",
    "ModelList": "items",
    "Explanation": "namespace name summary because waitsFor next measurements decisions actions",
    "Version": "client api",
    "ChatAnswer": "namespace name model modelVersion revision variant node pod answer finishReason "
    "promptTokens generatedTokens firstTokenSeconds seconds tokensPerSecond",
    "AuditReport": "namespace name at model stableVersion stableRevision pods variants signature egress "
    "ingress services byDesign findings allowedSites managedPolicies kept trained",
    "CostReport": "at periodSeconds currency cloudName items total notCounted",
}
ITEM_KEYS = {
    "DeploymentList": f"{SUMMARY} step",
    "NodeList": "node site state online given fetching serving restarts problem",
    "RevisionList": "number revision modelVersion states createdAt variants",
    "ModelList": "namespace name createdAt latestVersion acceptedVersion versions conditions notes",
    "CostReport": f"namespace name site {COSTS}",
}
COMMANDS = {
    "DeploymentStatus": ["status", "orders"],
    "DeploymentList": ["list"],
    "NodeList": ["nodes", "orders"],
    "RevisionList": ["history", "orders"],
    "ModelList": ["models"],
    "Explanation": ["explain", "orders"],
    "Version": ["version"],
    "ChatAnswer": ["chat", "orders", "-m", "hi"],
    "AuditReport": ["audit", "orders"],
    "CostReport": ["cost", "orders"],
}
DOCUMENTED = Path(__file__).parents[3] / "docs" / "cli.md"


def _cluster(status: Any) -> ScriptedCluster:
    cluster = ScriptedCluster()
    cluster.put(build_body(status))
    cluster.stored = [build_revision(1, STABLE, "v1")]
    cluster.occurred = [build_event("WavePassed", "pilot", seconds_ago=3)]
    cluster.fleet = [build_node("n", {STABLE: "int4"})]
    cluster.running = [build_pod("n", STABLE)]
    cluster.running[0]["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": ago(900)}}
    cluster.texts = {cluster.running[0]["metadata"]["name"]: build_metrics(1, 2, 3)}
    cluster.streams = [build_stream("yes"), build_stream("yes")]
    cluster.slmmodels = [{"metadata": {"namespace": "shop", "name": "chat"}}]
    return cluster


@pytest.mark.parametrize("kind", COMMANDS)
@pytest.mark.parametrize("status", [build_status(), None], ids=["rolling", "new"])
def test_every_key_is_always_there(kind: str, status: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(_cluster(status), *COMMANDS[kind], "-o", "json", capsys=capsys)
    document = json.loads(ran.out)
    assert document.pop("apiVersion") == "cli.slmops.dev/v1"
    assert document.pop("kind") == kind
    assert set(document) == set(KEYS[kind].split())
    for item in document.get("items", ()):
        assert set(item) == set(ITEM_KEYS[kind].split())


@pytest.mark.parametrize("kind", COMMANDS)
def test_yaml_and_json_say_the_same(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = _cluster(build_status())
    as_json = run_cli(cluster, *COMMANDS[kind], "-o", "json", capsys=capsys)
    as_yaml = run_cli(cluster, *COMMANDS[kind], "-o", "yaml", capsys=capsys)
    said = [yaml.safe_load(as_yaml.out), json.loads(as_json.out)]
    for document in said:
        for key in ("seconds", "firstTokenSeconds", "tokensPerSecond"):
            document.pop(key, None)  # of two answers
    assert said[0] == said[1]


@pytest.mark.parametrize("text", ["0123456789", "12345e6789", "0b10", "1_000", "0o17", "12"])
def test_a_revision_that_looks_like_a_number_stays_text(text: str) -> None:
    assert to_yaml({"revision": text}) == f"revision: '{text}'\n"


def test_parts_of_the_api_keep_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(_cluster(build_status()), "status", "orders", "-o", "json", capsys=capsys)
    document = json.loads(ran.out)
    assert document["rollout"]["waves"][0]["finishedAt"] is None
    assert document["rollout"]["measurements"][1]["pValue"] == "0.4312"
    assert document["nodes"]["ready"] == 4
    assert document["events"] == [
        {
            "at": "2026-03-01T11:59:57.123456Z",
            "type": "Normal",
            "reason": "WavePassed",
            "message": "pilot",
            "count": 1,
        }
    ]


def test_events_that_may_not_be_read_hide_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = _cluster(build_status())
    cluster.events_error = ForbiddenError("events is forbidden")
    assert run_cli(cluster, "status", "orders", capsys=capsys).code == 0


@pytest.mark.parametrize("kind", COMMANDS)
def test_every_key_is_documented(kind: str) -> None:
    text = DOCUMENTED.read_text()
    section = text[text.index(f"### `{kind}`") :]
    words = set(re.findall(r"`([A-Za-z]+)`", section.partition("\n### ")[0]))
    missing = set((KEYS[kind] + " " + ITEM_KEYS.get(kind, "")).split()) - words - set(SUMMARY.split())
    assert not missing
    assert set(SUMMARY.split()) <= set(re.findall(r"`([A-Za-z]+)`", text))
