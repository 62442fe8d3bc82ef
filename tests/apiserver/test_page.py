# SPDX-License-Identifier: Apache-2.0
"""The fleet page in a real browser: Chromium opens what an operator serves that looks after KWOK's nodes."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from e2e.rig.control_plane import free_ports
from slmops.model.config import OperatorConfig
from slmops.model.observed import Preset
from slmops.page.feed import Feed
from slmops.page.server import Page as FleetPage
from slmops.page.server import start_server
from slmops.page.source import WorldSource
from tests.apiserver.harness import NAME, Cluster, Running, analysis, step_of

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
PATIENCE_MS = 120_000


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium."""
    path = shutil.which("chromium")
    assert path, "there is no chromium; install it with: python -m e2e.rig packages"
    async with async_playwright() as driver:
        # As root in a container it has no sandbox to make; it opens nothing but the page.
        opened = await driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        await opened.close()


class Watched:
    """An open page, with what its browser complained of and whom it asked."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._asked(request.url))

    def _asked(self, url: str) -> None:
        if not url.startswith(self.address):
            self.foreign.append(url)


@asynccontextmanager
async def opened(
    cluster: Cluster, browser: Browser, **options: Any
) -> AsyncIterator[tuple[Watched, Running]]:
    """An operator with its fleet page, and the page open in the browser."""
    feed = Feed()
    async with cluster.operator(onlooker=feed) as running:
        operator = running.operator
        config = OperatorConfig(runtime_image="registry.example/runtime:1")
        source = WorldSource(operator.world, feed, config=config, leads=operator.guard.held)
        (port,) = free_ports(1)
        server = await start_server(FleetPage(source, feed), host="127.0.0.1", port=port)
        context = await browser.new_context(viewport={"width": 1280, "height": 860}, **options)
        context.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        watched = Watched(await context.new_page(), f"http://127.0.0.1:{port}/")
        try:
            yield watched, running
        finally:
            await context.close()
            await server.cleanup()


async def test_a_rollout_is_followed_without_a_reload(cluster: Cluster, browser: Browser) -> None:
    async with opened(cluster, browser) as (watched, _):
        page = watched.page
        await page.goto(watched.address)
        await expect(page.locator("#live")).to_have_text("live")
        await page.evaluate("window.untouched = true")
        await cluster.apply("v1")
        row = page.locator(f'tr[data-key="{cluster.namespace}/{NAME}"]')
        await expect(row).to_contain_text("Healthy")
        await expect(row).to_contain_text("4 / 4")
        first = (await cluster.status())["stableRevision"]

        await row.locator("a").click()
        await expect(page.locator("h1")).to_have_text(NAME)
        await expect(page.locator(".legend")).to_contain_text("Stable 4")
        await cluster.apply(
            "v2",
            waves=[{"name": "pilot", "count": 1}, {"name": "rest", "percent": 100, "approval": "Manual"}],
        )
        await expect(page.locator(".step.done")).to_contain_text("pilot")
        await expect(page.locator(".title .pill")).to_have_text("Held")
        await expect(page.locator(".step.current")).to_contain_text("awaits approval")
        await expect(page.locator(".legend")).to_contain_text("Canary 1")
        await expect(page.locator(".plot strong")).to_have_text(["errors", "quality"])
        await expect(page.locator(".log code").first).to_have_text("AwaitingApproval")
        await cluster.annotate(promote=f"{(await cluster.status())['updateRevision']}/rest")
        second = await cluster.until_promoted("v2")
        await expect(page.locator(".step.done")).to_have_count(2)
        await expect(page.locator(".facts")).to_contain_text(second)
        await expect(page.locator(".facts")).not_to_contain_text(first)
        await expect(page.locator(".title .pill")).to_have_text("Healthy")
        assert await page.evaluate("window.untouched"), "it was loaded anew"
        assert (watched.complaints, watched.foreign) == ([], [])


async def test_what_others_wrote_is_shown_as_text(cluster: Cluster, browser: Browser) -> None:
    cluster.resolver.failing["https://models.example/bad/m.json"] = HOSTILE
    async with opened(cluster, browser) as (watched, _):
        page = watched.page
        await page.goto(watched.address)
        await cluster.apply("bad")
        row = page.locator(f'tr[data-key="{cluster.namespace}/{NAME}"]')
        await expect(row.locator(".message")).to_contain_text(HOSTILE)
        await row.locator("a").click()
        await expect(page.locator(".lead")).to_contain_text(HOSTILE)
        assert await page.locator("main img, main script").count() == 0
        assert "owned" not in await page.title()
        assert (watched.complaints, watched.foreign) == ([], [])


async def test_it_is_used_with_the_keyboard_and_on_a_phone(cluster: Cluster, browser: Browser) -> None:
    async with opened(cluster, browser) as (watched, _):
        page = watched.page
        await page.set_viewport_size({"width": 390, "height": 800})
        await page.goto(f"{watched.address}#/{cluster.namespace}/{NAME}")
        await expect(page.locator(".empty")).to_contain_text(NAME)
        await cluster.apply("v1")
        await expect(page.locator("h1")).to_have_text(NAME)
        # The browser complains of each answer of 404, and the page asked more than once by now.
        assert all("404" in complaint for complaint in watched.complaints)
        watched.complaints.clear()
        await cluster.until_promoted("v1")
        cluster.provider.script(Preset.ERROR_RATE, (await cluster.status())["stableRevision"], 0.01)
        # So many passes that it goes on under the eyes of whoever looks.
        await cluster.apply("v2", analysis=analysis(passes=100))
        await cluster.until_status(
            "a measurement", lambda s: bool((s.get("rollout") or {}).get("measurements"))
        )
        await page.locator(".skip").focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("main")).to_be_focused()
        await expect(page.locator("h1")).to_have_text(NAME)
        site = page.locator("[data-site]").first
        await site.focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("#site-nodes tbody tr")).to_have_count(4)
        await expect(site).to_have_attribute("aria-pressed", "true")
        plot = page.locator("[data-plot]").first
        await plot.focus()
        await page.keyboard.press("ArrowLeft")
        await expect(plot).to_be_focused()
        label = await plot.get_attribute("aria-label")
        assert label is not None and label.startswith("errors on int4: canary ")
        width = await page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, "the page is wider than the screen"
        await cluster.apply("v2")
        await cluster.until_status(
            "the end", lambda s: step_of(s) == "Completed" and s["modelVersion"] == "v2"
        )
        await page.keyboard.press("Escape")
        assert (watched.complaints, watched.foreign) == ([], [])


async def test_an_operator_without_the_lease_shows_what_it_knows(cluster: Cluster, browser: Browser) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        await cluster.until_promoted("v1")
        async with opened(cluster, browser) as (watched, running):
            await watched.page.goto(watched.address)
            row = watched.page.locator(f'tr[data-key="{cluster.namespace}/{NAME}"]')
            await expect(row).to_contain_text("4 / 4")
            await expect(watched.page.locator("#banner")).to_contain_text("waits for the Lease")
            assert not running.operator.guard.held()
            assert running.client.writes == []
