# SPDX-License-Identifier: Apache-2.0
"""Pruning: which weights go, on matrices and on the project's own model."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from slmopt.errors import OptimizeError
from slmopt.graph import OnnxExport
from slmopt.model_dir import list_files
from slmopt.prune import find_threshold, prune_magnitude, prune_n_of_m
from slmwire.reasons import Reason
from tests.unit.slmopt.kit import ORDERS, exact_match, run_recipe

Matrix = NDArray[np.float32]


@st.composite
def matrices(draw: st.DrawFn) -> Matrix:
    rows, columns = draw(st.integers(1, 17)), draw(st.integers(1, 9))
    seed = draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).normal(size=(rows, columns))
    # Few different values, so that equals and zeros occur.
    digits = draw(st.integers(0, 3))
    return np.round(values, digits).astype(np.float32)


@given(matrices(), st.integers(1, 5), st.integers(2, 8))
def test_n_of_m_keeps_the_largest_of_each_group_and_no_more(weight: Matrix, kept: int, group: int) -> None:
    pruned = prune_n_of_m(weight, kept=kept, group=group)
    assert pruned.shape == weight.shape
    for start in range(0, len(weight), group):
        before, after = np.abs(weight[start : start + group]), pruned[start : start + group]
        stays = after != 0
        assert (stays.sum(axis=0) <= kept).all()
        assert np.array_equal(after[stays], weight[start : start + group][stays])
        for column in range(weight.shape[1]):
            gone = before[:, column][~stays[:, column]]
            left = before[:, column][stays[:, column]]
            if len(left) == kept and len(gone):
                assert gone.max() <= left.min()
            else:
                assert not gone.any() or len(left) == kept


@given(matrices(), st.integers(0, 40))
def test_magnitude_takes_exactly_the_smallest(weight: Matrix, count: int) -> None:
    count = min(count, weight.size)
    pruned = prune_magnitude(weight, count)
    changed = pruned != weight
    assert changed.sum() <= count
    assert (pruned == 0).sum() >= count
    if changed.any() and (pruned != 0).any():
        assert np.abs(weight[changed]).max() <= np.abs(pruned[pruned != 0]).min()


@given(st.lists(matrices(), min_size=1, max_size=4), st.integers(1, 99))
def test_the_threshold_over_all_matrices_is_exact(weights: list[Matrix], percent: int) -> None:
    flat = np.sort(np.abs(np.concatenate([weight.reshape(-1) for weight in weights])))
    wanted = max(1, round(len(flat) * percent / 100))
    assert find_threshold(weights, percent / 100) == flat[wanted - 1]


def sparsity(directory: Path, *, part: str) -> float:
    export = OnnxExport(directory)
    weights = [export.read(matrix.weight) for matrix in export.matrices() if part in matrix.node]
    return float(sum((w == 0).sum() for w in weights) / sum(w.size for w in weights))


def test_magnitude_on_the_model(tmp_path: Path) -> None:
    scores = {}
    for percent in (30, 70):
        target = tmp_path / str(percent)
        manifest = run_recipe(target, {"prune": {"method": "magnitude", "sparsityPercent": percent}})
        assert sparsity(target, part="layers.") == pytest.approx(percent / 100, abs=0.001)
        assert sparsity(target, part="lm_head") == 0
        # A mask takes no bytes off a file.
        data = next(file for file in manifest.files if file.path == "model.onnx.data")
        assert data.size == pytest.approx((ORDERS / "model.onnx.data").stat().st_size, abs=8192)
        scores[percent] = exact_match(target)
    assert scores[30] >= 0.95
    assert scores[70] < 0.7


def test_a_global_share_holds_over_all_matrices_and_not_in_each(tmp_path: Path) -> None:
    run_recipe(tmp_path / "g", {"prune": {"method": "magnitude", "sparsityPercent": 50, "scope": "global"}})
    assert sparsity(tmp_path / "g", part="layers.") == pytest.approx(0.5, abs=0.001)
    parts = [sparsity(tmp_path / "g", part=part) for part in ("qkv_proj", "o_proj", "down_proj")]
    assert max(parts) - min(parts) > 0.01


def test_two_of_four_on_the_model(tmp_path: Path) -> None:
    run_recipe(tmp_path / "nm", {"prune": {"method": "nm", "pattern": "2:4"}})
    export = OnnxExport(tmp_path / "nm")
    for matrix in export.matrices():
        zeros = (export.read(matrix.weight) == 0).reshape(-1, 4, export.read(matrix.weight).shape[1])
        assert ((zeros.sum(axis=1) >= 2).all()) == ("lm_head" not in matrix.node)
    assert 0.2 < exact_match(tmp_path / "nm") < 0.9


def test_a_quantized_model_and_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptimizeError, match=r"quantized already \(MatMulNBits\).*put prune before") as caught:
        run_recipe(tmp_path / "a", {"quantizeInt4": {}}, {"prune": {"method": "nm"}})
    assert caught.value.reason is Reason.UNFIT
    with pytest.raises(OptimizeError, match=r"prune\.exclude: no matrix has 'head_lm'.*down_proj.*lm_head"):
        run_recipe(tmp_path / "b", {"prune": {"method": "nm", "exclude": ["head_lm"]}})
    assert list_files(tmp_path) == []
