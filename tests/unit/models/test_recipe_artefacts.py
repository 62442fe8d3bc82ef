# SPDX-License-Identifier: Apache-2.0
"""The committed models: the promised bytes, the tokenizer the recipe makes, the figures that hold."""

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tokenizers import Tokenizer

from e2e.models.recipe.__main__ import ARTEFACTS, main
from e2e.models.recipe.evaluate import assess
from e2e.models.recipe.figures import GOOD_EXACT, TOLERANCE_SAME_BYTES, disagreements, read_figures
from e2e.models.recipe.golden import build_golden, golden_lines
from e2e.models.recipe.packing import apply_manifest, observe_manifest
from e2e.models.recipe.tokenizer import answer_ids, build_tokenizer, prompt_ids
from e2e.models.recipe.versions import CONTEXT_TOKENS, RECIPES, SHAPE, VARIANTS, with_bases
from slmwire.manifest import parse_manifest

DIRECTORIES = [ARTEFACTS / f"{recipe.version}-{variant}" for recipe in RECIPES for variant in VARIANTS]
every_directory = pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda d: d.name)


@every_directory
def test_manifest_lists_exactly_the_files_with_their_hashes(directory: Path) -> None:
    text = (directory / "slm-manifest.json").read_text()
    manifest = parse_manifest(text)
    assert manifest == observe_manifest(directory)
    assert text == manifest.to_json() + "\n"
    assert {"model.onnx", "genai_config.json", "tokenizer.json", "golden.jsonl"} <= {
        f.path for f in manifest.files
    }


def test_a_changed_byte_changes_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"one")
    apply_manifest(tmp_path)
    before = parse_manifest((tmp_path / "slm-manifest.json").read_text())
    (tmp_path / "model.onnx").write_bytes(b"two")
    assert observe_manifest(tmp_path).digest != before.digest


@every_directory
def test_golden_file_is_what_the_recipe_makes(directory: Path) -> None:
    assert (directory / "golden.jsonl").read_text() == golden_lines()


@every_directory
def test_chat_template_and_tokenizer_give_the_ids_of_the_training(directory: Path) -> None:
    config = json.loads((directory / "tokenizer_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    template = jinja2.Environment(autoescape=False).from_string(config["chat_template"])
    for example in build_golden():
        messages = [
            {"role": "system", "content": "You take orders."},
            {"role": "user", "content": example.text},
        ]
        text = template.render(messages=messages, add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=True).ids
        assert ids == prompt_ids(tokenizer, example.text)
        answer = answer_ids(tokenizer, example.target)
        assert tokenizer.decode(answer[:-1]) == example.target
        assert len(answer) < 120
        assert len(ids) + len(answer) < CONTEXT_TOKENS


def test_the_tokenizer_is_reproducible() -> None:
    committed = json.loads((DIRECTORIES[0] / "tokenizer.json").read_text())
    made = json.loads(build_tokenizer(SHAPE.vocab).to_str())
    assert made["model"]["vocab"] == committed["model"]["vocab"]


@every_directory
def test_golden_score_is_the_one_in_the_figures(directory: Path) -> None:
    version, variant = directory.name.split("-")
    figures = read_figures(ARTEFACTS)["versions"][version]["variants"][variant]
    score, _ = assess(directory, build_golden())
    # One case of 60: another instruction set may answer a borderline case differently.
    assert score.exact == pytest.approx(figures["golden"]["exact"], abs=1 / score.cases + 0.001)
    assert score.well_formed >= 0.97
    assert score.exact <= 0.85 if version == "v3" else score.exact >= 0.95
    assert observe_manifest(directory).size_bytes == figures["bytes"]


def test_the_good_versions_are_good_and_v2_is_better_and_v3_looks_right_but_is_wrong() -> None:
    versions = read_figures(ARTEFACTS)["versions"]
    exact = {
        (recipe.version, variant): versions[recipe.version]["variants"][variant]["heldout"]["exact"]
        for recipe in RECIPES
        for variant in VARIANTS
    }
    for variant in VARIANTS:
        assert GOOD_EXACT <= exact["v1", variant] < exact["v2", variant]
        assert 0.5 < exact["v3", variant] <= 0.85
        assert versions["v3"]["variants"][variant]["heldout"]["wellFormed"] >= 0.99


def test_a_version_is_trained_after_what_it_starts_from() -> None:
    assert [recipe.version for recipe in with_bases(RECIPES[2:])] == ["v1", "v2", "v3"]
    assert [recipe.version for recipe in with_bases(RECIPES[:1])] == ["v1"]


def _with_exact(exact: float) -> dict[str, Any]:
    return {"v1": {"variants": {variant: {"heldout": {"exact": exact}} for variant in VARIANTS}}}


def test_a_figure_off_by_more_than_the_tolerance_is_reported() -> None:
    assert disagreements(_with_exact(0.98), _with_exact(0.97), tolerance=0.015) == []
    found = disagreements(_with_exact(0.98), _with_exact(0.95), tolerance=0.015)
    assert [line.split(":")[0] for line in found] == ["v1 fp32", "v1 int4"]
    assert disagreements(_with_exact(0.98), {"v1": {"variants": {}}}, tolerance=1) == [
        "v1 fp32: not measured",
        "v1 int4: not measured",
    ]


def test_evaluate_agrees_with_the_committed_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--versions", "v1"]) == 0
    assert f"agree within {TOLERANCE_SAME_BYTES}" in capsys.readouterr().out
