# SPDX-License-Identifier: Apache-2.0
"""Checks of `spec.feedback` that the API server cannot make. A finding keeps rollouts from beginning, and its
rules from being measured; the stable revision is looked after."""

from slmops.api import SLMDeploymentSpec
from slmops.api.feedback import FeedbackRule
from slmops.model.config import OperatorConfig
from slmops.planning.finding import Finding
from slmops.planning.provider import choose_provider
from slmops.planning.queries import find_query_problem


def find_feedback_problem(spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    """First finding, with reason InvalidQuery; None when all is well."""
    finding = _find_uncounted(spec)
    if finding is not None or spec.feedback is None:
        return finding
    provider = choose_provider(spec.rollout.analysis, config)
    for index, rule in enumerate(spec.feedback.rules):
        problem = _find_problem(rule, provider=provider)
        if rule.action == "NewModelVersion" and spec.model.from_ is None:
            problem = "action: NewModelVersion needs spec.model.from, the SLMModel that is to look again"
        if problem:
            return Finding(reason="InvalidQuery", message=f"spec.feedback.rules[{index}].{problem}")
    return None


def _find_uncounted(spec: SLMDeploymentSpec) -> Finding | None:
    """A metric of refusals where servers count none: it would be without data for ever."""
    if spec.feedback is not None and spec.feedback.refusal_phrases:
        return None
    rules = spec.feedback.rules if spec.feedback is not None else []
    metrics = spec.rollout.analysis.metrics
    presets: list[tuple[str, str | None]] = [
        *((f"spec.feedback.rules[{i}].metric", rule.metric.preset) for i, rule in enumerate(rules)),
        *((f"spec.rollout.analysis.metrics[{i}]", metric.preset) for i, metric in enumerate(metrics)),
    ]
    for where, preset in presets:
        if preset == "RefusalRate":
            message = (
                f"{where}.preset: RefusalRate needs spec.feedback.refusalPhrases: without any, no answer "
                "counts as a refusal"
            )
            return Finding(reason="InvalidQuery", message=message)
    return None


def _find_problem(rule: FeedbackRule, *, provider: str) -> str:
    metric = rule.metric
    if (metric.preset is None) == (metric.query is None):
        return "metric: set exactly one of preset, query"
    if rule.max is None and rule.min is None:
        return "max: set max or min, or the rule judges nothing"
    if metric.query is not None and provider == "Direct":
        return (
            "metric.query: without a Prometheus (provider Direct) there is no PromQL; use a preset or name a "
            "Prometheus"
        )
    for field, text in (("query", metric.query), ("samplesQuery", metric.samples_query)):
        if text is None:
            continue
        if "$selector" not in text:
            return (
                f"metric.{field}: put $selector into the braces of its series: the rule is about one revision"
            )
        problem = find_query_problem(text)
        if problem:
            return f"metric.{field}: {problem}"
    return ""
