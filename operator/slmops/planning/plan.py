# SPDX-License-Identifier: Apache-2.0
"""`plan(observed, now)`: one look at the world, and what follows from it."""

from dataclasses import replace

from slmops.api import RETRY_ANNOTATION, SLMDeploymentSpec, SLMDeploymentStatus
from slmops.api.base import duration_seconds
from slmops.api.status import ConditionType, RolloutStatus
from slmops.model.observed import Observed, OwnedKind, ResolveFailure
from slmops.model.plan import Action, AddFinalizer, ApplyObject, MeasureRequest, Plan, ResolveRequest
from slmops.planning import build, conditions, times
from slmops.planning.conditions import Says
from slmops.planning.decision import ACTIVE, FINISHED, Decision
from slmops.planning.deletion import plan_deletion
from slmops.planning.fleet import Fleet, build_fleet
from slmops.planning.judge import due_measurements, fold_readings, next_measurement_seconds
from slmops.planning.moves import Wish, build_wishes, count_moving, plan_moves
from slmops.planning.names import Names
from slmops.planning.nodes import NodeMemory, NodeState, read_nodes
from slmops.planning.objects import (
    apply_workloads,
    delete_unneeded,
    needs_of,
    revisions_to_keep,
)
from slmops.planning.resolution import Resolution, resolve
from slmops.planning.revision import Revision, build_revision_data, parse_revision
from slmops.planning.rollout import decide
from slmops.planning.transitions import transitions_between
from slmops.planning.validate import validate


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
    finding = validate(deployment, observed.config)
    if finding is not None or deployment.spec is None:
        reason = finding.reason if finding else "InvalidSpec"
        message = finding.message if finding else deployment.spec_error
        return _refuse(observed, reason, f"{message}; nothing that runs is touched", now)
    return _plan_accepted(observed, deployment.spec, now, memory)


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
    observed: Observed, spec: SLMDeploymentSpec, now: float, memory: NodeMemory | None
) -> Plan:
    deployment = observed.deployment
    old = deployment.status
    names = Names(deployment.namespace, deployment.name)
    stored = _parse_stored(observed)
    resolution = resolve(spec, outcomes=observed.resolutions, stored=stored.values())
    revisions, new_revision = _with_target(names, spec, observed, resolution, stored, old.stable_revision)

    if memory is not None:
        revisions = memory.same_revisions(revisions)
    states = read_nodes(names, spec, observed.nodes, observed.pods, memory=memory)
    fleet = build_fleet(
        spec,
        states=states,
        revisions=revisions,
        stable=old.stable_revision,
        target=resolution.revision,
        key=deployment.uid,
    )
    token = deployment.annotations.get(RETRY_ANNOTATION, "")
    # The token is used up only by a look that knows which revision it is about.
    retry = bool(token) and token != old.retry_token and bool(resolution.revision)
    failed = tuple(
        entry for entry in old.failed_revisions if not (retry and entry.revision == resolution.revision)
    )
    rollout = old.rollout
    if rollout is not None and not spec.rollout.paused:
        rollout = fold_readings(spec.rollout.analysis, rollout, observed.readings)
    decision = decide(
        fleet,
        stable_revision=old.stable_revision,
        target_revision=resolution.revision,
        rollout=rollout,
        failed=failed,
        now=now,
    )
    # A promotion in this very look makes the target the stable revision for placement, too.
    fleet = replace(fleet, stable=revisions.get(decision.stable_revision))

    wishes = _wishes(fleet, decision)
    cause = _cause(decision.rollout)
    patches = () if decision.paused else plan_moves(names, fleet, wishes, key=deployment.uid, cause=cause)
    active = decision.rollout is not None and decision.rollout.step in ACTIVE
    needs = needs_of(
        names,
        fleet,
        wishes,
        patches,
        prefetching=decision.rollout.revision if active and decision.rollout else "",
    )
    keep = revisions_to_keep(
        revisions.values(),
        needed=needs.revisions | {r for r in (decision.stable_revision, resolution.revision) if r},
        history_limit=spec.revision_history_limit,
    )
    actions: list[Action] = [
        *new_revision,
        *apply_workloads(names, fleet, needs, observed.owned),
        *_service(names, spec, observed),
        *patches,
        # That there is no node at all is no reason to take every workload down.
        *(delete_unneeded(names, needs, observed.owned, keep_revisions=keep) if observed.nodes else ()),
    ]
    token = token if retry else old.retry_token
    moving = count_moving(fleet, wishes)
    status = _status(observed, spec, fleet, decision, resolution, token=token, moving=moving, now=now)
    measure: tuple[MeasureRequest, ...] = ()
    if decision.rollout is not None and not decision.paused:
        measure = due_measurements(
            spec.rollout.analysis,
            decision.rollout,
            namespace=deployment.namespace,
            deployment=deployment.name,
            stable=decision.stable_revision,
            now=now,
        )
    return Plan(
        status=status,
        actions=tuple(actions),
        resolve=_due_resolutions(observed, resolution, now),
        measure=measure,
        transitions=transitions_between(old, status),
        requeue_after_seconds=_requeue(spec, decision, resolution, now),
    )


def _parse_stored(observed: Observed) -> dict[str, Revision]:
    result = {}
    for view in observed.revisions:
        try:
            result[view.revision] = parse_revision(view.revision, view.number, view.data)
        except (ValueError, KeyError, TypeError):
            continue  # altered by somebody; made anew when it is the target, else unusable
    return result


def _with_target(
    names: Names,
    spec: SLMDeploymentSpec,
    observed: Observed,
    resolution: Resolution,
    stored: dict[str, Revision],
    stable: str,
) -> tuple[dict[str, Revision], tuple[ApplyObject, ...]]:
    """All revisions with the target among them, and the write that stores it if need be.

    The target gets the highest number, also when it is an earlier revision taken up again.
    """
    target = resolution.revision
    if not target:
        return stored, ()
    newest = max((r.number for r in stored.values()), default=0)
    known = stored.get(target)
    view = next((v for v in observed.revisions if v.revision == target), None)
    if known is not None and view is not None and (known.number == newest or target == stable):
        return stored, ()
    if known is not None and view is not None:
        data, why = dict(view.data), "taken up again"
    else:
        templates = build.build_templates(
            names,
            spec,
            config=observed.config,
            revision=target,
            digests={name: found.manifest.digest for name, found in resolution.resolved.items()},
        )
        data = build_revision_data(spec, resolved=resolution.resolved, templates=templates)
        why = "new revision"
    number = newest + 1
    body = build.build_controller_revision(names, revision=target, number=number, data=data)
    write = ApplyObject(
        kind=OwnedKind.CONTROLLER_REVISION, name=names.controller_revision(target), body=body, why=why
    )
    return stored | {target: parse_revision(target, number, data)}, (write,)


def _wishes(fleet: Fleet, decision: Decision) -> dict[str, Wish]:
    rollout = decision.rollout
    target = fleet.target.revision if fleet.target else ""
    canary: list[str] = []
    may_flip = True
    left = ""
    if rollout is not None and rollout.step in ACTIVE and rollout.revision == target:
        may_flip = rollout.step == "Flipping"
        failed = frozenset(entry.revision for entry in decision.failed)
        canary = [s.name for s in fleet.eligible if target in s.serve or _may_join(fleet, s, rollout, failed)]
    elif rollout is not None and rollout.step in ("RollingBack", "Failed", "Cancelled"):
        left = rollout.revision
    return build_wishes(
        fleet, stable=decision.stable_revision, canary=canary, may_flip_canary=may_flip, left=left
    )


def _may_join(fleet: Fleet, state: NodeState, rollout: RolloutStatus, failed: frozenset[str]) -> bool:
    """Whether a node without the target is to get it in this wave."""
    if fleet.wave_of[state.name] > rollout.wave:
        return False
    if fleet.stable is None or fleet.variant(fleet.stable, state) is None:
        return True
    # A new node serves the stable revision first, and a node with a failed one goes back to it first:
    # neither may wait for a fetch and for a wave's turn.
    return bool(state.serve) and failed.isdisjoint(state.serve)


def _cause(rollout: RolloutStatus | None) -> str:
    """Label value that tells a rollout from every other of this deployment."""
    return str(int(times.to_seconds(rollout.started_at))) if rollout is not None else "none"


def _service(names: Names, spec: SLMDeploymentSpec, observed: Observed) -> tuple[ApplyObject, ...]:
    view = next((v for v in observed.owned if v.kind is OwnedKind.SERVICE and v.name == names.name), None)
    if (
        view is not None
        and not view.drifted
        and observed.deployment.generation == (observed.deployment.status.observed_generation)
    ):
        return ()
    why = "missing" if view is None else "spec or Service changed"
    return (
        ApplyObject(kind=OwnedKind.SERVICE, name=names.name, body=build.build_service(names, spec), why=why),
    )


def _due_resolutions(observed: Observed, resolution: Resolution, now: float) -> tuple[ResolveRequest, ...]:
    due = []
    for request in resolution.requests:
        outcome = observed.resolutions.get(request.source_hash)
        if not isinstance(outcome, ResolveFailure) or outcome.retry_at <= now:
            due.append(request)
    return tuple(due)


def _status(
    observed: Observed,
    spec: SLMDeploymentSpec,
    fleet: Fleet,
    decision: Decision,
    resolution: Resolution,
    *,
    token: str,
    moving: int,
    now: float,
) -> SLMDeploymentStatus:
    deployment, old = observed.deployment, observed.deployment.status
    target = resolution.revision
    problems = conditions.find_problems(fleet)
    counts = conditions.count_nodes(fleet, problems, decision, target)
    resolved = conditions.say_resolved(resolution)
    ready = conditions.say_ready(fleet, counts, problems)
    if ready.status != "True" and not decision.stable_revision and resolved.status != "True":
        ready = Says(status="False", reason="ModelNotResolved", message=resolved.message)
    says = {
        ConditionType.ACCEPTED: Says(status="True", reason="Accepted", message="the spec makes sense"),
        ConditionType.MODEL_RESOLVED: resolved,
        ConditionType.READY: ready,
        ConditionType.PROGRESSING: conditions.say_progressing(fleet, decision, resolution, moving=moving),
        ConditionType.ROLLOUT_SUCCEEDED: conditions.say_succeeded(decision, target),
    }
    assigned = [value for state in fleet.matched for key, value in state.serve.items() if key == target]
    stable = fleet.stable
    return SLMDeploymentStatus(
        observed_generation=deployment.generation,
        stable_revision=decision.stable_revision,
        update_revision=target or old.update_revision,
        model_version=stable.model_version if stable else "",
        ready_nodes=f"{counts.ready}/{counts.total}",
        canary=conditions.canary_text(decision, target),
        retry_token=token,
        nodes=counts,
        reasons=conditions.count_reasons(problems),
        worst_nodes=conditions.worst_nodes(problems),
        variants=[
            variant.model_copy(update={"nodes": assigned.count(variant.name)})
            for variant in resolution.variants
        ],
        rollout=decision.rollout,
        failed_revisions=list(decision.failed),
        conditions=conditions.merge_conditions(
            old.conditions, says, generation=deployment.generation, now=now
        ),
    )


def _requeue(spec: SLMDeploymentSpec, decision: Decision, resolution: Resolution, now: float) -> float | None:
    """Seconds until a timer may change the plan; events wake it earlier."""
    # What is due already is under way, and its answer wakes the planner.
    waits = [failure.retry_at - now for _, failure in resolution.failures if failure.retry_at > now]
    rollout = decision.rollout
    if rollout is not None and _starts_again(decision, rollout, resolution.revision):
        waits.append(0.0)
    if rollout is not None and rollout.step not in FINISHED and not decision.paused:
        waits += _timers(spec, rollout, now)
    return max(0.1, min(waits)) if waits else None


def _starts_again(decision: Decision, rollout: RolloutStatus, target: str) -> bool:
    """The rollout has just ended, and its revision is wanted (again)."""
    return (
        rollout.step in ("Failed", "Cancelled")
        and rollout.revision == target != decision.stable_revision
        and not decision.paused
        and all(entry.revision != target for entry in decision.failed)
    )


def _timers(spec: SLMDeploymentSpec, rollout: RolloutStatus, now: float) -> list[float]:
    step_age = now - times.to_seconds(rollout.step_started_at)
    wave_age = now - times.to_seconds(rollout.wave_started_at)
    waits = []
    if rollout.step == "Prefetching":
        waits.append(duration_seconds(spec.rollout.prefetch_deadline) - step_age)
    else:
        waits.append(duration_seconds(spec.rollout.progress_deadline) - wave_age)
    if rollout.step == "Soaking":
        waits.append(duration_seconds(spec.rollout.soak) - step_age)
    measurement = next_measurement_seconds(spec.rollout.analysis, rollout, now=now)
    if measurement is not None:
        waits.append(measurement)
    return [wait for wait in waits if wait > 0]
