# SPDX-License-Identifier: Apache-2.0
"""Embeddings of a real graph: equal to numpy, whatever the padding, the order and the company."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.quantization import QuantType, quantize_dynamic
from openai import BadRequestError, OpenAI

from slmserve.config import parse_config
from slmserve.embedding import Embedder
from slmserve.engines.encoder import group_by_length, load, normalise, pool
from slmserve.engines.encoder_config import Pooling, load_encoder_config
from slmserve.engines.registry import EngineOptions, find_candidates
from slmserve.errors import StartError
from slmserve.model import load_model
from slmserve.tokenizer import load_codec
from tests.unit.slmserve.encoder_model import (
    HIDDEN,
    POSITIONS,
    WORDS,
    Variant,
    build_encoder,
    build_weights,
    compute_states,
    write_sentence_transformers,
)
from tests.unit.slmserve.process import ServerProcess

OPTIONS = EngineOptions(slots=2, context_length=0, threads=1)
Reduce = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def _load(directory: Path) -> Embedder:
    loaded = load(directory, OPTIONS)
    assert loaded.build_backend is None
    assert loaded.embedder is not None
    return loaded.embedder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return _load(build_encoder(tmp_path_factory.mktemp("encoder")))


def _mean(states: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(states.mean(axis=0))


def _reference(batch: list[list[int]], reduce: Reduce = _mean) -> NDArray[np.float32]:
    weights = build_weights()
    vectors = np.stack([reduce(compute_states(weights, tokens)) for tokens in batch])
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


_tokens = st.integers(0, len(WORDS) - 1)
_texts = st.lists(st.lists(_tokens, min_size=1, max_size=POSITIONS), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(_texts)
def test_vectors_are_those_of_numpy_text_by_text(encoder: Embedder, batch: list[list[int]]) -> None:
    got = encoder.embed(batch)
    assert got.dtype == np.float32
    assert got == pytest.approx(_reference(batch), abs=1e-5)
    assert np.linalg.norm(got, axis=1) == pytest.approx(np.ones(len(batch)), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(_texts, st.randoms(use_true_random=False))
def test_neither_order_nor_company_matters(encoder: Embedder, batch: list[list[int]], random: Any) -> None:
    together = encoder.embed(batch)
    order = list(range(len(batch)))
    random.shuffle(order)
    assert encoder.embed([batch[i] for i in order]) == pytest.approx(together[order], abs=1e-5)
    alone = np.concatenate([encoder.embed([tokens]) for tokens in batch])
    assert alone == pytest.approx(together, abs=1e-5)


def _first(states: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(states[0])


def _last(states: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(states[-1])


BATCH = [[2, 5, 3], [2, 5, 6, 7, 8, 9, 3], [2, 3], [4]]


@pytest.mark.parametrize(
    ("config", "reduce"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, _mean),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, _first),
        ({"pooling_mode_lasttoken": True, "word_embedding_dimension": HIDDEN}, _last),
        ({"pooling_mode": "cls"}, _first),
        ({"pooling_mode": ["lasttoken"]}, _last),
        ({"word_embedding_dimension": HIDDEN}, _mean),
    ],
)
def test_pooling_is_that_of_sentence_transformers(
    tmp_path: Path, config: dict[str, Any], reduce: Reduce
) -> None:
    write_sentence_transformers(build_encoder(tmp_path), config, "Normalize")
    assert _load(tmp_path).embed(BATCH) == pytest.approx(_reference(BATCH, reduce), abs=1e-5)


@pytest.mark.parametrize(
    ("variant", "tolerance"),
    [
        (Variant(token_types=False), 1e-5),
        (Variant(position_ids=True), 1e-5),
        (Variant(index_type=TensorProto.INT32, output="token_embeddings"), 1e-5),
        (Variant(output="hidden"), 1e-5),
        (Variant(output_type=TensorProto.FLOAT16), 2e-3),
        (Variant(output_type=TensorProto.INT8), 5e-2),
    ],
)
def test_other_forms_of_export_give_the_same(tmp_path: Path, variant: Variant, tolerance: float) -> None:
    got = _load(build_encoder(tmp_path, variant)).embed(BATCH)
    assert got.dtype == np.float32
    assert got == pytest.approx(_reference(BATCH), abs=tolerance)


def test_a_graph_that_pools_is_taken_at_its_word(tmp_path: Path) -> None:
    build_encoder(tmp_path, Variant(output="sentence_embedding"))

    def highest(states: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(states.max(axis=0))

    batch = [tokens for tokens in BATCH if len(tokens) == 3] * 2
    assert _load(tmp_path).embed(batch) == pytest.approx(_reference(batch, highest), abs=1e-5)


def test_an_int8_graph_gives_a_text_the_same_vector_in_any_company(tmp_path: Path) -> None:
    build_encoder(tmp_path)
    path = tmp_path / "model.onnx"
    quantize_dynamic(str(path), str(path), weight_type=QuantType.QInt8)
    assert any(node.op_type == "DynamicQuantizeLinear" for node in onnx.load_model(str(path)).graph.node)
    encoder = _load(tmp_path)
    together = encoder.embed(BATCH)
    assert together == pytest.approx(_reference(BATCH), abs=0.05)
    for index, tokens in enumerate(BATCH):
        assert np.array_equal(encoder.embed([tokens])[0], together[index])


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_groups_hold_each_text_once_and_little_padding(lengths: list[int], most: int) -> None:
    groups = group_by_length(lengths, most_tokens=most)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[index] for index in group)
        assert len(group) == 1 or len(group) * longest <= most
        assert sum(lengths[index] for index in group) * 2 >= longest * len(group)
        assert most > 1 or len(group) == 1


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.sampled_from(list(Pooling)), st.integers(0, 99))
def test_what_lies_behind_a_text_does_not_count(width: int, rows: int, pooling: Pooling, seed: int) -> None:
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(rows, width, 3)).astype(np.float32)
    lengths = rng.integers(1, width + 1, rows)
    expected = pool(states, lengths, pooling)
    states[np.arange(width) >= lengths[:, None]] = np.nan
    assert np.array_equal(pool(states, lengths, pooling), expected)


def test_a_vector_of_zeros_stays() -> None:
    assert normalise(np.zeros((1, 3), np.float32)).tolist() == [[0, 0, 0]]


def test_texts_of_a_wrong_length_are_refused(encoder: Embedder) -> None:
    assert encoder.embed([]).shape == (0, HIDDEN)
    assert (encoder.dimensions, encoder.max_length) == (HIDDEN, POSITIONS)
    for tokens in ([], [1] * (POSITIONS + 1)):
        with pytest.raises(ValueError, match=f"1 to {POSITIONS}"):
            encoder.embed([[1], tokens])


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ({}, {}, POSITIONS),
        ({}, {"sentence_bert_config.json": {"max_seq_length": 16}}, 16),
        ({}, {"sentence_bert_config.json": {"max_seq_length": None}}, POSITIONS),
        ({}, {"tokenizer_config.json": {"model_max_length": 20}}, 20),
        ({}, {"tokenizer_config.json": {"model_max_length": 1e30}}, POSITIONS),
        ({"model_type": "roberta", "pad_token_id": 1}, {}, POSITIONS - 2),
        ({"n_positions": 30, "max_position_embeddings": None}, {}, 30),
    ],
)
def test_the_longest_text_comes_from_the_files(
    tmp_path: Path, config: dict[str, Any], files: dict[str, Any], expected: int
) -> None:
    build_encoder(tmp_path, **config)
    for name, body in files.items():
        (tmp_path / name).write_text(json.dumps(body))
    assert load_encoder_config(tmp_path).max_length == expected
    options = EngineOptions(slots=1, context_length=10, threads=1)
    assert load(tmp_path, options).info.max_length == 10


@pytest.mark.parametrize(
    ("config", "pooling", "modules", "complaint"),
    [
        ({"max_position_embeddings": None}, None, (), r"config\.json .* max_position_embeddings"),
        ({"vocab_size": "many"}, None, (), r"config\.json .* vocab_size"),
        ({"vocab_size": 0}, None, (), "vocab_size"),
        ({}, {"pooling_mode_max_tokens": True}, (), "max_tokens"),
        ({}, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, (), "pooling"),
        ({}, {"pooling_mode": "weightedmean"}, (), "weightedmean"),
        ({}, {}, ("Dense",), "Dense"),
    ],
)
def test_what_the_engine_cannot_do_is_named(
    tmp_path: Path,
    config: dict[str, Any],
    pooling: dict[str, Any] | None,
    modules: tuple[str, ...],
    complaint: str,
) -> None:
    build_encoder(tmp_path, **config)
    if pooling is not None:
        write_sentence_transformers(tmp_path, pooling, *modules)
    with pytest.raises(StartError, match=complaint):
        load(tmp_path, OPTIONS)


@pytest.mark.parametrize("body", ['[{"type": 1}]', "[7]", '{"a": 1}', "{"])
def test_malformed_modules_are_unfit(tmp_path: Path, body: str) -> None:
    build_encoder(tmp_path)
    (tmp_path / "modules.json").write_text(body)
    with pytest.raises(StartError, match=r"modules\.json"):
        load(tmp_path, OPTIONS)


def test_modules_stay_in_the_directory(tmp_path: Path) -> None:
    build_encoder(tmp_path)
    modules = [{"type": "x.Pooling", "path": "../elsewhere"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(StartError, match="outside"):
        load(tmp_path, OPTIONS)


def _edit(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load_model(str(path))
    change(model)
    onnx.save_model(model, str(path))


def test_a_graph_of_another_form_is_named(tmp_path: Path) -> None:
    path = build_encoder(tmp_path) / "model.onnx"
    whole = path.read_bytes()
    _edit(path, lambda model: setattr(model.graph.input[0], "name", "ids"))
    with pytest.raises(StartError, match="cannot run the model"):
        load(tmp_path, OPTIONS)
    path.write_bytes(whole)
    _edit(path, lambda m: m.graph.input.append(onnx.helper.make_tensor_value_info("pixels", 1, ["n", 3])))
    with pytest.raises(StartError, match="pixels"):
        load(tmp_path, OPTIONS)
    path.write_bytes(whole[:50])
    with pytest.raises(StartError, match="cannot run the model"):
        load(tmp_path, OPTIONS)


def test_the_directory_is_an_encoders_and_not_a_generators(tmp_path: Path) -> None:
    build_encoder(tmp_path)
    assert [kind.name for kind in find_candidates(tmp_path, "")] == ["encoder"]
    model = load_model(parse_config(["--model-dir", str(tmp_path)], {}))
    assert model.build_backend is None and model.embedder is not None
    (tmp_path / "genai_config.json").write_text("{}")
    assert [kind.name for kind in find_candidates(tmp_path, "")] == ["onnxruntime"]


def test_the_tokenizers_own_padding_and_cutting_are_off(tmp_path: Path) -> None:
    codec = load_codec(build_encoder(tmp_path))
    assert codec.encode("the cat", add_special_tokens=True) == [2, 7, 8, 3]
    assert len(codec.encode("cat " * 100, add_special_tokens=True)) == 102


def test_a_server_gives_the_encoders_vectors_and_no_text(tmp_path: Path) -> None:
    model_dir = tmp_path / "model"
    model_dir.mkdir()
    build_encoder(model_dir)
    embedder = load(model_dir, OPTIONS).embedder
    assert embedder is not None
    texts = ["the cat", "cat", "the"]
    codec = load_codec(model_dir)
    expected = embedder.embed([codec.encode(text, add_special_tokens=True) for text in texts])
    with ServerProcess(model_dir, tmp_path, "--model", "m") as server:
        server.wait_ready()
        with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            answer = client.embeddings.create(model="m", input=texts)
            assert np.allclose([entry.embedding for entry in answer.data], expected, atol=1e-5)
            assert answer.usage.prompt_tokens == sum(
                len(codec.encode(t, add_special_tokens=True)) for t in texts
            )
            with pytest.raises(BadRequestError, match="embeddings"):
                client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
