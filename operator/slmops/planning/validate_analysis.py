# SPDX-License-Identifier: Apache-2.0
"""Checks of `spec.rollout.analysis` that the API server cannot make; each is a pure function.

A finding here blocks only the rollout: the stable revision is still looked after.
"""

from collections.abc import Callable
from typing import Final

from slmops.api import SLMDeploymentSpec
from slmops.api.analysis import Analysis
from slmops.api.base import duration_seconds
from slmops.model.config import OperatorConfig
from slmops.model.urls import is_allowed_url
from slmops.planning.finding import Finding
from slmops.planning.metric_rules import asks_each_side, is_read_off_pods, is_sequential
from slmops.planning.provider import MAX_TIMEOUT_SECONDS, choose_provider
from slmops.planning.queries import find_query_problem

_WHERE: Final = "spec.rollout.analysis"


def find_analysis_problem(spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    """First finding, with reason InvalidQuery or ProviderNotAllowed; None when all is well."""
    analysis = spec.rollout.analysis
    return next((found for check in _CHECKS if (found := check(analysis, config)) is not None), None)


def _invalid(field: str, message: str) -> Finding:
    return Finding(reason="InvalidQuery", message=f"{_WHERE}.{field}: {message}")


def _direct(analysis: Analysis, config: OperatorConfig) -> Finding | None:
    if choose_provider(analysis, config) != "Direct":
        return None
    chosen = analysis.provider == "Direct"
    why = "provider: Direct" if chosen else "no Prometheus is named, so the operator measures itself (Direct)"
    name_one = (
        "use provider: Prometheus"
        if chosen
        else "name one: prometheus.url here, or the chart value prometheus.url"
    )
    prometheus = analysis.prometheus
    for field, value in (
        ("url", prometheus.url),
        ("secretRef", prometheus.secret_ref),
        ("tenant", prometheus.tenant),
    ):
        if value is not None:
            return _invalid(
                f"prometheus.{field}", f"{why}: this belongs to a Prometheus; leave it out, or {name_one}"
            )
    for index, metric in enumerate(analysis.metrics):
        if metric.query is not None:
            return _invalid(
                f"metrics[{index}].query", f"{why}, which knows no PromQL; use a preset, or {name_one}"
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


def _shapes(analysis: Analysis, config: OperatorConfig) -> Finding | None:
    # The API server refuses these; `kubectl slm simulate` asks none.
    for index, metric in enumerate(analysis.metrics):
        where = f"metrics[{index}]"
        if (metric.preset is None) == (metric.query is None):
            return _invalid(where, "set exactly one of preset, query")
        if metric.max is None and metric.min is None and metric.max_degradation is None:
            return _invalid(where, "set at least one of max, min, maxDegradation, or it judges nothing")
        if metric.test == "Sequential" and not is_sequential(metric):
            return _invalid(f"{where}.test", "there are no counts for a Sequential test; use Threshold")
        if is_read_off_pods(metric) and metric.max_degradation is not None:
            return _invalid(f"{where}.maxDegradation", "counts per node are compared with nothing; give max")
        if metric.query is None and metric.direction is not None:
            return _invalid(f"{where}.direction", "a preset knows which way is better; leave it out")
    if analysis.metrics and all(metric.dry_run for metric in analysis.metrics):
        return _invalid("metrics", "every metric is dryRun, nothing would judge a wave; set one to false")
    return None


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
    if analysis.provider == "Direct" or url is None or is_allowed_url(url, config.allowed_prometheus_urls):
        return None
    allowed = ", ".join(config.allowed_prometheus_urls) or "any allowed URL (none is)"
    return Finding(
        reason="ProviderNotAllowed",
        message=f"{_WHERE}.prometheus.url: {url} is not below {allowed}; leave it out to use the operator's "
        "Prometheus or let an administrator allow it (chart value prometheus.allowedURLs)",
    )


_CHECKS: Final[tuple[Callable[[Analysis, OperatorConfig], Finding | None], ...]] = (
    _direct,
    _timeout,
    _shapes,
    _queries,
    _metrics,
    _url,
)
