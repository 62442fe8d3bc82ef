# SPDX-License-Identifier: Apache-2.0
"""GGUF of the orders model: names, shapes and numbers; what cannot be converted is named."""

import shutil
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from e2e.models.recipe.__main__ import ARTEFACTS
from e2e.models.recipe.to_gguf import ConversionError, write_gguf
from e2e.models.recipe.versions import SHAPE

SOURCE = ARTEFACTS / "v1-fp32"


def test_shape_and_weights_are_those_of_the_export(tmp_path: Path) -> None:
    write_gguf(SOURCE, tmp_path / "m.gguf", kind="F32")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    field = {name: reader.get_field(name) for name in reader.fields}

    def number(name: str) -> float:
        found = field[f"llama.{name}"]
        assert found is not None
        return float(found.contents())

    assert number("block_count") == SHAPE.layers
    assert number("attention.head_count_kv") == SHAPE.kv_heads
    assert number("feed_forward_length") == SHAPE.feed_forward
    assert number("rope.freq_base") == pytest.approx(SHAPE.rope_theta, rel=1e-3)
    tensors = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    assert len(tensors) == 3 + 9 * SHAPE.layers
    graph = onnx.load(str(SOURCE / "model.onnx")).graph
    weights = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    down = weights["model.layers.1.mlp.down_proj.MatMul.weight"]
    np.testing.assert_array_equal(tensors["blk.1.ffn_down.weight"], down.T)
    # The second row of a query head is the first of its other half.
    joined = weights["model.layers.0.attn.qkv_proj.MatMul.weight"].T
    query = tensors["blk.0.attn_q.weight"]
    np.testing.assert_array_equal(query[1], joined[SHAPE.head // 2])
    np.testing.assert_array_equal(query[2], joined[1])


def test_smaller_kinds_give_smaller_files(tmp_path: Path) -> None:
    sizes = []
    for kind in ("F32", "F16", "Q8_0", "Q4_0"):
        write_gguf(SOURCE, tmp_path / kind, kind=kind)
        sizes.append((tmp_path / kind).stat().st_size)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[3] < sizes[0] / 5


def test_quantised_exports_and_other_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="export it in fp32"):
        write_gguf(ARTEFACTS / "v1-int4", tmp_path / "m.gguf", kind="F32")
    shutil.copytree(SOURCE, tmp_path / "other")
    config = tmp_path / "other/genai_config.json"
    config.write_text(config.read_text().replace('"type": "llama"', '"type": "phi3"'))
    with pytest.raises(ConversionError, match="type 'phi3'; only llama is known"):
        write_gguf(tmp_path / "other", tmp_path / "m.gguf", kind="F32")
