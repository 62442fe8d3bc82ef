# SPDX-License-Identifier: Apache-2.0
"""LiteRT on the real export of the orders model, beside the fp32 export that it was made from."""

import asyncio
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e.models.recipe.golden import golden_lines
from e2e.models.recipe.packing import observe_manifest
from e2e.models.recipe.to_hf import build_state, read_initializers, to_safetensors
from e2e.models.recipe.versions import SHAPE
from slmserve.answers import build_deliver
from slmserve.config import parse_config
from slmserve.engines import onnx_slots
from slmserve.engines.litert import LiteRtEngine, _check_signatures, load_engine, plan_prefill
from slmserve.engines.registry import EngineOptions, find_candidates
from slmserve.errors import StartError
from slmserve.export import load_export
from slmserve.golden import load_cases, run_golden
from slmserve.model import load_model
from slmserve.scheduler import Scheduler
from slmserve.template import load_template
from slmserve.tokenizer import load_codec
from slmwire.manifest import parse_manifest
from slmwire.reasons import Reason
from tests.unit.slmserve.doubles import Recorder
from tests.unit.slmserve.process import ORDERS

MODEL = ORDERS / "v1-litert"
CONTEXT = 256


def _load(*, slots: int = 1, context_length: int = 0) -> LiteRtEngine:
    return load_engine(MODEL, EngineOptions(slots=slots, context_length=context_length, threads=1))


@pytest.fixture(scope="module")
def engine() -> LiteRtEngine:
    return _load(slots=3)


def _tokens(count: int, seed: int = 5) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(3, SHAPE.vocab, count)


def test_the_directory_is_complete() -> None:
    text = (MODEL / "slm-manifest.json").read_text()
    assert parse_manifest(text) == observe_manifest(MODEL)
    assert (MODEL / "golden.jsonl").read_text() == golden_lines()


def test_the_golden_set_is_answered() -> None:
    assert [kind.name for kind in find_candidates(MODEL, "")] == ["litert"]
    model = load_model(parse_config(["--model-dir", str(MODEL)], {}))
    assert model.defaults.end_tokens == load_export(ORDERS / "v1-fp32").end_tokens

    async def judge() -> float:
        assert model.build_backend is not None
        backend = model.build_backend(100, build_deliver(asyncio.get_running_loop()))
        backend.start()
        result = await run_golden(load_cases(MODEL), model, backend)
        await asyncio.to_thread(backend.close)
        return result.score

    assert asyncio.run(judge()) >= 0.95


def test_logits_are_near_those_of_the_fp32_export(engine: LiteRtEngine) -> None:
    codec, template = load_codec(MODEL), load_template(MODEL)
    assert template is not None
    cases = [json.loads(line) for line in (MODEL / "golden.jsonl").read_text().splitlines()]
    export = load_export(ORDERS / "v1-fp32")
    reference = onnx_slots.load_engine(ORDERS / "v1-fp32", export, slots=1, context_length=0, threads=1)
    for case in cases[:8]:
        text = template.render(case["messages"]) + case["expected"]
        prompt = np.array(codec.encode(text, add_special_tokens=False))
        expected = reference.prefill(0, prompt, 0)
        spread = float(expected.max() - expected.min())
        assert np.abs(engine.prefill(0, prompt, 0) - expected).max() < 0.05 * spread


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.integers(0, 2))
def test_how_a_prompt_is_cut_does_not_matter(engine: LiteRtEngine, cuts: list[int], row: int) -> None:
    prompt = _tokens(min(sum(cuts), CONTEXT - 1))
    whole = engine.prefill(row, prompt, 0).copy()
    offset = 0
    while offset < len(prompt):
        part = prompt[offset : offset + cuts.pop(0)]
        got = engine.prefill(row, part, offset)
        offset += len(part)
    assert got == pytest.approx(whole, abs=1e-3)


@pytest.mark.parametrize("held", [0, 100, 190, 239, 250, 254])
def test_a_prompt_up_to_the_end_of_the_row_overwrites_nothing(engine: LiteRtEngine, held: int) -> None:
    prompt = _tokens(CONTEXT - 1)
    for index, token in enumerate(prompt):
        stepped = engine.decode(np.array([token]), np.array([index]))[0]
    if held:
        engine.prefill(1, prompt[:held], 0)
    assert engine.prefill(1, prompt[held:], held) == pytest.approx(stepped, abs=1e-3)


def test_rows_do_not_mix() -> None:
    prompts = [_tokens(n, seed=n).tolist() for n in (3, 70, 17, 40, 5, 130)]
    answers = []
    for slots in (1, 4):
        recorder = Recorder()
        scheduler = Scheduler(_load(slots=slots), max_queue=9, deliver=recorder.deliver)
        generations = [recorder.make(prompt, 20, end_tokens=frozenset()) for prompt in prompts]
        scheduler.start()
        for generation in generations:
            scheduler.submit(generation)
        recorder.wait(finished=len(prompts), timeout_seconds=60)
        scheduler.close()
        answers.append([recorder.tokens[generation] for generation in generations])
    assert answers[0] == answers[1]


def test_moved_rows_go_on_as_before(engine: LiteRtEngine) -> None:
    prompt = _tokens(27)
    engine.prefill(2, prompt, 0)
    engine.move(2, 0, len(prompt))
    engine.prefill(2, prompt[::-1].copy(), 0)
    got = engine.decode(np.array([7]), np.array([len(prompt)]))[0]
    fresh = _load()
    fresh.prefill(0, prompt, 0)
    assert got == pytest.approx(fresh.decode(np.array([7]), np.array([len(prompt)]))[0], abs=1e-4)


def test_a_smaller_context_is_kept_and_the_cache_is_told() -> None:
    for asked, given_length in ((0, CONTEXT), (100, 100), (9999, CONTEXT)):
        engine = _load(slots=2, context_length=asked)
        assert engine.max_length == given_length
        assert engine.cache_bytes == 2 * 2 * SHAPE.layers * SHAPE.kv_heads * SHAPE.head * CONTEXT * 4
        assert (engine.vocab_size, engine.prefill_chunk) == (SHAPE.vocab, 257)


@settings(deadline=None)
@given(
    st.integers(0, 400),
    st.integers(0, 255),
    st.lists(st.sampled_from([1, 8, 16, 64, 128, 512]), unique=True).map(sorted),
)
def test_a_plan_appends_every_token_once_and_stays_in_the_row(
    count: int, held: int, widths: list[int]
) -> None:
    count = min(count, CONTEXT - held)
    pieces = plan_prefill(count, held, widths, CONTEXT)
    assert sum(piece.count for piece in pieces) == count
    at = held
    for piece in pieces:
        assert piece.count >= 1
        if piece.width:
            assert piece.count <= piece.width in widths
            assert at + piece.width <= CONTEXT
        else:
            assert not any(width <= CONTEXT - at and width >= piece.count for width in widths)
        at += piece.count


def test_only_the_last_call_of_a_plan_is_padded() -> None:
    plan = [(piece.count, piece.width) for piece in plan_prefill(150, 0, [16, 64], 256)]
    assert plan == [(64, 64), (64, 64), (16, 16), (6, 16)]
    assert [(p.count, p.width) for p in plan_prefill(40, 0, [16, 64], 256)] == [(40, 64)]
    assert [(p.count, p.width) for p in plan_prefill(10, 245, [16, 64], 256)] == [(10, 0)]


def test_a_directory_without_one_readable_model_is_unfit(tmp_path: Path) -> None:
    options = EngineOptions(slots=1, context_length=0, threads=1)
    with pytest.raises(StartError, match=r"0 \.tflite"):
        load_engine(tmp_path, options)
    (tmp_path / "a.tflite").write_bytes(b"TFL3 and nothing else")
    with pytest.raises(StartError, match=r"cannot load a\.tflite") as caught:
        load_engine(tmp_path, options)
    assert caught.value.reason is Reason.UNFIT
    shutil.copyfile(MODEL / "model.tflite", tmp_path / "b.tflite")
    with pytest.raises(StartError, match=r"2 \.tflite"):
        load_engine(tmp_path, options)


class _Signatures:
    """Answers as a CompiledModel does that was exported otherwise."""

    def __init__(self, inputs: Mapping[str, list[int]], *names: str) -> None:
        self._inputs = inputs
        self._names = names

    def get_signature_list(self) -> dict[str, Any]:
        return {name: {} for name in self._names}

    def get_input_tensor_details(self, name: str) -> dict[str, Any]:
        return {key: {"shape": shape, "dtype": "float32"} for key, shape in self._inputs.items()}

    def get_output_tensor_details(self, name: str) -> dict[str, Any]:
        return {"scores": {"shape": [1, 1, 9], "dtype": "float32"}}


_GOOD = {"tokens": [1, 1], "input_pos": [1], "mask": [1, 1, 1, 32], "kv_cache_k_0": [1, 2, 32, 8]}


@pytest.mark.parametrize(
    ("inputs", "names", "complaint"),
    [
        (_GOOD, ("serving_default",), "no signature 'decode'"),
        (_GOOD, ("decode",), "gives no 'logits'"),
        ({**_GOOD, "mask": [1, 1, 1, -1]}, ("decode",), "dynamic"),
        ({**_GOOD, "tokens": [4, 1]}, ("decode",), "batch"),
        ({**_GOOD, "embeddings": [1, 1, 64]}, ("decode",), "embeddings"),
        ({"tokens": [1, 1], "input_pos": [1]}, ("prefill_16", "decode"), "lacks"),
    ],
)
def test_another_kind_of_export_is_named(
    inputs: Mapping[str, list[int]], names: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(StartError, match=complaint) as caught:
        _check_signatures(_Signatures(inputs, *names))
    assert "litert-torch" in str(caught.value)


def test_the_checkpoint_for_the_exporter_holds_every_weight_of_the_fp32_export() -> None:
    weights = read_initializers(ORDERS / "v1-fp32")
    data = to_safetensors(build_state(weights, SHAPE))
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    del header["__metadata__"]
    tensors = {
        name: np.frombuffer(data[8 + size :][slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
        for name, entry in header.items()
    }
    for layer in range(SHAPE.layers):
        prefix = f"model.layers.{layer}"
        parts = [tensors[f"{prefix}.self_attn.{name}_proj.weight"] for name in "qkv"]
        fused = weights[f"{prefix}.attn.qkv_proj.MatMul.weight"]
        assert np.array_equal(np.concatenate(parts).T, fused)
        down = tensors[f"{prefix}.mlp.down_proj.weight"]
        assert np.array_equal(down.T, weights[f"{prefix}.mlp.down_proj.MatMul.weight"])
    counted = sum(w.size for name, w in weights.items() if not name.endswith("_cache"))
    assert sum(tensor.size for tensor in tensors.values()) == counted
