# SPDX-License-Identifier: Apache-2.0
"""The Direct provider against pods on loopback, with the inference server's own metrics."""

import asyncio
import math
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from e2e.rig.pki import Authority
from slmops.adapters.direct import (
    FRESH_SECONDS,
    MAX_SIDES,
    PODS_PER_CLASS,
    SWEEP_SECONDS,
    DirectProvider,
    PodTarget,
    choose_targets,
    is_pod_address,
)
from slmops.model.observed import MetricQuery, Preset, ProviderSettings, Sample
from slmops.ports.metrics import ProviderError
from slmserve.config import Identity
from slmserve.metrics import Metrics
from slmwire.scheme import Scheme
from tests.unit.adapters.metrics_server import Answer, hang, serve
from tests.unit.slmserve.process import ORDERS, ServerProcess

DIRECT = ProviderSettings(kind="Direct")


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def now(self) -> float:
        return self.time


class Bench:
    """Pods of one deployment on loopback, and a provider that looks at them."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.clock = Clock()
        self.pods: dict[str, list[PodTarget]] = {}
        self.scrapes = 0
        self.provider = DirectProvider(self._targets, clock=self.clock, may_scrape=lambda _: True)
        stack.push_async_callback(self.provider.close)

    def _targets(self, namespace: str, deployment: str, revision: str) -> list[PodTarget]:
        assert namespace == "shop"
        return self.pods.get(f"{deployment}/{revision}", [])

    async def pod(self, name: str, **options: Any) -> Metrics:
        """A pod with the real server's metrics."""
        metrics = Metrics(
            Identity(namespace="shop", deployment="d", revision="r", variant="v", model="m", node="n")
        )

        async def answer(request: web.Request) -> web.StreamResponse:
            assert request.path == "/metrics" and "Authorization" not in request.headers
            self.scrapes += 1
            return web.Response(body=metrics.render(queue_depth=0, busy=0))

        await self.answering(name, answer, **options)
        return metrics

    async def answering(
        self,
        name: str,
        answer: Answer,
        *,
        variant: str = "int4",
        revision: str = "r",
        created_at: float = 0.0,
        ready: bool = True,
        tls: ssl.SSLContext | None = None,
        scheme: Scheme | None = None,
    ) -> None:
        """A pod that answers as scripted; `scheme` is what it is taken for, where that is not the truth."""
        server = await self._stack.enter_async_context(serve(answer, tls=tls))
        target = PodTarget(
            name=name,
            ip="127.0.0.1",
            port=server.port,
            scheme=scheme or ("https" if tls else "http"),
            variant=variant,
            created_at=created_at,
            ready=ready,
        )
        self.pods.setdefault(f"d/{revision}", []).append(target)

    async def read(
        self, preset: Preset = Preset.ERROR_RATE, *, since: float = 0.0, revision: str = "r"
    ) -> dict[str, Sample]:
        """Read a while later than the last time."""
        self.clock.time += 10
        return await self.again(preset, since=since, revision=revision)

    async def again(
        self, preset: Preset = Preset.ERROR_RATE, *, since: float = 0.0, revision: str = "r"
    ) -> dict[str, Sample]:
        """Read at the same moment as the last time."""
        query = MetricQuery(
            preset=preset,
            namespace="shop",
            deployment="d",
            revision=revision,
            since=since,
            window_seconds=max(1.0, self.clock.time - since),
        )
        return dict(await self.provider.read(query, DIRECT))


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        yield Bench(stack)


def _serve(metrics: Metrics, code: int, *, count: int, seconds: float = 0.2) -> None:
    for _ in range(count):
        metrics.count_request("chat", code)
        metrics.observe_request("chat", seconds)
        metrics.observe_first_token(seconds / 2, 3)
        metrics.count_generated(10)


def _server_context(directory: Path, **names: Any) -> ssl.SSLContext:
    """A server's own certificate, of an authority that nobody knows."""
    authority = Authority(directory / "pki")
    authority.create()
    pair = authority.issue("orders", common_name="orders", **names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


async def test_pods_of_both_kinds_during_a_rollout_to_tls(tmp_path: Path) -> None:
    async with bench() as found:
        # A certificate names the Service, never the pod's address.
        tls = _server_context(tmp_path, dns_names=["orders.shop.svc"])
        secure, plain = await found.pod("secure", tls=tls), await found.pod("plain")
        _serve(secure, 200, count=30)
        _serve(plain, 500, count=10)
        sample = (await found.read())["int4"]
        assert sample.value == pytest.approx(0.25) and sample.samples == 40


async def test_a_pod_that_is_taken_for_what_it_is_not_says_so(tmp_path: Path) -> None:
    for scheme, tls in (("http", _server_context(tmp_path)), ("https", None)):
        async with bench() as found:
            await found.pod("a", tls=tls, scheme=scheme)
            with pytest.raises(ProviderError, match="none of 1 pods answered: a: "):
                await found.read()


async def test_the_real_server_over_tls_with_keys(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    authority.create()
    pair = authority.issue("orders", common_name="orders", dns_names=["orders.shop.svc"])
    (tmp_path / "keys").write_text("alpha\n")
    files = ("--tls-cert-file", str(pair.certificate), "--tls-key-file", str(pair.key))
    keys = ("--api-keys-file", str(tmp_path / "keys"))
    with ServerProcess(ORDERS / "v1-int4", tmp_path, *files, *keys) as server:
        server.scheme = "https"
        await asyncio.to_thread(server.wait_ready)
        async with bench() as found:
            target = PodTarget(name="a", ip="127.0.0.1", port=server.port, scheme="https", variant="int4")
            found.pods["d/r"] = [target]
            sample = (await found.read(Preset.EVALUATION_SCORE))["int4"]
    assert sample.value is not None and sample.value > 0.9, "metrics need no key"


async def test_every_preset_of_what_happened_since() -> None:
    async with bench() as found:
        a, b = await found.pod("a"), await found.pod("b", variant="fp32")
        a.record_evaluation(score=0.9, samples=40, seconds=1)
        _serve(a, 200, count=500)
        # What was counted before is the baseline. The processes' own clock is decades ahead of this
        # bench's, but their age is what matters: they began before the read.
        since = found.clock.time + 10
        assert await found.read(since=since) == {}
        _serve(a, 200, count=90, seconds=0.2)
        _serve(a, 503, count=10, seconds=3.0)
        _serve(a, 429, count=50, seconds=0.2)
        _serve(b, 200, count=7)
        errors = await found.read(since=since)
        assert errors == {
            "int4": Sample(value=0.1, samples=100, events=10.0),
            "fp32": Sample(value=0.0, samples=7, events=0.0),
        }
        latency = (await found.read(Preset.LATENCY_P95, since=since))["int4"]
        assert latency.samples == 150
        assert dict(latency.buckets)[0.27] == 140 and latency.buckets[-1] == (math.inf, 150.0)
        assert latency.value is not None and 2.7 < latency.value <= 3.7
        first = (await found.read(Preset.TTFT_P95, since=since))["int4"]
        assert first.value is not None and 1.4 < first.value <= 2.0
        speed = (await found.read(Preset.TOKENS_PER_SECOND, since=since))["int4"]
        assert speed.samples == 150
        assert speed.value == pytest.approx(1500 / (140 * 0.2 + 10 * 3.0))
        score = await found.read(Preset.EVALUATION_SCORE, since=since)
        assert score == {"int4": Sample(value=0.9, samples=40)}


async def test_a_pod_made_since_counts_from_its_first_request() -> None:
    async with bench() as found:
        since = found.clock.time
        metrics = await found.pod("a", created_at=since + 2)
        _serve(metrics, 200, count=5)
        assert (await found.read(since=since))["int4"].samples == 5
        # The next wave begins: only what comes now counts.
        since = found.clock.time + 5
        assert await found.read(since=since) == {}
        _serve(metrics, 500, count=2)
        assert await found.read(since=since) == {"int4": Sample(value=1.0, samples=2, events=2.0)}


async def test_metrics_read_together_share_one_look() -> None:
    async with bench() as found:
        await found.pod("a")
        await asyncio.gather(*(found.read() for _ in range(5)), found.read(Preset.LATENCY_P95))
        assert found.scrapes == 1
        found.clock.time += FRESH_SECONDS / 2
        await found.again()
        assert found.scrapes == 1
        await found.read()
        assert found.scrapes == 2


async def test_one_that_gives_up_ends_the_look_for_nobody() -> None:
    async with bench() as found:
        release = asyncio.Event()

        async def slow(_: web.Request) -> web.StreamResponse:
            await release.wait()
            return web.Response(text='slmserve_requests_total{code="200"} 3\n')

        await found.answering("a", slow, created_at=found.clock.time)
        impatient = asyncio.create_task(found.again(since=1.0))
        patient = asyncio.create_task(found.again(since=1.0))
        await asyncio.sleep(0.05)
        impatient.cancel()
        release.set()
        assert (await patient)["int4"].samples == 3


async def test_sides_are_apart_and_no_pods_are_no_data() -> None:
    async with bench() as found:
        _serve(await found.pod("a", revision="r2", created_at=1e9), 200, count=3)
        assert await found.read() == {}
        assert set(await found.read(revision="r2")) == {"int4"}


async def test_one_dead_pod_is_not_seen_and_all_dead_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmops.adapters.direct.LOOK_TIMEOUT_SECONDS", 0.5)
    async with bench() as found:
        found.pods["d/r"] = [
            PodTarget(name="away", ip="127.0.0.1", port=1, variant="fp32", created_at=found.clock.time)
        ]
        with pytest.raises(ProviderError, match="none of 1 pods answered: away: ClientConnectorError"):
            await found.read()
        await found.answering("stuck", hang)
        with pytest.raises(ProviderError, match="none of 2 pods answered"):
            await found.read()
        metrics = await found.pod("alive", created_at=found.clock.time)
        _serve(metrics, 200, count=4)
        assert set(await found.read(since=1.0)) == {"int4"}


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (lambda: web.Response(status=404), "a: HTTP 404 at /metrics"),
        (lambda: web.Response(status=302, headers={"Location": "http://169.254.169.254/"}), "a: HTTP 302"),
        (lambda: web.Response(body=b"x" * (2 << 20)), "a: more than 1 MiB"),
        (lambda: web.Response(text="hello"), "a: no series of an inference server"),
        (lambda: web.Response(body=b"\xff\xfe"), "a: no series of an inference server"),
    ],
)
async def test_what_a_pod_may_answer_instead(response: Any, words: str) -> None:
    async with bench() as found:

        async def answer(_: web.Request) -> web.StreamResponse:
            answered: web.Response = response()
            return answered

        await found.answering("a", answer)
        with pytest.raises(ProviderError, match=words):
            await found.read()


async def test_addresses_that_no_pod_has_are_not_called() -> None:
    provider = DirectProvider(
        lambda *_: [PodTarget(name="a", ip="169.254.169.254", variant="v")], clock=Clock()
    )
    query = MetricQuery(
        preset=Preset.ERROR_RATE, namespace="n", deployment="d", revision="r", window_seconds=1
    )
    with pytest.raises(ProviderError, match=r"169\.254\.169\.254 is no address of a pod"):
        await provider.read(query, DIRECT)
    await provider.close()


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("10.42.0.7", True),
        ("fd00:42::7", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("169.254.1.1", False),
        ("fe80::1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("100.100.100.200", False),
        ("evil.example", False),
        ("", False),
    ],
)
def test_addresses_of_pods(address: str, allowed: bool) -> None:
    assert is_pod_address(address) is allowed


async def test_queries_and_what_is_read_off_the_pods_are_not_measured() -> None:
    async with bench() as found:
        query = MetricQuery(promql="up", namespace="shop", deployment="d", revision="r", window_seconds=1)
        with pytest.raises(ProviderError, match="knows presets only"):
            await found.provider.read(query, DIRECT)
        with pytest.raises(ValueError, match="read off the pods"):
            await found.read(Preset.RESTARTS)


def test_a_bounded_stable_choice() -> None:
    pods = [
        PodTarget(name=f"p{i}", node=f"n{i}", ip="10.0.0.1", variant="ab"[i % 2], ready=i % 10 != 0)
        for i in range(3000)
    ]
    chosen = choose_targets(pods)
    assert chosen == choose_targets(reversed(pods))
    for variant in "ab":
        assert len([pod for pod in chosen if pod.variant == variant]) == PODS_PER_CLASS
    assert all(pod.ready for pod in chosen)
    # One pod less is one pod changed, and a pod made anew on its node keeps the place.
    less = choose_targets([pod for pod in pods if pod is not chosen[0]])
    assert len(set(less) & set(chosen)) == len(chosen) - 1
    anew = [
        PodTarget(name=f"x{p.name}", node=p.node, ip=p.ip, variant=p.variant, ready=p.ready) for p in pods
    ]
    assert [pod.node for pod in choose_targets(anew)] == [pod.node for pod in chosen]


async def test_memory_is_let_go() -> None:
    async with bench() as found:
        for i in range(MAX_SIDES + 5):
            await found.again(revision=str(i))
        assert len(found.provider._sides) == MAX_SIDES
        await found.pod("a")
        await found.again()
        found.clock.time += SWEEP_SECONDS
        await found.again(revision="other")
        # Those without pods are gone; the one that may be read again is kept.
        assert {key[2] for key in found.provider._sides} == {"r", "other"}
        found.provider.forget("shop", "d")
        assert found.provider._sides == {}


async def test_feedback_refusals_and_drift() -> None:
    async with bench() as found:
        a, b = await found.pod("a"), await found.pod("b")
        a.begin_refusals()
        a.count_feedback(-1.0, [])
        since = found.clock.time + 10
        for preset in (Preset.FEEDBACK_SCORE, Preset.REFUSAL_RATE, Preset.DRIFT):
            assert await found.read(preset, since=since) == {}
        for score in (1.0, 1.0, 0.0):
            a.count_feedback(score, ["slow"])
        b.count_feedback(-1.0, [])
        for refused in ("true", "false", "false", "false"):
            a.count_refusal_check(refused)
        a.show_drift("script", index=0.1, samples=300)
        b.show_drift("script", index=0.5, samples=100)
        b.show_drift("finish", index=0.15, samples=100)
        scores = await found.read(Preset.FEEDBACK_SCORE, since=since)
        assert scores == {"int4": Sample(value=0.625, samples=4)}
        refusals = await found.read(Preset.REFUSAL_RATE, since=since)
        assert refusals == {"int4": Sample(value=0.25, samples=4, events=1.0)}
        drift = await found.read(Preset.DRIFT, since=since)
        assert drift["int4"].samples == 400 and drift["int4"].value == pytest.approx(0.2)


async def test_a_window_that_slides_keeps_what_is_in_it() -> None:
    async with bench() as found:
        pod = await found.pod("a")
        seen = []
        for step in range(120):
            pod.count_feedback(1.0, [])
            found.clock.time += 60
            since = (found.clock.time - 1200) // 150 * 150
            sample = (await found.read(Preset.FEEDBACK_SCORE, since=since)).get("int4")
            seen.append(sample.samples if sample and step > 40 else 20)
        # One a minute over twenty minutes; looks that were long ago are kept at ever larger distances.
        assert min(seen) >= 8 and max(seen) <= 23
