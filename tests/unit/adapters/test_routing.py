# SPDX-License-Identifier: Apache-2.0
"""The settings' kind decides who is asked."""

from slmops.adapters.direct import PodTarget
from slmops.adapters.kube import KubeClient
from slmops.adapters.prometheus import OwnPrometheus
from slmops.adapters.routing import build_provider
from slmops.model.observed import MetricQuery, Preset, ProviderSettings
from tests.unit.adapters.test_prometheus import prometheus, vector


async def test_each_kind_asks_its_own() -> None:
    asked: list[tuple[str, ...]] = []

    class Clock:
        def now(self) -> float:
            return 1.0

    def targets(*side: str) -> tuple[PodTarget, ...]:
        asked.append(side)
        return ()

    query = MetricQuery(
        preset=Preset.ERROR_RATE, namespace="shop", deployment="d", revision="r", window_seconds=1
    )
    async with prometheus(lambda _: vector([])) as (_, server):
        kube: KubeClient | None = None
        provider = build_provider(
            own=OwnPrometheus(url=f"{server.url}/prefix"),
            allowed_urls=(),
            kube=kube,  # type: ignore[arg-type]  # no Secret is named
            clock=Clock(),
            targets=targets,
        )
        await provider.read(query, ProviderSettings(kind="Direct"))
        assert (asked, server.queries) == ([("shop", "d", "r")], [])
        await provider.read(query, ProviderSettings(kind="Prometheus"))
        assert (len(asked), len(server.queries)) == (1, 1)
        provider.forget("shop", "d")
        await provider.close()
