# SPDX-License-Identifier: Apache-2.0
"""What follows from the rules of spec.feedback: a freeze of rollouts, or a way back.

The way back is that of `slmops.dev/undo`: the stable revision before this one is pinned and goes out in
waves, so a node takes it only with its model verified in the cache, and nodes on which it does not come up
stop it (its rollout fails, and the fleet returns to the revision that it has). Approvals, soak, analysis and
rollout.windows are passed over: the revision was judged when it was new, and a rollback waits for no window.
Once it is stable again, the revision that broke the rule counts as failed. Status remembers which revisions a
rule took back, so no sequence of signals does it twice to one; nor is one of them gone back to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from slmops.api import SLMDeploymentSpec, SLMDeploymentStatus
from slmops.api.base import duration_seconds
from slmops.api.feedback import FeedbackPolicy, FeedbackRule
from slmops.api.feedback_status import (
    MAX_ROLLED_BACK,
    FeedbackRollback,
    FeedbackRuleStatus,
    FeedbackStatus,
)
from slmops.api.status import MAX_FAILED_REVISIONS, ConditionType, FailedRevision, PinnedRevision
from slmops.model.observed import Observed
from slmops.model.plan import MeasureRequest
from slmops.planning import times
from slmops.planning.adapters import trained_in
from slmops.planning.analysis import Verdict
from slmops.planning.conditions import Says
from slmops.planning.decision import ACTIVE, FINISHED
from slmops.planning.feedback_rules import due_rules, fold_rules, next_due_seconds, restart_rules
from slmops.planning.operations import Standing
from slmops.planning.provider import provider_settings
from slmops.planning.queries import Sides
from slmops.planning.requests import begins
from slmops.planning.resolution import Resolution
from slmops.planning.revision import Revision
from slmops.planning.working import wanted_before

FEEDBACK_FAILED: Final = "FeedbackFailed"
"""Reason in status.failedRevisions."""
LOOK_SECONDS: Final = 6 * 3600.0
"""Least time between two looks that a rule asks an SLMModel for."""
_UNSURE: Final = (Verdict.PROVIDER_ERROR, Verdict.NO_DATA, Verdict.INCONCLUSIVE)
"""Verdicts that tell nothing; of several the first one here is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackLook:
    """What one look made of the rules."""

    status: FeedbackStatus | None
    frozen: str
    """Why no rollout may begin or go on; empty when it may."""
    obstacle: str
    """Why a rule that wants to go back cannot; empty when none does, or when it can."""


def heed_feedback(
    observed: Observed,
    spec: SLMDeploymentSpec,
    standing: Standing,
    *,
    stored: Mapping[str, Revision],
    resolution: Resolution,
    now: float,
) -> tuple[Standing, FeedbackLook]:
    """What stands after the readings about the stable revision that have come in."""
    standing = _keep_judgement(observed, standing, stored, resolution)
    status = observed.deployment.status.feedback or FeedbackStatus()
    standing, status = _follow_rollback(standing, status, now)
    policy = spec.feedback
    if policy is None or not policy.rules or not standing.stable:
        kept = status.model_copy(update={"revision": "", "rules": []})
        return standing, FeedbackLook(status=_unless_empty(kept), frozen="", obstacle="")
    states = restart_rules(policy, status.rules if status.revision == standing.stable else ())
    states = fold_rules(policy, states, observed.readings, revision=standing.stable)
    status = status.model_copy(update={"revision": standing.stable, "rules": list(states)})
    obstacle = ""
    wants_back = _first_fired(policy, states, "RollBack")
    if wants_back is not None and status.rollback is None:
        previous = observed.deployment.status.previous_stable or ""
        obstacle = find_obstacle(spec, status, standing, previous)
        if not obstacle:
            standing, status = _begin_rollback(status, standing, previous, wants_back, now)
    status = _ask_for_look(policy, status, now)
    held = _first_fired(policy, states, "Hold") if status.rollback is None else None
    frozen = ""
    if held is not None:
        frozen = (
            f"rule {held.name} of spec.feedback is broken ({held.message}); no rollout begins or goes on "
            "until it holds again, or its action is no longer Hold"
        )
    return standing, FeedbackLook(status=status, frozen=frozen, obstacle=obstacle)


def _keep_judgement(
    observed: Observed, standing: Standing, stored: Mapping[str, Revision], resolution: Resolution
) -> Standing:
    """What a rule judged stays judged when the same files become another revision and nobody has touched
    spec: a DeviceProfile was changed, or a node of another one has come."""
    deployment, before = observed.deployment, wanted_before(observed, stored)
    if before is None or standing.wanted in ("", before.revision):
        return standing
    if deployment.generation != deployment.status.observed_generation:
        return standing
    files = {variant.manifest.digest for variant in before.variants}
    if any(variant.digest not in files for variant in resolution.variants):
        return standing
    # Without an adapter that was trained at a site the files are fewer, and not the same.
    if trained_in(before.variants) != trained_in(resolution.resolved.values()):
        return standing
    pinned, feedback = deployment.status.pinned, deployment.status.feedback
    back = feedback.rollback if feedback is not None else None
    if back is not None and pinned is not None and pinned.revision == back.to and standing.pinned is None:
        return replace(standing, pinned=pinned.model_copy(update={"instead_of": standing.wanted}))
    judged = [f for f in standing.failed if f.revision == before.revision and f.reason == FEEDBACK_FAILED]
    return _with_failed(standing, *(f.model_copy(update={"revision": standing.wanted}) for f in judged))


def _with_failed(standing: Standing, *entries: FailedRevision) -> Standing:
    names = {entry.revision for entry in entries}
    failed = (*(f for f in standing.failed if f.revision not in names), *entries)
    return replace(standing, failed=failed[-MAX_FAILED_REVISIONS:])


def _ask_for_look(policy: FeedbackPolicy, status: FeedbackStatus, now: float) -> FeedbackStatus:
    """The SLMModel reads the time off this status, and looks at its source if that was not since."""
    asked = status.look_asked_at
    if _first_fired(policy, tuple(status.rules), "NewModelVersion") is None:
        return status
    if asked is not None and now - times.to_seconds(asked) < LOOK_SECONDS:
        return status
    return status.model_copy(update={"look_asked_at": times.to_text(now)})


def _unless_empty(status: FeedbackStatus) -> FeedbackStatus | None:
    return None if status == FeedbackStatus() else status


def _first_fired(
    policy: FeedbackPolicy, states: tuple[FeedbackRuleStatus, ...], action: str
) -> FeedbackRuleStatus | None:
    named = {rule.name for rule in policy.rules if rule.action == action}
    return next((state for state in states if state.name in named and state.fired_at is not None), None)


# The way back


def find_obstacle(spec: SLMDeploymentSpec, status: FeedbackStatus, standing: Standing, previous: str) -> str:
    """Why the fleet does not go back to `previous`, and the cure; empty when it may."""
    stable, rollout = standing.stable, standing.rollout
    failed = {entry.revision for entry in standing.failed}
    cure = "change spec, or choose a revision with slmops.dev/undo"
    if stable in status.rolled_back:
        return f"revision {stable} was taken back once already, which is not done twice; {cure}"
    if standing.pinned is not None:
        return f"revision {stable} was chosen by hand; choose another one with slmops.dev/undo"
    if not previous:
        return f"there was no stable revision before {stable}; {cure}"
    if previous in failed or previous in status.rolled_back:
        return f"revision {previous}, the stable one before, has failed; {cure}"
    if previous not in standing.known:
        return f"revision {previous}, the stable one before, is no longer in the history; {cure}"
    if not standing.wanted:
        return "what spec stands for is not known yet"
    if spec.rollout.paused:
        return "rollouts are paused; set spec.rollout.paused and slmops.dev/paused to false"
    if rollout is not None and rollout.step not in FINISHED:
        return f"the rollout of revision {rollout.revision} is not finished; abort it with slmops.dev/abort"
    if begins(standing):
        return f"the rollout of revision {standing.target} is about to begin"
    return ""


def _begin_rollback(
    status: FeedbackStatus, standing: Standing, previous: str, rule: FeedbackRuleStatus, now: float
) -> tuple[Standing, FeedbackStatus]:
    at = times.to_text(now)
    message = f"rule {rule.name} of spec.feedback: {rule.message}"[:512]
    pinned = PinnedRevision(revision=previous, instead_of=standing.wanted, at=at)
    rollback = FeedbackRollback(revision=standing.stable, to=previous, message=message, at=at)
    rolled_back = [*status.rolled_back, standing.stable][-MAX_ROLLED_BACK:]
    return (
        replace(standing, pinned=pinned),
        status.model_copy(update={"rollback": rollback, "rolled_back": rolled_back}),
    )


def _follow_rollback(
    standing: Standing, status: FeedbackStatus, now: float
) -> tuple[Standing, FeedbackStatus]:
    """A way back that is under way: ended, given up, or helped along."""
    back = status.rollback
    if back is None:
        return standing, status
    ended = status.model_copy(update={"rollback": None})
    ours = standing.pinned is not None and standing.pinned.revision == back.to
    if standing.stable == back.to:
        entry = FailedRevision(
            revision=back.revision, reason=FEEDBACK_FAILED, message=back.message, at=times.to_text(now)
        )
        entries = [entry]
        if ours and standing.wanted and all(f.revision != standing.wanted for f in standing.failed):
            # Spec stands for the same files by another name by now, see `_keep_judgement`.
            entries.append(entry.model_copy(update={"revision": standing.wanted}))
        # Failed revisions are not tried again by themselves: the pin has done its work, and `retry` is about
        # the revision that spec stands for.
        standing = _with_failed(standing, *{entry.revision: entry for entry in entries}.values())
        return replace(standing, pinned=None if ours else standing.pinned), ended
    if not ours:
        return standing, ended  # somebody has decided otherwise: spec changed, or undo named another one
    if any(entry.revision == back.to for entry in standing.failed):
        # It did not come up, or somebody aborted it: the fleet keeps what it has.
        return replace(standing, pinned=None), ended
    rollout = standing.rollout
    if (
        rollout is not None
        and rollout.revision == back.to
        and rollout.step in ACTIVE
        and rollout.promoted_at is None
    ):
        promoted = rollout.model_copy(update={"promoted_at": times.to_text(now)})
        standing = replace(standing, rollout=promoted)
    return standing, status


def in_rollback(spec: SLMDeploymentSpec, look: FeedbackLook) -> SLMDeploymentSpec:
    """The spec that holds for this look: a rollback waits for no window."""
    if look.status is None or look.status.rollback is None or not spec.rollout.windows:
        return spec
    rollout = spec.rollout.model_copy(update={"windows": []})
    return spec.model_copy(update={"rollout": rollout})


# What is asked next


def due_feedback(
    observed: Observed, spec: SLMDeploymentSpec, look: FeedbackLook, *, now: float
) -> tuple[MeasureRequest, ...]:
    """Measurements of rules that are due; none while the fleet goes back."""
    if spec.feedback is None or look.status is None or look.status.rollback is not None:
        return ()
    revision = look.status.revision
    sides = Sides(
        namespace=observed.deployment.namespace,
        deployment=observed.deployment.name,
        canary=revision,
        stable=revision,
    )
    provider = provider_settings(spec.rollout.analysis, observed.config, namespace=sides.namespace)
    return due_rules(spec.feedback, provider, look.status.rules, sides, now=now)


def next_feedback_seconds(spec: SLMDeploymentSpec, look: FeedbackLook, *, now: float) -> float | None:
    """Until another measurement is due; None when nothing is to be measured."""
    if spec.feedback is None or look.status is None or look.status.rollback is not None:
        return None
    return next_due_seconds(spec.feedback, look.status.rules, now=now)


def previous_stable(old: SLMDeploymentStatus, stable: str) -> str | None:
    """The stable revision before `stable`, which may have been promoted in this look."""
    if stable == old.stable_revision or not old.stable_revision:
        return old.previous_stable
    return old.stable_revision


def begins_anew(old: SLMDeploymentStatus, new: SLMDeploymentStatus) -> bool:
    """Whether a look has promoted a revision that the rules are now to be about."""
    return old.stable_revision != new.stable_revision and (
        new.feedback is not None or any(c.type == ConditionType.FEEDBACK_HEALTHY for c in new.conditions)
    )


# What is said


def say_feedback(spec: SLMDeploymentSpec, look: FeedbackLook) -> Says | None:
    """FeedbackHealthy; None without rules."""
    policy, status = spec.feedback, look.status
    if status is not None and status.rollback is not None:
        back = status.rollback
        message = f"revision {back.revision} goes back to {back.to}: {back.message}"
        return Says(status="False", reason="RollingBack", message=message)
    if policy is None or not policy.rules:
        return None
    if status is None or not status.revision:
        return Says(status="Unknown", reason="NotServing", message="no revision is the stable one yet")
    rules = {rule.name: rule for rule in policy.rules}
    fired = [state for state in status.rules if state.fired_at is not None]
    if fired:
        return _say_fired(look, rules, fired)
    failing = [state for state in status.rules if state.failing_seconds is not None]
    if failing:
        return Says(status="Unknown", reason="Pending", message=_failing_text(failing, rules))
    for verdict in _UNSURE:
        unsure = [state for state in status.rules if state.verdict == verdict]
        if unsure:
            text = "; ".join(f"{state.name}: {state.message}" for state in unsure)
            return Says(status="Unknown", reason=verdict, message=text)
    waiting = [state.name for state in status.rules if state.verdict != Verdict.PASS]
    if waiting:
        message = f"not measured yet: {', '.join(waiting)}"
        return Says(status="Unknown", reason="Measuring", message=message)
    message = f"revision {status.revision} holds {len(status.rules)} rule(s)"
    return Says(status="True", reason="Healthy", message=message)


def _say_fired(
    look: FeedbackLook, rules: Mapping[str, FeedbackRule], fired: list[FeedbackRuleStatus]
) -> Says:
    text = _failing_text(fired, rules)
    if look.obstacle:
        message = f"{text}; not rolled back: {look.obstacle}"
        return Says(status="False", reason="RollbackBlocked", message=message)
    if look.frozen:
        message = f"{text}; no rollout begins or goes on meanwhile"
        return Says(status="False", reason="FeedbackHold", message=message)
    asks = any(rules[state.name].action == "NewModelVersion" for state in fired)
    if asks and look.status is not None and look.status.look_asked_at is not None:
        text += f"; the SLMModel was asked at {look.status.look_asked_at} to look at its source again"
    return Says(status="False", reason="RuleViolated", message=text)


def _failing_text(states: list[FeedbackRuleStatus], rules: Mapping[str, FeedbackRule]) -> str:
    return "; ".join(
        f"{state.name}: {state.message}, seen for {state.failing_seconds or 0} s of "
        f"{duration_seconds(rules[state.name].for_):g} s"
        for state in states
    )
