# SPDX-License-Identifier: Apache-2.0
"""The page's routes: read only, cached per change, bounded, and closed to foreign pages."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from slmops.page.cache import MAX_DOCUMENTS, Documents
from slmops.page.server import (
    ANY_HOST,
    MAX_KEYS,
    MAX_REQUESTS,
    MAX_STREAMS,
    Pace,
    Page,
    PortTaken,
    build_event,
    load_assets,
    start_server,
)
from slmops.runtime.resource import DeploymentKey
from tests.unit.page.kit import KitFleet, rolling_status, settled_status

KEY = DeploymentKey("ns", "orders")
PATHS = ("/", "/static/page.js", "/api/fleet", "/api/deployments/ns/orders", "/api/events")
Client = TestClient[Any, Any]


class CountingSource:
    """Counts what is made."""

    def __init__(self, fleet: KitFleet) -> None:
        self._source = fleet.source
        self.made = 0

    def take_overview(self) -> Callable[[], bytes]:
        self.made += 1
        return self._source.take_overview()

    def take_deployment(self, key: DeploymentKey) -> Callable[[], bytes] | None:
        self.made += 1
        return self._source.take_deployment(key)


class Served:
    """A fleet with its page, and a client of it."""

    def __init__(self, fleet: KitFleet, source: CountingSource, client: Client) -> None:
        self.fleet = fleet
        self.source = source
        self.client = client

    async def json(self, path: str) -> Any:
        async with self.client.get(path) as answer:
            assert answer.status == 200
            return await answer.json()


@asynccontextmanager
async def served(*, hosts: tuple[str, ...] = (ANY_HOST,), pace: Pace | None = None) -> AsyncIterator[Served]:
    fleet = KitFleet()
    fleet.node("n0", site="a")
    fleet.deployment(KEY, settled_status())
    source = CountingSource(fleet)
    quick = pace or Pace(coalesce_seconds=0, heartbeat_seconds=60)
    page = Page(source, fleet.feed, documents=Documents(rest_factor=0), pace=quick)
    async with TestClient(TestServer(page.build_app(hosts=hosts))) as client:
        yield Served(fleet, source, client)


async def test_documents_are_made_once_per_change() -> None:
    async with served() as page:
        for _ in range(10):
            await page.json("/api/fleet")
            await page.json("/api/deployments/ns/orders")
        assert page.source.made == 2
        page.fleet.deployment(KEY, rolling_status())
        document = await page.json("/api/fleet")
        assert document["counters"]["rolling"] == 1
        assert (await page.json("/api/deployments/ns/orders"))["row"]["step"] == "Analysing"
        assert page.source.made == 4


async def test_many_who_ask_at_once_share_one() -> None:
    async with served() as page:
        await asyncio.gather(*(page.json("/api/fleet") for _ in range(20)))
        assert page.source.made == 1


async def test_another_deployments_change_makes_nothing_anew() -> None:
    async with served() as page:
        await page.json("/api/deployments/ns/orders")
        page.fleet.deployment(DeploymentKey("ns", "other"), settled_status())
        await page.json("/api/deployments/ns/orders")
        assert page.source.made == 1


async def test_what_has_not_changed_is_not_sent_again() -> None:
    async with served() as page:
        async with page.client.get("/api/fleet") as answer:
            etag = answer.headers["ETag"]
        page.fleet.feed.changed(KEY)
        async with page.client.get("/api/fleet", headers={"If-None-Match": etag}) as answer:
            assert answer.status == 304
            assert await answer.read() == b""
        page.fleet.deployment(KEY, rolling_status())
        async with page.client.get("/api/fleet", headers={"If-None-Match": etag}) as answer:
            assert answer.status == 200
            assert answer.headers["ETag"] != etag


async def test_a_large_document_is_packed_for_who_can_unpack_it() -> None:
    async with served() as page:
        for number in range(100):
            page.fleet.node(f"n{number:03d}", site=f"s{number}")
        plain = await page.json("/api/deployments/ns/orders")
        headers = {"Accept-Encoding": "identity"}
        async with page.client.get("/api/fleet", headers=headers) as answer:
            assert "Content-Encoding" not in answer.headers
        async with page.client.get("/api/fleet", headers={"Accept-Encoding": "gzip"}) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            assert len((await answer.json())["sites"]) == 101
        assert len(plain["grid"]["sites"]) == 101


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("path", PATHS)
async def test_anything_but_reading_is_refused(method: str, path: str) -> None:
    async with served() as page, page.client.request(method, path) as answer:
        assert answer.status == 405
        assert answer.headers["Allow"] == "GET"


@pytest.mark.parametrize("path", [*PATHS, "/nothing", "/api/deployments/ns/none"])
async def test_every_answer_tells_the_browser_to_trust_nothing_else(path: str) -> None:
    async with served() as page, page.client.get(path, headers={"Origin": "https://evil.example"}) as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Server"] == "slmops"
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "/api/deployments/ns/none",
        "/api/deployments/NS/orders",
        "/api/deployments/ns/%3Cscript%3E",
        "/static/index.html",
        "/static/none.js",
        "/static/..%2Fserver.py",
        "/static/%2e%2e/server.py",
        "/metrics",
    ],
)
async def test_what_is_not_there_is_not_found(path: str) -> None:
    async with served() as page, page.client.get(path) as answer:
        assert answer.status == 404
        assert "script" not in await answer.text()


async def test_for_port_forwarding_alone_no_other_host_is_answered() -> None:
    async with served(hosts=()) as page:
        for host, status in (
            ("localhost:9", 200),
            ("127.0.0.1", 200),
            ("[::1]:8080", 200),
            ("evil.example", 421),
        ):
            async with page.client.get("/api/fleet", headers={"Host": host}) as answer:
                assert answer.status == status, host
        async with page.client.get("/", headers={"Host": "localhost.evil.example"}) as answer:
            assert answer.status == 421


async def test_behind_a_service_names_may_be_given_that_alone_are_answered() -> None:
    async with served(hosts=("fleet.example.com", "[fd00::1]")) as page:
        for host, status in (
            ("fleet.example.com", 200),
            ("Fleet.Example.com:443", 200),
            ("[fd00::1]:8080", 200),
            ("localhost:8080", 200),
            ("evil.example", 421),
            ("fleet.example.com.evil.example", 421),
            ("10.0.0.7:30080", 421),
        ):
            async with page.client.get("/api/events", headers={"Host": host}) as answer:
                assert answer.status == status, host


async def next_event(stream: aiohttp.ClientResponse) -> dict[str, Any]:
    """The next event of a stream, comments left out."""
    while True:
        line = (await asyncio.wait_for(stream.content.readline(), 5)).decode()
        assert line, "the stream has ended"
        if line.startswith("data: "):
            event: dict[str, Any] = json.loads(line.removeprefix("data: "))
            return event


async def test_a_stream_tells_what_has_changed() -> None:
    async with served() as page, page.client.get("/api/events") as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        assert (await next_event(stream))["deployments"] is None
        page.fleet.deployment(KEY, rolling_status())
        assert (await next_event(stream))["deployments"] == ["ns/orders"]
        page.fleet.node("n1", site="b")
        assert (await next_event(stream))["deployments"] in ([], ["ns/orders"])


async def test_changes_that_come_together_are_one_event() -> None:
    slow = Pace(coalesce_seconds=3600, heartbeat_seconds=3600)
    async with served(pace=slow) as page, page.client.get("/api/events") as stream:
        await next_event(stream)
        for number in range(50):
            page.fleet.deployment(DeploymentKey("ns", f"d{number % 5}"), rolling_status())
        event = await next_event(stream)
        assert sorted(event["deployments"]) == [f"ns/d{number}" for number in range(5)]
        page.fleet.deployment(KEY, rolling_status())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await stream.content.readline()  # the empty line after the event
                await stream.content.readline()


async def test_a_silent_stream_has_a_heartbeat() -> None:
    async with served(pace=Pace(heartbeat_seconds=0.01)) as page, page.client.get("/api/events") as stream:
        await next_event(stream)
        await stream.content.readline()
        assert (await asyncio.wait_for(stream.content.readline(), 5)).startswith(b":")


async def test_streams_are_bounded_and_a_place_that_was_left_is_free_again() -> None:
    async with served(pace=Pace(heartbeat_seconds=0.01)) as page:
        streams = [await page.client.get("/api/events") for _ in range(MAX_STREAMS)]
        async with page.client.get("/api/events") as answer:
            assert answer.status == 503
            assert "Retry-After" in answer.headers
        async with page.client.get("/api/fleet") as answer:
            assert answer.status == 200
        streams.pop().close()
        async with asyncio.timeout(5):
            while True:
                answer = await page.client.get("/api/events")
                streams.append(answer)
                if answer.status == 200:
                    break
        for stream in streams:
            stream.close()


async def test_requests_in_progress_are_bounded() -> None:
    gate = asyncio.Event()
    fleet = KitFleet()
    documents = Documents(rest_factor=0)

    async def wait(*args: Any, **options: Any) -> None:
        await gate.wait()

    documents.get = wait  # type: ignore[method-assign]
    page = Page(fleet.source, fleet.feed, documents=documents)
    connector = aiohttp.TCPConnector(limit=0)
    async with TestClient(TestServer(page.build_app(hosts=(ANY_HOST,))), connector=connector) as client:
        waiting = [asyncio.ensure_future(client.get("/api/deployments/ns/x")) for _ in range(MAX_REQUESTS)]
        async with asyncio.timeout(5):
            while True:
                async with client.get("/") as answer:
                    if answer.status == 503:
                        break
        gate.set()
        answers = await asyncio.gather(*waiting)
        assert {answer.status for answer in answers} == {404}
        async with client.get("/") as answer:
            assert answer.status == 200


async def test_who_stops_waits_for_no_open_page() -> None:
    async with served() as page:
        stream = await page.client.get("/api/events")
        await next_event(stream)
        async with asyncio.timeout(5):
            await page.client.server.close()
            while await stream.content.readline():
                pass  # what was on its way; then the end


async def test_a_port_that_is_taken_is_said() -> None:
    async with served() as page:
        port = page.client.server.port
        assert port is not None
        other = Page(page.fleet.source, page.fleet.feed)
        with pytest.raises(PortTaken, match="address already in use"):
            await start_server(other, host="127.0.0.1", port=port)


async def test_a_deployment_that_is_gone_is_not_shown_from_memory() -> None:
    async with served() as page:
        await page.json("/api/deployments/ns/orders")
        page.fleet.world.forget_deployment(KEY)
        async with page.client.get("/api/deployments/ns/orders") as answer:
            assert answer.status == 404


async def test_what_nobody_foresaw_tells_no_more_than_that_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served() as page:

        def stumble() -> Callable[[], bytes]:
            raise RuntimeError("secret")

        page.source.take_overview = stumble  # type: ignore[method-assign]
        async with page.client.get("/api/fleet") as answer:
            assert answer.status == 500
            assert "secret" not in await answer.text()
            assert answer.headers["Server"] == "slmops"
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "secret" in caplog.text


async def test_a_proxy_keeps_for_nobody_what_it_let_one_user_see() -> None:
    async with served() as page, page.client.get("/api/fleet") as answer:
        assert answer.headers["Cache-Control"] == "private, no-cache"


async def test_documents_kept_are_bounded() -> None:
    documents = Documents(rest_factor=0)
    made: list[str] = []

    async def get(name: str) -> None:
        def take() -> Callable[[], bytes]:
            made.append(name)
            return lambda: b"{}"

        await documents.get(name, version=lambda: 1, take=take)

    for number in range(MAX_DOCUMENTS + 1):
        await get(str(number))
    await get("1")
    await get("0")
    assert made[-2:] == [str(MAX_DOCUMENTS), "0"], "the one that was asked for least lately is forgotten"


async def test_an_unknown_deployment_is_not_kept() -> None:
    documents = Documents(rest_factor=0)
    assert await documents.get("x", version=lambda: 0, take=lambda: None) is None
    made = await documents.get("x", version=lambda: 0, take=lambda: lambda: b"{}")
    assert made is not None and made.body == b"{}"


def test_an_event_with_many_names_says_that_anything_may_have_changed() -> None:
    keys = tuple(DeploymentKey("ns", f"d{number}") for number in range(MAX_KEYS + 1))
    assert b'"deployments":null' in build_event(7, keys)
    assert b'"deployments":["ns/d0"]' in build_event(7, keys[:1])
    assert b'"deployments":[]' in build_event(7, ())


def test_the_files_are_whole_and_need_no_other_host() -> None:
    assets = {name: body.decode() for name, body in load_assets().items()}
    page = assets["index.html"]
    asked = set(re.findall(r'(?:src|href)="static/([^"]+)"', page))
    for name, text in assets.items():
        if name.endswith(".js"):
            asked |= set(re.findall(r'from "\./([^"]+)"', text))
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text
            )
    assert asked | {"index.html"} == set(assets)
    assert "<script>" not in page and " style=" not in page and " on" not in re.sub(r">[^<]*<", "><", page)
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", "".join(assets.values())))
    assert addresses == {"http://www.w3.org/2000/svg"}


def test_the_files_are_small() -> None:
    assert sum(map(len, load_assets().values())) < 80_000
