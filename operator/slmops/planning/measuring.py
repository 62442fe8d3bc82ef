# SPDX-License-Identifier: Apache-2.0
"""All measurements that are due at a look: those of the rollout and those of spec.feedback."""

from slmops.api import SLMDeploymentSpec
from slmops.model.observed import Observed
from slmops.model.plan import MeasureRequest
from slmops.planning.decision import Decision
from slmops.planning.feedback import FeedbackLook, due_feedback
from slmops.planning.finding import Finding
from slmops.planning.judge import due_measurements


def plan_measurements(
    observed: Observed,
    spec: SLMDeploymentSpec,
    decision: Decision,
    feedback: FeedbackLook,
    *,
    finding: Finding | None,
    now: float,
) -> tuple[MeasureRequest, ...]:
    """What to ask now. With a `finding` no rule is measured: it may be about what the rule asks."""
    rules = due_feedback(observed, spec, feedback, now=now) if finding is None else ()
    if decision.rollout is None or not decision.measures:
        return rules
    return rules + due_measurements(
        spec.rollout.analysis,
        decision.rollout,
        config=observed.config,
        namespace=observed.deployment.namespace,
        deployment=observed.deployment.name,
        stable=decision.stable_revision,
        now=now,
    )
