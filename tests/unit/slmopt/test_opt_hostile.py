# SPDX-License-Identifier: Apache-2.0
"""Models that are odd, or lie about themselves: refused by field, or worked on correctly."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from slmopt.errors import OptimizeError
from slmopt.graph import OnnxExport
from slmopt.probe import save_probe
from slmopt.slicing import apply_slice
from slmwire.reasons import Reason
from tests.unit.slmopt.kit import ORDERS, PROMPT, run_logits, run_recipe, steps_of

SLICE = {"slice": {"feedForwardPercent": 25}}
GGUF = {"convert": {"to": "gguf", "type": "Q8_0"}}


def copy_model(
    target: Path,
    *,
    config: Callable[[dict[str, Any]], object] = lambda _: None,
    graph: Callable[[Any], object] = lambda _: None,
) -> Path:
    """The project's model with its config and its graph changed."""
    shutil.copytree(ORDERS, target)
    body = json.loads((target / "genai_config.json").read_text())
    config(body)
    (target / "genai_config.json").write_text(json.dumps(body))
    model = onnx.load(str(target / "model.onnx"), load_external_data=False)
    graph(model.graph)
    (target / "model.onnx").write_bytes(model.SerializeToString())
    return target


def refused(source: Path, target: Path, step: dict[str, Any]) -> str:
    with pytest.raises(OptimizeError) as caught:
        run_recipe(target, step, source=source)
    assert caught.value.reason is Reason.UNFIT
    assert not target.exists()
    return str(caught.value)


def _decoder(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda body: body["model"]["decoder"].update(changes)


@pytest.mark.parametrize(
    ("config", "step", "words"),
    [
        (_decoder(filename="../../elsewhere/model.onnx"), SLICE, "filename is '../../elsewhere/model.onnx'"),
        (_decoder(filename="/tmp/model.onnx"), SLICE, "it must be a plain name, model.onnx say"),
        (_decoder(filename=7), SLICE, "filename is '7'"),
        (_decoder(num_key_value_heads=0), SLICE, "num_key_value_heads (0)"),
        (_decoder(num_attention_heads=3), SLICE, "num_attention_heads (3) is a multiple of"),
        (_decoder(num_attention_heads=8), SLICE, "qkv_proj is [128, 256], and by heads"),
        (_decoder(hidden_size=64), GGUF, "hidden_size of genai_config.json it is [64, 256]"),
        (_decoder(head_size=1e400), SLICE, "genai_config.json lacks or misstates"),
        (lambda body: body.update(model=[]), SLICE, "genai_config.json lacks or misstates"),
        (lambda body: body["model"].update(eos_token_id=9999), GGUF, "model.eos_token_id is 9999"),
        (lambda body: body["model"].update(eos_token_id="</s>"), GGUF, "must be a token from 0 to 639"),
    ],
)
def test_a_config_that_lies(tmp_path: Path, config: Any, step: dict[str, Any], words: str) -> None:
    source = copy_model(tmp_path / "source", config=config)
    assert words in refused(source, tmp_path / "new", step)
    assert not (tmp_path.parent / "elsewhere").exists()


def _external(**changes: str) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        tensor = next(t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)
        held = {entry.key: entry.value for entry in tensor.external_data} | changes
        del tensor.external_data[:]
        for key, value in held.items():
            tensor.external_data.add(key=key, value=value)

    return change


def _inner(graph: Any) -> None:
    """A constant inside a node that lies in a file of somebody else."""
    tensor = onnx.TensorProto(data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    graph.node.append(helper.make_node("Constant", [], ["leak"], value=tensor))


def _huge(graph: Any) -> None:
    next(t for t in graph.initializer if t.name == "model.embed_tokens.weight").dims[0] = 1 << 40


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (_external(location="../../secret"), "lies in '../../secret', outside the model directory"),
        (_external(location="/etc/hostname"), "lies in '/etc/hostname', outside the model directory"),
        (_external(offset="-5"), "cannot be read as ONNX"),
        (_external(length="-5"), "has a length of -5"),
        (_external(length="4"), "has 4 bytes and the shape"),
        (_inner, "lies in '../../secret', outside the model directory"),
        (_huge, "has 327680 bytes and the shape [1099511627776, 128]"),
    ],
)
def test_weights_that_lie_elsewhere_or_have_another_size(tmp_path: Path, graph: Any, words: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    source = copy_model(tmp_path / "a" / "source", graph=graph)
    assert words in refused(source, tmp_path / "new", SLICE)


def _share(graph: Any) -> None:
    """The second block takes the first one's matrix."""
    first, second = (
        n for n in graph.node if n.name.endswith(("0/mlp/down_proj/MatMul", "1/mlp/down_proj/MatMul"))
    )
    second.input[1] = first.input[1]


def test_shared_weights_are_pruned_once_and_not_cut(tmp_path: Path) -> None:
    source = copy_model(tmp_path / "source", graph=_share)
    assert "is used in 2 places" in refused(source, tmp_path / "new", SLICE)
    steps: list[dict[str, Any]] = [
        {"prune": {"method": "magnitude"}},
        {"quantizeInt4": {}},
        {"quantizeInt8": {}},
    ]
    for number, step in enumerate(steps):
        run_recipe(tmp_path / str(number), step, source=source)
        ort.InferenceSession(str(tmp_path / str(number) / "model.onnx"), providers=["CPUExecutionProvider"])


def _tie(graph: Any) -> None:
    """The head is the embedding table, turned."""
    head = next(node for node in graph.node if node.name == "/lm_head/MatMul")
    place = list(graph.node).index(head)
    head.input[1] = "turned"
    table = "model.embed_tokens.weight"
    graph.node.insert(place, helper.make_node("Transpose", [table], ["turned"], name="/lm_head/Transpose"))


def test_a_model_without_a_head_of_its_own_is_pruned(tmp_path: Path) -> None:
    source = copy_model(tmp_path / "source", graph=_tie)
    run_recipe(tmp_path / "new", {"prune": {"method": "magnitude"}}, source=source)
    wrong = {"prune": {"method": "magnitude", "exclude": ["lm_head"]}}
    assert "no matrix has 'lm_head' in its name" in refused(source, tmp_path / "other", wrong)


def test_int8_after_a_slice(tmp_path: Path) -> None:
    run_recipe(tmp_path / "new", SLICE, {"quantizeInt8": {}})
    assert "MatMulNBits" in _kinds(tmp_path / "new") and "MatMul" not in _kinds(tmp_path / "new")


def _kinds(folder: Path) -> set[str]:
    return {
        node.op_type for node in onnx.load(str(folder / "model.onnx"), load_external_data=False).graph.node
    }


def test_blocks_that_cannot_be_paired_are_refused_with_numbers(tmp_path: Path) -> None:
    step = {"quantizeInt4": {"algorithm": "kQuant", "blockSize": 128}}
    assert "makes 1 blocks of the 128 inputs of" in refused(ORDERS, tmp_path / "new", step)


@pytest.mark.parametrize("kind", ["quantizeInt8", "quantizeInt4"])
def test_what_the_library_passes_over_is_unfit(tmp_path: Path, kind: str) -> None:
    def stack(graph: Any) -> None:
        weight = next(t for t in graph.initializer if t.name.endswith("1.attn.qkv_proj.MatMul.weight"))
        rows, columns = weight.dims
        weight.dims[:] = [2, rows // 2, columns]

    source = copy_model(tmp_path / "source", graph=stack)
    said = refused(source, tmp_path / "new", {kind: {}})
    assert f"{kind}: onnxruntime left /model/layers.1/attn/qkv_proj/MatMul as it is" in said
    run_recipe(tmp_path / "new", {kind: {"exclude": ["layers.1/attn/qkv_proj"]}}, source=source)


def test_what_the_library_does_not_understand_is_unfit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: Any) -> None:
        raise ValueError("no such\nshape")

    monkeypatch.setattr("onnxruntime.quantization.matmul_nbits_quantizer.MatMulNBitsQuantizer.process", fail)
    steps: list[dict[str, Any]] = [{"quantizeInt8": {}}, {"quantizeInt4": {"algorithm": "kQuant"}}]
    for step in steps:
        assert "onnxruntime cannot quantize this graph (no such shape)" in refused(
            ORDERS, tmp_path / "new", step
        )


def make_normed(target: Path) -> Path:
    """As the builder exports Qwen 3: queries, keys and values apart, queries and keys normalized by head."""
    export = OnnxExport(ORDERS)
    shape, graph = export.geometry, export.model.graph
    cuts = np.cumsum([shape.heads, shape.kv_heads]) * shape.head_size
    width = {"q": shape.heads * shape.head_size, "k": shape.kv_heads * shape.head_size}
    ones = np.ones(shape.head_size, np.float32)
    nodes = []
    for node in list(graph.node):
        if not node.name.endswith("attn/qkv_proj/MatMul"):
            nodes.append(node)
            continue
        place, layer = node.name.removesuffix("qkv_proj/MatMul"), node.name.split(".")[1][0]
        parts = np.split(export.read(node.input[1]), cuts, axis=1)
        outputs = []
        for part, values in zip("qkv", parts, strict=True):
            weight = f"model.layers.{layer}.attn.{part}_proj.MatMul.weight"
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), weight))
            last = f"{part}{layer}"
            matmul = f"{place}{part}_proj/MatMul"
            nodes.append(helper.make_node("MatMul", [node.input[0], weight], [last], name=matmul))
            if part in width:
                norm = f"model.layers.{layer}.attn.{part}_norm.layernorm.weight"
                graph.initializer.append(numpy_helper.from_array(ones, norm))
                for name, size in (("split", shape.head_size), ("join", width[part])):
                    export.add_constant(f"to-{size}", [0, -1, size])
                    made = f"{last}-{name}"
                    where = f"{place}{part}_norm/{name}/Reshape"
                    nodes.append(helper.make_node("Reshape", [last, f"to-{size}"], [made], name=where))
                    last = made
                    if name == "split":
                        normed = f"{last}-normed"
                        kind = "SimplifiedLayerNormalization"
                        nodes.append(helper.make_node(kind, [last, norm], [normed], axis=-1, epsilon=1e-6))
                        last = normed
            outputs.append(last)
        attention = export.attention(int(layer))
        for index, name in enumerate(outputs):
            attention.input[index] = name
    del graph.node[:]
    graph.node.extend(nodes)
    graph.ClearField("value_info")
    target.mkdir()
    export.save(target)
    (target / "genai_config.json").write_text(json.dumps(export.config))
    return target


@pytest.mark.parametrize("length", [3, 8])
def test_heads_go_where_queries_and_keys_are_normalized(tmp_path: Path, length: int) -> None:
    source = make_normed(tmp_path / "source")
    whole, cut = OnnxExport(source), OnnxExport(source)
    [step] = steps_of({"slice": {"headsPercent": 50}})
    apply_slice(cut, step)  # type: ignore[arg-type]
    kept = {tensor.name: tensor for tensor in cut.model.graph.initializer}
    for layer in whole.layers():
        # The same heads silent: rows of the output matrix that the cut one does not have.
        name = layer.get("o_proj").weight
        rows, left = whole.read(name), numpy_helper.to_array(kept[name])
        keep = {row.tobytes() for row in left}
        whole.write(name, np.stack([row if row.tobytes() in keep else row * 0 for row in rows]))
    tokens = PROMPT[:length]
    expected, actual = (
        run_logits(whole, tmp_path / "whole", tokens),
        run_logits(cut, tmp_path / "cut", tokens),
    )
    np.testing.assert_allclose(actual, expected, atol=2e-3)


def test_a_probe_is_the_model_with_more_outputs(tmp_path: Path) -> None:
    export = OnnxExport(ORDERS)
    before = export.model.SerializeToString(deterministic=True)
    name = export.layers()[0].get("down_proj").source
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)]
    save_probe(export.model, tmp_path / "probe.onnx", outputs=outputs)
    assert export.model.SerializeToString(deterministic=True) == before
    probe = onnx.load(str(tmp_path / "probe.onnx"))
    assert [row.name for row in probe.graph.output][-1] == name
    held = {t.name: numpy_helper.to_array(t) for t in probe.graph.initializer}
    assert held.keys() == {t.name for t in export.model.graph.initializer}
    np.testing.assert_array_equal(held["model.embed_tokens.weight"], export.read("model.embed_tokens.weight"))
