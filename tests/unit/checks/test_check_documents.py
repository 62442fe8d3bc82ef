# SPDX-License-Identifier: Apache-2.0
"""The checks of documents find what they are there for."""

from pathlib import Path
from typing import Any

import pytest

from e2e.checks import documents, reasons

VALID: dict[str, Any] = {
    "apiVersion": "slmops.dev/v1alpha1",
    "kind": "SLMDeployment",
    "metadata": {"name": "orders"},
    "spec": {
        "model": {"name": "orders", "version": "v1"},
        "variants": [{"name": "int4", "source": {"http": {"url": "https://h/slm-manifest.json"}}}],
        "placement": {"nodeSelector": {"matchLabels": {"a": "b"}}},
    },
}


def test_a_valid_manifest_has_no_fault() -> None:
    assert documents.find_faults(VALID) == []
    assert documents.find_faults({"apiVersion": "v1", "kind": "Secret"}) == []
    assert documents.find_faults({"rollout": {}}) == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (VALID | {"kind": "SLMDeploymnt"}, "no kind SLMDeploymnt"),
        ({"kind": "SLMDeployment"}, "apiVersion is missing"),
        (VALID | {"sepc": {}}, "sepc"),
        (VALID | {"metadata": {}}, "name"),
        (VALID | {"spec": VALID["spec"] | {"rollot": {}}}, "rollot"),
        (VALID | {"spec": VALID["spec"] | {"placement": {"mode": "PerNod"}}}, "placement.mode"),
        (VALID | {"spec": {"variants": []}}, "spec"),
        (VALID | {"spec": VALID["spec"] | {"cache": {"hostpath": "/x"}}}, "hostpath"),
    ],
)
def test_faults_name_the_field(body: Any, words: str) -> None:
    faults = documents.find_faults(body)
    assert faults and words in " ".join(faults)


@pytest.mark.parametrize(
    ("words", "in_text", "is_fault"),
    [
        ("status orders -n shop", False, False),
        ("list -A", False, False),
        ("cost --all --prices FILE -o prometheus", False, False),
        ("promote", True, False),
        ("promote", False, True),
        ("promte orders", True, True),
        ("status orders --al", False, True),
        ("cache [NAME]", True, False),
    ],
)
def test_command_lines(words: str, in_text: bool, is_fault: bool) -> None:
    assert bool(documents.find_fault(words, in_text=in_text)) is is_fault


def test_commands_are_found_in_fences_and_in_text(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(
        "Run `kubectl slm list`.\n```sh\nkubectl apply -f x\n"
        "$ kubectl slm cost \\\n  --all | less  # or\n```\n"
    )
    found = [(words.split(), in_text) for _, words, in_text in documents.find_commands(page)]
    assert (["list"], True) in found and (["cost", "--all"], False) in found and len(found) == 2


def test_broken_links(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text("# A title, with `code`\n```sh\n# no heading\n```\n")
    assert documents.find_broken("#a-title-with-code", page) == ""
    assert documents.find_broken("a.md", page) == ""
    assert "no such heading" in documents.find_broken("#no-heading", page)
    assert "no such file" in documents.find_broken("b.md", page)


def test_reasons_that_are_missing_and_stale() -> None:
    page = "| reason | meaning |\n|---|---|\n| NoData, Gone | x |\n| PromoteRefused (Events) | x |\n"
    used = frozenset({"NoData", "Unfit"}) | {"PromoteRefused"}
    assert reasons.find_problems(page, used=used, said=frozenset()) == [
        "Unfit is not explained: give it a line with cause and cure",
        "Gone is explained, and nothing says it: take it out",
    ]
