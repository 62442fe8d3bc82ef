# SPDX-License-Identifier: Apache-2.0
"""`helm upgrade --reuse-values` brings the values of the installed release, which lack what is newer."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.checks.helm import CHART, NAMESPACE, RELEASE, helm, objects

FIRST = (
    "nameOverride", "fullnameOverride", "image", "runtimeImage", "imagePullSecrets", "crds",
    "prometheus", "watchNamespaces", "allowedHostPaths", "allowedFilePaths", "rbac", "nodePolicy",
    "serviceAccount", "storeAgent", "podMonitor", "log", "resources", "nodeSelector", "tolerations",
    "affinity", "priorityClassName", "podAnnotations", "podLabels", "extraEnv",
)  # fmt: skip
"""Sections of the first release; it has to be possible to leave out any other one."""
PARTS: list[Mapping[str, Any]] = [
    {"privacy": {"networkPolicy": "None"}},
    {"privacy": {"clients": "Namespace"}, "watchNamespaces": ["shop"]},
    {"fleetPage": {"service": {"enabled": True}}, "networkPolicy": {"enabled": True}},
    {"fleetPage": {"enabled": False}},
    {"prometheus": {"install": {"enabled": True}}, "networkPolicy": {"enabled": True}},
    {"monitoring": {"prometheusRule": {"enabled": True}, "dashboards": {"enabled": True}}},
    {"serviceMonitor": {"enabled": True}, "optimizerImage": {"registry": "r.example"}},
    {"runtime": {"engineImages": {"litert": "r.example/litert:1"}}, "commonLabels": {"team": "edge"}},
]


@pytest.fixture(scope="module")
def reused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with the first release's values for its own, as Helm puts them together."""
    chart = tmp_path_factory.mktemp("chart") / "slmops"
    shutil.copytree(CHART, chart)
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    kept = {name: values[name] for name in FIRST}
    kept["podMonitor"].pop("siteLabel")
    kept["prometheus"].pop("install")
    (chart / "values.yaml").write_text(yaml.safe_dump(kept))
    return chart


def render(chart: Path, values: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    file = folder / "values.json"
    file.write_text(json.dumps(values))
    return objects(helm("template", RELEASE, str(chart), "--namespace", NAMESPACE, "--values", str(file)))


@pytest.mark.parametrize("values", [{}, *PARTS], ids=lambda values: "+".join(values))
def test_missing_values_are_those_of_the_chart(
    reused: Path, values: Mapping[str, Any], tmp_path: Path
) -> None:
    assert render(reused, values, tmp_path) == render(CHART, values, tmp_path)


def test_the_notes_need_no_newer_value(reused: Path) -> None:
    text = helm("install", RELEASE, str(reused), "--dry-run=client", "--namespace", NAMESPACE)
    assert "slmops-optimizer:" in text.partition("\nNOTES:\n")[2]
