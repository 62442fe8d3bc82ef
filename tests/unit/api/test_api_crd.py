# SPDX-License-Identifier: Apache-2.0
"""The generated schema is structural and complete; what only an API server can say is in tests/apiserver."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from slmops.api import SLMDeploymentSpec, SLMDeploymentStatus
from slmops.api.crd import build_crd, build_schema, main, render_crd
from slmops.api.kinds import SLM_DEPLOYMENT
from slmops.api.source import SecretKeyRef

_STRUCTURAL = {
    "type", "format", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems",
    "maxItems", "minProperties", "maxProperties", "description", "default", "required", "properties", "items",
    "additionalProperties", "anyOf", "x-kubernetes-validations", "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys", "x-kubernetes-int-or-string",
}  # fmt: skip


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema with its path."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


ALL = dict(nodes(build_schema()))


def at(path: str) -> dict[str, Any]:
    return ALL[path]


def test_only_structural_keywords_are_used() -> None:
    assert {path: set(node) - _STRUCTURAL for path, node in ALL.items() if set(node) - _STRUCTURAL} == {}


def test_every_node_has_a_type_or_is_a_number_or_text() -> None:
    untyped = {path for path, node in ALL.items() if "type" not in node}
    assert untyped == {
        ".spec.rollout.maxUnavailable",
        ".spec.rollout.maxFailures",
        ".spec.rollout.rollback.maxUnavailable",
    }
    assert all(at(path)["x-kubernetes-int-or-string"] is True for path in untyped)


def test_every_field_is_described() -> None:
    given = {".apiVersion", ".kind", ".metadata"}
    assert {
        p for p, n in ALL.items() if "description" not in n and not p.endswith("[]") and p not in given
    } == set()


def test_keys_of_lists_are_required_or_filled_in() -> None:
    """The API server refuses a list-map whose key may be absent."""
    keyed = {path: node for path, node in ALL.items() if node.get("x-kubernetes-list-type") == "map"}
    assert ".spec.rollout.waves" in keyed and ".status.conditions" in keyed
    for path, node in keyed.items():
        for key in node["x-kubernetes-list-map-keys"]:
            items = node["items"]
            assert (key in items["required"]) is ("default" not in items["properties"][key]), path


def test_what_an_older_operator_stored_is_filled_in_and_not_refused() -> None:
    entry = at(".status.rollout.baseline[]")
    assert "variant" not in entry["required"] and entry["properties"]["variant"]["default"] == ""


def test_every_list_of_spec_says_how_it_is_merged_and_is_bounded() -> None:
    for path, node in ALL.items():
        if node.get("type") == "array":
            assert "x-kubernetes-list-type" in node, path
            if path.startswith(".spec"):
                assert node["maxItems"] > 0, path


def test_defaults_are_in_spec_and_none_in_status() -> None:
    assert at(".spec.rollout")["default"] == {}
    assert at(".spec.rollout.soak")["default"] == "60s"
    assert at(".spec.rollout.waves")["default"][0] == {"name": "canary", "percent": 10}
    assert at(".spec.variants[].resources.requests")["default"] == {"cpu": "100m"}, "memory is computed"
    assert "default" not in at(".spec.placement.tolerations"), "an empty list is left out"
    # But for keys of lists: that of an entry which an older operator wrote.
    assert [path for path, node in ALL.items() if path.startswith(".status") and "default" in node] == [
        ".status.rollout.baseline[].variant"
    ]


def test_required_fields_are_those_without_default() -> None:
    assert at(".spec")["required"] == ["model", "placement"]
    assert at("")["required"] == ["spec"]


def test_the_columns_point_at_fields_that_exist() -> None:
    for column in build_crd()["spec"]["versions"][0]["additionalPrinterColumns"]:
        path: str = column["jsonPath"]
        if path.startswith(".status.conditions"):
            assert f".status.conditions[].{path.rpartition('.')[2]}" in ALL
        else:
            assert path in ALL or path.startswith(".metadata")


def test_write_then_check_then_drift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--directory", str(tmp_path)]
    assert main(["--check", *arguments]) == 1, "a missing file is drift"
    assert main(["--write", *arguments]) == 0
    assert main(["--check", *arguments]) == 0
    file = tmp_path / SLM_DEPLOYMENT.file_name
    file.write_text(file.read_text().replace("maximum: 64", "maximum: 65"))
    assert main(["--check", *arguments]) == 1
    assert "make generate" in capsys.readouterr().err


def test_the_yaml_reads_back_as_the_crd() -> None:
    assert yaml.safe_load(render_crd()) == build_crd()


_SPEC = {
    "model": {"name": "orders", "version": "v1"},
    "variants": [{"name": "int4", "source": {"http": {"url": "https://models.example.com/m.json"}}}],
    "placement": {"nodeSelector": {"matchLabels": {"a": "b"}}},
}


def test_a_spec_survives_the_round_trip_and_ignores_what_it_does_not_know() -> None:
    spec = SLMDeploymentSpec.model_validate(_SPEC | {"later": {"x": 1}})
    assert SLMDeploymentSpec.model_validate(spec.to_body()) == spec
    assert "later" not in spec.to_body()
    assert spec.to_body()["rollout"]["quorumPercent"] == 70


def test_an_empty_status_is_valid() -> None:
    assert SLMDeploymentStatus.model_validate({}).to_body()["nodes"]["total"] == 0


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".", "..", "a..b", "-a", "A", "a b", "a\n", "a" * 254])
def test_what_is_no_name_of_a_secret_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        SecretKeyRef(name=name)


@pytest.mark.parametrize("name", ["a", "hub-token", "hub.example.com", "0" * 253])
def test_names_of_secrets_are_taken(name: str) -> None:
    assert SecretKeyRef(name=name).name == name
