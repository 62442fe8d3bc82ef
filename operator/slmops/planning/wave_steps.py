# SPDX-License-Identifier: Apache-2.0
"""One step of the wave under way: fetch ahead, flip, soak, analyse, and what ends it."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from slmops.api.base import duration_seconds
from slmops.api.spec import Rollout
from slmops.api.status import MAX_FAILED_REVISIONS, FailedRevision, RolloutStatus, WaveStatus
from slmops.planning import times
from slmops.planning.access import find_wait
from slmops.planning.decision import (
    ACTIVE,
    Decision,
    Hold,
    begin_rollout,
    begin_wave,
    finish,
    roll_back,
    running,
    update_wave,
)
from slmops.planning.fleet import Fleet, WaveView, canary_problem, failures_elsewhere, view_wave
from slmops.planning.judge import Judgement, judge_metrics, terminate_measurements
from slmops.planning.nodes import NodeState
from slmops.planning.revision import Revision

_NODES_FAILED: Final = "NodesFailed"
_PASSED: Final = "the deadline passed: "


def step_wave(
    decision: Decision, rollout: RolloutStatus, fleet: Fleet, target: Revision, now: float
) -> Decision:
    """Where the rollout stands after a look at its current wave, at `now`."""
    index = rollout.wave
    if not fleet.wave_of:
        hold = Hold(reason="NoMatchingNodes", message="there is no node to try the new revision on")
        return replace(decision, hold=hold)
    started_at = rollout.waves[index].started_at
    view = view_wave(fleet, index, target, since=times.to_seconds(started_at) if started_at else now)
    rollout = update_wave(rollout, index, _summary(rollout.waves[index], view))
    decision = replace(decision, rollout=rollout, hold=None)
    if view.nodes == 0:
        return _pass_wave(decision, rollout, now, "Skipped")
    if started_at is None:
        begun = rollout.waves[index].model_copy(
            update={"started_at": times.to_text(now), "verdict": "Pending"}
        )
        rollout = update_wave(rollout, index, begun)
        decision = replace(decision, rollout=rollout)

    if broken := _too_many_failed(fleet, index, target, view):
        return _fail(decision, rollout, fleet, _NODES_FAILED, broken, now)
    judgement = judge_metrics(fleet.spec.rollout.analysis, rollout)
    if rollout.step != "Prefetching" and rollout.promoted_at is None:
        if judgement.failed:
            rollout = terminate_measurements(fleet.spec.rollout.analysis, rollout, now=now)
            return _fail(decision, rollout, fleet, "AnalysisFailed", judgement.failed, now)
        # While nodes are still on their way it says nothing that there is no data yet.
        if judgement.limit_reached and rollout.step != "Flipping":
            return _deadline(decision, rollout, fleet, judgement.limit_reached, now)
    handlers: dict[str, Callable[[Decision, RolloutStatus, Fleet, WaveView, Judgement, float], Decision]] = {
        "Prefetching": _prefetching,
        "Flipping": _flipping,
        "Soaking": _soaking,
        "Analysing": _analysing,
    }
    return handlers[rollout.step](decision, rollout, fleet, view, judgement, now)


def take_back_broken(decision: Decision, fleet: Fleet, now: float) -> Decision:
    """The rollout on its way back where too many nodes have failed with it; else the decision as it is.

    For a rollout that may not go on: nobody waits in front of nodes that serve nothing for a rule to hold.
    """
    rollout, target = decision.rollout, fleet.target
    if rollout is None or target is None or rollout.step not in ACTIVE or rollout.revision != target.revision:
        return decision
    started_at = rollout.waves[rollout.wave].started_at
    if started_at is None or not fleet.wave_of:
        return decision
    view = view_wave(fleet, rollout.wave, target, since=times.to_seconds(started_at))
    broken = _too_many_failed(fleet, rollout.wave, target, view)
    if not broken or _unhealthy_stable(fleet):
        return decision
    return _fail(decision, rollout, fleet, _NODES_FAILED, broken, now)


def _too_many_failed(fleet: Fleet, index: int, target: Revision, view: WaveView) -> str:
    """How many nodes failed with the target, and one of them; empty while they are no more than may."""
    failures = view.failures + failures_elsewhere(fleet, index, target)
    allowed = failures_allowed(fleet.spec.rollout.max_failures, view.nodes)
    if len(failures) <= allowed:
        return ""
    node, problem = failures[0]
    return (
        f"{len(failures)} node(s) failed with the new revision, {allowed} allowed; "
        f"{node}: {problem.reason}: {problem.message}"
    )


def failures_allowed(max_failures: str | int, nodes: int) -> int:
    """Nodes of a wave that may fail: the number, or the percentage of `nodes` rounded down."""
    text = str(max_failures)
    return nodes * int(text[:-1]) // 100 if text.endswith("%") else int(text)


def _prefetching(
    decision: Decision, rollout: RolloutStatus, fleet: Fleet, view: WaveView, judgement: Judgement, now: float
) -> Decision:
    spec = fleet.spec.rollout
    age = now - times.to_seconds(rollout.step_started_at)
    late = rollout.paused_at is None and age >= duration_seconds(spec.prefetch_deadline)
    if view.pending_prefetch and not late:
        names = ", ".join(state.name for state in view.pending_prefetch[:3])
        if decision.fetch_closed:
            message = f"{len(view.pending_prefetch)} node(s) lack the model: {decision.fetch_closed}"
            return replace(decision, hold=Hold(reason="OutsideWindow", message=message))
        message = f"{len(view.pending_prefetch)} node(s) still fetch the model: {names}"
        message += _say_wait(view.pending_prefetch, fleet)
        return replace(decision, hold=Hold(reason="Prefetching", message=message))
    # A wave that waits for people or for a window is not late, however long they take.
    gate = _gate(decision, rollout, fleet)
    if not view.has_quorum(view.prepared, spec.quorum_percent):
        if late and gate is None:
            return _deadline(
                decision, rollout, fleet, _PASSED + _quorum_text(view, view.prepared, fleet), now
            )
        return replace(
            decision, hold=Hold(reason="QuorumMissing", message=_quorum_text(view, view.prepared, fleet))
        )
    if judgement.missing_baseline and rollout.promoted_at is None:
        if late and gate is None:
            return _deadline(decision, rollout, fleet, _PASSED + judgement.missing_baseline, now)
        return replace(decision, hold=Hold(reason="NoBaseline", message=judgement.missing_baseline))
    if gate is not None:
        return replace(decision, hold=gate)
    at = times.to_text(now)
    # The wave's clock starts with the first node that may be moved, and so does the window of metrics.
    flipping = {"step": "Flipping", "step_started_at": at, "wave_started_at": at, "metrics": []}
    return replace(decision, rollout=running(rollout).model_copy(update=flipping))


def _gate(decision: Decision, rollout: RolloutStatus, fleet: Fleet) -> Hold | None:
    """What keeps a wave that could begin from beginning."""
    wave = rollout.waves[rollout.wave]
    manual = fleet.spec.rollout.waves[rollout.wave].approval == "Manual"
    if manual and wave.approved_at is None and rollout.promoted_at is None:
        return Hold(
            reason="AwaitingApproval",
            message=f"{wave.nodes} node(s) are prepared; approve with the annotation slmops.dev/promote: "
            f"{rollout.revision}/{wave.name}",
        )
    if decision.closed:
        return Hold(reason="OutsideWindow", message="no window of spec.rollout.windows is open")
    return None


def _flipping(
    decision: Decision, rollout: RolloutStatus, fleet: Fleet, view: WaveView, judgement: Judgement, now: float
) -> Decision:
    if view.unsettled == 0 and view.has_quorum(view.settled, fleet.spec.rollout.quorum_percent):
        if rollout.promoted_at is not None:
            return _pass_wave(decision, running(rollout), now, "Skipped")
        rollout = running(rollout)
        # What was measured while nodes were still moving may fail a wave, but does not help it to pass.
        soaking = {"step": "Soaking", "step_started_at": times.to_text(now), "metrics": []}
        return replace(decision, rollout=rollout.model_copy(update=soaking))
    if view.unsettled:
        message = f"{view.settled} of {view.prepared} node(s) serve the new revision"
        hold = Hold(reason="Flipping", message=message)
        if decision.closed:
            message = f"{message}; no window of spec.rollout.windows is open for the others"
            return replace(decision, hold=Hold(reason="OutsideWindow", message=message))
    elif decision.fetch_closed and view.pending_prefetch:
        # Without nodes that may not fetch now the wave cannot be judged: no deadline is to pass meanwhile.
        return replace(decision, rollout=_prefetch_again(rollout, now))
    else:
        hold = Hold(reason="QuorumMissing", message=_quorum_text(view, view.settled, fleet))
        if decision.closed:
            return replace(decision, hold=hold)  # its deadline stands still
    return _wait(decision, rollout, fleet, hold, now)


def _soaking(
    decision: Decision, rollout: RolloutStatus, fleet: Fleet, view: WaveView, judgement: Judgement, now: float
) -> Decision:
    if rollout.promoted_at is not None:
        return _pass_wave(decision, rollout, now, "Skipped")
    at = times.to_text(now)
    if now - times.to_seconds(rollout.step_started_at) >= soak_seconds(fleet.spec.rollout, rollout.wave):
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
            return replace(decision, rollout=_prefetch_again(rollout, now))
        hold = Hold(reason="QuorumMissing", message=_quorum_text(view, view.settled, fleet))
        return _wait(decision, rollout, fleet, hold, now)
    if rollout.promoted_at is not None:
        return _pass_wave(decision, rollout, now, "Skipped")
    if judgement.passed:
        return _pass_wave(decision, rollout, now, "Pass")
    return _wait(decision, rollout, fleet, Hold(reason=judgement.reason, message=judgement.summary), now)


def _prefetch_again(rollout: RolloutStatus, now: float) -> RolloutStatus:
    again = {"step": "Prefetching", "step_started_at": times.to_text(now), "metrics": []}
    return running(rollout).model_copy(update=again)


def soak_seconds(spec: Rollout, wave: int) -> float:
    """How long the wave runs before it is judged."""
    return duration_seconds(spec.waves[wave].soak or spec.soak)


def _wait(decision: Decision, rollout: RolloutStatus, fleet: Fleet, hold: Hold, now: float) -> Decision:
    deadline = duration_seconds(fleet.spec.rollout.progress_deadline)
    if now - times.to_seconds(rollout.wave_started_at) >= deadline:
        return _deadline(decision, rollout, fleet, _PASSED + hold.message, now)
    return replace(decision, hold=hold)


def _deadline(decision: Decision, rollout: RolloutStatus, fleet: Fleet, text: str, now: float) -> Decision:
    text += _say_wait(fleet.members(rollout.wave), fleet)
    if fleet.spec.rollout.on_deadline == "Rollback":
        return _fail(decision, rollout, fleet, "DeadlineExceeded", text, now)
    return replace(decision, hold=Hold(reason="DeadlineExceeded", message=text))


def _say_wait(states: Iterable[NodeState], fleet: Fleet) -> str:
    """What the first node lacks whose pod waits for Secrets; empty if there is none."""
    waits = ((state.name, find_wait(state, fleet.revisions)) for state in states)
    return next((f"; {name}: {wait.message}" for name, wait in waits if wait is not None), "")


def _pass_wave(decision: Decision, rollout: RolloutStatus, now: float, verdict: str) -> Decision:
    at = times.to_text(now)
    index = rollout.wave
    judged = rollout.waves[index].model_copy(update={"verdict": verdict, "finished_at": at})
    rollout = update_wave(rollout, index, judged)
    if index + 1 < len(rollout.waves):
        return replace(decision, rollout=begin_wave(rollout, index + 1, now))
    by_hand = rollout.promoted_at is not None or any(w.approved_at and w.updated for w in rollout.waves)
    if not by_hand and not any(wave.verdict == "Pass" for wave in rollout.waves):
        # Every wave was empty at its turn because nodes came and went: that is no evidence.
        names = [wave.name for wave in rollout.waves]
        return replace(decision, rollout=begin_rollout(rollout.revision, names, rollout, now))
    done = finish(rollout, "Completed", now)
    return replace(decision, stable_revision=rollout.revision, rollout=done)


def _fail(
    decision: Decision, rollout: RolloutStatus, fleet: Fleet, reason: str, message: str, now: float
) -> Decision:
    if unhealthy := _unhealthy_stable(fleet):
        text = f"{message}; not rolled back because {unhealthy}"
        return replace(decision, hold=Hold(reason="StableUnhealthy", message=text))
    index = rollout.wave
    at = times.to_text(now)
    judged = rollout.waves[index].model_copy(update={"verdict": "Fail", "finished_at": at})
    rollout = update_wave(rollout, index, judged)
    entry = FailedRevision(revision=rollout.revision, reason=reason, message=message[:512], at=at)
    failed = (*(f for f in decision.failed if f.revision != rollout.revision), entry)
    return replace(
        decision,
        rollout=roll_back(rollout, reason, message, now),
        failed=failed[-MAX_FAILED_REVISIONS:],
        hold=None,
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
