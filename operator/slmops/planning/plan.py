# SPDX-License-Identifier: Apache-2.0
"""`plan(observed, now)`: one look at the world, and what follows from it."""

from collections.abc import Mapping
from dataclasses import replace

from slmops.api import SLMDeploymentSpec, SLMDeploymentStatus
from slmops.api.status import ConditionType
from slmops.model.observed import Observed
from slmops.model.plan import AddFinalizer, Plan
from slmops.planning import conditions, feedback
from slmops.planning.access import seconds_to_problem
from slmops.planning.adaptation import AdaptationLook, plan_adaptation
from slmops.planning.adaptation_says import say_adaptation
from slmops.planning.adaptation_state import has_changed
from slmops.planning.classes import find_renamed, with_renamed
from slmops.planning.conditions import Says
from slmops.planning.decision import FINISHED, Decision
from slmops.planning.deletion import plan_deletion
from slmops.planning.distribution import apply_distribution, share_among
from slmops.planning.finding import Finding
from slmops.planning.fleet import Fleet, build_fleet, find_misfit
from slmops.planning.history import parse_stored, with_target
from slmops.planning.judge import fold_readings, forget_passes
from slmops.planning.measuring import plan_measurements
from slmops.planning.names import Names
from slmops.planning.nodes import NodeMemory, read_nodes
from slmops.planning.objects import (
    apply_service,
)
from slmops.planning.operations import Standing
from slmops.planning.overrides import say_unknown_profiles
from slmops.planning.placed import Placed, place_revisions
from slmops.planning.places import say_fetch_closed
from slmops.planning.pod_metrics import pod_readings
from slmops.planning.provider import with_judge
from slmops.planning.replicas import status_fields
from slmops.planning.requests import begins, heed_annotations
from slmops.planning.residency import find_forbidden
from slmops.planning.resolution import Resolution, due_requests, keep_wanted, resolve, sources_of
from slmops.planning.revision import Revision
from slmops.planning.rollout import decide
from slmops.planning.slots import Layout, Order, find_site_problem, lay_out
from slmops.planning.timers import earliest, requeue_seconds
from slmops.planning.transitions import transitions_between
from slmops.planning.validate import validate
from slmops.planning.validate_analysis import find_analysis_problem
from slmops.planning.validate_feedback import find_feedback_problem
from slmops.planning.validate_rollout import find_fleet_problem, find_rollout_problem
from slmops.planning.working import Working, in_force, wanted_before, work_out


def plan(observed: Observed, now: float, *, memory: NodeMemory | None = None) -> Plan:
    """What to do about one SLMDeployment. Pure: equal arguments, equal plan.

    `memory` may be handed in again with each look at the same deployment. It only saves time.

    `now` is in seconds since the epoch. The plan is complete and idempotent: carrying out any part
    of it and planning again leads to the same end.
    """
    deployment = observed.deployment
    if deployment.deleting_since is not None:
        return plan_deletion(observed, now)
    if not deployment.has_finalizer:
        # Before anything is written to nodes it must be certain that it will be cleaned up.
        return Plan(status=deployment.status, actions=(AddFinalizer(),))
    finding = validate(deployment, observed.config) or find_site_problem(deployment.spec, observed.nodes)
    if finding is not None or deployment.spec is None:
        reason = finding.reason if finding else "InvalidSpec"
        message = finding.message if finding else deployment.spec_error
        return _refuse(observed, reason, f"{message}; nothing that runs is touched", now)
    stored = parse_stored(observed)
    working = work_out(observed, deployment.spec, stored)
    if working.finding is not None:
        finding = working.finding
        return _refuse(observed, finding.reason, f"{finding.message}; nothing that runs is touched", now)
    finding = find_rollout_problem(deployment.spec) or find_analysis_problem(deployment.spec, observed.config)
    finding = finding or find_feedback_problem(deployment.spec, observed.config)
    working = replace(working, spec=in_force(working.spec, deployment.annotations))
    outcome = _plan_accepted(observed, working, stored, finding, now, memory)
    before = deployment.status
    if not feedback.begins_anew(before, outcome.status) and not has_changed(before, outcome.status):
        return outcome
    # The rules of spec.feedback are about the stable revision, and a way back ends with a promotion. With an
    # adapter that came or went spec stands for another revision.
    after = replace(observed, deployment=replace(deployment, status=outcome.status), readings=())
    second = plan(after, now, memory=memory)
    return replace(second, transitions=outcome.transitions + second.transitions)


def _refuse(observed: Observed, reason: str, message: str, now: float) -> Plan:
    deployment = observed.deployment
    says = {ConditionType.ACCEPTED: Says(status="False", reason=reason, message=message)}
    if not any(c.type == ConditionType.READY for c in deployment.status.conditions):
        says[ConditionType.READY] = Says(status="False", reason="NotAccepted", message=message)
    status = conditions.with_condition_only(
        deployment.status, says, generation=deployment.generation, now=now
    )
    return Plan(status=status, transitions=transitions_between(deployment.status, status))


def _plan_accepted(
    observed: Observed,
    working: Working,
    stored: dict[str, Revision],
    finding: Finding | None,
    now: float,
    memory: NodeMemory | None,
) -> Plan:
    deployment, spec = observed.deployment, working.spec
    old = deployment.status
    names = Names(deployment.namespace, deployment.name)
    resolution = _resolve(observed, working, stored)
    standing, operations = heed_annotations(observed, spec, resolution.revision, frozenset(stored), now)
    standing, rules = feedback.heed_feedback(
        observed, spec, standing, stored=stored, resolution=resolution, now=now
    )
    spec, target = feedback.in_rollback(spec, rules), standing.target
    revisions, new_revision = with_target(names, spec, observed, resolution, stored, target, standing.stable)
    if memory is not None:
        revisions = memory.same_revisions(revisions)

    fleet, layout = _read_fleet(names, spec, observed, revisions, standing, memory)
    if finding is None and begins(standing):
        finding = find_fleet_problem(spec.rollout.waves, [state.node for state in fleet.eligible])
    finding = finding or find_misfit(fleet)
    blocked = finding.message if finding else ""
    if not blocked and target == resolution.revision != standing.stable:
        blocked = conditions.find_unchecked(spec, resolution, deployment)
    decision = _decide(observed, fleet, standing, blocked, rules.frozen, now)
    # A promotion in this very look makes the target the stable revision for placement, too.
    fleet = replace(fleet, stable=revisions.get(decision.stable_revision))
    placement = place_revisions(
        names, fleet, layout, decision, observed, wanted=resolution.revision, target=target, now=now
    )
    shared = share_among(fleet, observed)
    adaptation = plan_adaptation(
        names, observed, fleet, decision, standing=standing, resolution=resolution, rules=rules,
        finding=finding, now=now,
    )  # fmt: skip
    told, told_in_seconds = apply_distribution(names, observed, shared, now=now)
    status = _status(
        observed,
        fleet,
        decision,
        resolution,
        finding,
        target=target,
        placement=placement,
        note="; ".join(filter(None, (shared.note, say_unknown_profiles(spec.overrides, observed.profiles)))),
        rules=rules,
        adaptation=adaptation,
        now=now,
    ).model_copy(
        update={
            "retry_token": operations.retry_token,
            "operations": operations.answers,
            "pinned": standing.pinned,
        }
        | status_fields(observed, placement.replicas)
    )
    return Plan(
        status=status,
        actions=(
            *new_revision,
            *told,
            *placement.policies,
            *placement.workloads,
            *apply_service(names, fleet, observed),
            *placement.patches,
            *placement.deletions,
            *adaptation.actions,
        ),
        resolve=due_requests(resolution, observed.resolutions, now),
        sources=None if working.unmet else sources_of(spec),
        measure=plan_measurements(observed, spec, decision, rules, finding=finding, now=now),
        transitions=transitions_between(old, status),
        requeue_after_seconds=earliest(
            requeue_seconds(spec, decision, resolution, target, now, turn_at=placement.places.turn_at),
            placement.settles_in_seconds,
            told_in_seconds,
            adaptation.wakes_in_seconds,
            feedback.next_feedback_seconds(spec, rules, now=now),
            seconds_to_problem(fleet.matched, revisions, now),
        ),
    )


def _resolve(observed: Observed, working: Working, stored: Mapping[str, Revision]) -> Resolution:
    if working.unmet is not None:
        return keep_wanted(wanted_before(observed, stored), working.unmet)
    old = observed.deployment.status
    resolution = resolve(
        working.spec,
        outcomes=observed.resolutions,
        stored=stored.values(),
        stable=old.stable_revision,
        rolling=old.rollout.revision if old.rollout and old.rollout.step not in FINISHED else "",
    )
    return replace(resolution, note=working.note)


def _read_fleet(
    names: Names,
    spec: SLMDeploymentSpec,
    observed: Observed,
    revisions: Mapping[str, Revision],
    standing: Standing,
    memory: NodeMemory | None,
) -> tuple[Fleet, Layout | None]:
    """The nodes, or the replicas in their place and how they are laid out."""
    uid = observed.deployment.uid
    layout = lay_out(
        spec,
        counts=observed.deployment.status.replica_counts,
        nodes=observed.nodes,
        pods=observed.pods,
        revisions=revisions,
        order=Order(target=standing.target, stable=standing.stable),
        key=uid,
    )
    if layout:
        states = layout.states
    else:
        states = read_nodes(names, spec, observed.nodes, observed.pods, memory=memory)
    fleet = build_fleet(
        spec,
        states=states,
        revisions=revisions,
        stable=standing.stable,
        target=standing.target,
        key=uid,
        left_out=layout.left_out if layout else (),
        forbidden=find_forbidden(spec, observed.nodes),
    )
    return fleet, layout


def _decide(
    observed: Observed, fleet: Fleet, standing: Standing, blocked: str, frozen: str, now: float
) -> Decision:
    """Where the rollout stands after the readings that have come in; `blocked`, `frozen` as in `decide`."""
    deployment, spec, rollout = observed.deployment, fleet.spec, standing.rollout
    if rollout is not None and deployment.generation != deployment.status.observed_generation:
        rollout = forget_passes(rollout)
    if rollout is not None and not spec.rollout.paused and not (blocked or frozen):
        analysis = spec.rollout.analysis
        readings = observed.readings + pod_readings(analysis, rollout, fleet, now=now)
        readings = with_renamed(readings, find_renamed(fleet)) if readings else ()
        rollout = fold_readings(analysis, rollout, readings, classes=max(1, len(spec.variants)))
    return decide(
        fleet,
        stable_revision=standing.stable,
        target_revision=standing.target,
        rollout=rollout,
        failed=standing.failed,
        now=now,
        blocked=blocked,
        frozen=frozen,
        fetch_closed=say_fetch_closed(spec, standing, now),
    )


def _status(
    observed: Observed,
    fleet: Fleet,
    decision: Decision,
    resolution: Resolution,
    finding: Finding | None,
    *,
    target: str,
    placement: Placed,
    note: str,
    rules: feedback.FeedbackLook,
    adaptation: AdaptationLook,
    now: float,
) -> SLMDeploymentStatus:
    deployment, old = observed.deployment, observed.deployment.status
    problems = conditions.find_problems(fleet, now)
    counts = conditions.count_nodes(fleet, problems, decision, target)
    resolved = conditions.say_resolved(resolution)
    ready = conditions.say_ready(fleet, counts, problems)
    if ready.status != "True" and not decision.stable_revision and resolved.status != "True":
        ready = Says(status="False", reason="ModelNotResolved", message=resolved.message)
    says = {
        ConditionType.ACCEPTED: conditions.say_accepted(finding, note),
        ConditionType.MODEL_RESOLVED: resolved,
        ConditionType.READY: ready,
        ConditionType.PROGRESSING: conditions.say_progressing(
            fleet, decision, resolution, moving=placement.moving, unfetched=placement.places.waiting
        ),
        ConditionType.ROLLOUT_SUCCEEDED: conditions.say_succeeded(decision, target, resolution.revision),
    }
    signed = conditions.say_signed(fleet.spec, resolution)
    if signed is not None:
        says[ConditionType.SIGNATURE_VERIFIED] = conditions.unless_unsure(signed, deployment)
    if (said := feedback.say_feedback(fleet.spec, rules)) is not None:
        says[ConditionType.FEEDBACK_HEALTHY] = said
    if (said := say_adaptation(adaptation.status, stable=decision.stable_revision)) is not None:
        says[ConditionType.ADAPTATION_HEALTHY] = said
    assigned = [value for state in fleet.matched for key, value in state.serve.items() if key == target]
    stable = fleet.stable
    return SLMDeploymentStatus(
        observed_generation=deployment.generation,
        stable_revision=decision.stable_revision,
        update_revision=target or old.update_revision,
        model_version=stable.model_version if stable else "",
        ready_nodes=f"{counts.ready}/{counts.total}",
        canary=conditions.canary_text(decision, target),
        nodes=counts,
        reasons=conditions.count_reasons(problems),
        worst_nodes=conditions.worst_nodes(problems),
        variants=[
            variant.model_copy(update={"nodes": assigned.count(variant.name)})
            for variant in resolution.variants
        ],
        rollout=with_judge(decision, fleet.spec.rollout.analysis, observed.config),
        failed_revisions=list(decision.failed),
        previous_stable=feedback.previous_stable(old, decision.stable_revision),
        feedback=rules.status,
        adaptation=adaptation.status,
        conditions=conditions.merge_conditions(
            old.conditions, says, generation=deployment.generation, now=now
        ),
    )
