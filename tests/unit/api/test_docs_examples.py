# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows is what the models take, and each reason that one may meet is explained."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from slmcli.cost.prices import read_prices, read_watts
from slmcli.simulate.inputs import read_fleet
from slmops import api
from slmops.api import SLMDeploymentSpec, SLMModelSpec
from slmops.api.distribution import Distribution
from slmops.api.feedback import FeedbackPolicy
from slmops.api.overrides import Override
from slmops.api.profile import DeviceProfileSpec
from slmops.api.rollout import Rollout
from slmops.api.spec import Placement

ROOT = Path(__file__).parents[3]
DOCS = sorted((ROOT / "docs").glob("*.md"))
HEALTHY = {
    "Accepted", "Resolved", "AllNodesReady", "Installing", "Prefetching", "Flipping", "Soaking", "Analysing",
    "RollingBack", "Converging", "Complete", "Promoted", "InProgress", "Verified", "Verifying",
    "Published", "Optimising", "Publishing", "Passed", "NotAsked", "Evaluating", "VersionAccepted",
}  # fmt: skip
"""Nobody has to do anything about these."""


def examples() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.name}:{text.count(chr(10), 0, block.start()) + 1}", yaml.safe_load(block[1]))
        for path in DOCS
        for text in [path.read_text()]
        for block in re.finditer(r"```yaml\n(.*?)```", text, re.DOTALL)
    ]


@pytest.mark.parametrize(("where", "body"), examples(), ids=[where for where, _ in examples()])
def test_every_example_is_taken(where: str, body: dict[str, Any], tmp_path: Path) -> None:
    match body:
        case {"kind": api.KIND, "spec": spec}:
            SLMDeploymentSpec.model_validate(spec)
        case {"kind": "DeviceProfile", "spec": spec}:
            DeviceProfileSpec.model_validate(spec)
        case {"kind": api.MODEL_KIND, "spec": spec}:
            SLMModelSpec.model_validate(spec)
        case {"spec": spec}:
            Placement.model_validate(spec["placement"])
            Rollout.model_validate(spec["rollout"])
        case {"feedback": feedback}:
            FeedbackPolicy.model_validate(feedback)
        case {"rollout": rollout}:
            Rollout.model_validate(rollout)
        case {"overrides": overrides}:
            assert [Override.model_validate(override) for override in overrides]
        case {"distribution": distribution}:
            Distribution.model_validate(distribution)
        case {"currency": _}:
            file = tmp_path / "prices.yaml"
            file.write_text(yaml.safe_dump(body))
            assert read_prices(file)
        case {"default": {"idle": _}}:
            file = tmp_path / "watts.yaml"
            file.write_text(yaml.safe_dump(body))
            assert read_watts(file)
        case {"groups": [*_]}:
            file = tmp_path / "fleet.yaml"
            file.write_text(yaml.safe_dump(body))
            assert read_fleet(file)
        case _:
            values = yaml.safe_load((ROOT / "charts/slmops/values.yaml").read_text())
            for section, given in body.items():
                assert set(given) <= set(values[section]), where


def test_every_annotation_that_is_named_is_one_that_is_read() -> None:
    known = {value for name, value in vars(api).items() if name.endswith("_ANNOTATION")}
    # labels, and the version
    known |= {
        f"slmops.dev/{name}"
        for name in ("accelerator", "adaptation", "board", "deployment", "edge", "ring", "role", "v")
    }
    for path in (*DOCS, ROOT / "README.md"):
        named = set(re.findall(r"(?<![.\w<>])slmops\.dev/[a-z]+", path.read_text()))
        assert named - known == set(), path.name


def test_each_reason_of_a_condition_is_in_the_table_of_troubleshooting() -> None:
    reference = (ROOT / "docs/reference.md").read_text()
    table = "".join(part.partition("\n### ")[0] for part in reference.split("\n### Conditions\n")[1:])
    rows = [line.split("|")[3] for line in table.splitlines() if line.startswith("| `")]
    reasons = set(
        re.findall(r"\b[A-Z][A-Za-z]+\b", re.sub(r"\((True|Unknown|False)[^)]*\)", "", " ".join(rows)))
    )
    troubleshooting = (ROOT / "docs/troubleshooting.md").read_text()
    explained = {
        word
        for line in troubleshooting.splitlines()
        if line.startswith("|")
        for word in re.findall(r"\w+", line.split("|")[1])
    }
    assert len(reasons) > 30
    assert reasons - HEALTHY - explained == set()
