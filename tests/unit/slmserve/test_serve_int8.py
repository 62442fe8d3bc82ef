# SPDX-License-Identifier: Apache-2.0
"""int8 layers: nearly the same logits, and no row depends on another."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e.bench.serve_int8 import convert_to_int8, quantise_columns, unpack_int4
from e2e.bench.serve_model import TINY, build_model
from slmserve.engines.onnx_slots import OnnxSlotsEngine, load_engine
from slmserve.export import load_export
from tests.unit.slmserve.process import ORDERS


def _load(model_dir: Path) -> OnnxSlotsEngine:
    return load_engine(model_dir, load_export(model_dir), slots=2, context_length=0, threads=1)


def test_the_layout_of_packed_weights() -> None:
    packed = np.array([[[0x10, 0x98]], [[0xF7, 0x08]]], np.uint8)
    values = unpack_int4(packed, np.array([1.0, 0.5], np.float32), block=4)
    assert values.tolist() == [[-8, -7, 0, 1], [-0.5, 3.5, 0, -4]]


@given(seed=st.integers(0, 1000), columns=st.integers(1, 20), rows=st.integers(1, 20))
def test_a_column_is_within_half_a_step(seed: int, columns: int, rows: int) -> None:
    values = np.random.default_rng(seed).standard_normal((columns, rows), np.float32)
    quantised, scales = quantise_columns(values)
    assert quantised.shape == (rows, columns)
    assert np.all(np.abs(quantised.T * scales[:, None] - values) <= scales[:, None] * 0.5001)


def test_logits_are_nearly_those_of_int4(tmp_path: Path) -> None:
    source = build_model(tmp_path / "int4", TINY)
    prompt = np.arange(3, 60)
    expected = _load(source).prefill(0, prompt, 0).copy()
    got = _load(convert_to_int8(source, tmp_path / "int8")).prefill(0, prompt, 0)
    assert np.corrcoef(expected, got)[0, 1] > 0.99
    assert not np.array_equal(expected, got)


def test_chunks_make_no_difference(tmp_path: Path) -> None:
    engine = _load(convert_to_int8(build_model(tmp_path / "int4", TINY), tmp_path / "int8"))
    prompt = np.arange(3, 60)
    whole = engine.prefill(0, prompt, 0).copy()
    for begin in range(0, len(prompt), 10):
        logits = engine.prefill(1, prompt[begin : begin + 10], begin)
    assert logits == pytest.approx(whole, abs=1e-4)


def test_answers_of_the_orders_model_survive(tmp_path: Path) -> None:
    target = convert_to_int8(ORDERS / "v1-int4", tmp_path)
    assert (target / "golden.jsonl").is_file()
    prompt = np.arange(3, 20)
    assert int(_load(target).prefill(0, prompt, 0).argmax()) == int(
        _load(ORDERS / "v1-int4").prefill(0, prompt, 0).argmax()
    )
