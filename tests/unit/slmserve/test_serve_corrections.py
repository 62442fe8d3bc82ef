# SPDX-License-Identifier: Apache-2.0
"""Corrections through the API: kept where the server keeps examples, counted everywhere, once."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from slmserve.app import build_app
from slmserve.config import ConfigError, Identity, parse_config
from slmserve.examples import ExampleStore, Removed
from slmserve.keeping import ExampleKeeper
from slmserve.metrics import Metrics
from slmserve.service import Service
from slmwire.examples import ExampleSettings, file_name
from tests.unit.slmserve.process import ORDERS, ServerProcess

_SETTINGS = ExampleSettings(retention_seconds=3600, max_examples=5)


class World:
    def __init__(self, service: Service, client: httpx.AsyncClient, folder: Path) -> None:
        self.service, self.client, self.folder = service, client, folder

    async def ask(self, text: str = "two teas", **more: Any) -> str:
        """Identifier of an answer."""
        body = {"model": "shop", "messages": [{"role": "user", "content": text}], "max_tokens": 3} | more
        answer = await self.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        if not more.get("stream"):
            return str(answer.json()["id"])
        return str(json.loads(answer.text.partition("data: ")[2].partition("\n")[0])["id"])

    async def judge(self, identifier: str, **more: Any) -> httpx.Response:
        return await self.client.post("/v1/feedback", json={"id": identifier} | more)

    def rows(self) -> list[dict[str, Any]]:
        return [
            json.loads(line)
            for path in sorted(self.folder.iterdir())
            for line in path.read_text().splitlines()
        ]

    def metric(self, name: str) -> float | None:
        for line in self.service.render_metrics().decode().splitlines():
            if line.startswith(name):
                return float(line.rpartition(" ")[2])
        return None


@pytest.fixture
def flags() -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "examples").mkdir()
    return tmp_path / "examples"


@pytest.fixture
async def world(folder: Path, flags: list[str]) -> AsyncIterator[World]:
    environ = {"SLM_EXAMPLES_DIR": str(folder), "SLM_EXAMPLES": _SETTINGS.to_json()}
    own = ["--model", "shop", "--model-dir", str(ORDERS / "v1-int4"), "--evaluate", "false", *flags]
    service = Service(parse_config([*own, "--threads", "1"], environ))
    await service.start_up()
    transport = httpx.ASGITransport(build_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield World(service, client, folder)
    await service.drain()


async def test_a_correction_is_kept_with_its_prompt(world: World) -> None:
    identifier = await world.ask("a tea for bob@example.de")
    assert world.rows() == []
    answer = await world.judge(identifier, correction="one tea", labels=["incorrect"])
    assert answer.json() == {"id": identifier, "object": "feedback", "score": -1.0, "kept": True}
    [row] = world.rows()
    assert row["messages"] == [{"role": "user", "content": "a tea for <Email>"}]
    assert row["expected"] == "one tea"
    assert world.metric("slmserve_examples{") == 1
    assert world.metric('slmserve_feedback_total{rating="down"') == 1
    assert world.metric('slmserve_examples_dropped_total{reason="disk"') == 0


async def test_a_streamed_answer_can_be_corrected(world: World) -> None:
    identifier = await world.ask(stream=True)
    assert (await world.judge(identifier, correction="x", score=0.5)).json()["kept"] is True


async def test_only_the_first_judgement_counts(world: World) -> None:
    identifier = await world.ask()
    first = await world.judge(identifier, correction="x")
    again = await world.judge(identifier, correction="x")
    assert first.json() == again.json()
    for other in ({"correction": "y"}, {"rating": "down"}, {"correction": "x", "score": 0}):
        assert (await world.judge(identifier, **other)).status_code == 409
    assert [row["expected"] for row in world.rows()] == ["x"]
    judged = await world.ask()
    assert "kept" not in (await world.judge(judged, rating="down")).json()
    assert (await world.judge(judged, correction="z")).status_code == 409
    assert len(world.rows()) == 1


async def test_judgements_at_once_are_one(world: World) -> None:
    identifier = await world.ask()
    answers = await asyncio.gather(*(world.judge(identifier, correction="x") for _ in range(5)))
    assert {answer.json()["kept"] for answer in answers} == {True}
    assert len(world.rows()) == 1


async def test_what_no_example_is_made_of_is_counted(world: World) -> None:
    answer = await world.judge(await world.ask(n=2), correction="x")
    assert answer.json()["kept"] is False
    assert world.metric('slmserve_examples_dropped_total{reason="prompt"') == 1
    assert world.metric("slmserve_feedback_score_count") == 1


async def test_a_completion_has_no_messages(world: World) -> None:
    body = {"model": "shop", "prompt": "tea", "max_tokens": 2}
    identifier = (await world.client.post("/v1/completions", json=body)).json()["id"]
    assert (await world.judge(identifier, correction="x")).json()["kept"] is False


async def test_the_oldest_make_room(world: World) -> None:
    for number in range(7):
        await world.judge(await world.ask(), correction=str(number))
    assert [row["expected"] for row in world.rows()] == list("23456")
    assert world.metric('slmserve_examples_dropped_total{reason="limit"') == 2
    assert world.metric("slmserve_examples{") == 5


async def test_a_folder_that_is_gone_costs_no_judgement(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.folder.rmdir()
    for text in ("first-secret", "second-secret"):
        answer = await world.judge(await world.ask(text), correction=text)
        assert answer.status_code == 200
        assert answer.json()["kept"] is False
    assert world.metric("slmserve_feedback_score_count") == 2
    assert world.metric('slmserve_examples_dropped_total{reason="disk"') == 2
    told = [record for record in caplog.records if "not kept" in record.message]
    assert len(told) == 1
    assert "FileNotFoundError" in str(told[0].__dict__["fields"])
    assert "secret" not in caplog.text + str(told[0].__dict__)


class WatchedStore(ExampleStore):
    """Says when it was tidied."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _SETTINGS)
        self.tidied = threading.Semaphore(0)

    def tidy(self) -> Removed:
        try:
            return super().tidy()
        finally:
            self.tidied.release()

    async def wait(self) -> None:
        """Until one that begins after this call has ended."""
        for _ in range(2):
            assert await asyncio.to_thread(self.tidied.acquire, timeout=20)


def _rename(folder: Path, target: Path) -> None:
    folder.rename(target)


async def test_what_expires_while_it_serves_goes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmserve.keeping._TIDY_SECONDS", 0.001)
    metrics, store = Metrics(Identity()), WatchedStore(folder)
    keeper = ExampleKeeper(store, metrics)
    await keeper.begin()
    # A folder that is gone for a while ends nothing.
    _rename(folder, tmp_path / "away")
    await store.wait()
    _rename(tmp_path / "away", folder)
    (folder / file_name(1_000_000_000)).write_text('{"messages": []}\n')
    while store.tidied.acquire(blocking=False):
        pass
    await store.wait()
    assert _names(folder) == []
    await keeper.close()
    assert b'slmserve_examples_dropped_total{reason="expired"' in metrics.render(queue_depth=0, busy=0)


async def test_more_than_can_be_written_is_not_kept(world: World) -> None:
    identifiers = [await world.ask() for _ in range(40)]
    answers = await asyncio.gather(*(world.judge(one, correction="x") for one in identifiers))
    kept = [answer.json()["kept"] for answer in answers]
    busy = world.metric('slmserve_examples_dropped_total{reason="busy"')
    assert kept.count(False) == busy
    assert kept.count(True) >= 32
    assert world.metric("slmserve_feedback_score_count") == 40


@pytest.mark.parametrize("flags", [["--examples-dir", ""]])
async def test_a_server_that_keeps_none_remembers_none(world: World) -> None:
    assert world.service.keeper is None
    answer = await world.judge(await world.ask(), correction="x")
    assert answer.json()["kept"] is False
    assert world.rows() == []
    assert world.metric("slmserve_examples") is None
    assert world.metric("slmserve_feedback_score_count") == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"correction": "x" * 32_769}, "correction"),
        ({"correction": ""}, "correction"),
        ({"correction": " \n"}, "correction"),
        ({"correction": 5}, "correction"),
        ({"correction": "x", "score": 1, "rating": "up"}, "score"),
    ],
)
async def test_refusals_name_the_field(world: World, body: dict[str, Any], param: str) -> None:
    answer = await world.judge(await world.ask(), **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert world.rows() == []


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_what_has_expired_goes_at_the_start(tmp_path: Path, folder: Path) -> None:
    (folder / file_name(1_000_000_000)).write_text('{"messages": []}\n')
    (folder / "notes.txt").write_text("of somebody else")
    environ = {"SLM_EXAMPLES_DIR": str(folder), "SLM_EXAMPLES": _SETTINGS.to_json()}
    service = Service(parse_config(["--model-dir", str(tmp_path / "none")], environ))
    with pytest.raises(Exception, match="model directory"):
        await service.start_up()
    assert _names(folder) == ["notes.txt"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "--examples cannot be followed"),
        ("[]", "--examples cannot be followed"),
        (ExampleSettings(retention_seconds=0, max_examples=1).to_json(), "retention_seconds 0"),
        (ExampleSettings(retention_seconds=9, max_examples=0).to_json(), "max_examples 0"),
        (ExampleSettings(retention_seconds=9, max_examples=1, patterns=("(",)).to_json(), r"patterns\[0\]"),
        (ExampleSettings(retention_seconds=9, max_examples=1, redact=("x",)).to_json(), "one of Email"),
    ],
)
def test_settings_that_cannot_be_followed_are_named(settings: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config([], {"SLM_EXAMPLES_DIR": "/examples", "SLM_EXAMPLES": settings})


@pytest.fixture(scope="module")
def confined(
    orders_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerProcess, Path]]:
    folder = tmp_path_factory.mktemp("examples")
    settings = ExampleSettings(retention_seconds=3600, max_examples=5, patterns=(r"(a+)+!", r"table \d+"))
    environ = {
        "SLM_EXAMPLES_DIR": str(folder),
        "SLM_EXAMPLES": settings.to_json(),
        "SLM_SANDBOX": "required",
        "SLM_MODEL": "orders",
    }
    with ServerProcess(orders_dir, tmp_path_factory.mktemp("confined"), environ=environ) as server:
        server.wait_ready()
        yield server, folder


def _correct(server: ServerProcess, correction: str) -> Any:
    ask = {"model": "orders", "messages": [{"role": "user", "content": "tea to table 5, +49 30 1234567"}]}
    identifier = httpx.post(f"{server.url}/v1/chat/completions", json=ask, timeout=30).json()["id"]
    told = {"id": identifier, "correction": correction}
    return httpx.post(f"{server.url}/v1/feedback", json=told, timeout=30).json()["kept"]


def test_a_confined_server_keeps_what_patterns_leave(confined: tuple[ServerProcess, Path]) -> None:
    server, folder = confined
    assert _correct(server, "one tea to table 9") is True
    [path] = folder.iterdir()
    row = json.loads(path.read_text())
    assert row["messages"][0]["content"] == "tea to <Redacted>, <Phone>"
    assert row["expected"] == "one tea to <Redacted>"
    assert server.metrics()["slmserve_sandbox"] == 1


def test_what_a_pattern_is_not_done_with_is_not_kept(confined: tuple[ServerProcess, Path]) -> None:
    server, folder = confined
    before = [path.read_bytes() for path in folder.iterdir()]
    assert _correct(server, "a" * 80) is False
    assert [path.read_bytes() for path in folder.iterdir()] == before
    assert server.metrics()["slmserve_examples_dropped_total{reason=pattern}"] == 1
    assert "aaaa" not in server.log_file.read_text()
