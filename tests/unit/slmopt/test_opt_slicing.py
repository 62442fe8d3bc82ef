# SPDX-License-Identifier: Apache-2.0
"""Slicing: what is cut out is exactly what had no say, and every number says so."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from slmopt.errors import OptimizeError
from slmopt.graph import OnnxExport
from slmopt.job import Slice
from slmopt.slicing import apply_slice, choose_heads, kept_width, plan_heads, strongest
from slmserve.engines.onnx_slots import load_engine
from slmserve.export import load_export
from tests.unit.slmopt.kit import ORDERS, exact_match, run_logits, run_recipe


@given(st.integers(8, 20_000), st.integers(1, 90))
def test_no_more_neurons_go_than_asked_and_widths_stay_multiples(width: int, percent: int) -> None:
    grain = 32 if width >= 1024 else 8
    kept = kept_width(width, percent)
    assert kept <= width
    assert kept * 100 >= width * (100 - percent)
    assert kept % grain == 0 or kept == width
    assert kept - width * (100 - percent) / 100 < grain


@given(st.integers(1, 16), st.integers(1, 8), st.integers(1, 90))
def test_heads_stay_in_groups_of_one_size(kv_heads: int, per_group: int, percent: int) -> None:
    heads = kv_heads * per_group
    try:
        plan = plan_heads(heads, kv_heads, percent)
    except OptimizeError as error:
        smallest = min(per_group if kv_heads > 1 else heads, kv_heads if per_group > 1 else heads)
        assert 100 * smallest > heads * percent or heads == smallest
        assert "ask for that" in str(error)
        return
    assert 0 < plan.heads < heads
    assert plan.heads % plan.kv_heads == 0
    assert 100 * (heads - plan.heads) <= heads * percent
    scores = np.random.default_rng(percent).random(heads).astype(np.float32)
    query, groups = choose_heads(scores, plan, kv_heads)
    assert (len(query), len(groups)) == (plan.heads, plan.kv_heads)
    assert len(set(query.tolist())) == plan.heads
    # Query head i of the sliced model reads group i // (heads / groups): it must be its own group.
    owners = groups[np.arange(plan.heads) // (plan.heads // plan.kv_heads)]
    assert np.array_equal(query // per_group, owners)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(1, 12))
def test_the_strongest_are_the_largest_in_order(scores: list[int], count: int) -> None:
    assume(count <= len(scores))
    chosen = strongest(np.array(scores, np.float32), count).tolist()
    assert chosen == sorted(set(chosen))
    left = [score for index, score in enumerate(scores) if index not in chosen]
    assert not left or max(left) <= min(scores[index] for index in chosen)


def test_a_sliced_feed_forward_is_the_model_with_those_neurons_silent(tmp_path: Path) -> None:
    sliced, masked = OnnxExport(ORDERS), OnnxExport(ORDERS)
    apply_slice(sliced, Slice(feed_forward_percent=25))
    for small, large in zip(sliced.layers(), masked.layers(), strict=True):
        assert sliced.read(small.get("gate_proj").weight).shape == (128, 240)
        kept = sliced.read(small.get("down_proj").weight)
        rows = masked.read(large.get("down_proj").weight)
        gone = [i for i, row in enumerate(rows) if not (kept == row).all(axis=1).any()]
        assert len(gone) == 80
        rows = rows.copy()
        rows[gone] = 0
        masked.write(large.get("down_proj").weight, rows)
    expected, actual = run_logits(masked, tmp_path / "masked"), run_logits(sliced, tmp_path / "sliced")
    assert np.allclose(expected, actual, atol=2e-3)


@pytest.mark.parametrize("importance", ["weights", "activations"])
def test_sliced_heads_are_the_model_with_those_heads_silent(tmp_path: Path, importance: str) -> None:
    sliced, masked = OnnxExport(ORDERS), OnnxExport(ORDERS)
    apply_slice(
        sliced, Slice(heads_percent=50, importance="weights" if importance == "weights" else "activations")
    )
    decoder = sliced.config["model"]["decoder"]
    assert (decoder["num_attention_heads"], decoder["num_key_value_heads"]) == (2, 1)
    for small, large in zip(sliced.layers(), masked.layers(), strict=True):
        kept = sliced.read(small.get("o_proj").weight)
        rows = masked.read(large.get("o_proj").weight).copy()
        rows[[i for i, row in enumerate(rows) if not (kept == row).all(axis=1).any()]] = 0
        masked.write(large.get("o_proj").weight, rows)
    expected, actual = run_logits(masked, tmp_path / "masked"), run_logits(sliced, tmp_path / "sliced")
    assert np.allclose(expected, actual, atol=2e-3)


def test_a_smaller_model_answers_nearly_as_well_and_the_server_loads_it(tmp_path: Path) -> None:
    manifest = run_recipe(tmp_path / "ff", {"slice": {"feedForwardPercent": 25}})
    data = next(file for file in manifest.files if file.path == "model.onnx.data")
    cut = 3 * 3 * 80 * 128 * 4  # layers, matrices, neurons, hidden, bytes
    assert (ORDERS / "model.onnx.data").stat().st_size - data.size == pytest.approx(cut, abs=4096)
    assert exact_match(tmp_path / "ff") >= 0.95
    run_recipe(tmp_path / "heads", {"slice": {"headsPercent": 50}})
    export = load_export(tmp_path / "heads")
    assert (export.heads, export.kv_heads) == (2, 1)
    engine = load_engine(tmp_path / "heads", export, slots=2, context_length=0, threads=1)
    assert np.isfinite(engine.prefill(0, np.arange(5), 0)).all()
    whole = load_engine(ORDERS, load_export(ORDERS), slots=2, context_length=0, threads=1)
    assert engine.cache_bytes * 2 == whole.cache_bytes


def test_what_cannot_be_cut_says_what_can(tmp_path: Path) -> None:
    with pytest.raises(OptimizeError, match=r"headsPercent 25 takes no head: of 4 heads in 2 groups.* 50 %"):
        run_recipe(tmp_path / "a", {"slice": {"headsPercent": 25}})
    with pytest.raises(OptimizeError, match=r"feedForwardPercent 1 takes no neuron of 320"):
        run_recipe(tmp_path / "b", {"slice": {"feedForwardPercent": 1}})


def test_activations_need_golden_cases(tmp_path: Path) -> None:
    run_recipe(tmp_path / "copy", {"prune": {"method": "magnitude", "sparsityPercent": 1}})
    golden = tmp_path / "copy" / "golden.jsonl"
    step = {"slice": {"feedForwardPercent": 25, "importance": "activations"}}
    golden.write_text(json.dumps({"messages": [{"content": "two lattes"}]}) + "\n")
    with pytest.raises(OptimizeError, match=r"golden\.jsonl line 1"):
        run_recipe(tmp_path / "a", step, source=tmp_path / "copy")
    golden.unlink()
    with pytest.raises(OptimizeError, match=r'needs golden\.jsonl in the source; add it, or use "weights"'):
        run_recipe(tmp_path / "b", step, source=tmp_path / "copy")
    assert exact_match(run_target(tmp_path / "c", step)) >= 0.95


def run_target(target: Path, step: dict[str, dict[str, object]]) -> Path:
    run_recipe(target, step)
    return target
