# SPDX-License-Identifier: Apache-2.0
"""The rollout's state machine: from the state in status and the fleet to the next state.

A rollout goes wave by wave through Prefetching, Flipping, Soaking and Analysing, and ends as
Completed, Failed (through RollingBack) or Cancelled. Which nodes have moved is read off the nodes
themselves, so a restart at any point goes on where it was.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from slmops.api.base import duration_seconds
from slmops.api.status import (
    MAX_FAILED_REVISIONS,
    FailedRevision,
    RolloutStatus,
    WaveStatus,
)
from slmops.planning import times
from slmops.planning.fleet import Fleet, WaveView, canary_problem, failures_elsewhere, view_wave
from slmops.planning.judge import Judgement, judge_metrics
from slmops.planning.revision import Revision

ACTIVE: Final = frozenset({"Prefetching", "Flipping", "Soaking", "Analysing"})
"""Steps in which the new revision may be on nodes of finished waves or of the current one."""
FINISHED: Final = frozenset({"Completed", "Failed", "Cancelled"})
REVERTED: Final = "Reverted"
SUPERSEDED: Final = "Superseded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Why the rollout does not move although it is not finished."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Where the rollout stands after this look."""

    stable_revision: str
    rollout: RolloutStatus | None
    failed: tuple[FailedRevision, ...]
    hold: Hold | None = None
    paused: bool = False
    """Nothing is moved."""


def decide(
    fleet: Fleet,
    *,
    stable_revision: str,
    target_revision: str,
    rollout: RolloutStatus | None,
    failed: tuple[FailedRevision, ...],
    now: float,
) -> Decision:
    """Next state. `target_revision` is empty while the sources are not resolved."""
    decision = Decision(stable_revision=stable_revision, rollout=rollout, failed=failed)
    if fleet.spec.rollout.paused:
        return _pause(decision, now)
    decision = _resume(decision, now)
    decision = _start_or_stop(decision, fleet, target_revision, now)
    # A look may pass several steps at once, for example waves without nodes; each step is passed at
    # most once per wave, so this ends.
    for _ in range(4 * len(fleet.spec.rollout.waves) + 4):
        following = _step(decision, fleet, now)
        if following == decision:
            break
        decision = following
    return decision


def _pause(decision: Decision, now: float) -> Decision:
    rollout = decision.rollout
    if rollout is not None and rollout.step not in FINISHED and rollout.paused_at is None:
        rollout = rollout.model_copy(update={"paused_at": times.to_text(now)})
    hold = Hold(reason="Paused", message="spec.rollout.paused is true; set it to false to go on")
    return replace(decision, rollout=rollout, hold=hold, paused=True)


def _resume(decision: Decision, now: float) -> Decision:
    rollout = decision.rollout
    if rollout is None or rollout.paused_at is None:
        return decision
    # Timers stand still while paused, or a deadline would pass at the moment of resuming.
    shift = now - times.to_seconds(rollout.paused_at)
    moved = {
        field: times.to_text(times.to_seconds(getattr(rollout, field)) + shift)
        for field in ("step_started_at", "wave_started_at")
    }
    return replace(decision, rollout=rollout.model_copy(update={"paused_at": None, **moved}))


def _start_or_stop(decision: Decision, fleet: Fleet, target: str, now: float) -> Decision:
    rollout, stable = decision.rollout, decision.stable_revision
    at = times.to_text(now)
    if not target:
        # Spec has moved on to files that are not known yet: what was being rolled out is given up.
        if rollout is not None and rollout.step in ACTIVE:
            message = "spec changed before the rollout was finished"
            return replace(decision, rollout=_roll_back(rollout, SUPERSEDED, message, now))
        return decision
    if not stable:
        if rollout is None or rollout.revision != target:
            rollout = RolloutStatus(
                revision=target, step="Installing", step_started_at=at, wave_started_at=at, started_at=at
            )
        return replace(decision, rollout=rollout)
    if target == stable:
        if rollout is not None and rollout.revision != stable and rollout.step in ACTIVE:
            return replace(
                decision, rollout=_roll_back(rollout, REVERTED, "spec went back to the stable revision", now)
            )
        return decision
    if any(entry.revision == target for entry in decision.failed):
        return decision
    if rollout is None or rollout.revision != target or rollout.step in FINISHED:
        rollout = _begin(target, [wave.name for wave in fleet.spec.rollout.waves], rollout, now)
    elif [wave.name for wave in rollout.waves] != [wave.name for wave in fleet.spec.rollout.waves]:
        # The waves were edited meanwhile: keep what is known by name, go on at the first unjudged one.
        known = {wave.name: wave for wave in rollout.waves}
        waves = [known.get(w.name, WaveStatus(name=w.name)) for w in fleet.spec.rollout.waves]
        index = next(
            (i for i, w in enumerate(waves) if not w.verdict or w.verdict == "Pending"), len(waves) - 1
        )
        current = rollout.waves[rollout.wave].name
        rollout = rollout.model_copy(update={"waves": waves, "wave": index})
        if waves[index].name != current:
            rollout = _begin_wave(rollout, index, now)
    return replace(decision, rollout=rollout)


def _step(decision: Decision, fleet: Fleet, now: float) -> Decision:
    rollout = decision.rollout
    if rollout is None or rollout.step in FINISHED:
        return decision
    if rollout.step == "RollingBack":
        return _rolling_back(decision, rollout, fleet, now)
    target = fleet.target
    if target is None or rollout.revision != target.revision:
        return decision
    if rollout.step == "Installing":
        return _installing(decision, rollout, fleet, target, now)
    return _wave_step(decision, rollout, fleet, target, now)


def _installing(
    decision: Decision, rollout: RolloutStatus, fleet: Fleet, target: Revision, now: float
) -> Decision:
    online = [state for state in fleet.eligible if state.online]
    serving = sum(1 for state in online if state.serves(target.revision))
    if not serving or serving * 100 < len(online) * fleet.spec.rollout.quorum_percent:
        return decision
    at = times.to_text(now)
    done = rollout.model_copy(update={"step": "Completed", "step_started_at": at, "finished_at": at})
    return replace(decision, stable_revision=target.revision, rollout=done)


def _rolling_back(decision: Decision, rollout: RolloutStatus, fleet: Fleet, now: float) -> Decision:
    # Offline nodes still carry it; they leave it when they return, and the rollback does not wait.
    if any(rollout.revision in state.serve for state in fleet.states if state.online):
        return decision
    at = times.to_text(now)
    step = "Cancelled" if rollout.reason in (REVERTED, SUPERSEDED) else "Failed"
    done = rollout.model_copy(update={"step": step, "step_started_at": at, "finished_at": at})
    return replace(decision, rollout=done)


def _wave_step(
    decision: Decision, rollout: RolloutStatus, fleet: Fleet, target: Revision, now: float
) -> Decision:
    index = rollout.wave
    if not fleet.wave_of:
        hold = Hold(reason="NoMatchingNodes", message="there is no node to try the new revision on")
        return replace(decision, hold=hold)
    started_at = rollout.waves[index].started_at
    view = view_wave(fleet, index, target, since=times.to_seconds(started_at) if started_at else now)
    rollout = _update_wave(rollout, index, _summary(rollout.waves[index], view))
    decision = replace(decision, rollout=rollout, hold=None)
    if view.nodes == 0:
        return _pass_wave(decision, rollout, now, "Skipped")
    if started_at is None:
        begun = rollout.waves[index].model_copy(
            update={"started_at": times.to_text(now), "verdict": "Pending"}
        )
        rollout = _update_wave(rollout, index, begun)
        decision = replace(decision, rollout=rollout)

    failures = view.failures + failures_elsewhere(fleet, index, target)
    if len(failures) > fleet.spec.rollout.max_failures:
        node, problem = failures[0]
        return _fail(
            decision,
            rollout,
            fleet,
            "NodesFailed",
            f"{len(failures)} node(s) failed with the new revision, {fleet.spec.rollout.max_failures} "
            f"allowed; {node}: {problem.reason}: {problem.message}",
            now,
        )
    judgement = judge_metrics(fleet.spec.rollout.analysis, rollout)
    if judgement.failed and rollout.step != "Prefetching":
        return _fail(decision, rollout, fleet, "AnalysisFailed", judgement.failed, now)
    handlers: dict[str, Callable[[Decision, RolloutStatus, Fleet, WaveView, Judgement, float], Decision]] = {
        "Prefetching": _prefetching,
        "Flipping": _flipping,
        "Soaking": _soaking,
        "Analysing": _analysing,
    }
    return handlers[rollout.step](decision, rollout, fleet, view, judgement, now)


def _prefetching(
    decision: Decision, rollout: RolloutStatus, fleet: Fleet, view: WaveView, judgement: Judgement, now: float
) -> Decision:
    spec = fleet.spec.rollout
    late = now - times.to_seconds(rollout.step_started_at) >= duration_seconds(spec.prefetch_deadline)
    if view.pending_prefetch and not late:
        names = ", ".join(state.name for state in view.pending_prefetch[:3])
        message = f"{len(view.pending_prefetch)} node(s) still fetch the model: {names}"
        return replace(decision, hold=Hold(reason="Prefetching", message=message))
    if not view.has_quorum(view.prepared, spec.quorum_percent):
        if late:
            return _deadline(decision, rollout, fleet, _quorum_text(view, view.prepared, fleet), now)
        return replace(
            decision, hold=Hold(reason="QuorumMissing", message=_quorum_text(view, view.prepared, fleet))
        )
    if judgement.missing_baseline:
        if late:
            return _deadline(decision, rollout, fleet, judgement.missing_baseline, now)
        return replace(decision, hold=Hold(reason="NoBaseline", message=judgement.missing_baseline))
    at = times.to_text(now)
    # The wave's clock starts with the first node that may be moved, and so does the window of metrics.
    flipping = {"step": "Flipping", "step_started_at": at, "wave_started_at": at, "metrics": []}
    return replace(decision, rollout=rollout.model_copy(update=flipping))


def _flipping(
    decision: Decision, rollout: RolloutStatus, fleet: Fleet, view: WaveView, judgement: Judgement, now: float
) -> Decision:
    if view.unsettled == 0 and view.has_quorum(view.settled, fleet.spec.rollout.quorum_percent):
        # What was measured while nodes were still moving may fail a wave, but does not help it to pass.
        soaking = {"step": "Soaking", "step_started_at": times.to_text(now), "metrics": []}
        return replace(decision, rollout=rollout.model_copy(update=soaking))
    if view.unsettled:
        message = f"{view.settled} of {view.prepared} node(s) serve the new revision"
        hold = Hold(reason="Flipping", message=message)
    else:
        hold = Hold(reason="QuorumMissing", message=_quorum_text(view, view.settled, fleet))
    return _wait(decision, rollout, fleet, hold, now)


def _soaking(
    decision: Decision, rollout: RolloutStatus, fleet: Fleet, view: WaveView, judgement: Judgement, now: float
) -> Decision:
    at = times.to_text(now)
    if now - times.to_seconds(rollout.step_started_at) >= duration_seconds(fleet.spec.rollout.soak):
        return replace(
            decision, rollout=rollout.model_copy(update={"step": "Analysing", "step_started_at": at})
        )
    return _wait(decision, rollout, fleet, Hold(reason="Soaking", message=judgement.summary), now)


def _analysing(
    decision: Decision, rollout: RolloutStatus, fleet: Fleet, view: WaveView, judgement: Judgement, now: float
) -> Decision:
    quorum = fleet.spec.rollout.quorum_percent
    if not view.has_quorum(view.settled, quorum):
        if view.joinable and view.has_quorum(view.settled + view.joinable, quorum):
            # Nodes joined the wave after it had moved its nodes; judging it would need them, too.
            again = {"step": "Prefetching", "step_started_at": times.to_text(now), "metrics": []}
            return replace(decision, rollout=rollout.model_copy(update=again))
        hold = Hold(reason="QuorumMissing", message=_quorum_text(view, view.settled, fleet))
        return _wait(decision, rollout, fleet, hold, now)
    if judgement.passed:
        return _pass_wave(decision, rollout, now, "Pass")
    return _wait(decision, rollout, fleet, Hold(reason=judgement.reason, message=judgement.summary), now)


def _wait(decision: Decision, rollout: RolloutStatus, fleet: Fleet, hold: Hold, now: float) -> Decision:
    deadline = duration_seconds(fleet.spec.rollout.progress_deadline)
    if now - times.to_seconds(rollout.wave_started_at) >= deadline:
        return _deadline(decision, rollout, fleet, hold.message, now)
    return replace(decision, hold=hold)


def _deadline(decision: Decision, rollout: RolloutStatus, fleet: Fleet, message: str, now: float) -> Decision:
    text = f"the deadline passed: {message}"
    if fleet.spec.rollout.on_deadline == "Rollback":
        return _fail(decision, rollout, fleet, "DeadlineExceeded", text, now)
    return replace(decision, hold=Hold(reason="DeadlineExceeded", message=text))


def _pass_wave(decision: Decision, rollout: RolloutStatus, now: float, verdict: str) -> Decision:
    at = times.to_text(now)
    index = rollout.wave
    judged = rollout.waves[index].model_copy(update={"verdict": verdict, "finished_at": at})
    rollout = _update_wave(rollout, index, judged)
    if index + 1 < len(rollout.waves):
        return replace(decision, rollout=_begin_wave(rollout, index + 1, now))
    if not any(wave.verdict == "Pass" for wave in rollout.waves):
        # Every wave was empty at its turn because nodes came and went: that is no evidence.
        names = [wave.name for wave in rollout.waves]
        return replace(decision, rollout=_begin(rollout.revision, names, rollout, now))
    done = rollout.model_copy(update={"step": "Completed", "step_started_at": at, "finished_at": at})
    return replace(decision, stable_revision=rollout.revision, rollout=done)


def _begin(revision: str, waves: list[str], before: RolloutStatus | None, now: float) -> RolloutStatus:
    at = times.to_text(now)
    # Since a rollout that was not completed the stable revision is the same. What was measured of it is
    # kept: there may be no node left that serves it.
    baseline = before.baseline if before is not None and before.step != "Completed" else []
    return RolloutStatus(
        revision=revision,
        step="Prefetching",
        step_started_at=at,
        wave_started_at=at,
        started_at=at,
        waves=[WaveStatus(name=name) for name in waves],
        baseline=baseline,
    )


def _begin_wave(rollout: RolloutStatus, index: int, now: float) -> RolloutStatus:
    at = times.to_text(now)
    following = {
        "wave": index,
        "step": "Prefetching",
        "step_started_at": at,
        "wave_started_at": at,
        "metrics": [],
    }
    fresh = WaveStatus(name=rollout.waves[index].name)
    return _update_wave(rollout.model_copy(update=following), index, fresh)


def _fail(
    decision: Decision, rollout: RolloutStatus, fleet: Fleet, reason: str, message: str, now: float
) -> Decision:
    if unhealthy := _unhealthy_stable(fleet):
        text = f"{message}; not rolled back because {unhealthy}"
        return replace(decision, hold=Hold(reason="StableUnhealthy", message=text))
    index = rollout.wave
    at = times.to_text(now)
    judged = rollout.waves[index].model_copy(update={"verdict": "Fail", "finished_at": at})
    rollout = _update_wave(rollout, index, judged)
    entry = FailedRevision(revision=rollout.revision, reason=reason, message=message[:512], at=at)
    failed = (*(f for f in decision.failed if f.revision != rollout.revision), entry)
    return replace(
        decision,
        rollout=_roll_back(rollout, reason, message, now),
        failed=failed[-MAX_FAILED_REVISIONS:],
        hold=None,
    )


def _roll_back(rollout: RolloutStatus, reason: str, message: str, now: float) -> RolloutStatus:
    return rollout.model_copy(
        update={
            "step": "RollingBack",
            "step_started_at": times.to_text(now),
            "reason": reason,
            "message": message[:2048],
        }
    )


def _unhealthy_stable(fleet: Fleet) -> str:
    """Why the stable revision is no place to go back to; empty when it is, or cannot be observed."""
    if fleet.stable is None:
        return "there is no stable revision"
    stable = fleet.stable.revision
    nodes = [state for state in fleet.matched if state.online and set(state.serve) == {stable}]
    serving = sum(1 for state in nodes if state.serves(stable))
    # A node that is starting or still fetching says nothing.
    broken = sum(1 for s in nodes if not s.serves(stable) and canary_problem(s, stable) is not None)
    if broken > serving:
        return f"only {serving} of {serving + broken} stable node(s) serve"
    return ""


def _update_wave(rollout: RolloutStatus, index: int, wave: WaveStatus) -> RolloutStatus:
    if rollout.waves[index] == wave:
        return rollout
    return rollout.model_copy(update={"waves": [*rollout.waves[:index], wave, *rollout.waves[index + 1 :]]})


def _summary(wave: WaveStatus, view: WaveView) -> WaveStatus:
    return wave.model_copy(
        update={
            "nodes": view.nodes,
            "updated": view.taken,
            "ready": view.settled,
            "deferred": view.deferred,
            "failed": len(view.failures),
        }
    )


def _quorum_text(view: WaveView, have: int, fleet: Fleet) -> str:
    return (
        f"{have} of {view.nodes} node(s) of the wave can be observed, {fleet.spec.rollout.quorum_percent} % "
        f"are needed; {view.deferred} offline"
    )
