# SPDX-License-Identifier: Apache-2.0
"""The rules of spec.feedback: when each is measured, what a reading says, and when it fires.

A rule is judged as a metric of a rollout's analysis is (`analysis.assess_reading`), by Threshold, on one
revision: nothing is compared. It fires once it was seen broken for `for`: the time between two measurements
counts when the later one fails, and at most twice the interval of it. So time in which nobody could be asked,
or in which there was no data, or while the operator was away, counts for nothing, and only a measurement that
fails fires a rule. One that passes sets everything back.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Final

from slmops.api.analysis import Metric
from slmops.api.base import duration_seconds
from slmops.api.feedback import FeedbackPolicy, FeedbackRule
from slmops.api.feedback_status import FeedbackRuleStatus
from slmops.model.observed import MetricQuery, ProviderSettings, Reading
from slmops.model.plan import MeasureRequest
from slmops.planning import times
from slmops.planning.analysis import Verdict, assess_reading, value_text
from slmops.planning.metric_rules import preset_of
from slmops.planning.queries import Sides, build_promql
from slmops.planning.revision import canonical

PREFIX: Final = "feedback/"
"""Before a rule's name in requests and readings: no metric of a rollout has a slash."""
_WINDOW_STEPS: Final = 8
"""A window begins at one of so many moments per length, so that looks in a row share their beginning and the
Direct provider keeps what it counted from there. It is longer than asked for by one step at most."""


def metric_of(rule: FeedbackRule) -> Metric:
    """The rule as a metric that `analysis` judges."""
    return Metric(
        name=rule.name,
        preset=rule.metric.preset,
        query=rule.metric.query,
        samples_query=rule.metric.samples_query,
        min=rule.min,
        max=rule.max,
        min_samples=rule.min_samples,
        test="Threshold",
    )


def digest_of(rule: FeedbackRule) -> str:
    """Tells the rule from itself after an edit that changes its meaning; what follows from it is none."""
    text = canonical(rule.model_copy(update={"action": "Notify"}).to_body())
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def restart_rules(
    policy: FeedbackPolicy, known: Sequence[FeedbackRuleStatus]
) -> tuple[FeedbackRuleStatus, ...]:
    """One entry for each rule, in the order of their names; those that were changed begin anew."""
    before = {state.name: state for state in known}
    result = []
    for rule in sorted(policy.rules, key=lambda rule: rule.name):
        state, digest = before.get(rule.name), digest_of(rule)
        same = state is not None and state.digest == digest
        result.append(state if state and same else FeedbackRuleStatus(name=rule.name, digest=digest))
    return tuple(result)


def fold_rule(
    policy: FeedbackPolicy, rule: FeedbackRule, state: FeedbackRuleStatus, reading: Reading
) -> FeedbackRuleStatus:
    """The rule after one reading about the revision that `state` is of."""
    since = times.to_seconds(state.measured_at) if state.measured_at is not None else None
    at = times.to_seconds(times.to_text(reading.at))
    if since is not None and at < since:
        return state
    found = assess_reading(metric_of(rule), reading, required_log_e=math.inf)
    elapsed = min(at - since, 2 * duration_seconds(policy.interval)) if since is not None else 0.0
    failing, fired_at = state.failing_seconds, state.fired_at
    if found.verdict is Verdict.PASS:
        failing, fired_at = None, None
    elif found.verdict is Verdict.FAIL:
        failing = 0 if failing is None else failing + int(elapsed)
        if failing >= duration_seconds(rule.for_):
            fired_at = fired_at or times.to_text(reading.at)
    return FeedbackRuleStatus(
        name=state.name,
        digest=state.digest,
        verdict=found.verdict,
        value=value_text(found.canary.value),
        samples=found.canary.samples,
        variant=found.variant,
        message=found.message[:512],
        measured_at=times.to_text(reading.at),
        failing_seconds=failing,
        fired_at=fired_at,
    )


def fold_rules(
    policy: FeedbackPolicy,
    states: Sequence[FeedbackRuleStatus],
    readings: Sequence[Reading],
    *,
    revision: str,
) -> tuple[FeedbackRuleStatus, ...]:
    """The rules after these readings; those that are about something else are passed over."""
    rules = {rule.name: rule for rule in policy.rules}
    folded = {state.name: state for state in states}
    for reading in readings:
        name = reading.metric.removeprefix(PREFIX)
        if reading.metric.startswith(PREFIX) and name in folded and reading.revision == revision:
            folded[name] = fold_rule(policy, rules[name], folded[name], reading)
    return tuple(folded.values())


def due_rules(
    policy: FeedbackPolicy,
    provider: ProviderSettings,
    states: Sequence[FeedbackRuleStatus],
    sides: Sides,
    *,
    now: float,
) -> tuple[MeasureRequest, ...]:
    """Measurements of rules whose interval has passed; `sides.stable` is the revision they are about."""
    rules = {rule.name: rule for rule in policy.rules}
    return tuple(
        MeasureRequest(
            metric=f"{PREFIX}{state.name}",
            canary=_build_query(rules[state.name], sides, now),
            stable=None,
            provider=provider,
        )
        for state in states
        if state.name in rules and seconds_until_due(policy, state, now=now) <= 0
    )


def seconds_until_due(policy: FeedbackPolicy, state: FeedbackRuleStatus, *, now: float) -> float:
    """Until the interval has passed; 0 or less when it has, or when the rule was never measured."""
    if state.measured_at is None:
        return 0.0
    return duration_seconds(policy.interval) - (now - times.to_seconds(state.measured_at))


def next_due_seconds(
    policy: FeedbackPolicy, states: Sequence[FeedbackRuleStatus], *, now: float
) -> float | None:
    """Until a rule that is not due yet becomes due; None when there is none. Those that are due are under
    way, and their readings wake the planner."""
    waits = [seconds_until_due(policy, state, now=now) for state in states]
    return min((wait for wait in waits if wait > 0), default=None)


def _build_query(rule: FeedbackRule, sides: Sides, now: float) -> MetricQuery:
    length = duration_seconds(rule.window)
    step = length / _WINDOW_STEPS
    since = math.floor((now - length) / step) * step
    window_seconds = now - since

    def replaced(text: str | None) -> str:
        return build_promql(text or "", sides, revision=sides.stable, window_seconds=window_seconds)

    return MetricQuery(
        namespace=sides.namespace,
        deployment=sides.deployment,
        revision=sides.stable,
        window_seconds=window_seconds,
        since=since,
        preset=preset_of(metric_of(rule)),
        promql=replaced(rule.metric.query),
        samples_promql=replaced(rule.metric.samples_query),
    )
