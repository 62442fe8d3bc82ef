# SPDX-License-Identifier: Apache-2.0
"""Forward passes against onnxruntime, gradients against finite differences."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from slmopt.autodiff.constants import DenseCache
from slmopt.autodiff.network import RULES, Network
from slmopt.autodiff.node import Node
from slmopt.errors import OptimizeError
from slmopt.graph import OnnxExport, save_onnx
from tests.unit.slmopt.kit import ORDERS, PROMPT, lora_session, make_dynamic, run_recipe, run_session

LORA: Mapping[str, Any] = {"loraInputs": {"rank": 3}}
Array = NDArray[Any]


def _make_node(
    op: str,
    inputs: Sequence[Any],
    attributes: Mapping[str, Any],
    *,
    outputs: int = 1,
    dtype: Any = np.float64,
) -> Node:
    return Node(
        op=op,
        name="it",
        inputs=tuple("" if x is None else f"i{n}" for n, x in enumerate(inputs)),
        outputs=tuple(f"o{n}" for n in range(outputs)),
        attributes=attributes,
        wanted=tuple(x is not None for x in inputs),
        dtype=np.dtype(dtype),
        dense=lambda _node, make: make(),
    )


def _check_gradients(node: Node, inputs: Sequence[Any], *, of: Sequence[int]) -> None:
    """The pullback of a random direction is what small steps along random directions say."""
    rule, rng = RULES[node.op], np.random.default_rng(1)
    outputs, pull = rule(node, inputs)
    weights = [None if y is None else rng.standard_normal(y.shape) for y in outputs]
    found = pull(weights)

    def total(moved: Sequence[Any]) -> float:
        made, _ = rule(node, moved)
        return sum(float(np.sum(y * w)) for y, w in zip(made, weights, strict=True) if w is not None)

    for index in of:
        direction = rng.standard_normal(inputs[index].shape)
        step = 1e-6
        ends = []
        for sign in (1, -1):
            moved = list(inputs)
            moved[index] = inputs[index] + sign * step * direction
            ends.append(total(moved))
        gradient = found[index]
        assert gradient is not None
        expected = (ends[0] - ends[1]) / (2 * step)
        assert np.sum(gradient * direction) == pytest.approx(expected, rel=1e-5, abs=1e-6)


UNARY = ["Sigmoid", "Tanh", "Relu", "Softmax", "Gelu", "com.microsoft.FastGelu", "com.microsoft.QuickGelu"]


@pytest.mark.parametrize("op", UNARY)
def test_gradients_of_functions(op: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5))
    _check_gradients(_make_node(op, [x], {}), [x], of=[0])


@given(
    op=st.sampled_from(["Add", "Sub", "Mul", "Div"]),
    shapes=st.sampled_from(
        [((2, 3), (2, 3)), ((2, 3), (3,)), ((1, 3), (2, 1)), ((4, 2, 3), ()), ((2, 1), (5, 1, 3))]
    ),
)
def test_gradients_of_arithmetic_with_broadcasting(op: str, shapes: tuple[Any, Any]) -> None:
    rng = np.random.default_rng(0)
    inputs = [rng.uniform(1, 2, shape) for shape in shapes]
    _check_gradients(_make_node(op, inputs, {}), inputs, of=[0, 1])


def test_gradients_of_shapes_and_sums() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    for op, others, attributes in (
        ("Reshape", [np.array([0, -1])], {}),
        ("Transpose", [], {"perm": [1, 2, 0]}),
        ("Unsqueeze", [np.array([1])], {}),
        ("ReduceSum", [np.array([-1])], {"keepdims": 0}),
        ("Cast", [], {"to": TensorProto.FLOAT16}),
        ("Concat", [x + 1], {"axis": 1}),
    ):
        inputs = [x, *others]
        _check_gradients(_make_node(op, inputs, attributes), inputs, of=[0])


def test_gradients_of_products() -> None:
    rng = np.random.default_rng(0)
    for left, right in (
        ((2, 3, 4), (4, 5)),
        ((2, 3, 4), (2, 4, 5)),
        ((3, 4), (4, 2)),
        ((2, 3, 4), (1, 4, 5)),
    ):
        inputs = [rng.standard_normal(left), rng.standard_normal(right)]
        _check_gradients(_make_node("MatMul", inputs, {}), inputs, of=[0, 1])


def test_gradients_of_norms_with_and_without_a_residual() -> None:
    rng = np.random.default_rng(0)
    x, skip, weight, bias = (rng.standard_normal(s) for s in ((2, 3, 8), (2, 3, 8), (8,), (8,)))
    plain = _make_node("SimplifiedLayerNormalization", [x], {"epsilon": 1e-6})
    _check_gradients(plain, [x, weight], of=[0])
    for inputs in ([x, skip, weight], [x, skip, weight, bias]):
        node = Node(
            op="com.microsoft.SkipSimplifiedLayerNormalization",
            name="it",
            inputs=("x", "skip", "weight", "bias")[: len(inputs)],
            outputs=("y", "", "", "sum"),
            attributes={},
            wanted=(True, True, False, False)[: len(inputs)],
            dtype=np.dtype(np.float64),
            dense=lambda _node, make: make(),
        )
        _check_gradients(node, inputs, of=[0, 1])


@st.composite
def attentions(draw: st.DrawFn) -> tuple[dict[str, Any], list[Any]]:
    """Attributes and inputs of GroupQueryAttention; values in fp32, as onnxruntime takes them."""
    groups, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size, batch, length = draw(st.sampled_from([16, 32])), draw(st.integers(1, 3)), draw(st.integers(1, 9))
    heads = groups * per_group
    attributes: dict[str, Any] = {
        "num_heads": heads,
        "kv_num_heads": groups,
        "scale": draw(st.sampled_from([0.0, 0.3])),
        "softcap": draw(st.sampled_from([0.0, 2.0])),
        "local_window_size": draw(st.sampled_from([-1, 1, 2, 4])),
        "do_rotary": draw(st.integers(0, 1)),
    }
    attributes["rotary_interleaved"] = draw(st.integers(0, 1)) if attributes["do_rotary"] else 0
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    widths = (heads * size, groups * size, groups * size)
    parts = [rng.standard_normal((batch, length, width), np.float32) for width in widths]
    inputs: list[Any] = [np.concatenate(parts, axis=-1), None, None] if draw(st.booleans()) else parts
    empty = np.zeros((batch, groups, 0, size), np.float32)
    inputs += [empty, empty, np.full(batch, length - 1, np.int32), np.array(length, np.int32)]
    if attributes["do_rotary"]:
        angles = rng.uniform(0, 6, (12, size // 2)).astype(np.float32)
        inputs += [np.cos(angles), np.sin(angles)]
    return attributes, inputs


def _run_ort(op: str, attributes: Mapping[str, Any], inputs: Sequence[Any], outputs: int) -> Array:
    names = ["" if x is None else f"i{n}" for n, x in enumerate(inputs)]
    node = helper.make_node(
        op, names, [f"o{n}" for n in range(outputs)], domain="com.microsoft", **attributes
    )
    values = {name: x for name, x in zip(names, inputs, strict=True) if name}
    taken = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in values.items()
    ]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output]
    graph = helper.make_graph([node], "one", taken, made)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Array = session.run(["o0"], values)[0]
    return result


@settings(max_examples=60, deadline=None)
@given(attentions())
def test_attention_is_that_of_onnxruntime_and_its_gradients_are_right(
    drawn: tuple[dict[str, Any], list[Any]],
) -> None:
    attributes, inputs = drawn
    node = _make_node("com.microsoft.GroupQueryAttention", inputs, attributes, outputs=3)
    expected = _run_ort("GroupQueryAttention", attributes, inputs, 3)
    (y, *_), _pull = RULES[node.op](node, inputs)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=2e-5)
    exact = [x.astype(np.float64) if x is not None and x.dtype == np.float32 else x for x in inputs]
    _check_gradients(node, exact, of=[n for n in range(3) if inputs[n] is not None])


def test_rotary_embedding_is_that_of_onnxruntime() -> None:
    rng = np.random.default_rng(0)
    x, angles = rng.standard_normal((2, 5, 24), np.float32), rng.uniform(0, 6, (9, 4)).astype(np.float32)
    for positions in (np.array([2], np.int64), np.array([[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]], np.int64)):
        for style in (0, 1):
            inputs: list[Any] = [x, positions, np.cos(angles), np.sin(angles)]
            attributes = {"interleaved": style, "num_heads": 0}
            node = _make_node("com.microsoft.RotaryEmbedding", inputs, attributes)
            (y,), _ = RULES[node.op](node, inputs)
            np.testing.assert_allclose(y, _run_ort("RotaryEmbedding", attributes, inputs, 1), atol=1e-5)
            exact = [x.astype(np.float64), positions, *(t.astype(np.float64) for t in inputs[2:])]
            _check_gradients(node, exact, of=[0])


@settings(max_examples=30, deadline=None)
@given(
    form=st.sampled_from([(4, "none"), (4, "packed"), (4, "float"), (8, "none"), (8, "packed")]),
    block=st.sampled_from([16, 32]),
    columns=st.integers(1, 70),
)
def test_quantized_products_are_those_of_onnxruntime(form: tuple[int, str], block: int, columns: int) -> None:
    bits, offsets = form
    rng = np.random.default_rng(columns)
    rows, blocks = 6, -(-columns // block)
    x = rng.standard_normal((3, columns), np.float32)
    packed = rng.integers(0, 256, (rows, blocks, block * bits // 8), np.uint8)
    scales = rng.uniform(0.01, 0.02, (rows, blocks)).astype(np.float32)
    zeros: Any = None
    if offsets == "packed":
        zeros = rng.integers(0, 256, (rows, -(-blocks * bits // 8)), np.uint8)
    elif offsets == "float":
        zeros = rng.uniform(0, 1 << bits, (rows, blocks)).astype(np.float32)
    attributes = {"K": columns, "N": rows, "bits": bits, "block_size": block, "accuracy_level": 1}
    inputs = [x, packed, scales, *([] if zeros is None else [zeros])]
    node = _make_node("com.microsoft.MatMulNBits", inputs, attributes)
    (y,), pull = RULES[node.op](node, inputs)
    np.testing.assert_allclose(y, _run_ort("MatMulNBits", attributes, inputs, 1), rtol=1e-3, atol=1e-3)
    weight = RULES[node.op](node, [np.eye(columns), packed, scales, *inputs[3:]])[0][0]
    gradient = rng.standard_normal((3, rows))
    found = pull([gradient])[0]
    assert found is not None
    np.testing.assert_allclose(found, gradient @ weight.T, atol=1e-6)


def _draw(network: Network, scale: float = 0.1) -> dict[str, Array]:
    rng = np.random.default_rng(5)
    return {
        n: (rng.standard_normal(v.shape) * scale).astype(np.float32) for n, v in network.adaptable.items()
    }


@pytest.mark.parametrize(
    ("version", "before", "after"),
    [
        ("v1-fp32", (), ()),
        ("v1-int4", (), ()),
        ("v1-fp32", ({"quantizeInt8": {}},), ()),
        (
            "v1-fp32",
            ({"quantizeInt4": {"symmetric": False, "accuracyLevel": 1, "embeddings": True}},),
            (),
        ),
        ("v1-fp32", (), ({"quantizeInt4": {"embeddings": True, "accuracyLevel": 1}},)),
        ("v1-fp32", ({"quantizeInt4": {"algorithm": "kQuant", "accuracyLevel": 1}},), ()),
    ],
)
def test_logits_are_those_of_onnxruntime(
    tmp_path: Path, version: str, before: Sequence[Any], after: Sequence[Any]
) -> None:
    directory = tmp_path / "model"
    run_recipe(directory, *before, LORA, *after, source=ORDERS.parent / version)
    _compute_in_floats(directory)
    _compare_logits(directory, most=1e-3)


def test_logits_after_dynamic_quantization_are_near_those_of_onnxruntime(tmp_path: Path) -> None:
    """One step of rounding, taken the other way, moves what comes behind it."""
    source = make_dynamic(tmp_path / "source", ORDERS.parent / "v1-fp32")
    run_recipe(tmp_path / "model", LORA, source=source)
    _compare_logits(tmp_path / "model", most=0.5)


def _compare_logits(directory: Path, *, most: float) -> None:
    network = Network(directory)
    matrices = _draw(network)
    got = network.evaluate(np.array([PROMPT]), [len(PROMPT)], np.arange(len(PROMPT)), matrices)
    expected = run_session(lora_session(directory), PROMPT, matrices)
    assert np.abs(got - expected).max() <= most
    assert np.abs(expected).max() > 5


def _compute_in_floats(directory: Path) -> None:
    """Products of int4 models round activations to 8 bits; without that, the comparison can be sharp."""
    export = OnnxExport(directory)
    for node in export.nodes:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    save_onnx(export.model, directory / "model.onnx")


def test_rounded_activations_stay_near(tmp_path: Path) -> None:
    run_recipe(tmp_path / "model", LORA, source=ORDERS.parent / "v1-int4")
    network = Network(tmp_path / "model")
    got = network.evaluate(np.array([PROMPT]), [len(PROMPT)], np.arange(len(PROMPT)), {})
    expected = run_session(lora_session(tmp_path / "model"), PROMPT, {})
    assert np.abs(got - expected).mean() < 0.1
    # Only the answer is what the model was trained to predict.
    assert np.mean(got[-30:].argmax(-1) == expected[-30:].argmax(-1)) > 0.95


@pytest.fixture(scope="module", params=["v1-fp32", "v1-int4"])
def adaptable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adaptable") / "model"
    run_recipe(directory, LORA, source=ORDERS.parent / request.param)
    return directory


def test_gradients_of_the_whole_model_are_right(adaptable: Path) -> None:
    """Of a batch with padding, in float64, along a random direction of each matrix."""
    network = Network(adaptable, dtype=np.float64)
    matrices = {name: value.astype(np.float64) for name, value in _draw(network).items()}
    ids = np.array([PROMPT[:20], [*PROMPT[5:17], *(0,) * 8]])
    lengths, rows = [20, 12], np.array([3, 19, 20, 31])
    rng = np.random.default_rng(2)
    weights = rng.standard_normal((len(rows), 640))
    _, pull = network.differentiate(ids, lengths, rows, matrices)
    gradients = pull(weights)
    assert gradients.keys() == network.adaptable.keys()
    step = 1e-5
    for name in list(matrices)[:: 5 if len(matrices) > 20 else 1]:
        direction = rng.standard_normal(matrices[name].shape)
        ends = []
        for sign in (1, -1):
            moved = matrices | {name: matrices[name] + sign * step * direction}
            ends.append(float(np.sum(network.evaluate(ids, lengths, rows, moved) * weights)))
        expected = (ends[0] - ends[1]) / (2 * step)
        assert np.sum(gradients[name] * direction) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_padding_changes_nothing(adaptable: Path) -> None:
    network = Network(adaptable)
    alone = network.evaluate(np.array([PROMPT[:9]]), [9], np.arange(9), {})
    padded = np.array([[*PROMPT[:9], 0, 0, 0], PROMPT[:12]])
    both = network.evaluate(padded, [9, 12], np.arange(9), {})
    np.testing.assert_allclose(both, alone, atol=1e-4)


def test_matrices_that_fit_into_no_cache_are_made_anew(tmp_path: Path) -> None:
    run_recipe(tmp_path / "model", LORA, source=ORDERS.parent / "v1-int4")
    ids, rows = np.array([PROMPT]), np.arange(len(PROMPT))
    found = []
    for limit in (0, 200_000, 64 << 20):
        network = Network(tmp_path / "model", cache=DenseCache(limit))
        logits, pull = network.differentiate(ids, [len(PROMPT)], rows, _draw(network))
        found.append(pull(np.ones_like(logits)))
    for other in found[1:]:
        assert all(np.array_equal(value, other[name]) for name, value in found[0].items())


def test_an_operator_without_a_rule_is_named(tmp_path: Path) -> None:
    run_recipe(tmp_path / "model", LORA)
    export = OnnxExport(tmp_path / "model")
    next(node for node in export.nodes if node.op_type == "Sigmoid").op_type = "HardSwish"
    save_onnx(export.model, tmp_path / "model" / "model.onnx")
    with pytest.raises(OptimizeError, match="no gradient of the operator HardSwish"):
        Network(tmp_path / "model")


def test_a_form_of_attention_without_a_rule_is_named(tmp_path: Path) -> None:
    run_recipe(tmp_path / "model", LORA)
    export = OnnxExport(tmp_path / "model")
    node = next(node for node in export.nodes if node.op_type == "GroupQueryAttention")
    node.attribute.append(helper.make_attribute("smooth_softmax", 1))
    save_onnx(export.model, tmp_path / "model" / "model.onnx")
    network = Network(tmp_path / "model")
    with pytest.raises(OptimizeError, match="GroupQueryAttention with attention sinks"):
        network.evaluate(np.array([PROMPT]), [len(PROMPT)], np.array([0]), {})


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    run_recipe(tmp_path / "model", LORA)
    path = tmp_path / "model" / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    for entry in tensor.external_data:
        entry.value = "../secret" if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(OptimizeError, match="outside the model directory"):
        Network(tmp_path / "model")
