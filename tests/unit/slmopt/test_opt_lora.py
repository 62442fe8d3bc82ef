# SPDX-License-Identifier: Apache-2.0
"""The step loraInputs: nothing changes until an adapter is there, and it says what it cannot do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from slmopt.errors import OptimizeError
from slmopt.graph import OnnxExport
from slmopt.job import LORA_TARGETS, LoraInputs
from slmopt.lora import apply_lora_inputs
from slmwire.manifest import parse_manifest
from slmwire.paths import MODEL_MANIFEST_FILE
from tests.unit.slmopt.kit import (
    ORDERS,
    PROMPT,
    lora_session,
    make_dynamic,
    make_half,
    run_recipe,
    run_session,
)

LORA: Mapping[str, Any] = {"loraInputs": {}}
Steps = tuple[Mapping[str, Any], ...]


def _logits(directory: Path, matrices: Mapping[str, NDArray[Any]] | None = None) -> NDArray[np.float32]:
    return run_session(lora_session(directory), PROMPT, matrices or {})


@pytest.mark.parametrize("version", ["v1-fp32", "v1-int4"])
def test_outputs_without_an_adapter_are_equal(tmp_path: Path, version: str) -> None:
    source = ORDERS.parent / version
    run_recipe(tmp_path / "out", LORA, source=source)
    assert np.array_equal(_logits(tmp_path / "out"), _logits(source))
    session = lora_session(tmp_path / "out")
    found = {node.name: (node.shape, node.type) for node in session.get_overridable_initializers()}
    assert len(found) == 2 * 3 * 5
    assert found["model.layers.1.attn.qkv_proj.lora_A"] == ([128, 8], "tensor(float)")
    assert found["model.layers.2.mlp.down_proj.lora_B"] == ([8, 128], "tensor(float)")
    assert not any("lm_head" in name for name in found)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((), ({"quantizeInt8": {}},)),
        ((), ({"quantizeInt4": {}},)),
        ((), ({"prune": {"method": "NM"}},)),
        (({"quantizeInt8": {}},), ()),
        (({"quantizeInt4": {"symmetric": False, "embeddings": True}},), ()),
    ],
)
def test_it_may_stand_before_or_after_other_steps(tmp_path: Path, before: Steps, after: Steps) -> None:
    run_recipe(tmp_path / "plain", *before, *after)
    run_recipe(tmp_path / "lora", *before, LORA, *after)
    assert np.array_equal(_logits(tmp_path / "lora"), _logits(tmp_path / "plain"))
    assert len(lora_session(tmp_path / "lora").get_overridable_initializers()) == 30


def test_it_may_stand_after_dynamic_quantization(tmp_path: Path) -> None:
    plain = make_dynamic(tmp_path / "plain")
    run_recipe(tmp_path / "lora", LORA, source=plain)
    assert np.array_equal(_logits(tmp_path / "lora"), _logits(plain))
    assert len(lora_session(tmp_path / "lora").get_overridable_initializers()) == 30


def test_matrices_do_what_the_formula_says(tmp_path: Path) -> None:
    """y + (x A) B is the layer whose weight is W + A B."""
    rng = np.random.default_rng(3)
    first = rng.standard_normal((320, 4), np.float32)
    second = rng.standard_normal((4, 128), np.float32)
    run_recipe(tmp_path / "lora", {"loraInputs": {"rank": 4, "targets": ["layers.1/mlp/down_proj"]}})
    prefix = "model.layers.1.mlp.down_proj.lora_"
    got = _logits(tmp_path / "lora", {f"{prefix}A": first, f"{prefix}B": second})
    export = OnnxExport(ORDERS)
    weight = "model.layers.1.mlp.down_proj.MatMul.weight"
    export.write(weight, export.read(weight) + first @ second)
    (tmp_path / "merged").mkdir()
    export.save(tmp_path / "merged")
    np.testing.assert_allclose(got, _logits(tmp_path / "merged"), rtol=1e-3, atol=1e-3)


def test_half_precision_has_half_precision_inputs(tmp_path: Path) -> None:
    source = make_half(tmp_path / "half")
    (tmp_path / "half" / "tokenizer.json").write_text("{}")
    (tmp_path / "half" / "chat_template.jinja").write_text("x")
    run_recipe(tmp_path / "out", LORA, source=source)
    model = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False)
    kinds = {t.data_type for t in model.graph.initializer if ".lora_" in t.name}
    assert kinds == {onnx.TensorProto.FLOAT16}


def test_the_directory_is_complete(tmp_path: Path) -> None:
    first, second = (run_recipe(tmp_path / name, LORA) for name in "ab")
    assert first.digest == second.digest
    assert parse_manifest((tmp_path / "a" / MODEL_MANIFEST_FILE).read_bytes()).digest == first.digest
    assert (tmp_path / "a" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["nothing"], "no linear layer has 'nothing' in its name; there are .*qkv_proj"),
        (["GroupQueryAttention"], "names nodes of GroupQueryAttention and no linear layer"),
    ],
)
def test_a_target_that_is_not_there_is_named(tmp_path: Path, targets: list[str], message: str) -> None:
    with pytest.raises(OptimizeError, match=message):
        run_recipe(tmp_path / "out", {"loraInputs": {"targets": targets}})


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (LORA, "has low-rank inputs already"),
        ({"slice": {"feedForwardPercent": 25}}, "put slice before the step loraInputs"),
        ({"convert": {"to": "gguf"}}, "put convert before the step loraInputs"),
    ],
)
def test_steps_that_cannot_follow_say_so(tmp_path: Path, step: Mapping[str, Any], message: str) -> None:
    with pytest.raises(OptimizeError, match=message):
        run_recipe(tmp_path / "out", LORA, step)


def test_graphs_whose_weights_are_inputs_are_refused() -> None:
    export = OnnxExport(ORDERS)
    weight = next(export.matrices()).weight
    value = onnx.helper.make_tensor_value_info(weight, onnx.TensorProto.FLOAT, export.shape(weight))
    export.model.graph.input.append(value)
    with pytest.raises(OptimizeError, match="lists weights among its inputs"):
        apply_lora_inputs(export, LoraInputs())


def test_an_old_graph_is_refused() -> None:
    export = OnnxExport(ORDERS)
    export.model.ir_version = 3
    with pytest.raises(OptimizeError, match="IR version 3, and inputs with a default need 4"):
        apply_lora_inputs(export, LoraInputs())


def test_an_integer_product_in_another_form_is_refused(tmp_path: Path) -> None:
    export = OnnxExport(make_dynamic(tmp_path / "int8"))
    next(node for node in export.nodes if node.op_type == "DynamicQuantizeLinear").op_type = "Other"
    with pytest.raises(OptimizeError, match="put loraInputs before the step that quantizes"):
        apply_lora_inputs(export, LoraInputs(targets=LORA_TARGETS))
