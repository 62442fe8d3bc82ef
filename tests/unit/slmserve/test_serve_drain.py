# SPDX-License-Identifier: Apache-2.0
"""The phases of a drain, seen through the application in one process."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from slmserve.app import build_app
from slmserve.config import parse_config
from slmserve.service import Phase, Service

_ASK = {"model": "m", "prompt": [5, 6, 7], "max_tokens": 3}


@pytest.fixture
async def service(orders_dir: Path) -> AsyncIterator[Service]:
    flags = ["--model-dir", str(orders_dir), "--model", "m", "--evaluate", "false", "--drain-seconds", "20"]
    service = Service(parse_config(flags, {}))
    await service.start_up()
    yield service
    if service.phase is not Phase.STOPPED:
        service.scheduler.close()


def _client(service: Service) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(build_app(service)), base_url="http://server")


async def test_late_requests_are_served_for_a_moment_and_then_refused(service: Service) -> None:
    async with _client(service) as client:
        assert (await client.get("/readyz")).status_code == 200
        # Something is in flight all the time, so the drain lasts until its limit.
        service.begin_request()
        drain = asyncio.create_task(service.drain())
        await asyncio.sleep(0)
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.post("/v1/completions", json=_ASK)).status_code == 200
        await asyncio.sleep(1.2)
        late = await client.post("/v1/completions", json=_ASK)
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "service_unavailable"
        assert int(late.headers["retry-after"]) >= 1
        assert service.phase.value == "draining"
        assert (await client.get("/healthz")).status_code == 200
        service.end_request()
        await drain
        assert service.phase.value == "stopped"
        assert (await client.get("/readyz")).json() == {"status": "stopped"}


async def test_a_drain_without_requests_is_short(service: Service) -> None:
    started = asyncio.get_running_loop().time()
    await service.drain()
    assert 0.9 < asyncio.get_running_loop().time() - started < 10
    with pytest.raises(Exception, match="service_unavailable"):
        service.refuse_when_ending()
