# SPDX-License-Identifier: Apache-2.0
"""The generated PromQL on a real Prometheus that scrapes series as the inference server exports them."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest
from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    generate_latest,
)

from e2e.rig.control_plane import free_ports
from e2e.rig.tools import tool
from slmops.adapters.credentials import SecretCredentials
from slmops.adapters.prometheus import OwnPrometheus, PrometheusProvider
from slmops.model.observed import MetricQuery, Preset, ProviderSettings, Sample, Samples
from slmops.ports.metrics import ProviderError
from slmwire import metrics
from tests.apiserver.harness import until

WINDOW_SECONDS = 120
"""Longer than the test: what happened in it counts however slow the machine is."""


class Pod:
    """Metrics of one inference pod."""

    def __init__(self, *, revision: str, node: str, score: float | None, variant: str = "int4") -> None:
        self.registry = CollectorRegistry()
        self._labels = {
            metrics.LABEL_NAMESPACE: "default",
            metrics.LABEL_DEPLOYMENT: 'or"ders\\',
            metrics.LABEL_REVISION: revision,
            metrics.LABEL_VARIANT: variant,
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
        self.tokens = Counter(
            metrics.GENERATED_TOKENS.removesuffix("_total"), "", names, registry=self.registry
        )
        self.judged = Summary(metrics.FEEDBACK_SCORE, "", names, registry=self.registry)
        self.judged.labels(**self._labels)
        self.checks = Counter(
            metrics.REFUSAL_CHECKS.removesuffix("_total"), "", [*names, "refused"], registry=self.registry
        )
        for refused in ("true", "false"):
            self.checks.labels(**self._labels, refused=refused)
        self.drift = Gauge(metrics.DRIFT, "", [*names, "signal"], registry=self.registry)
        self.drift_samples = Gauge(metrics.DRIFT_SAMPLES, "", [*names, "signal"], registry=self.registry)
        self.answer("200", seconds=0.2, count=0)
        if score is not None:
            Gauge(metrics.EVALUATION_SCORE, "", names, registry=self.registry).labels(**self._labels).set(
                score
            )
            Gauge(metrics.EVALUATION_SAMPLES, "", names, registry=self.registry).labels(**self._labels).set(
                40
            )

    def look_back(self, *, scores: list[float], refusals: int, drift: float) -> None:
        """Judgements, refusals among a hundred answers, and how far the scripts have drifted."""
        for score in scores:
            self.judged.labels(**self._labels).observe(score)
        self.checks.labels(**self._labels, refused="true").inc(refusals)
        self.checks.labels(**self._labels, refused="false").inc(100 - refusals)
        self.drift.labels(**self._labels, signal="script").set(drift)
        self.drift_samples.labels(**self._labels, signal="script").set(200)

    def answer(self, code: str, *, seconds: float, count: int) -> None:
        """`count` requests end with `code` after `seconds`."""
        self.requests.labels(**self._labels, endpoint="chat", code=code).inc(count)
        histogram = self.seconds.labels(**self._labels, endpoint="chat")
        ttft = self.ttft.labels(**self._labels)
        self.tokens.labels(**self._labels).inc(10 * count)
        for _ in range(count):
            histogram.observe(seconds)
            ttft.observe(seconds / 2)


def _query(preset: Preset, revision: str) -> MetricQuery:
    return MetricQuery(
        preset=preset,
        namespace="default",
        deployment='or"ders\\',
        revision=revision,
        window_seconds=WINDOW_SECONDS,
    )


@pytest.fixture
async def pods(tmp_path: Path) -> AsyncIterator[tuple[dict[str, Pod], str]]:
    """Three pods of revision `good` in two variants and one of `bad`, and the URL of their Prometheus."""
    pods = {
        "a": Pod(revision="good", node="a", score=1.0),
        "b": Pod(revision="good", node="b", score=0.9),
        "c": Pod(revision="bad", node="c", score=None),
        "d": Pod(revision="good", node="d", score=0.5, variant="fp32"),
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


MEASURED = [preset for preset in Preset if preset not in (Preset.RESTARTS, Preset.OOM_KILLS)]


async def test_every_preset_on_a_real_prometheus(pods: tuple[dict[str, Pod], str]) -> None:
    by_name, url = pods
    nobody = cast(SecretCredentials, None)  # no deployment here names a Secret
    provider = PrometheusProvider(own=OwnPrometheus(url=url), allowed_urls=(), secrets=nobody)

    async def read(preset: Preset, revision: str) -> Samples:
        return await provider.read(_query(preset, revision), ProviderSettings())

    async def read_promql(text: str, samples: str = "") -> Samples:
        query = MetricQuery(
            promql=text,
            samples_promql=samples,
            namespace="default",
            deployment="d",
            revision="r",
            window_seconds=WINDOW_SECONDS,
        )
        return await provider.read(query, ProviderSettings())

    async def all_scraped() -> bool:
        with suppress(ProviderError):
            found = await read(Preset.EVALUATION_SCORE, "good")
            up = await read_promql("sum(up)")
            return sum(sample.samples for sample in found.values()) == 120 and up[""].value == 4
        return False

    async def answered(code: str, count: int) -> bool:
        found = await read_promql(f'sum({metrics.REQUESTS}{{code="{code}"}})')
        return bool(found) and found[""].value == count

    await until("Prometheus scraping", all_scraped)
    # No request yet: no data, not zero errors.
    for preset in (
        *(Preset.ERROR_RATE, Preset.LATENCY_P95, Preset.TTFT_P95, Preset.TOKENS_PER_SECOND),
        *(Preset.FEEDBACK_SCORE, Preset.REFUSAL_RATE, Preset.DRIFT),
    ):
        assert await read(preset, "good") == {}
    for pod in "abd":
        by_name[pod].answer("200", seconds=0.2, count=100)
        by_name[pod].look_back(scores=[1.0, 0.5] * 20, refusals=10, drift=0.1 if pod == "a" else 0.3)
    by_name["c"].answer("200", seconds=2.0, count=60)
    for code, count in (("500", 0), ("400", 0), ("499", 0)):
        by_name["c"].answer(code, seconds=0.2, count=count)
    await until("Prometheus knowing of codes that have not been answered yet", lambda: answered("499", 0))
    for code, count in (("500", 20), ("400", 500), ("499", 500)):
        by_name["c"].answer(code, seconds=2.0, count=count)
    await until("Prometheus knowing of all wrong answers", lambda: answered("499", 500))
    await until("Prometheus knowing of all good answers", lambda: answered("200", 3 * 100 + 60))

    async def scraped_often() -> bool:
        # The fewer samples there are, the more PromQL adds for what lies before the first and after the last.
        found = await read_promql(f"min(count_over_time(up[{WINDOW_SECONDS}s]))")
        return bool(found) and (found[""].value or 0) >= 8

    await until("eight samples of each", scraped_often)
    good = {preset: await read(preset, "good") for preset in MEASURED}
    bad = {preset: await read(preset, "bad") for preset in MEASURED}
    missing = {preset: await read(preset, "other") for preset in MEASURED}
    one = await read_promql("scalar(sum(up))", "count(up)")
    several, nothing = await read_promql("up"), await read_promql("up > 1")
    with pytest.raises(ProviderError, match=r"bad_data: .*parse error"):
        await read_promql("sum(")
    await provider.close()

    assert all(set(samples) == {"int4", "fp32"} for samples in good.values())
    # No 5xx at all, but requests: zero, and known to be zero.
    errors = good[Preset.ERROR_RATE]
    assert (errors["int4"].value, errors["int4"].events) == (0.0, 0.0)
    assert errors["int4"].samples >= 150
    assert 75 <= errors["fp32"].samples <= 150
    wrong = bad[Preset.ERROR_RATE]["int4"]
    assert wrong.value is not None
    assert 0.15 < wrong.value < 0.4, "20 of 80, what clients did wrong not counted"
    assert 60 <= wrong.samples <= 160
    assert wrong.events == pytest.approx(wrong.value * wrong.samples)
    fast, slow = good[Preset.LATENCY_P95]["int4"], bad[Preset.LATENCY_P95]["int4"]
    assert fast.value is not None and slow.value is not None
    assert 0.1 < fast.value <= 0.5
    assert 1 < slow.value <= 5
    assert [bound for bound, _ in fast.buckets] == [0.1, 0.5, 1, 5, math.inf]
    counts = [count for _, count in fast.buckets]
    assert counts[0] == 0 and counts[1] == counts[-1] == fast.samples >= 150
    first, late = good[Preset.TTFT_P95]["int4"].value, bad[Preset.TTFT_P95]["int4"].value
    assert first is not None and late is not None and first < late
    # Ten tokens in 0.2 s each.
    speed = good[Preset.TOKENS_PER_SECOND]["int4"]
    assert speed.value == pytest.approx(50)
    assert speed.samples >= 150
    assert good[Preset.EVALUATION_SCORE]["int4"].value == pytest.approx(0.95)
    assert good[Preset.EVALUATION_SCORE]["int4"].samples == 80
    assert good[Preset.EVALUATION_SCORE]["fp32"] == Sample(value=0.5, samples=40)
    assert bad[Preset.EVALUATION_SCORE] == {}
    score, refusals = good[Preset.FEEDBACK_SCORE], good[Preset.REFUSAL_RATE]
    assert score["int4"].value == pytest.approx(0.75, rel=0.05) and score["int4"].samples >= 60
    assert refusals["fp32"].value == pytest.approx(0.1, rel=0.05) and refusals["int4"].samples >= 150
    assert good[Preset.DRIFT]["int4"].value == pytest.approx(0.2)
    assert good[Preset.DRIFT]["int4"].samples == 400
    assert bad[Preset.FEEDBACK_SCORE] == bad[Preset.REFUSAL_RATE] == bad[Preset.DRIFT] == {}
    assert all(samples == {} for samples in missing.values())
    assert one == {"": Sample(value=4.0, samples=4)}
    assert several == nothing == {}
