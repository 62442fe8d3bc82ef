# SPDX-License-Identifier: Apache-2.0
"""The manifest for K3s' folder of manifests names this chart, and values that the chart takes."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from e2e.checks.helm import CHART, find, objects, render_chart

FILE = Path(__file__).parents[3] / "manifests" / "k3s-helmchart.yaml"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
SPEC_FIELDS = {
    "authPassCredentials", "authSecret", "backOffLimit", "bootstrap", "chart", "chartContent",
    "createNamespace",
    "dockerRegistrySecret", "driver", "failurePolicy", "helmVersion", "insecureSkipTLSVerify", "jobImage",
    "plainHTTP", "podSecurityContext", "repo", "repoCA", "repoCAConfigMap", "securityContext", "set",
    "takeOwnership", "targetNamespace", "timeout", "valuesContent", "valuesSecrets", "version",
}  # fmt: skip
"""Of HelmChart in helm.cattle.io/v1."""


def bodies() -> list[dict[str, Any]]:
    return objects(FILE.read_text())


def spec() -> dict[str, Any]:
    found: dict[str, Any] = find(bodies(), "HelmChart")["spec"]
    return found


def merged(over: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Values as Helm lays them over the chart's own."""
    result = dict(values)
    for key, value in over.items():
        inner = isinstance(value, dict) and isinstance(values.get(key), dict)
        result[key] = merged(value, values[key]) if inner else value
    return result


def test_it_is_a_helm_chart_of_k3s_with_fields_that_exist() -> None:
    body = find(bodies(), "HelmChart")
    assert (body["apiVersion"], body["metadata"]["namespace"]) == ("helm.cattle.io/v1", "kube-system")
    assert spec().keys() <= SPEC_FIELDS
    assert spec()["failurePolicy"] == "abort"


def test_it_names_this_chart_in_its_present_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert spec()["chart"].rpartition("/")[2] == chart["name"]
    assert spec()["version"] == chart["version"]
    assert f"{chart['name']}-{chart['version']}.tgz" in FILE.read_text()


def test_its_namespace_allows_what_the_store_agents_need() -> None:
    namespace = find(bodies(), "Namespace")["metadata"]
    assert namespace["name"] == spec()["targetNamespace"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"


def test_its_values_are_taken_by_the_schema_and_arrive() -> None:
    values = yaml.safe_load(spec()["valuesContent"])
    whole = merged(values, yaml.safe_load((CHART / "values.yaml").read_text()))
    jsonschema.Draft7Validator(SCHEMA).validate(whole)
    pod = find(objects(render_chart(values)), "Deployment")["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"].startswith("registry.example.com/slmops-operator:")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(SCHEMA).validate(whole | {"images": {}})


def test_every_placeholder_is_explained_above() -> None:
    head, _, body = FILE.read_text().partition("apiVersion:")
    placeholders = set(re.findall(r"[a-z.]*example\.com|https?://[a-z.]+:\d+", body))
    assert placeholders and all(f"- {name}:" in head for name in placeholders)
