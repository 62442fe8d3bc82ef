# SPDX-License-Identifier: Apache-2.0
"""The user's PromQL and the settings of the provider: what is asked, and what is refused."""

import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from slmops.api import SLMDeploymentSpec
from slmops.api.analysis import Analysis
from slmops.api.status import RolloutStatus
from slmops.model.config import OperatorConfig
from slmops.model.observed import ProviderSettings
from slmops.model.urls import is_allowed_url
from slmops.planning import times
from slmops.planning.judge import due_measurements
from slmops.planning.provider import provider_settings
from slmops.planning.queries import Sides, build_matchers, build_promql, find_query_problem
from slmops.planning.validate_analysis import find_analysis_problem
from tests.unit.planning.fleet_spec import spec_body

NOW = 1_750_000_000.0
CONFIG = OperatorConfig(runtime_image="image", prometheus_url="http://prometheus:9090")
NO_PROMETHEUS = OperatorConfig(runtime_image="image")
SIDES = Sides(namespace="shop", deployment="orders", canary="new", stable="old")
NEW = 'slm_namespace="shop",slm_deployment="orders",slm_revision="new"'
OLD = 'slm_namespace="shop",slm_deployment="orders",slm_revision="old"'


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("sum(rate(foo{$selector}[$window]))", f"sum(rate(foo{{{OLD}}}[91s]))"),
        ('foo{code="500",$selector}', f'foo{{code="500",{OLD}}}'),
        ("foo{$canary} / foo{$stable}", f"foo{{{NEW}}} / foo{{{OLD}}}"),
        (
            'label_replace(foo{$canary},"a","$1","b","(.*)")',
            f'label_replace(foo{{{NEW}}},"a","$1","b","(.*)")',
        ),
        ("", ""),
    ],
)
def test_variables_are_replaced(text: str, sent: str) -> None:
    assert build_promql(text, SIDES, revision="old", window_seconds=90.2) == sent


@given(st.text(max_size=30), st.text(max_size=30))
def test_matchers_stay_one_selector_whatever_the_names_hold(namespace: str, deployment: str) -> None:
    sides = Sides(namespace=namespace, deployment=deployment, canary="new", stable="old")
    parsed: Any = promql_parser.parse(f"foo{{{build_matchers(sides, 'new')}}}")
    found = {matcher.name: matcher.value for matcher in parsed.matchers.matchers}
    assert (
        set(found) == {"slm_namespace", "slm_deployment", "slm_revision"} and found["slm_revision"] == "new"
    )


@pytest.mark.parametrize(
    "text",
    [
        "sum(rate(foo{$selector}[$window]))",
        "sum(rate(foo{$canary}[5m])) / sum(rate(foo{$stable}[5m]))",
        "foo{$selector} > bool 1",
        "vector(scalar(foo{$selector}))",
        'label_replace(foo{$selector},"a","$1","b","(.*)")',
        "1 - avg(foo{$selector})",
    ],
)
def test_good_queries_are_let_through(text: str) -> None:
    assert find_query_problem(text) == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sum(foo{$selector}", "does not parse as PromQL: unclosed left parenthesis"),
        ("rate(foo{$selector})", "expected type matrix"),
        ("sum(foo{$selektor})", "$selektor is no variable; there are $selector, $canary, $stable, $window"),
        ("sum(foo)", "put $selector"),
        ("sum(rate(foo[$window]))", "put $selector"),
        ("sum(foo{$stable})", "put $selector"),
        ("foo{$selector}[$window]", "a range of values"),
        ("(foo{$selector}[5m:1m])", "a range of values"),
        ("scalar(foo{$selector})", "wrap it into vector(...)"),
        ("-scalar(foo{$selector}) + 1", "wrap it into vector(...)"),
        ('"$selector"', "parse"),
        ("foo{$selector} " + "x" * 1000, "does not parse"),
    ],
)
def test_bad_queries_are_refused_with_the_cure(text: str, says: str) -> None:
    problem = find_query_problem(text)
    assert says in problem and len(problem) < 300


def problem(config: OperatorConfig | None = None, **analysis: Any) -> tuple[str, str]:
    metrics = analysis.pop("metrics", [{"name": "m", "preset": "ErrorRate", "max": "0.1"}])
    body = spec_body(metrics=metrics)
    body["rollout"]["analysis"] |= analysis
    found = find_analysis_problem(SLMDeploymentSpec.model_validate(body), config or CONFIG)
    return (found.reason, found.message) if found else ("", "")


QUERY = {"name": "m", "query": "sum(foo{$selector})", "max": "1"}


@pytest.mark.parametrize(
    ("analysis", "field"),
    [
        ({"metrics": [QUERY | {"query": "sum("}]}, "metrics[0].query"),
        ({"metrics": [QUERY | {"samplesQuery": "sum(foo)"}]}, "metrics[0].samplesQuery"),
        ({"metrics": [QUERY | {"minSamples": 10}]}, "metrics[0].minSamples"),
        (
            {"metrics": [QUERY | {"query": "foo{$canary}", "maxDegradation": "1"}]},
            "metrics[0].maxDegradation",
        ),
        ({"metrics": [{"name": "m", "preset": "ErrorRate", "min": "0.1"}]}, "metrics[0].min"),
        ({"metrics": [{"name": "m", "max": "1"}]}, "metrics[0]"),
        ({"metrics": [QUERY | {"preset": "ErrorRate"}]}, "metrics[0]"),
        ({"metrics": [{"name": "m", "preset": "ErrorRate"}]}, "metrics[0]"),
        ({"metrics": [QUERY | {"test": "Sequential"}]}, "metrics[0].test"),
        (
            {"metrics": [{"name": "m", "preset": "OOMKills", "maxDegradation": "1"}]},
            "metrics[0].maxDegradation",
        ),
        (
            {"metrics": [{"name": "m", "preset": "LatencyP95", "max": "1", "direction": "LowerIsBetter"}]},
            "metrics[0].direction",
        ),
        ({"metrics": [QUERY | {"dryRun": True}]}, "metrics"),
        ({"metrics": [QUERY], "provider": "Direct"}, "metrics[0].query"),
        ({"provider": "Direct", "prometheus": {"url": "http://prometheus"}}, "prometheus.url"),
        ({"provider": "Direct", "prometheus": {"secretRef": {"name": "login"}}}, "prometheus.secretRef"),
        ({"provider": "Direct", "prometheus": {"tenant": "shop"}}, "prometheus.tenant"),
        ({"prometheus": {"timeout": "16s"}}, "prometheus.timeout"),
        ({"prometheus": {"timeout": "0s"}}, "prometheus.timeout"),
    ],
)
def test_what_makes_no_sense_is_refused_by_field(analysis: dict[str, Any], field: str) -> None:
    reason, message = problem(**analysis)
    assert reason == "InvalidQuery" and message.startswith(f"spec.rollout.analysis.{field}: ")


@pytest.mark.parametrize(
    "analysis",
    [
        {},
        {"metrics": [QUERY]},
        {"metrics": [QUERY | {"samplesQuery": "count(foo{$selector})", "minSamples": 5}]},
        {"metrics": [{"name": "m", "preset": "ErrorRate", "min": "0.1", "test": "Threshold"}]},
        {"provider": "Direct"},
        {"prometheus": {"timeout": "15s", "tenant": "shop", "secretRef": {"name": "login"}}},
    ],
)
def test_what_makes_sense_is_taken(analysis: dict[str, Any]) -> None:
    assert problem(**analysis) == ("", "")


def test_examples_of_the_documentation_are_taken() -> None:
    text = (Path(__file__).parents[3] / "docs" / "analysis.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        assert problem(**yaml.safe_load(example)["rollout"]["analysis"]) == ("", "")


def test_a_url_needs_the_administrator() -> None:
    settings = {"url": "https://metrics.example/shop"}
    reason, message = problem(prometheus=settings)
    assert reason == "ProviderNotAllowed" and "prometheus.allowedURLs" in message
    allowed = OperatorConfig(runtime_image="image", allowed_prometheus_urls=("https://metrics.example",))
    assert problem(allowed, prometheus=settings) == ("", "")


@pytest.mark.parametrize(
    ("url", "allowed", "is_allowed"),
    [
        ("https://a.example", "https://a.example", True),
        ("https://a.example/", "https://a.example", True),
        ("https://a.example/x/y", "https://a.example/x/", True),
        ("https://A.example:443/x", "https://a.example/x", True),
        ("http://a.example:80", "http://a.example", True),
        ("http://[::1]:9090/x", "http://[::1]:9090", True),
        ("http://a.example", "https://a.example", False),
        ("https://a.example:8443", "https://a.example", False),
        ("https://a.example.evil", "https://a.example", False),
        ("https://a.example/xy", "https://a.example/x", False),
        ("https://a.example", "https://a.example/x", False),
        ("https://a.example/x/../y", "https://a.example/x", False),
        ("https://a.example/x/%2e%2e/y", "https://a.example/x", False),
        ("https://a.example/x//y", "https://a.example/x", True),
        ("https://a.example\\@evil/x", "https://a.example", False),
        ("https://user@a.example", "https://a.example", False),
        ("https://a.example", "nonsense", False),
        ("https://a.example", "", False),
    ],
)
def test_urls_are_compared_part_by_part(url: str, allowed: str, is_allowed: bool) -> None:
    assert is_allowed_url(url, (allowed,)) is is_allowed


def test_requests_say_whom_to_ask_what_and_since_when() -> None:
    analysis = Analysis.model_validate(
        {
            "prometheus": {
                "url": "https://m.example",
                "secretRef": {"name": "login"},
                "tenant": "t",
                "timeout": "1m",
            },
            "metrics": [
                {
                    "name": "own",
                    "query": "sum(foo{$selector}) / sum(foo{$stable})",
                    "samplesQuery": "count(foo{$selector})",
                    "max": "1",
                },
                {"name": "restarts", "preset": "Restarts", "max": "0"},
            ],
        }
    )
    at = times.to_text(NOW)
    rollout = RolloutStatus(
        revision="new", step="Soaking", step_started_at=at, wave_started_at=at, started_at=at
    )
    (request,) = due_measurements(
        analysis,
        rollout,
        config=NO_PROMETHEUS,
        namespace="shop",
        deployment="orders",
        stable="old",
        now=NOW + 300,
    )
    assert request.provider == ProviderSettings(
        kind="Prometheus",
        namespace="shop",
        url="https://m.example",
        secret="login",
        tenant="t",
        timeout_seconds=15.0,
    )
    assert request.canary.preset is None and request.canary.since == NOW
    assert request.stable is not None
    assert request.canary.promql == f"sum(foo{{{NEW}}}) / sum(foo{{{OLD}}})"
    assert request.stable.promql == f"sum(foo{{{OLD}}}) / sum(foo{{{OLD}}})"
    assert request.stable.samples_promql == f"count(foo{{{OLD}}})"


def test_direct_needs_no_settings() -> None:
    analysis = Analysis(provider="Direct")
    for config in (CONFIG, NO_PROMETHEUS):
        assert provider_settings(analysis, config, namespace="shop") == ProviderSettings(
            kind="Direct", namespace="shop"
        )


@pytest.mark.parametrize(
    # Releases before this one wrote Prometheus into every object, so it may not mean more than unset.
    "provider",
    [{}, {"provider": "Prometheus"}],
)
def test_where_no_prometheus_is_named_the_operator_measures_itself(provider: dict[str, Any]) -> None:
    def kind(config: OperatorConfig, **prometheus: str) -> str:
        analysis = Analysis.model_validate(provider | {"prometheus": prometheus})
        return provider_settings(analysis, config, namespace="shop").kind

    assert kind(NO_PROMETHEUS) == "Direct"
    assert kind(CONFIG) == "Prometheus"
    assert kind(NO_PROMETHEUS, url="https://metrics.example") == "Prometheus"


@pytest.mark.parametrize(
    ("analysis", "field"),
    [
        ({"metrics": [{"name": "e", "preset": "ErrorRate", "max": "0.1"}, QUERY]}, "metrics[1].query"),
        ({"prometheus": {"secretRef": {"name": "login"}}}, "prometheus.secretRef"),
        ({"prometheus": {"tenant": "shop"}, "provider": "Prometheus"}, "prometheus.tenant"),
    ],
)
def test_what_only_a_prometheus_can_do_is_refused_without_one(analysis: dict[str, Any], field: str) -> None:
    reason, message = problem(NO_PROMETHEUS, **analysis)
    assert reason == "InvalidQuery" and message.startswith(f"spec.rollout.analysis.{field}: ")
    assert "no Prometheus is named" in message and "the chart value prometheus.url" in message
    assert problem(NO_PROMETHEUS) == ("", "")
