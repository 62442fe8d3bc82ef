# SPDX-License-Identifier: Apache-2.0
"""The generated PromQL on a real Prometheus that scrapes series as the inference server exports them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from e2e.rig.control_plane import free_ports
from e2e.rig.tools import tool
from slmops.adapters.prometheus import PrometheusProvider
from slmops.model.observed import MetricQuery, Preset, Sample
from slmops.ports.metrics import ProviderError
from slmwire import metrics
from tests.apiserver.harness import until


class Pod:
    """Metrics of one inference pod."""

    def __init__(self, *, revision: str, node: str, score: float | None) -> None:
        self.registry = CollectorRegistry()
        self._labels = {
            metrics.LABEL_NAMESPACE: "default",
            metrics.LABEL_DEPLOYMENT: 'or"ders\\',
            metrics.LABEL_REVISION: revision,
            metrics.LABEL_VARIANT: "int4",
            metrics.LABEL_MODEL: "orders",
            metrics.LABEL_NODE: node,
        }
        names = list(self._labels)
        self.requests = Counter(
            metrics.REQUESTS.removesuffix("_total"), "", [*names, "endpoint", "code"], registry=self.registry
        )
        self.seconds = Histogram(
            metrics.REQUEST_SECONDS,
            "",
            [*names, "endpoint"],
            buckets=(0.1, 0.5, 1, 5),
            registry=self.registry,
        )
        self.ttft = Histogram(metrics.TTFT_SECONDS, "", names, buckets=(0.1, 0.5, 1), registry=self.registry)
        self.answer("200", seconds=0.2, count=0)
        if score is not None:
            Gauge(metrics.EVALUATION_SCORE, "", names, registry=self.registry).labels(**self._labels).set(
                score
            )
            Gauge(metrics.EVALUATION_SAMPLES, "", names, registry=self.registry).labels(**self._labels).set(
                40
            )

    def answer(self, code: str, *, seconds: float, count: int) -> None:
        """`count` requests end with `code` after `seconds`."""
        self.requests.labels(**self._labels, endpoint="chat", code=code).inc(count)
        histogram = self.seconds.labels(**self._labels, endpoint="chat")
        ttft = self.ttft.labels(**self._labels)
        for _ in range(count):
            histogram.observe(seconds)
            ttft.observe(seconds / 2)


def _query(preset: Preset, revision: str) -> MetricQuery:
    return MetricQuery(
        preset=preset, namespace="default", deployment='or"ders\\', revision=revision, window_seconds=30
    )


@pytest.fixture
async def pods(tmp_path: Path) -> AsyncIterator[tuple[dict[str, Pod], str]]:
    """Two pods of revision `good` and one of `bad`, and the URL of a Prometheus that scrapes them."""
    pods = {
        "a": Pod(revision="good", node="a", score=1.0),
        "b": Pod(revision="good", node="b", score=0.9),
        "c": Pod(revision="bad", node="c", score=None),
    }

    async def expose(request: web.Request) -> web.Response:
        text = generate_latest(pods[request.match_info["pod"]].registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/{pod}", expose)
    runner = web.AppRunner(app)
    await runner.setup()
    target, port = free_ports(2)
    await web.TCPSite(runner, "127.0.0.1", target).start()
    jobs = [
        {
            "job_name": pod,
            "metrics_path": f"/{pod}",
            "static_configs": [{"targets": [f"127.0.0.1:{target}"]}],
        }
        for pod in pods
    ]
    config = tmp_path / "prometheus.yml"
    scrape = {"scrape_interval": "1s", "scrape_timeout": "1s"}
    config.write_text(json.dumps({"global": scrape, "scrape_configs": jobs}))
    process = await asyncio.create_subprocess_exec(
        tool("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )
    try:
        yield pods, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()
        await runner.cleanup()


async def test_every_preset_on_a_real_prometheus(pods: tuple[dict[str, Pod], str]) -> None:
    by_name, url = pods
    provider = PrometheusProvider(url)

    async def scraped(count: int) -> None:
        async def enough() -> bool:
            with suppress(ProviderError):
                return (await provider.read(_query(Preset.EVALUATION_SCORE, "good"))).samples >= count
            return False

        await until("Prometheus scraping", enough)

    await scraped(80)
    # No request yet: no data, not zero errors.
    for preset in (Preset.ERROR_RATE, Preset.LATENCY_P95, Preset.TTFT_P95):
        assert await provider.read(_query(preset, "good")) == Sample(value=None, samples=0)
    await asyncio.sleep(2)
    for pod in "ab":
        by_name[pod].answer("200", seconds=0.2, count=100)
    by_name["c"].answer("200", seconds=2.0, count=60)
    for code, count in (("500", 0), ("400", 0), ("499", 0)):
        by_name["c"].answer(code, seconds=0.2, count=count)
    await asyncio.sleep(2)
    for code, count in (("500", 20), ("400", 500), ("499", 500)):
        by_name["c"].answer(code, seconds=2.0, count=count)
    await asyncio.sleep(4)

    good = {preset: await provider.read(_query(preset, "good")) for preset in Preset}
    bad = {preset: await provider.read(_query(preset, "bad")) for preset in Preset}
    missing = {preset: await provider.read(_query(preset, "other")) for preset in Preset}
    await provider.close()

    # No 5xx series at all, but requests: zero, and known to be zero.
    assert good[Preset.ERROR_RATE].value == 0.0
    assert good[Preset.ERROR_RATE].samples >= 150
    share = bad[Preset.ERROR_RATE].value
    assert share is not None
    assert 0.15 < share < 0.4, "20 of 80, what clients did wrong not counted"
    assert 60 <= bad[Preset.ERROR_RATE].samples <= 160
    fast, slow = good[Preset.LATENCY_P95].value, bad[Preset.LATENCY_P95].value
    assert fast is not None and slow is not None
    assert 0.1 < fast <= 0.5
    assert 1 < slow <= 5
    first, late = good[Preset.TTFT_P95].value, bad[Preset.TTFT_P95].value
    assert first is not None and late is not None and first < late
    assert good[Preset.EVALUATION_SCORE].value == pytest.approx(0.95)
    assert good[Preset.EVALUATION_SCORE].samples == 80
    assert bad[Preset.EVALUATION_SCORE] == Sample(value=None, samples=0)
    assert all(sample == Sample(value=None, samples=0) for sample in missing.values())
