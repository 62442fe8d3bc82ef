# SPDX-License-Identifier: Apache-2.0
"""What is read out of the quickstart, and what is put in place of its names; the suite runs the rest."""

import re
from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from e2e.lib import OperatorImages
from e2e.quickstart import (
    DOCUMENT,
    END,
    FIRST,
    MODELS_URL,
    REGISTRY,
    SHIP,
    START,
    Command,
    read_commands,
    substitute,
)
from e2e.rig.paths import CHECKOUT
from slmops.api import SLMDeploymentSpec

IMAGES = OperatorImages(
    operator="10.0.0.1:5000/slmops-operator:abc", runtime="10.0.0.1:5000/slmops-runtime:def"
)
SITE = "http://10.0.0.1:8090"
EXAMPLE = CHECKOUT / "manifests" / "examples" / "quickstart.yaml"


def here(text: str) -> str:
    return substitute(text, images=IMAGES, models_url=SITE)


def test_the_document_has_three_commands_and_those_around_them() -> None:
    commands = read_commands(DOCUMENT.read_text())
    sections = [command.section for command in commands]
    assert list(dict.fromkeys(sections)) == [FIRST, START, SHIP, END]
    programs = [command.text.split()[:3] for command in commands if command.section == START]
    assert [words[:2] for words in programs] == [
        ["helm", "install"],
        ["kubectl", "apply"],
        ["kubectl", "slm"],
    ]
    assert all("--set prometheus" not in command.text for command in commands)
    files = {name for command in commands for name in re.findall(r"manifests/\S+\.yaml", command.text)}
    assert files and all((CHECKOUT / name).is_file() for name in files)


def test_only_what_a_reader_must_replace_too_is_replaced() -> None:
    start = next(command.text for command in read_commands(DOCUMENT.read_text()) if "helm" in command.text)
    assert REGISTRY in start
    changed = here(start)
    assert REGISTRY not in changed and "registry=10.0.0.1:5000,image.tag=abc" in changed
    assert "runtimeImage.registry=10.0.0.1:5000,runtimeImage.tag=def" in changed
    text = EXAMPLE.read_text()
    assert here(text) == text.replace(MODELS_URL, SITE) != text
    for command in read_commands(DOCUMENT.read_text()):
        if REGISTRY not in command.text:
            assert here(command.text) == command.text


def test_the_example_works_on_a_cluster_without_labels_or_prometheus() -> None:
    namespace, deployment = yaml.safe_load_all(EXAMPLE.read_text())
    spec = SLMDeploymentSpec.model_validate(deployment["spec"])
    assert spec.placement.node_selector.match_labels == {"kubernetes.io/os": "linux"}
    assert spec.rollout.analysis.provider is None
    assert deployment["metadata"]["namespace"] == namespace["metadata"]["name"]
    (variant,) = spec.variants
    assert variant.source.http is not None
    folder = variant.source.http.url.removeprefix(f"{MODELS_URL}/")
    assert (CHECKOUT / "e2e" / "models" / folder).is_file()


def test_the_new_version_is_made_by_what_the_document_says() -> None:
    line = next(c.text for c in read_commands(DOCUMENT.read_text()) if c.section == SHIP)
    edits = re.findall(r"-e 's/([^/]*)/([^/]*)/'", line)
    text = EXAMPLE.read_text()
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    deployment = list(yaml.safe_load_all(text))[1]
    assert deployment["apiVersion"] == "slmops.dev/v1alpha1"
    assert deployment["spec"]["model"]["version"] == "v2"
    assert "/orders/v2-int4/" in deployment["spec"]["variants"][0]["source"]["http"]["url"]


def test_blocks_are_read_as_a_shell_reads_them() -> None:
    text = "## A\n```sh\none \\\n  two\n# no\n\nthree\n```\n```console\nfour\n```\n"
    text += "## B\n  ```sh\n  five\n  ```\n"
    assert read_commands(text) == (
        Command(section="A", text="one two"),
        Command(section="A", text="three"),
        Command(section="B", text="five"),
    )
    for broken in ("```sh\none\n", "```sh\none \\\n```\n"):
        with pytest.raises(ValueError, match="does not end"):
            read_commands(broken)


@given(st.text(alphabet="ab#` \\\n", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(ValueError):
        assert all(command.text for command in read_commands(text))
