# SPDX-License-Identifier: Apache-2.0
"""What changed between two statuses that a person wants to hear of: one Event each."""

from typing import Final

from slmops.api.status import Condition, ConditionType, SLMDeploymentStatus
from slmops.model.plan import Transition
from slmops.planning.adaptation_says import adaptation_transitions


def transitions_between(old: SLMDeploymentStatus, new: SLMDeploymentStatus) -> tuple[Transition, ...]:
    """Transitions in the order in which a reader expects them; empty when nothing turned."""
    return (
        *_conditions(old, new),
        *_operations(old, new),
        *_rollout(old, new),
        *_holds(old, new),
        *_feedback(old, new),
        *adaptation_transitions(old, new),
    )


HOLDS: Final = frozenset(
    {
        "Paused",
        "AwaitingApproval",
        "OutsideWindow",
        "QuorumMissing",
        "NoBaseline",
        "NoData",
        "Inconclusive",
        "ProviderError",
        "DeadlineExceeded",
        "StableUnhealthy",
        "NoMatchingNodes",
        "FeedbackHold",
    }
)
"""Reasons of Progressing=False that a rollout under way waits with."""


_WANTS_DATA: Final = frozenset({"NoData", "Inconclusive"})


def hold_of(status: SLMDeploymentStatus) -> str:
    """Reason that a rollout under way waits with; empty when it does not wait."""
    condition = _held(status)
    return condition.reason if condition else ""


def _held(status: SLMDeploymentStatus) -> Condition | None:
    for condition in status.conditions:
        if condition.type == ConditionType.PROGRESSING and condition.reason in HOLDS:
            return condition
    return None


def _operations(old: SLMDeploymentStatus, new: SLMDeploymentStatus) -> list[Transition]:
    before = {answer.operation: answer.token for answer in old.operations}
    return [
        Transition(
            kind="Normal" if answer.outcome == "Done" else "Warning",
            reason=answer.operation.capitalize() + answer.outcome,
            message=answer.message,
        )
        for answer in new.operations
        if before.get(answer.operation) != answer.token
    ]


def _holds(old: SLMDeploymentStatus, new: SLMDeploymentStatus) -> list[Transition]:
    before, after = _held(old), _held(new)
    if after is None or (before is not None and before.reason == after.reason):
        return []
    if before is not None and {before.reason, after.reason} <= _WANTS_DATA:
        return []  # with little traffic the two alternate
    waits = after.reason in ("Paused", "AwaitingApproval", "OutsideWindow")
    return [
        Transition(kind="Normal" if waits else "Warning", reason=after.reason, message=after.message[:1000])
    ]


def _feedback(old: SLMDeploymentStatus, new: SLMDeploymentStatus) -> list[Transition]:
    """Only that a rule has fired and that all hold again: between the two, data may come and go."""
    before, after = (
        next((c for c in status.conditions if c.type == ConditionType.FEEDBACK_HEALTHY), None)
        for status in (old, new)
    )
    if after is None or (
        before is not None and (before.status, before.reason) == (after.status, after.reason)
    ):
        return []
    if after.status == "False":
        message = f"FeedbackHealthy: {after.message}"[:1000]
        return [Transition(kind="Warning", reason=after.reason, message=message)]
    if after.status == "True" and before is not None and before.status == "False":
        return [Transition(kind="Normal", reason="FeedbackHealthy", message=after.message)]
    return []


_TOLD: Final = (ConditionType.ACCEPTED, ConditionType.MODEL_RESOLVED, ConditionType.SIGNATURE_VERIFIED)


def _conditions(old: SLMDeploymentStatus, new: SLMDeploymentStatus) -> list[Transition]:
    before = {c.type: (c.status, c.reason) for c in old.conditions}
    result = []
    for condition in new.conditions:
        if before.get(condition.type) == (condition.status, condition.reason):
            continue
        if condition.type in _TOLD:
            bad = condition.status == "False"
            if bad or condition.type in before:
                result.append(
                    Transition(
                        kind="Warning" if bad else "Normal",
                        reason=condition.reason,
                        message=f"{condition.type}: {condition.message}",
                    )
                )
    return result


def _rollout(old: SLMDeploymentStatus, new: SLMDeploymentStatus) -> list[Transition]:
    rollout, before = new.rollout, old.rollout
    if rollout is None:
        return []
    same = (
        before is not None and before.revision == rollout.revision and before.started_at == rollout.started_at
    )
    result: list[Transition] = []
    if not same:
        what = "Installing" if rollout.step == "Installing" else "RolloutStarted"
        result.append(
            Transition(kind="Normal", reason=what, message=f"revision {rollout.revision} is rolled out")
        )
    waves_before = {w.name: w.verdict for w in before.waves} if same and before else {}
    result += [
        Transition(
            kind="Normal",
            reason="WavePassed",
            message=f"revision {rollout.revision}: wave {wave.name} passed with {wave.ready} node(s)",
        )
        for wave in rollout.waves
        if wave.verdict == "Pass" and waves_before.get(wave.name) != "Pass"
    ]
    if same and before is not None and before.step == rollout.step and before.wave == rollout.wave:
        return result
    match rollout.step:
        case "RollingBack":
            message = f"revision {rollout.revision} is rolled back: {rollout.message}"
            result.append(Transition(kind="Warning", reason=rollout.reason or "RollingBack", message=message))
        case "Failed":
            message = f"revision {rollout.revision} was rolled back: {rollout.message}"
            result.append(Transition(kind="Warning", reason="RolledBack", message=message))
        case "Cancelled":
            message = f"revision {rollout.revision} was given up: {rollout.message}"
            result.append(Transition(kind="Normal", reason="RolloutCancelled", message=message))
        case "Completed":
            message = f"revision {rollout.revision} is the stable revision"
            result.append(Transition(kind="Normal", reason="Promoted", message=message))
        case "Flipping":
            wave = rollout.waves[rollout.wave]
            message = f"revision {rollout.revision}: wave {wave.name} takes it on {wave.nodes} node(s)"
            result.append(Transition(kind="Normal", reason="WaveStarted", message=message))
        case _:
            pass
    return result
