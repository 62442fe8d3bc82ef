# SPDX-License-Identifier: Apache-2.0
"""Checks of `spec.rollout.analysis` that the API server cannot make; each is a pure function.

A finding here blocks only the rollout: the stable revision is still looked after.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from slmops.api import SLMDeploymentSpec
from slmops.api.analysis import Analysis
from slmops.api.base import duration_seconds
from slmops.model.config import OperatorConfig
from slmops.planning.judge import MAX_TIMEOUT_SECONDS
from slmops.planning.metric_rules import asks_each_side, is_sequential
from slmops.planning.queries import find_query_problem
from slmops.planning.validate import Finding

_WHERE: Final = "spec.rollout.analysis"
_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[A-Za-z0-9._~/:,;=+-]*)?"
)
_PORTS: Final = {"http": 80, "https": 443}


def find_analysis_problem(spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    """First finding, with reason InvalidQuery or ProviderNotAllowed; None when all is well."""
    analysis = spec.rollout.analysis
    return next((found for check in _CHECKS if (found := check(analysis, config)) is not None), None)


def _invalid(field: str, message: str) -> Finding:
    return Finding(reason="InvalidQuery", message=f"{_WHERE}.{field}: {message}")


def _direct(analysis: Analysis, config: OperatorConfig) -> Finding | None:
    if analysis.provider != "Direct":
        return None
    prometheus = analysis.prometheus
    for field, value in (
        ("url", prometheus.url),
        ("secretRef", prometheus.secret_ref),
        ("tenant", prometheus.tenant),
    ):
        if value is not None:
            return _invalid(
                f"prometheus.{field}",
                "provider: Direct asks no Prometheus; leave it out or use provider: Prometheus",
            )
    for index, metric in enumerate(analysis.metrics):
        if metric.query is not None:
            return _invalid(
                f"metrics[{index}].query",
                "provider: Direct knows no PromQL; use a preset or provider: Prometheus",
            )
    return None


def _timeout(analysis: Analysis, config: OperatorConfig) -> Finding | None:
    seconds = duration_seconds(analysis.prometheus.timeout)
    if 0 < seconds <= MAX_TIMEOUT_SECONDS:
        return None
    return _invalid(
        "prometheus.timeout",
        f"{analysis.prometheus.timeout} must be above 0s and at most {MAX_TIMEOUT_SECONDS:g}s",
    )


def _queries(analysis: Analysis, config: OperatorConfig) -> Finding | None:
    for index, metric in enumerate(analysis.metrics):
        for field, text in (("query", metric.query), ("samplesQuery", metric.samples_query)):
            problem = find_query_problem(text) if text is not None else ""
            if problem:
                return _invalid(f"metrics[{index}].{field}", problem)
    return None


def _metrics(analysis: Analysis, config: OperatorConfig) -> Finding | None:
    for index, metric in enumerate(analysis.metrics):
        where = f"metrics[{index}]"
        if metric.query is not None and metric.samples_query is None and metric.min_samples is not None:
            return _invalid(
                f"{where}.minSamples",
                "nobody counts the samples of a query; give samplesQuery or leave minSamples out",
            )
        if metric.query is not None and metric.max_degradation is not None and not asks_each_side(metric):
            return _invalid(
                f"{where}.maxDegradation",
                "the query gives the same value for both sides; write $selector where it names $canary",
            )
        if is_sequential(metric) and metric.min is not None:
            return _invalid(
                f"{where}.min",
                "a Sequential test proves only what is too high; leave min out or use test: Threshold",
            )
    return None


def _url(analysis: Analysis, config: OperatorConfig) -> Finding | None:
    url = analysis.prometheus.url
    if analysis.provider == "Direct" or url is None or is_url_allowed(url, config.allowed_prometheus_urls):
        return None
    allowed = ", ".join(config.allowed_prometheus_urls) or "any allowed URL (none is)"
    return Finding(
        reason="ProviderNotAllowed",
        message=f"{_WHERE}.prometheus.url: {url} is not below {allowed}; leave it out to use the operator's "
        "Prometheus or let an administrator allow it (chart value prometheus.allowedURLs)",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Url:
    origin: tuple[str, str, int]
    """Scheme, host and port."""
    path: str
    """Without a slash at its end."""


def is_url_allowed(url: str, allowed: Iterable[str]) -> bool:
    """Whether a URL has the scheme, host and port of an allowed one and lies at or below its path."""
    parsed = _parse_url(url)
    prefixes = filter(None, map(_parse_url, allowed))
    return parsed is not None and any(
        parsed.origin == prefix.origin and f"{parsed.path}/".startswith(f"{prefix.path}/")
        for prefix in prefixes
    )


def _parse_url(text: str) -> _Url | None:
    """None for what is no plain base URL: credentials, queries, escapes and dot segments are none."""
    match = _URL.fullmatch(text)
    if match is None:
        return None
    path = (match["path"] or "").rstrip("/")
    if any(segment in ("", ".", "..") for segment in path.split("/")[1:]):
        return None
    port = int(match["port"] or _PORTS[match["scheme"]])
    return _Url(origin=(match["scheme"], match["host"].lower(), port), path=path)


_CHECKS: Final[tuple[Callable[[Analysis, OperatorConfig], Finding | None], ...]] = (
    _direct,
    _timeout,
    _queries,
    _metrics,
    _url,
)
