# SPDX-License-Identifier: Apache-2.0
"""Picks the metrics provider that a deployment asks for."""

from slmops.adapters.credentials import SecretCredentials
from slmops.adapters.direct import DirectProvider, Targets
from slmops.adapters.kube import KubeClient
from slmops.adapters.prometheus import OwnPrometheus, PrometheusProvider
from slmops.model.observed import MetricQuery, ProviderSettings, Samples
from slmops.ports.clock import Clock


class RoutingProvider:
    """Implements `ports.metrics.MetricsProvider` by the settings' kind."""

    def __init__(self, *, prometheus: PrometheusProvider, direct: DirectProvider) -> None:
        self._prometheus = prometheus
        self._direct = direct

    async def read(self, query: MetricQuery, settings: ProviderSettings) -> Samples:
        """As the chosen provider reads it. Raises ProviderError."""
        provider = self._direct if settings.kind == "Direct" else self._prometheus
        return await provider.read(query, settings)

    def forget(self, namespace: str, deployment: str) -> None:
        """The deployment is gone: drop what is remembered of it."""
        self._direct.forget(namespace, deployment)

    async def close(self) -> None:
        """Close all connections."""
        await self._prometheus.close()
        await self._direct.close()


def build_provider(
    *, own: OwnPrometheus, allowed_urls: tuple[str, ...], kube: KubeClient, clock: Clock, targets: Targets
) -> RoutingProvider:
    """The provider of the operator's process."""
    return RoutingProvider(
        prometheus=PrometheusProvider(own=own, allowed_urls=allowed_urls, secrets=SecretCredentials(kube)),
        direct=DirectProvider(targets, clock=clock),
    )
