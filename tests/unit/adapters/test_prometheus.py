# SPDX-License-Identifier: Apache-2.0
"""The provider against a server that answers as scripted: every odd answer is no data or an error."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from slmops.adapters.prometheus import NoProvider, PrometheusProvider
from slmops.model.observed import MetricQuery, Preset, Sample
from slmops.ports.metrics import ProviderError

Answer = Callable[[str], web.StreamResponse]
LATENCY = MetricQuery(
    preset=Preset.LATENCY_P95, namespace="ns", deployment="d", revision="r", window_seconds=60
)
ERRORS = MetricQuery(
    preset=Preset.ERROR_RATE, namespace="ns", deployment="d", revision="r", window_seconds=60
)
EMPTY = Sample(value=None, samples=0)


def vector(*values: str) -> Callable[[], web.Response]:
    """Makes successful answers with one series per value."""
    result = [{"metric": {"n": str(i)}, "value": [1700000000, v]} for i, v in enumerate(values)]
    body = {"status": "success", "data": {"resultType": "vector", "result": result}}
    return lambda: web.json_response(body)


@asynccontextmanager
async def prometheus(answer: Answer, **options: Any) -> AsyncIterator[PrometheusProvider]:
    """A provider whose server answers each query by `answer(promql)`."""

    async def handle(request: web.Request) -> web.StreamResponse:
        promql = str((await request.post())["query"])
        if promql == "hang":
            await asyncio.sleep(60)
        return answer(promql)

    app = web.Application()
    app.router.add_post("/prefix/api/v1/query", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    provider = PrometheusProvider(f"http://127.0.0.1:{port}/prefix/", **options)
    try:
        yield provider
    finally:
        await provider.close()
        await runner.cleanup()


def _split(value: Callable[[], web.Response], samples: Callable[[], web.Response]) -> Answer:
    return lambda promql: samples() if "_count" in promql or '!~"4.."' in promql else value()


async def test_value_and_samples() -> None:
    async with prometheus(_split(vector("0.25"), vector("119.6"))) as provider:
        assert await provider.read(LATENCY) == Sample(value=0.25, samples=119)


async def test_error_rate_without_error_series_is_zero() -> None:
    async with prometheus(_split(vector(), vector("200"))) as provider:
        assert await provider.read(ERRORS) == Sample(value=0.0, samples=200)
    async with prometheus(_split(vector("20"), vector("200"))) as provider:
        assert await provider.read(ERRORS) == Sample(value=0.1, samples=200)


@pytest.mark.parametrize("values", [(), ("NaN",), ("+Inf",), ("0",), ("1", "2")])
async def test_no_evidence_is_no_data(values: tuple[str, ...]) -> None:
    async with prometheus(_split(vector("0.5"), vector(*values))) as provider:
        assert await provider.read(LATENCY) == EMPTY
        assert await provider.read(ERRORS) == EMPTY


@pytest.mark.parametrize("values", [(), ("NaN",), ("+Inf",), ("-Inf",), ("1", "2")])
async def test_no_single_finite_value_is_no_data(values: tuple[str, ...]) -> None:
    async with prometheus(_split(vector(*values), vector("500"))) as provider:
        assert await provider.read(LATENCY) == EMPTY


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (lambda: web.json_response({"status": "error", "errorType": "execution", "error": "too many"},
                                   status=422), "execution: too many"),
        (lambda: web.Response(status=503, text="<html>down</html>"), "HTTP 503 without JSON"),
        (lambda: web.json_response([1]), "malformed JSON"),
        (lambda: web.json_response({"status": "success"}), "malformed answer"),
        (lambda: web.json_response({"status": "success", "data": {"resultType": "matrix", "result": []}}),
         "got matrix"),
        (lambda: web.json_response({"status": "success", "data": {"resultType": "vector",
                                                                  "result": [{"value": [1, "x"]}]}}),
         "malformed answer"),
        (lambda: web.Response(body=b"x" * (2 << 20)), "too long"),
    ],
)  # fmt: skip
async def test_anything_else_is_an_error_of_the_provider(
    response: Callable[[], web.Response], words: str
) -> None:
    async with prometheus(lambda _: response()) as provider:
        with pytest.raises(ProviderError, match=words):
            await provider.read(LATENCY)


async def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmops.adapters.promql._quantile", _hanging)
    async with prometheus(lambda _: vector("1")(), timeout_seconds=0.2) as provider:
        started = asyncio.get_running_loop().time()
        with pytest.raises(ProviderError, match=r"no answer within 0\.2 s"):
            await provider.read(LATENCY)
        assert asyncio.get_running_loop().time() - started < 2


def _hanging(*_: object) -> object:
    from slmops.adapters.promql import Questions

    return Questions(value="hang", samples="hang")


async def test_unreachable_and_unconfigured_are_errors_that_say_so() -> None:
    provider = PrometheusProvider("http://127.0.0.1:1")
    with pytest.raises(ProviderError, match="cannot be reached"):
        await provider.read(LATENCY)
    await provider.close()
    with pytest.raises(ProviderError, match=r"set prometheus\.url"):
        await NoProvider().read(LATENCY)


async def test_warnings_do_not_matter() -> None:
    def answer(promql: str) -> web.Response:
        body = {
            "status": "success",
            "warnings": ["partial response"],
            "data": {"resultType": "vector", "result": [{"metric": {}, "value": [1, "3"]}]},
        }
        return web.json_response(body)

    async with prometheus(answer) as provider:
        assert await provider.read(LATENCY) == Sample(value=3.0, samples=3)
