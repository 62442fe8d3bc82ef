# SPDX-License-Identifier: Apache-2.0
"""The image of each engine holds all that its engine needs: a model answers in it, without a network."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.rig.images import ENGINE_RECIPES, ImageRecipe, open_container
from e2e.rig.paths import CHECKOUT
from slmwire.jobs import EvaluateReport, parse_report
from tests.unit.slmserve.engine_models import build_llama_dir, build_openvino_dir

ORDERS = CHECKOUT / "e2e" / "models" / "orders"
CASES = 60
RIGHT = 0.95
"""Share of the golden cases, at least; int8 may lose some."""


def _copy_litert(directory: Path) -> Path:
    return shutil.copytree(ORDERS / "v1-litert", directory)


MODELS: dict[str, Callable[[Path], Path]] = {
    "llama-cpp": build_llama_dir,
    "openvino": build_openvino_dir,
    "litert": _copy_litert,
}


@pytest.mark.parametrize("recipe", ENGINE_RECIPES, ids=lambda recipe: recipe.engine)
def test_a_model_answers_in_the_image(tmp_path: Path, recipe: ImageRecipe) -> None:
    model, out = MODELS[recipe.engine](tmp_path / "model"), tmp_path / "out"
    out.mkdir()
    with open_container(recipe) as container:
        assert container.added_bytes < recipe.limit_bytes
        container.run(
            *("python3", "-m", "slmserve.evaluate", "--model-dir", "/model", "--dataset", "/model"),
            *("--termination-log", "/out/said.json", "--answers-file", "/out/answers.jsonl"),
            volumes={model: "/model", out: "/out"},
            timeout_seconds=300,
        )
    report = parse_report((out / "said.json").read_text())
    assert isinstance(report, EvaluateReport)
    assert (report.exact_match or 0.0) >= RIGHT and report.samples == CASES
