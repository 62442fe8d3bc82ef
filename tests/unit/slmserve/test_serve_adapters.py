# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters on ONNX Runtime give what a model with the same matrices merged in gives."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from e2e.bench.serve_model import TINY, build_model
from slmserve.engines.onnx_adapters import load_adapters
from slmserve.engines.onnx_slots import load, load_engine
from slmserve.engines.registry import EngineOptions
from slmserve.errors import StartError
from slmserve.export import load_export
from slmserve.scheduler import Scheduler
from tests.unit.slmserve.doubles import Recorder

Arrays = Mapping[str, NDArray[np.float32]]
_OPTIONS = EngineOptions(slots=4, context_length=0, threads=1)
_COLUMNS = TINY.heads * TINY.head_size


def _draw(seed: int, *, rank: int) -> dict[str, NDArray[np.float32]]:
    """Matrices for the query projections, large enough to change answers."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for layer in range(TINY.layers):
        for side, shape in (("A", (TINY.hidden, rank)), ("B", (rank, _COLUMNS))):
            drawn[f"layer{layer}.q.lora_{side}"] = rng.standard_normal(shape, np.float32) * np.float32(0.3)
    return drawn


def _add_lora_inputs(model_dir: Path) -> None:
    """Give each query projection low-rank matrices that may be overridden; zeros by default."""
    path = str(model_dir / "model.onnx")
    model = onnx.load_model(path)
    graph, nodes = model.graph, []
    for node in model.graph.node:
        nodes.append(node)
        name = node.output[0].removesuffix(".output")
        if node.op_type != "MatMul" or not name.endswith(".q"):
            continue
        node.output[0] = f"{name}.base"
        nodes += [
            helper.make_node("MatMul", [node.input[0], f"{name}.lora_A"], [f"{name}.low"]),
            helper.make_node("MatMul", [f"{name}.low", f"{name}.lora_B"], [f"{name}.delta"]),
            helper.make_node("Add", [f"{name}.base", f"{name}.delta"], [f"{name}.output"]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    for name, value in _draw(0, rank=1).items():
        graph.initializer.append(numpy_helper.from_array(value * 0, name))
        shape = [value.shape[0], "rank"] if name.endswith("A") else ["rank", value.shape[1]]
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    onnx.save_model(model, path)


def _merge(model_dir: Path, matrices: Arrays) -> None:
    path = str(model_dir / "model.onnx")
    model = onnx.load_model(path)
    for index, weight in enumerate(model.graph.initializer):
        name = weight.name.removesuffix(".weight")
        if f"{name}.lora_A" in matrices:
            delta = matrices[f"{name}.lora_A"] @ matrices[f"{name}.lora_B"]
            merged = numpy_helper.to_array(weight) + delta
            model.graph.initializer[index].CopyFrom(numpy_helper.from_array(merged, weight.name))
    onnx.save_model(model, path)


def _write_adapter(model_dir: Path, name: str, matrices: Mapping[str, Any]) -> None:
    (model_dir / "adapters").mkdir(exist_ok=True)
    adapter = ort.AdapterFormat()
    adapter.set_parameters({key: ort.OrtValue.ortvalue_from_numpy(value) for key, value in matrices.items()})
    adapter.export_adapter(str(model_dir / "adapters" / f"{name}.onnx_adapter"))


def _answer(model_dir: Path, asks: list[tuple[list[int], str]]) -> list[list[int]]:
    """Greedy tokens of all `asks` at once, four of them at a time."""
    engine = load_engine(model_dir, load_export(model_dir), slots=4, context_length=0, threads=1)
    recorder = Recorder()
    scheduler = Scheduler(engine, max_queue=len(asks), deliver=recorder.deliver, spare_rows=engine.spare_rows)
    generations = [
        recorder.make(prompt, 12 + 3 * number, end_tokens=frozenset(), adapter=name)
        for number, (prompt, name) in enumerate(asks)
    ]
    for generation in generations:
        scheduler.submit(generation)
    scheduler.start()
    recorder.wait(finished=len(asks), timeout_seconds=60)
    scheduler.close()
    return [recorder.tokens[generation] for generation in generations]


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    directory = build_model(tmp_path / "model", TINY, quantised=False)
    _add_lora_inputs(directory)
    return directory


def test_rows_with_different_adapters_answer_as_merged_models(model_dir: Path, tmp_path: Path) -> None:
    matrices = {"legal": _draw(1, rank=4), "medical": _draw(2, rank=8)}
    for name, values in matrices.items():
        _write_adapter(model_dir, name, values)
    assert load(model_dir, _OPTIONS).info.adapters == ("legal", "medical")
    prompt = np.random.default_rng(9).integers(3, TINY.vocab, 30).tolist()
    names = ["legal", "", "medical", "legal", "medical", "", "legal"]
    asks = [([*prompt, 3 + number], name) for number, name in enumerate(names)]
    got = _answer(model_dir, asks)
    plain = build_model(tmp_path / "plain", TINY, quantised=False)
    for name in ("", *matrices):
        directory = build_model(tmp_path / f"merged{name}", TINY, quantised=False) if name else plain
        if name:
            _merge(directory, matrices[name])
        expected = _answer(directory, [(ask, "") for ask, _ in asks])
        for number, own in enumerate(names):
            assert (got[number] == expected[number]) == (own == name)


def test_a_name_that_no_adapter_has_is_refused(model_dir: Path) -> None:
    _write_adapter(model_dir, "legal", _draw(1, rank=2))
    with pytest.raises(ValueError, match="'medical' is not one of legal"):
        _answer(model_dir, [([3, 4], "medical")])


def _session(model_dir: Path) -> Any:
    return ort.InferenceSession(str(model_dir / "model.onnx"), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        ({"layer0.q.lora_X": np.zeros((96, 2), np.float32)}, "does not take"),
        ({"layer0.q.lora_A": np.zeros((95, 2), np.float32)}, "the model takes"),
        ({"layer0.q.lora_A": np.zeros((96, 2), np.float16)}, "the model takes"),
    ],
)
def test_an_adapter_that_does_not_fit_is_named(
    model_dir: Path, matrices: Mapping[str, Any], message: str
) -> None:
    _write_adapter(model_dir, "odd", matrices)
    with pytest.raises(StartError, match=rf"adapters/odd.onnx_adapter .*{message}"):
        load_adapters(model_dir, _session(model_dir))


def test_an_adapter_needs_a_model_with_inputs_for_it(tmp_path: Path) -> None:
    plain = build_model(tmp_path, TINY, quantised=False)
    _write_adapter(plain, "legal", _draw(1, rank=2))
    with pytest.raises(StartError, match="merge the adapter"):
        load_adapters(plain, _session(plain))


def test_what_is_no_adapter_is_named(model_dir: Path) -> None:
    (model_dir / "adapters").mkdir()
    (model_dir / "adapters" / "junk.onnx_adapter").write_bytes(b"junk" * 20)
    with pytest.raises(StartError, match=r"junk.onnx_adapter cannot be read"):
        load_adapters(model_dir, _session(model_dir))
