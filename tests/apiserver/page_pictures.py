# SPDX-License-Identifier: Apache-2.0
"""Takes the pictures of docs/fleet-page.md: `make pictures`. A real operator rolls out on KWOK's nodes, and
what the metrics say is made up here."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal

from playwright.async_api import Browser, FloatRect, Page, expect

from slmops.adapters.resources import DEPLOYMENTS
from slmops.model.observed import Preset
from tests.apiserver.conftest import MakeCluster
from tests.apiserver.harness import NAME, Cluster, deployment, until
from tests.apiserver.test_page import browser, opened

IMAGES: Final = Path(__file__).parents[2] / "docs" / "images"
SITES: Final = ("berlin", "bremen", "dresden", "erfurt", "essen", "halle", "kiel", "leipzig", "mainz", "ulm")
PER_SITE: Final = 4
WIDTH: Final = 1280
SITE_LABEL: Final = "topology.kubernetes.io/zone"
MEASUREMENTS: Final = 24
PATIENCE_SECONDS: Final = 240.0
METRICS: Final = [
    {"name": "errors", "preset": "ErrorRate", "max": "0.05", "maxDegradation": "0.02", "test": "Threshold"},
    {"name": "latency", "preset": "LatencyP95", "maxDegradation": "25%", "test": "Threshold"},
    {"name": "quality", "preset": "EvaluationScore", "min": "0.85", "maxDegradation": "0.03"},
]
WAVES: Final = [
    {"name": "pilot", "count": 4},
    {"name": "half", "percent": 50},
    {"name": "all", "percent": 100},
]

__all__ = ["browser"]


@asynccontextmanager
async def traffic(cluster: Cluster, canary: str) -> AsyncIterator[None]:
    """Values that move a little, as those of a live fleet do, for both revisions."""

    async def move() -> None:
        stable = (await cluster.status())["stableRevision"]
        for step in range(10_000):
            for revision, by in ((stable, 0.0), (canary, 1.7)):
                wave = math.sin(step / 5 + by) + 0.6 * math.sin(step / 1.7 + 2 * by)
                cluster.provider.script(Preset.ERROR_RATE, revision, 0.012 + 0.004 * wave - 0.003 * bool(by))
                cluster.provider.script(Preset.LATENCY_P95, revision, 0.82 + 0.05 * wave - 0.11 * bool(by))
                score = 0.93 + 0.006 * wave + 0.012 * bool(by)
                cluster.provider.script(Preset.EVALUATION_SCORE, revision, score)
            await asyncio.sleep(0.5)

    task = asyncio.create_task(move())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def apply(cluster: Cluster, name: str, version: str, **rollout: Any) -> None:
    body = deployment(cluster.namespace, version, **rollout)
    body["metadata"]["name"] = name
    await cluster.kube.apply(DEPLOYMENTS, namespace=cluster.namespace, body=body)


async def until_promoted(cluster: Cluster, name: str) -> None:
    async def promoted() -> bool:
        body = await cluster.kube.get(DEPLOYMENTS, namespace=cluster.namespace, name=name)
        status = body.get("status") or {}
        return bool(status.get("stableRevision")) and status["rollout"]["step"] == "Completed"

    await until(f"{name} being promoted", promoted, seconds=PATIENCE_SECONDS)


async def test_retail(make_cluster: MakeCluster, browser: Browser) -> None:
    async with make_cluster("", nodes="") as cluster:
        await _take_pictures(cluster, browser)


async def _take_pictures(cluster: Cluster, browser: Browser) -> None:
    names = [(site, number) for site in SITES for number in range(PER_SITE)]
    nodes = await asyncio.gather(
        *(cluster.add_node(f"{site}-{n}", **{SITE_LABEL: site}) for site, n in names)
    )
    cluster.resolver.failing["https://models.example/v9/m.json"] = (
        "models.example answers 503; it is tried again"
    )
    async with opened(cluster, browser, device_scale_factor=1) as (watched, _):
        await apply(cluster, "triage", "v1")
        await apply(cluster, "notes", "v1")
        await apply(cluster, NAME, "v1")
        for name in ("triage", "notes", NAME):
            await until_promoted(cluster, name)
        await apply(cluster, "intake", "v9")
        await apply(
            cluster, "notes", "v2", waves=[{"name": "pilot", "count": 4, "approval": "Manual"}, WAVES[-1]]
        )
        await cluster.node_offline(nodes[5])
        passes = MEASUREMENTS // 2
        await cluster.apply(
            "v2", waves=WAVES, analysis={"interval": "1s", "passes": passes, "metrics": METRICS}
        )
        await until("a rollout", lambda: _moves(cluster), seconds=PATIENCE_SECONDS)
        async with traffic(cluster, (await cluster.status())["updateRevision"]):
            page = watched.page
            page.set_default_timeout(PATIENCE_SECONDS * 1000)
            await page.goto(f"{watched.address}#/{cluster.namespace}/{NAME}")
            await page.wait_for_function(
                "() => document.querySelector('.step.current')?.innerText.includes('half')"
                " && document.querySelector('.line.canary').getAttribute('d').split('L').length > "
                + str(passes + 6)
            )
            await _take(page, "rollout", until_after='section[aria-label="Nodes by site"]')
            await page.goto(watched.address)
            await expect(page.locator("tbody tr")).to_have_count(4)
            await _take(page, "overview", until_after='section[aria-label="Sites"]')
    assert (watched.complaints, watched.foreign) == ([], [])


async def _take(page: Page, name: str, *, until_after: str) -> None:
    """Pictures in both colour schemes, down to the end of an element."""
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for scheme in schemes:
        await page.emulate_media(color_scheme=scheme)
        box = await page.locator(until_after).bounding_box()
        assert box is not None
        clip: FloatRect = {"x": 0, "y": 0, "width": WIDTH, "height": box["y"] + box["height"] + 14}
        await page.screenshot(path=IMAGES / f"fleet-page-{name}-{scheme}.png", full_page=True, clip=clip)


async def _moves(cluster: Cluster) -> bool:
    status = await cluster.status()
    return bool(status["updateRevision"]) and status["updateRevision"] != status["stableRevision"]
