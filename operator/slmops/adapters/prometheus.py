# SPDX-License-Identifier: Apache-2.0
"""Metrics provider on the Prometheus HTTP API (Prometheus, Thanos, Mimir, VictoriaMetrics)."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from slmops.adapters.credentials import NO_CREDENTIALS, Credentials, FileCredentials, SecretCredentials
from slmops.adapters.promql import Row, build_query, read_rows
from slmops.adapters.samples import count_whole
from slmops.adapters.sessions import SessionPool
from slmops.model.observed import MetricQuery, ProviderSettings, Sample, Samples
from slmops.model.urls import is_allowed_url
from slmops.ports.metrics import ProviderError

MAX_TIMEOUT_SECONDS: Final = 15.0
_ANSWER_LIMIT_BYTES: Final = 1 << 20
_WORDS_LIMIT: Final = 300
"""Of what a server says: it goes into status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPrometheus:
    """The operator's Prometheus, for deployments that name no other."""

    url: str = ""
    """Empty: there is none."""
    credentials_dir: str = ""
    """Folder with token, or username and password, and ca.crt; empty: no credentials."""
    tenant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """Whom to ask and as whom; all checks are behind it."""

    url: str
    credentials: Credentials
    tenant: str
    timeout_seconds: float
    forget: Callable[[], None] = field(repr=False)
    """Called when the credentials were refused."""

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"Prometheus {self.url}"


class PrometheusProvider:
    """Implements `ports.metrics.MetricsProvider`; each query takes at most the settings' timeout."""

    def __init__(
        self, *, own: OwnPrometheus, allowed_urls: tuple[str, ...], secrets: SecretCredentials
    ) -> None:
        self._own = own
        self._allowed_urls = allowed_urls
        self._secrets = secrets
        self._files = FileCredentials(own.credentials_dir) if own.credentials_dir else None
        self._sessions = SessionPool()

    async def close(self) -> None:
        """Close all connections."""
        await self._sessions.close()

    async def read(self, query: MetricQuery, settings: ProviderSettings) -> Samples:
        """By variant; a query of the user under the empty name. Raises ProviderError."""
        if query.preset is None:
            return await self._read_promql(query, await self._find_target(settings))
        promql = build_query(query)
        target = await self._find_target(settings)
        kind, result = await self._ask(target, promql)
        if kind != "vector":
            raise ProviderError(f"{target.name}: a vector was asked for, got {kind}")
        try:
            return read_rows(query.preset, _rows(result))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ProviderError(f"{target.name}: malformed answer") from error

    async def _read_promql(self, query: MetricQuery, target: _Target) -> Samples:
        """Ask for the samples first: where there are none, there is no value to ask for."""
        samples = 1
        if query.samples_promql:
            samples = count_whole(await self._one(target, query.samples_promql) or 0.0)
        value = await self._one(target, query.promql) if samples else None
        return {} if value is None else {"": Sample(value=value, samples=samples)}

    async def _one(self, target: _Target, promql: str) -> float | None:
        """The one value of an instant query; None for no series, several, NaN or infinity."""
        kind, result = await self._ask(target, promql)
        try:
            if kind == "scalar":
                value = float(result[1])
            elif kind == "vector":
                # Several series: not a value that anybody should be judged by.
                rows = _rows(result)
                value = rows[0].value if len(rows) == 1 else math.nan
            else:
                raise ProviderError(f"{target.name}: the query must give one value, it gives a {kind}")
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ProviderError(f"{target.name}: malformed answer") from error
        return value if math.isfinite(value) else None

    # Whom to ask

    async def _find_target(self, settings: ProviderSettings) -> _Target:
        timeout = min(settings.timeout_seconds, MAX_TIMEOUT_SECONDS)
        url = settings.url or self._own.url
        if not url:
            raise ProviderError(
                "no Prometheus is configured: set the chart value prometheus.url or analysis.prometheus.url"
            )
        if settings.url and not is_allowed_url(settings.url, self._allowed_urls):
            raise ProviderError(
                f"analysis.prometheus.url {settings.url} is not allowed: let the administrator add it to the "
                "chart value prometheus.allowedURLs"
            )
        secure = url.startswith("https://")
        if settings.secret:
            if not secure:
                raise ProviderError(
                    f"credentials go over https only and {url} is not: change the URL or leave secretRef out"
                )
            credentials = await self._secrets.read(settings.namespace, settings.secret)
            if not settings.url and not credentials.ca and self._files is not None:
                # The operator's own server: whom it trusts holds for others who ask there, too.
                credentials = _with_ca(credentials, self._files.read().ca)
            return _Target(
                url=url.rstrip("/"),
                credentials=credentials,
                # The operator's tenant belongs to its own credentials.
                tenant=settings.tenant,
                timeout_seconds=timeout,
                forget=lambda: self._secrets.forget(settings.namespace, settings.secret),
            )
        own_tenant = "" if settings.url else self._own.tenant
        if own_tenant and settings.tenant not in ("", own_tenant):
            # A server without credentials goes by this header alone.
            raise ProviderError(
                f"tenant {settings.tenant} cannot be read as the operator, which is tenant {own_tenant}: "
                "leave analysis.prometheus.tenant out, or name a secretRef that may read it"
            )
        if settings.url or self._files is None:
            return _Target(
                url=url.rstrip("/"),
                credentials=NO_CREDENTIALS,
                tenant=settings.tenant or own_tenant,
                timeout_seconds=timeout,
                forget=lambda: None,
            )
        credentials = self._files.read()
        if credentials.signs_in and not secure:
            raise ProviderError(
                "credentials go over https only: change prometheus.url or leave out existingSecret"
            )
        if credentials.signs_in and settings.tenant not in ("", own_tenant):
            raise ProviderError(
                f"tenant {settings.tenant} cannot be read with the operator's credentials: name a secretRef "
                "that may read it"
            )
        return _Target(
            url=url.rstrip("/"),
            credentials=credentials,
            tenant=settings.tenant or own_tenant,
            timeout_seconds=timeout,
            forget=self._files.forget,
        )

    # One query

    async def _ask(self, target: _Target, promql: str) -> tuple[str, Any]:
        """Type and result of an instant query."""
        status, text = await self._post(target, promql)
        if status in (401, 403):
            target.forget()
            cure = (
                "the credentials are wrong or may not read this; correct the Secret"
                if target.credentials.signs_in
                else "it wants credentials; name a Secret"
            )
            raise ProviderError(f"{target.name}: HTTP {status}: {cure}")
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ProviderError(f"{target.name}: HTTP {status} without JSON") from error
        if not isinstance(body, dict):
            raise ProviderError(f"{target.name}: HTTP {status} with malformed JSON")
        if body.get("status") != "success":
            kind, message = body.get("errorType", "error"), body.get("error", "no reason given")
            raise ProviderError(f"{target.name}: {_shorten(f'{kind}: {message}')}")
        if status != 200:
            raise ProviderError(f"{target.name}: HTTP {status}")
        if body.get("warnings"):
            # Thanos answers so when a store is missing: what is there is not the whole.
            words = body["warnings"]
            said = "; ".join(map(str, words)) if isinstance(words, list) else str(words)
            raise ProviderError(f"Prometheus warned: {_shorten(said)}")
        data = body.get("data")
        if not isinstance(data, dict) or not isinstance(data.get("resultType"), str) or "result" not in data:
            raise ProviderError(f"{target.name}: malformed answer")
        return data["resultType"], data["result"]

    async def _post(self, target: _Target, promql: str) -> tuple[int, bytes]:
        headers = target.credentials.headers()
        if target.tenant:
            headers["X-Scope-OrgID"] = target.tenant
        try:
            async with (
                self._sessions.use(target.credentials.ca) as session,
                session.post(
                    f"{target.url}/api/v1/query",
                    data={"query": promql},
                    headers=headers,
                    # Followed, a redirect would take the credentials along.
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=target.timeout_seconds),
                ) as response,
            ):
                if 300 <= response.status < 400:
                    raise ProviderError(_redirected(target, response))
                text = bytearray()
                async for chunk in response.content.iter_any():
                    text += chunk
                    if len(text) > _ANSWER_LIMIT_BYTES:
                        raise ProviderError(f"{target.name}: the answer is too long for what was asked")
                return response.status, bytes(text)
        except TimeoutError as error:
            raise ProviderError(
                f"{target.name} gave no answer within {target.timeout_seconds:g} s"
            ) from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise ProviderError(
                f"{target.name}: its certificate is not trusted ({error.certificate_error}); put its "
                "authority's certificate into ca.crt of the Secret"
            ) from error
        except aiohttp.InvalidURL as error:
            raise ProviderError(
                f"{target.url} is not a URL such as http://prometheus.monitoring:9090"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ProviderError(
                f"{target.name} cannot be reached: {_shorten(f'{type(error).__name__} {error}')}"
            ) from error


def _rows(result: Any) -> list[Row]:
    return [Row(labels=dict(series["metric"]), value=float(series["value"][1])) for series in result]


def _with_ca(credentials: Credentials, ca: str) -> Credentials:
    return Credentials(
        token=credentials.token, username=credentials.username, password=credentials.password, ca=ca
    )


def _redirected(target: _Target, response: aiohttp.ClientResponse) -> str:
    try:
        host = urlsplit(response.headers.get("Location", "")).netloc.rpartition("@")[2]
    except ValueError:
        host = ""
    return (
        f"{target.name}: HTTP {response.status} redirects to {_shorten(host) or 'another place'}, which is "
        "not followed; set the URL that answers itself"
    )


def _shorten(text: str) -> str:
    return text if len(text) <= _WORDS_LIMIT else text[: _WORDS_LIMIT - 3] + "..."
