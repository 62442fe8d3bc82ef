# SPDX-License-Identifier: Apache-2.0
"""Adapters by name, and refusals of what an engine lacks: with a backend that only listens."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from slmserve import service as service_module
from slmserve.app import build_app
from slmserve.backend import Backend, Capability, Deliver, EngineInfo, GenerationDefaults
from slmserve.config import parse_config
from slmserve.generation import Finish, Generation, Step
from slmserve.model import LoadedModel
from slmserve.service import Service
from slmserve.template import build_template
from slmserve.tokenizer import load_codec
from tests.unit.slmserve.process import ORDERS

_END = 1


class ListeningBackend:
    """Answers at once with nothing, and remembers what it was asked; `spoils` the form of answers."""

    queue_depth = 0
    busy = 0

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self.asked: list[Generation] = []
        self.spoils = False

    def start(self) -> None:
        pass

    def submit(self, generation: Generation) -> None:
        self.asked.append(generation)
        if self.spoils and generation.constraint is not None:
            generation.constraint.accept(_END)
        self._deliver([Step(generation, _END, Finish.END_TOKEN, time.perf_counter())])

    def is_healthy(self, *, stuck_seconds: float) -> bool:
        return stuck_seconds > 0

    def close(self, *, timeout_seconds: float = 5.0) -> None:
        pass


class World:
    def __init__(self, service: Service, client: httpx.AsyncClient, backend: ListeningBackend) -> None:
        self.service, self.client, self.backend = service, client, backend

    async def chat(self, **more: Any) -> httpx.Response:
        body = {"model": "shop", "messages": [{"role": "user", "content": "tea"}]} | more
        return await self.client.post("/v1/chat/completions", json=body)


@pytest.fixture
def capabilities() -> frozenset[Capability]:
    return frozenset(Capability)


@pytest.fixture
def default_adapter() -> str:
    return ""


@pytest.fixture
async def world(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capabilities: frozenset[Capability],
    default_adapter: str,
) -> AsyncIterator[World]:
    backends: list[ListeningBackend] = []

    def build_backend(_: int, deliver: Deliver) -> Backend:
        backends.append(ListeningBackend(deliver))
        return backends[0]

    source = "{% if tools %}<tool_call>{% endif %}{{ messages[0].content }}"
    model = LoadedModel(
        directory=tmp_path,
        engine=EngineInfo(
            name="listener",
            version="1",
            slots=2,
            max_length=100,
            vocab_size=768,
            adapters=("polite", "shop"),
            capabilities=capabilities,
        ),
        defaults=GenerationDefaults(end_tokens=frozenset({_END})),
        build_backend=build_backend,
        codec=load_codec(ORDERS / "v1-int4"),
        template=build_template(source, {}),
        digest="",
        default_adapter=default_adapter,
    )
    monkeypatch.setattr(service_module, "load_model", lambda _: model)
    service = Service(parse_config(["--model", "shop"], {}))
    await service.start_up()
    transport = httpx.ASGITransport(build_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield World(service, client, backends[0])


async def test_adapters_are_models(world: World) -> None:
    listed = (await world.client.get("/v1/models")).json()["data"]
    assert [(m["id"], m["parent"]) for m in listed] == [
        ("shop", None),
        ("shop:polite", "shop"),
        ("shop:shop", "shop"),
    ]
    assert (await world.client.get("/v1/models/shop:polite")).json()["id"] == "shop:polite"


@pytest.mark.parametrize(
    ("name", "adapter", "answered_as"),
    [
        ("shop", "", "shop"),
        ("shop:polite", "polite", "shop:polite"),
        ("polite", "polite", "shop:polite"),
        ("shop:shop", "shop", "shop:shop"),
    ],
)
async def test_a_name_chooses_the_adapter(world: World, name: str, adapter: str, answered_as: str) -> None:
    answer = await world.chat(model=name)
    assert answer.status_code == 200
    assert answer.json()["model"] == answered_as
    assert [generation.adapter for generation in world.backend.asked] == [adapter]


@pytest.mark.parametrize("default_adapter", ["polite"])
async def test_a_default_adapter_answers_for_the_model(world: World) -> None:
    listed = (await world.client.get("/v1/models")).json()["data"]
    assert [(m["id"], m["parent"]) for m in listed] == [
        ("shop", None),
        ("shop:polite", "shop"),
        ("shop:shop", "shop"),
        ("shop:base", "shop"),
    ]
    for name, adapter, answered_as in (
        ("shop", "polite", "shop:polite"),
        ("shop:polite", "polite", "shop:polite"),
        ("shop:shop", "shop", "shop:shop"),
        ("shop:base", "", "shop:base"),
        ("base", "", "shop:base"),
    ):
        answer = await world.chat(model=name)
        assert answer.json()["model"] == answered_as
        assert world.backend.asked[-1].adapter == adapter
        text = await world.client.post("/v1/completions", json={"model": name, "prompt": "tea"})
        assert text.json()["model"] == answered_as
        assert world.backend.asked[-1].adapter == adapter


async def test_without_a_default_nothing_is_called_base(world: World) -> None:
    assert (await world.chat(model="shop:base")).status_code == 404


@pytest.mark.parametrize("name", ["", "shop:", ":polite", "shop:rude", "SHOP", "other:polite"])
async def test_other_names_are_unknown(world: World, name: str) -> None:
    answer = await world.chat(model=name)
    assert answer.status_code == 404
    assert "'shop:polite'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("capabilities", [frozenset()])
@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"seed": 1}, "seed"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
            "tool_choice",
        ),
    ],
)
async def test_what_the_engine_lacks_is_refused_by_name(
    world: World, more: dict[str, Any], param: str
) -> None:
    answer = await world.chat(**more)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")
    assert "listener" in error["message"]
    assert not world.backend.asked


@pytest.mark.parametrize("capabilities", [frozenset()])
async def test_what_needs_no_capability_is_served(world: World) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert (await world.chat(tools=tools, n=2, response_format={"type": "text"})).status_code == 200
    assert all(g.constraint is None and g.top_logprobs is None for g in world.backend.asked)


async def test_an_answer_that_lost_its_form_is_no_answer(world: World) -> None:
    world.backend.spoils = True
    answer = await world.chat(response_format={"type": "json_object"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "schema_too_complex"
    streamed = await world.chat(response_format={"type": "json_object"}, stream=True)
    assert "schema_too_complex" in streamed.text
    assert "[DONE]" not in streamed.text


async def test_each_choice_has_a_constraint_of_its_own(world: World) -> None:
    assert (await world.chat(n=2, response_format={"type": "json_object"})).status_code == 200
    first, second = (generation.constraint for generation in world.backend.asked)
    assert first is not second
