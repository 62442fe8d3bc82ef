# SPDX-License-Identifier: Apache-2.0
"""Metrics provider on the Prometheus HTTP API."""

import json
import math
from typing import Any, Final

import aiohttp

from slmops.adapters.promql import build_questions
from slmops.model.observed import MetricQuery, ProviderSettings, Sample, Samples
from slmops.ports.metrics import ProviderError

TIMEOUT_SECONDS: Final = 5.0
_ANSWER_LIMIT_BYTES: Final = 1 << 20


class PrometheusProvider:
    """Implements `ports.metrics.MetricsProvider`; each read takes at most `timeout_seconds`."""

    def __init__(self, url: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def read(self, query: MetricQuery, settings: ProviderSettings) -> Samples:
        """By variant."""
        return {"": await self._read(query)}

    async def _read(self, query: MetricQuery) -> Sample:
        """Ask for the samples first: where there are none, there is no value to ask for."""
        questions = build_questions(query)
        evidence = await self._instant(questions.samples)
        if evidence is None or evidence <= 0:
            return Sample(value=None, samples=0)
        value = await self._instant(questions.value)
        samples = int(evidence + 1e-6)
        if questions.share:
            return Sample(value=min(1.0, (value or 0.0) / evidence), samples=samples)
        return Sample(value=value, samples=samples if value is not None else 0)

    async def _instant(self, promql: str) -> float | None:
        """The one value of an instant query; None for no series, several, NaN or infinity."""
        body = await self._ask(promql)
        if body.get("status") != "success":
            kind, message = body.get("errorType", "error"), body.get("error", "no reason given")
            raise ProviderError(f"Prometheus: {kind}: {message}")
        try:
            data = body["data"]
            if data["resultType"] != "vector":
                raise ProviderError(f"Prometheus: a vector was asked for, got {data['resultType']}")
            series = data["result"]
            # Two series where a sum gives one: not a value that anybody should be judged by.
            value = float(series[0]["value"][1]) if len(series) == 1 else math.nan
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ProviderError("Prometheus: malformed answer") from error
        return value if math.isfinite(value) else None

    async def _ask(self, promql: str) -> dict[str, Any]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._timeout_seconds), trust_env=True
            )
        try:
            async with self._session.post(f"{self._url}/api/v1/query", data={"query": promql}) as response:
                status = response.status
                text = bytearray()
                async for chunk in response.content.iter_any():
                    text += chunk
                    if len(text) > _ANSWER_LIMIT_BYTES:
                        raise ProviderError("Prometheus: the answer is too long to be one value")
        except TimeoutError as error:
            raise ProviderError(f"Prometheus gave no answer within {self._timeout_seconds:g} s") from error
        except aiohttp.InvalidURL as error:
            raise ProviderError("prometheus.url is not a URL such as http://prometheus:9090") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ProviderError(f"Prometheus cannot be reached: {type(error).__name__} {error}") from error
        try:
            body = json.loads(text)
        except ValueError as error:
            raise ProviderError(f"Prometheus: HTTP {status} without JSON") from error
        if not isinstance(body, dict):
            raise ProviderError(f"Prometheus: HTTP {status} with malformed JSON")
        if status != 200 and body.get("status") == "success":
            raise ProviderError(f"Prometheus: HTTP {status}")
        return body


class NoProvider:
    """Stands in when no Prometheus is configured: rollouts hold and say why."""

    async def read(self, query: MetricQuery, settings: ProviderSettings) -> Samples:
        """Always raises ProviderError."""
        raise ProviderError("no metrics provider configured: set prometheus.url")

    async def close(self) -> None:
        """Nothing to close."""
