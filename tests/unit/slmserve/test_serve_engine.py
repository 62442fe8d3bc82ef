# SPDX-License-Identifier: Apache-2.0
"""The slots on real models: token for token what onnxruntime-genai gives one at a time."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime_genai as og
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from e2e.bench.serve_model import TINY, build_model
from slmserve.engines.head import keep_last_position
from slmserve.engines.onnx_slots import OnnxSlotsEngine, load, load_engine
from slmserve.engines.registry import EngineOptions
from slmserve.errors import StartError
from slmserve.export import load_export
from slmserve.sampling import SamplingParams
from slmserve.scheduler import Scheduler
from slmserve.template import load_template
from slmserve.tokenizer import load_codec
from tests.unit.slmserve.doubles import Recorder
from tests.unit.slmserve.process import ORDERS

_NEW = 60
_VARIANTS = sorted(path.parent.name for path in ORDERS.glob("*/genai_config.json"))


def _load(model_dir: Path, *, slots: int) -> OnnxSlotsEngine:
    return load_engine(model_dir, load_export(model_dir), slots=slots, context_length=0, threads=2)


def _reference(model_dir: Path, prompts: list[list[int]], new: int) -> list[list[int]]:
    model = og.Model(str(model_dir))
    answers = []
    for prompt in prompts:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + new, do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(np.array(prompt, np.int32))
        tokens = []
        while not generator.is_done():
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
        answers.append(tokens)
    return answers


def _ours(
    engine: OnnxSlotsEngine, prompts: list[list[int]], new: int, ends: frozenset[int]
) -> list[list[int]]:
    recorder = Recorder()
    scheduler = Scheduler(
        engine, max_queue=len(prompts), deliver=recorder.deliver, spare_rows=engine.spare_rows
    )
    generations = [recorder.make(prompt, new, end_tokens=ends) for prompt in prompts]
    scheduler.start()
    for generation in generations:
        scheduler.submit(generation)
    recorder.wait(finished=len(prompts), timeout_seconds=60)
    scheduler.close()
    return [recorder.tokens[generation] for generation in generations]


def _golden_prompts(model_dir: Path) -> list[list[int]]:
    codec, template = load_codec(model_dir), load_template(model_dir)
    assert template is not None
    cases = [json.loads(line) for line in (model_dir / "golden.jsonl").read_text().splitlines()]
    texts = [template.render(case["messages"]) for case in cases]
    return [codec.encode(text, add_special_tokens=False) for text in texts]


def test_the_orders_models_are_there() -> None:
    assert {"v1-int4", "v1-fp32"} <= set(_VARIANTS)


@pytest.mark.parametrize("variant", _VARIANTS)
@pytest.mark.parametrize("slots", [1, 5])
def test_tokens_are_those_of_genai_on_the_orders_model(variant: str, slots: int) -> None:
    model_dir = ORDERS / variant
    prompts = _golden_prompts(model_dir)
    got = _ours(_load(model_dir, slots=slots), prompts, _NEW, load_export(model_dir).end_tokens)
    assert got == _reference(model_dir, prompts, _NEW)


@pytest.mark.parametrize("quantised", [True, False])
def test_tokens_are_those_of_genai_on_random_weights(tmp_path: Path, quantised: bool) -> None:
    model_dir = build_model(tmp_path, TINY, quantised=quantised)
    rng = np.random.default_rng(3)
    prompts = [rng.integers(3, TINY.vocab, n).tolist() for n in (1, 2, 90, 17, 40, 5, 130, 64)]
    engine = _load(model_dir, slots=3)
    # Chunks of 16: prompts of up to 130 tokens come in pieces, between the others' steps.
    engine.prefill_chunk = 16  # type: ignore[misc]
    got = _ours(engine, prompts, 40, frozenset({2}))
    assert got == _reference(model_dir, prompts, 40)


def test_only_the_last_position_gets_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_dir = build_model(tmp_path, TINY)
    edited = _load(model_dir, slots=2)
    monkeypatch.setattr("slmserve.engines.onnx_slots.keep_last_position", lambda *_: None)
    plain = _load(model_dir, slots=2)
    prompt = np.arange(3, 40)
    for offset in (0, len(prompt)):
        first = edited.prefill(1, prompt, offset).copy()
        assert np.array_equal(first, plain.prefill(1, prompt, offset))
    assert edited._last_only
    assert not plain._last_only


@pytest.mark.parametrize("cut", [0, 1, 10, 1000, -1])
def test_what_is_not_onnx_is_left_alone(cut: int) -> None:
    data = (ORDERS / "v1-int4" / "model.onnx").read_bytes()
    assert keep_last_position(data, "logits") is not None
    assert keep_last_position(data, "no such output") is None
    assert keep_last_position(data[:cut], "logits") is None


def _to_half(model_dir: Path) -> None:
    """Every float32 of the graph, inputs, cache and outputs included, becomes float16."""
    path = model_dir / "model.onnx"
    model = onnx.load_model(str(path))
    graph = model.graph
    for index, weight in enumerate(graph.initializer):
        if weight.data_type == onnx.TensorProto.FLOAT:
            half = numpy_helper.to_array(weight).astype(np.float16)
            graph.initializer[index].CopyFrom(numpy_helper.from_array(half, weight.name))
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save_model(model, str(path))


def test_a_half_precision_cache_halves_the_memory(tmp_path: Path) -> None:
    single = _load(build_model(tmp_path, TINY, quantised=False), slots=2)
    prompt = np.arange(3, 60)
    expected = single.prefill(0, prompt, 0).copy()
    _to_half(tmp_path)
    half = _load(tmp_path, slots=2)
    assert half.cache_bytes * 2 == single.cache_bytes
    assert half.prefill(1, prompt, 0) == pytest.approx(expected, abs=0.1)
    got = half.decode(np.array([7, 8]), np.array([0, len(prompt)]))
    single.prefill(1, prompt, 0)
    assert got.dtype == np.float32
    assert got[1] == pytest.approx(single.decode(np.array([7, 8]), np.array([0, len(prompt)]))[1], abs=0.1)


def _share_scale(model_dir: Path) -> None:
    """Quantize the model in place as onnxruntime does it by default."""
    path = str(model_dir / "model.onnx")
    float32 = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(path, path, weight_type=QuantType.QInt8, extra_options=float32)


@pytest.mark.parametrize(("shared", "cached"), [(False, 40), (True, 0)])
def test_a_prefix_is_taken_over_unless_activations_share_a_scale(
    tmp_path: Path, shared: bool, cached: int
) -> None:
    build_model(tmp_path, TINY, quantised=False)
    if shared:
        _share_scale(tmp_path)
    loaded = load(tmp_path, EngineOptions(slots=2, context_length=0, threads=1))
    assert loaded.build_backend is not None
    recorder = Recorder()
    backend = loaded.build_backend(4, recorder.deliver)
    backend.start()
    system, found = list(range(3, 43)), []
    for number, tail in enumerate(([50, 51], [60, 61]), 1):
        generation = recorder.make([*system, *tail], 4, end_tokens=frozenset())
        backend.submit(generation)
        recorder.wait(finished=number, timeout_seconds=60)
        found.append(generation.cached_tokens)
    backend.close()
    assert found == [0, cached]


def test_a_row_does_not_see_the_others_where_activations_share_a_scale(tmp_path: Path) -> None:
    build_model(tmp_path, TINY, quantised=False)
    alone = _decode_rows(_load(tmp_path, slots=3), 1)
    _share_scale(tmp_path)
    engine = _load(tmp_path, slots=3)
    together = _decode_rows(engine, 3)
    assert not np.array_equal(alone[0], together[0]), "it was not quantized"
    assert np.array_equal(_decode_rows(engine, 1)[0], together[0])
    assert not np.array_equal(together[0], together[1])


def _decode_rows(engine: OnnxSlotsEngine, count: int) -> NDArray[np.float32]:
    """Logits of a step of `count` rows with prompts of their own, which are the same at each call."""
    prompts = [np.arange(3, 40), np.arange(300, 320), np.arange(100, 150)][:count]
    for row, prompt in enumerate(prompts):
        engine.prefill(row, prompt, 0)
    lengths = np.array([len(prompt) for prompt in prompts])
    return engine.decode(np.arange(7, 7 + count), lengths).copy()


def test_moved_rows_go_on_as_before(tmp_path: Path) -> None:
    engine = _load(build_model(tmp_path, TINY), slots=3)
    prompt = np.arange(3, 30)
    engine.prefill(0, prompt[::-1].copy(), 0)
    engine.prefill(2, prompt, 0)
    engine.move(2, 1, len(prompt))
    engine.prefill(2, prompt[::-1].copy(), 0)
    logits = engine.decode(np.array([7, 7]), np.array([len(prompt)] * 2)).copy()
    alone = _load(tmp_path, slots=1)
    alone.prefill(0, prompt, 0)
    expected = alone.decode(np.array([7]), np.array([len(prompt)]))
    assert logits[1] == pytest.approx(expected[0], abs=1e-4)


@pytest.mark.parametrize("quantised", [True, False])
def test_tokens_are_the_same_from_a_cached_prefix(tmp_path: Path, quantised: bool) -> None:
    model_dir = build_model(tmp_path, TINY, quantised=quantised)
    rng = np.random.default_rng(5)
    system = rng.integers(3, TINY.vocab, 60).tolist()
    prompts = [[*system[:cut], *rng.integers(3, TINY.vocab, 9).tolist()] for cut in (60, 60, 33, 60, 47, 12)]
    engine = _load(model_dir, slots=3)
    engine.prefill_chunk = 16  # type: ignore[misc]
    computed: list[int] = []
    prefill = engine.prefill

    def count(row: int, tokens: NDArray[np.int64], offset: int) -> NDArray[np.float32]:
        computed.append(len(tokens))
        return prefill(row, tokens, offset)

    engine.prefill = count  # type: ignore[method-assign]
    assert _ours(engine, prompts, 30, frozenset({2})) == _reference(model_dir, prompts, 30)
    # Of all beginnings only one was computed.
    assert sum(computed) == 60 + 9 * len(prompts)


def test_a_spare_row_is_counted_and_outlives_full_slots(tmp_path: Path) -> None:
    engine = _load(build_model(tmp_path, TINY), slots=2)
    assert engine.spare_rows == 1
    assert engine.cache_bytes == 3 * 2 * TINY.layers * TINY.kv_heads * TINY.head_size * 256 * 4
    prompt = np.arange(3, 30)
    expected = engine.prefill(0, prompt, 0).copy()
    engine.move(0, 2, len(prompt) - 1)
    for row in (0, 1):
        engine.prefill(row, prompt[::-1].copy(), 0)
    engine.decode(np.array([7, 7]), np.array([len(prompt)] * 2))
    assert engine.prefill(2, prompt[-1:], len(prompt) - 1) == pytest.approx(expected, abs=1e-4)


def test_a_smaller_context_is_kept(tmp_path: Path) -> None:
    model_dir = build_model(tmp_path, TINY)
    config = load_export(model_dir)
    for asked, given in ((0, 256), (100, 100), (9999, 256)):
        engine = load_engine(model_dir, config, slots=1, context_length=asked, threads=1)
        assert engine.max_length == given
    assert engine.cache_bytes == 2 * TINY.layers * TINY.kv_heads * TINY.head_size * 256 * 4


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("inputs", "input_ids", "nothing"),
        ("inputs", "past_key_names", "past.%d.k"),
        ("outputs", "logits", "scores"),
        ("outputs", "present_key_names", "present.%d"),
        ("inputs", "past_key_names", "past.%s.%s"),
    ],
)
def test_names_that_do_not_fit_the_model_are_unfit(
    tmp_path: Path, section: str, key: str, value: str
) -> None:
    model_dir = build_model(tmp_path, TINY)
    body = json.loads((model_dir / "genai_config.json").read_text())
    body["model"]["decoder"][section][key] = value
    (model_dir / "genai_config.json").write_text(json.dumps(body))
    with pytest.raises(StartError):
        _load(model_dir, slots=1)


def test_sampling_on_a_real_model_repeats_by_seed(orders_dir: Path) -> None:
    prompts = _golden_prompts(orders_dir)[:1] * 3
    recorder = Recorder()
    scheduler = Scheduler(_load(orders_dir, slots=3), max_queue=9, deliver=recorder.deliver)
    ends = load_export(orders_dir).end_tokens
    generations = [
        recorder.make(p, 30, sampling=SamplingParams(temperature=8.0, seed=s), end_tokens=ends)
        for p, s in zip(prompts, (11, 11, 12), strict=True)
    ]
    scheduler.start()
    for generation in generations:
        scheduler.submit(generation)
    recorder.wait(finished=3)
    scheduler.close()
    first, same, other = (recorder.tokens[g] for g in generations)
    assert first == same != other
