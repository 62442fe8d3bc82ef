# SPDX-License-Identifier: Apache-2.0
"""Quantization on the project's own model: size, quality, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from slmopt.errors import OptimizeError
from slmopt.graph import OnnxExport
from slmopt.model_dir import build_manifest
from slmwire.manifest import parse_manifest
from tests.unit.slmopt.kit import (
    ANSWER_TOKENS,
    ORDERS,
    PROMPT,
    exact_match,
    lora_session,
    make_dynamic,
    make_half,
    run_logits,
    run_recipe,
    run_rows,
)


def kinds(directory: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in onnx.load(str(directory / "model.onnx"), load_external_data=False).graph.node:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


@pytest.mark.parametrize(
    ("step", "kind", "most_bytes"),
    [
        ({"quantizeInt8": {}}, "MatMulNBits", 1_080_000),
        ({"quantizeInt8": {"blockSize": 32}}, "MatMulNBits", 1_130_000),
        ({"quantizeInt4": {}}, "MatMulNBits", 830_000),
        ({"quantizeInt4": {"blockSize": 128, "symmetric": False}}, "MatMulNBits", 790_000),
        ({"quantizeInt4": {"algorithm": "kQuant"}}, "MatMulNBits", 830_000),
    ],
)
def test_matrices_become_integers_and_answers_stay_right(
    tmp_path: Path, step: dict[str, Any], kind: str, most_bytes: int
) -> None:
    manifest = run_recipe(tmp_path / "out", step)
    counted = kinds(tmp_path / "out")
    assert (counted.get(kind), counted.get("MatMul", 0)) == (16, 0)
    assert manifest.size_bytes < most_bytes
    assert exact_match(tmp_path / "out") >= 0.95


@pytest.mark.parametrize("step", [{"quantizeInt8": {}}, {"quantizeInt4": {}}])
@pytest.mark.parametrize("slicing", [{"feedForwardPercent": 25}, {"headsPercent": 50}])
def test_what_was_sliced_is_quantized_too(
    tmp_path: Path, slicing: dict[str, Any], step: dict[str, Any]
) -> None:
    run_recipe(tmp_path / "out", {"slice": slicing}, step)
    counted = kinds(tmp_path / "out")
    assert counted["MatMulNBits"] == 16
    assert 0 <= exact_match(tmp_path / "out") <= 1  # it loads and answers


def test_the_directory_is_complete(tmp_path: Path) -> None:
    manifest = run_recipe(tmp_path / "out", {"quantizeInt4": {}})
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in ORDERS.iterdir()}
    assert parse_manifest((tmp_path / "out" / "slm-manifest.json").read_bytes()) == manifest
    assert build_manifest(tmp_path / "out") == manifest
    for name in ("tokenizer.json", "tokenizer_config.json", "golden.jsonl", "special_tokens_map.json"):
        assert (tmp_path / "out" / name).read_bytes() == (ORDERS / name).read_bytes()
    assert json.loads((tmp_path / "out" / "genai_config.json").read_text()) == json.loads(
        (ORDERS / "genai_config.json").read_text()
    )


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path) -> None:
    first = run_recipe(tmp_path / "a", {"quantizeInt4": {}})
    assert run_recipe(tmp_path / "b", {"quantizeInt4": {}}).digest == first.digest


def test_the_embedding_table_can_go_with_them(tmp_path: Path) -> None:
    run_recipe(tmp_path / "out", {"quantizeInt4": {"embeddings": True}})
    counted = kinds(tmp_path / "out")
    assert (counted["GatherBlockQuantized"], counted["MatMulNBits"]) == (1, 16)
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size < 480_000
    assert exact_match(tmp_path / "out") >= 0.95


def test_excluded_matrices_stay(tmp_path: Path) -> None:
    run_recipe(tmp_path / "four", {"quantizeInt4": {"exclude": ["lm_head", "layers.0/"]}})
    assert (kinds(tmp_path / "four")["MatMul"], kinds(tmp_path / "four")["MatMulNBits"]) == (6, 10)
    run_recipe(tmp_path / "eight", {"quantizeInt8": {"exclude": ["lm_head"]}})
    assert (kinds(tmp_path / "eight")["MatMul"], kinds(tmp_path / "eight")["MatMulNBits"]) == (1, 15)


@pytest.mark.parametrize("step", [{"quantizeInt8": {}}, {"quantizeInt4": {}}])
def test_half_precision_exports(tmp_path: Path, step: dict[str, Any]) -> None:
    half = make_half(tmp_path / "half")
    run_recipe(tmp_path / "out", step, source=half)
    assert kinds(tmp_path / "out")["MatMulNBits"] == 16
    expected = run_logits(OnnxExport(half), tmp_path / "before")
    actual = run_logits(OnnxExport(tmp_path / "out"), tmp_path / "after")
    agreement = (expected.argmax(axis=1) == actual.argmax(axis=1))[-ANSWER_TOKENS:].mean()
    assert agreement >= 0.95


LOUD = [PROMPT, PROMPT[::-1], [PROMPT[3]] * len(PROMPT)]


@pytest.mark.parametrize("length", [1, len(PROMPT)])
@pytest.mark.parametrize("kind", ["quantizeInt8", "quantizeInt4"])
@pytest.mark.parametrize("block", [32, 128])
def test_what_one_is_answered_does_not_depend_on_others(
    tmp_path: Path, kind: str, block: int, length: int
) -> None:
    """Rows of a batch are requests of different people, served at the same moment."""
    run_recipe(tmp_path / "out", {kind: {"blockSize": block}})
    session = lora_session(tmp_path / "out")
    rows = [row[:length] for row in LOUD]
    alone = run_rows(session, rows[:1])[0]
    # Kernels for one row and for several add up in another order.
    assert run_rows(session, rows)[0] == pytest.approx(alone, abs=1e-4)
    # What the others say moves nothing at all.
    others = [rows[0], *([token + 1 for token in row] for row in rows[1:])]
    assert np.array_equal(run_rows(session, others)[0], run_rows(session, rows)[0])


def test_with_dynamic_quantization_it_does(tmp_path: Path) -> None:
    session = lora_session(make_dynamic(tmp_path / "dynamic"))
    assert np.abs(run_rows(session, LOUD)[0] - run_rows(session, [PROMPT])[0]).max() > 0.1


@pytest.mark.parametrize("second", ["quantizeInt8", "quantizeInt4"])
def test_nothing_is_quantized_twice(tmp_path: Path, second: str) -> None:
    for first in ("quantizeInt8", "quantizeInt4"):
        with pytest.raises(OptimizeError, match=rf"{second}: the model is quantized already"):
            run_recipe(tmp_path / "out", {first: {}}, {second: {}})


def test_choices_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptimizeError, match=r'embeddings works with algorithm "rtn"'):
        run_recipe(tmp_path / "out", {"quantizeInt4": {"algorithm": "kQuant", "embeddings": True}})
    with pytest.raises(OptimizeError, match="leaves no matrix"):
        run_recipe(tmp_path / "out", {"quantizeInt8": {"exclude": ["/"]}})
