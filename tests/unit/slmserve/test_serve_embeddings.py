# SPDX-License-Identifier: Apache-2.0
"""Embeddings: the queue in front of an embedder, and the endpoint as the openai client sees it."""

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from openai import AsyncOpenAI, OpenAI

from slmserve import service as service_module
from slmserve.app import build_app
from slmserve.backend import ClosedError, EngineInfo, GenerationDefaults, QueueFullError
from slmserve.config import parse_config
from slmserve.embedding import Shortening, load_shortening, shorten
from slmserve.embedding_queue import EmbeddingFailedError, EmbeddingQueue
from slmserve.model import LoadedModel
from slmserve.service import Phase, Service
from slmserve.tokenizer import load_codec
from tests.unit.slmserve.process import ORDERS

_SIZE = 8


def _vector(text: Sequence[int]) -> NDArray[np.float32]:
    generator = np.random.Generator(np.random.PCG64([len(text), *text]))
    drawn = generator.standard_normal(_SIZE)
    vector: NDArray[np.float32] = (drawn / np.linalg.norm(drawn)).astype(np.float32)
    return vector


class ScriptedEmbedder:
    """A vector for each text that depends on all of its tokens."""

    dimensions = _SIZE
    max_length = 40

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.broken = False
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()

    def embed(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.begun.set()
        self.gate.wait(10)
        if self.broken:
            raise RuntimeError("no vectors today")
        assert all(0 < len(text) <= self.max_length for text in batch)
        self.batches.append(len(batch))
        return np.stack([_vector(text) for text in batch])


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(
        st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=40), min_size=1, max_size=50),
        min_size=1,
        max_size=5,
    )
)
def test_every_request_gets_its_own_vectors(requests: list[list[list[int]]]) -> None:
    queue = EmbeddingQueue(ScriptedEmbedder(), max_queue=10)
    futures = [queue.submit(texts) for texts in requests]
    queue.start()
    try:
        for texts, future in zip(requests, futures, strict=True):
            assert np.array_equal(future.result(10), np.stack([_vector(text) for text in texts]))
    finally:
        queue.close()


def test_requests_share_a_batch() -> None:
    embedder = ScriptedEmbedder()
    queue = EmbeddingQueue(embedder, max_queue=10)
    futures = [queue.submit([[number]]) for number in range(5)]
    queue.start()
    for future in futures:
        future.result(10)
    queue.close()
    assert embedder.batches == [5]


def test_the_queue_is_bounded_and_what_is_given_up_leaves_it() -> None:
    embedder = ScriptedEmbedder()
    queue = EmbeddingQueue(embedder, max_queue=1)
    first, second = queue.submit([[1]]), queue.submit([[2]])
    with pytest.raises(QueueFullError):
        queue.submit([[3]])
    first.cancel()
    queue.start()
    assert np.array_equal(second.result(10), [_vector([2])])
    queue.submit([[4]]).result(10)
    queue.close()
    with pytest.raises(ClosedError):
        queue.submit([[5]])


def test_a_long_list_does_not_hold_up_a_single_text() -> None:
    embedder = ScriptedEmbedder()
    embedder.gate.clear()
    queue = EmbeddingQueue(embedder, max_queue=5)
    queue.start()
    long = queue.submit([[number] for number in range(500)])
    assert embedder.begun.wait(10)
    batches_before: list[int] = []
    single = queue.submit([[7]])
    single.add_done_callback(lambda _: batches_before.append(len(embedder.batches)))
    embedder.gate.set()
    assert np.allclose(single.result(10), [_vector([7])])
    assert np.allclose(long.result(10), [_vector([number]) for number in range(500)])
    assert batches_before == [2]
    queue.close()


def test_who_leaves_makes_room_at_once() -> None:
    embedder = ScriptedEmbedder()
    embedder.gate.clear()
    queue = EmbeddingQueue(embedder, max_queue=1)
    queue.start()
    queue.submit([[1]])
    assert embedder.begun.wait(10)
    leaving = queue.submit([[2]])
    with pytest.raises(QueueFullError):
        queue.submit([[3]])
    leaving.cancel()
    staying = queue.submit([[3]])
    embedder.gate.set()
    assert np.allclose(staying.result(10), [_vector([3])])
    queue.close()


def test_a_failure_ends_the_requests_of_its_batch() -> None:
    embedder = ScriptedEmbedder()
    embedder.broken = True
    queue = EmbeddingQueue(embedder, max_queue=9)
    queue.start()
    for _ in range(3):
        with pytest.raises(EmbeddingFailedError):
            queue.submit([[1], [2]]).result(10)
    assert not queue.is_healthy(stuck_seconds=60)
    embedder.broken = False
    assert queue.submit([[1]]).result(10).shape == (1, _SIZE)
    assert queue.is_healthy(stuck_seconds=60)
    queue.close()


def test_closing_fails_what_waits() -> None:
    queue = EmbeddingQueue(ScriptedEmbedder(), max_queue=9)
    waiting = queue.submit([[1]])
    queue.close()
    queue.start()
    with pytest.raises(ClosedError):
        waiting.result(10)


@pytest.mark.parametrize(
    ("config", "allowed", "refused"),
    [
        ({"matryoshka_dimensions": [2, 4, 99, "x"]}, [2, 4, 8], [3, 9, 99]),
        ({"is_matryoshka": True}, [1, 5, 8], [9]),
        ({}, [8], [1, 4]),
        ([], [8], [4]),
        (None, [8], [4]),
    ],
)
def test_the_models_files_say_what_is_allowed(
    tmp_path: Path, config: Any, allowed: list[int], refused: list[int]
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    shortening = load_shortening(tmp_path, 8)
    assert [n for n in range(1, 100) if shortening.permits(n)] == allowed or shortening.any_length
    assert all(map(shortening.permits, allowed))
    assert not any(map(shortening.permits, refused))
    assert str(8) in shortening.describe()


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, _SIZE), seed=st.integers(0, 1000))
def test_a_short_vector_has_length_one(length: int, seed: int) -> None:
    whole = _vector([seed])[None]
    short = shorten(whole, length)
    assert short.shape == (1, length)
    assert np.linalg.norm(short) == pytest.approx(1, abs=1e-5)
    ratio = short[0] / whole[0, :length]
    assert np.allclose(ratio, ratio[0], rtol=1e-4)
    assert Shortening(full=_SIZE).permits(_SIZE)


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Service]:
    (tmp_path / "config.json").write_text('{"matryoshka_dimensions": [4]}')
    embedder = ScriptedEmbedder()
    model = LoadedModel(
        directory=tmp_path,
        engine=EngineInfo(name="encoder", version="1", slots=1, max_length=40, vocab_size=768),
        defaults=GenerationDefaults(end_tokens=frozenset({1})),
        build_backend=None,
        codec=load_codec(ORDERS / "v1-int4"),
        template=None,
        digest="",
        embedder=embedder,
    )
    monkeypatch.setattr(service_module, "load_model", lambda _: model)
    service = Service(parse_config(["--model", "minilm", "--max-queue", "0", "--drain-seconds", "0"], {}))
    await service.start_up()
    yield service
    embedder.gate.set()
    if service.phase is not Phase.STOPPED:
        await service.drain()


@pytest.fixture
async def client(service: Service) -> AsyncIterator[AsyncOpenAI]:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(build_app(service)))
    async with AsyncOpenAI(
        base_url="http://server/v1", api_key="none", max_retries=0, http_client=http
    ) as client:
        yield client


def _decoded(embedding: Any) -> Any:
    """The client decodes base64 only where it has asked for it itself."""
    return np.frombuffer(base64.b64decode(embedding), "<f4") if isinstance(embedding, str) else embedding


async def test_forms_of_input_and_of_vectors(client: AsyncOpenAI, service: Service) -> None:
    texts = ["one tea", "two coffees"]
    tokens = [service.model.codec.encode(text, add_special_tokens=True) for text in texts]
    expected = np.stack([_vector(text) for text in tokens])
    for given_input in (texts, tokens):
        for encoding in ("float", "base64", None):
            extra: Any = {"encoding_format": encoding} if encoding else {}
            answer = await client.embeddings.create(model="minilm", input=given_input, **extra)
            got = [_decoded(entry.embedding) for entry in answer.data]
            assert np.allclose(got, expected)
            assert [entry.index for entry in answer.data] == [0, 1]
            assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, tokens))
    one = await client.embeddings.create(model="minilm", input=texts[0])
    same = await client.embeddings.create(model="minilm", input=tokens[0])
    assert one.data[0].embedding == same.data[0].embedding
    assert np.allclose(one.data[0].embedding, expected[0])
    metrics = service.render_metrics().decode()
    assert 'slmserve_requests_total{code="200",endpoint="embeddings"' in metrics


async def test_short_vectors(client: AsyncOpenAI) -> None:
    short = await client.embeddings.create(model="minilm", input="tea", dimensions=4)
    assert len(short.data[0].embedding) == 4
    with pytest.raises(openai.BadRequestError, match="4, 8"):
        await client.embeddings.create(model="minilm", input="tea", dimensions=5)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input.1"),
        ({"input": [[1], [768]]}, "input.1"),
        ({"input": "tea " * 500}, "input"),
        ({"input": "tea", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "tea", "model": "other"}, "model"),
        ({"input": "tea", "nonsense": 1}, "nonsense"),
    ],
)
async def test_refusals_name_the_field(service: Service, wrong: dict[str, Any], param: str) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(build_app(service))) as http:
        answer = await http.post("http://server/v1/embeddings", json={"model": "minilm"} | wrong)
    assert answer.status_code == (404 if param == "model" else 400)
    assert answer.json()["error"]["param"].startswith(param)


async def test_a_model_that_only_embeds_says_so(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
        await client.chat.completions.create(model="minilm", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
        await client.completions.create(model="minilm", prompt="hi")


async def test_too_many_at_once_are_refused(client: AsyncOpenAI, service: Service) -> None:
    embedder: Any = service.model.embedder
    embedder.gate.clear()
    first = asyncio.create_task(client.embeddings.create(model="minilm", input="tea"))
    await asyncio.to_thread(embedder.begun.wait, 10)
    with pytest.raises(openai.RateLimitError):
        await client.embeddings.create(model="minilm", input="tea")
    embedder.gate.set()
    assert (await first).data
    embedder.broken = True
    with pytest.raises(openai.InternalServerError):
        await client.embeddings.create(model="minilm", input="tea")


def test_a_model_that_only_generates_says_so(client_of_orders: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="gives no embeddings"):
        client_of_orders.embeddings.create(model="orders", input="tea")


@pytest.fixture
def client_of_orders(orders_server: Any) -> OpenAI:
    return OpenAI(base_url=f"{orders_server.url}/v1", api_key="none", max_retries=0)
