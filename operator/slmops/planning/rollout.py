# SPDX-License-Identifier: Apache-2.0
"""The rollout's state machine: from the state in status and the fleet to the next state.

A rollout goes wave by wave through Prefetching, Flipping, Soaking and Analysing, and ends as
Completed, Failed (through RollingBack) or Cancelled. Which nodes have moved is read off the nodes
themselves, so a restart at any point goes on where it was.
"""

from dataclasses import replace

from slmops.api.status import FailedRevision, RolloutStatus, WaveStatus
from slmops.planning import times
from slmops.planning.decision import (
    ACTIVE,
    FEEDBACK_HOLD,
    FINISHED,
    NOT_ACCEPTED,
    REVERTED,
    SUPERSEDED,
    Decision,
    Hold,
    begin_rollout,
    begin_wave,
    finish,
    roll_back,
)
from slmops.planning.fleet import Fleet
from slmops.planning.moves import is_broken
from slmops.planning.nodes import NodeState
from slmops.planning.revision import Revision
from slmops.planning.wave_steps import step_wave, take_back_broken
from slmops.planning.windows import is_open


def decide(
    fleet: Fleet,
    *,
    stable_revision: str,
    target_revision: str,
    rollout: RolloutStatus | None,
    failed: tuple[FailedRevision, ...],
    now: float,
    blocked: str = "",
    frozen: str = "",
    fetch_closed: str = "",
) -> Decision:
    """Next state. `target_revision` is empty while the sources are not resolved; `blocked` says why no
    rollout may begin or go on, `frozen` the same by spec.feedback, `fetch_closed` why no node may fetch a
    model ahead."""
    decision = Decision(
        stable_revision=stable_revision,
        rollout=rollout,
        failed=failed,
        fetch_closed=fetch_closed,
    )
    if fleet.spec.rollout.paused:
        return _pause(decision, now)
    blocked = blocked or _lost_record(fleet, target_revision)
    decision = _start_or_stop(decision, fleet, target_revision, now, blocked=bool(blocked or frozen))
    if frozen and not blocked:
        decision = take_back_broken(decision, fleet, now)
    if (blocked or frozen) and _would_move(decision, target_revision):
        hold = Hold(reason=NOT_ACCEPTED if blocked else FEEDBACK_HOLD, message=blocked or frozen)
        return replace(decision, rollout=_stand(decision.rollout, now), hold=hold, closed=True)
    decision = _mind_windows(decision, fleet, now)
    # A look may pass several steps at once, for example waves without nodes; each step is passed at
    # most once per wave, so this ends.
    for _ in range(4 * len(fleet.spec.rollout.waves) + 4):
        following = _step(decision, fleet, now)
        if following == decision:
            break
        decision = following
    return _stand_unfetched(decision, now)


def _lost_record(fleet: Fleet, target: str) -> str:
    """Why the target cannot be rolled out although it is known; empty when it can.

    Only a pinned revision comes to this: spec's own is made anew.
    """
    if not target or fleet.target is not None:
        return ""
    return (
        f"the record of revision {target}, taken up by hand, is gone; name another one with slmops.dev/undo "
        "or change spec"
    )


def _pause(decision: Decision, now: float) -> Decision:
    hold = Hold(
        reason="Paused",
        message="spec.rollout.paused or the annotation slmops.dev/paused is true; set it to false to go on",
    )
    return replace(decision, rollout=_stand(decision.rollout, now), hold=hold, paused=True)


def _stand(rollout: RolloutStatus | None, now: float) -> RolloutStatus | None:
    """The rollout with its timers standing still from now on."""
    if rollout is None or rollout.step in FINISHED or rollout.paused_at is not None:
        return rollout
    return rollout.model_copy(update={"paused_at": times.to_text(now)})


def _would_move(decision: Decision, target: str) -> bool:
    """A rollout in waves is under way or wanted, as opposed to a first installation or a way back."""
    rollout, stable = decision.rollout, decision.stable_revision
    if rollout is not None and rollout.step in ("Installing", "RollingBack"):
        return False
    if any(entry.revision == target for entry in decision.failed):
        return False
    return bool(stable) and target not in ("", stable)


def _mind_windows(decision: Decision, fleet: Fleet, now: float) -> Decision:
    """Resume what was paused, or let timers stand while a closed window keeps nodes from moving."""
    closed = not is_open(fleet.spec.rollout.windows, now)
    rollout = decision.rollout
    step = rollout.step if rollout is not None else ""
    stands = (closed and step == "Flipping") or (bool(decision.fetch_closed) and step == "Prefetching")
    if not stands:
        return replace(_resume(decision, now), closed=closed)
    return replace(decision, rollout=_stand(rollout, now), closed=closed)


def _stand_unfetched(decision: Decision, now: float) -> Decision:
    """Let the timer of a wave stand that fetches ahead while nobody may."""
    rollout = decision.rollout
    if not decision.fetch_closed or rollout is None or rollout.step != "Prefetching":
        return decision
    return replace(decision, rollout=_stand(rollout, now))


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


def _start_or_stop(decision: Decision, fleet: Fleet, target: str, now: float, *, blocked: bool) -> Decision:
    rollout, stable = decision.rollout, decision.stable_revision
    at = times.to_text(now)
    if not target:
        # Spec has moved on to files that are not known yet: what was being rolled out is given up.
        if rollout is not None and rollout.step in ACTIVE:
            message = "spec changed before the rollout was finished"
            return replace(decision, rollout=roll_back(rollout, SUPERSEDED, message, now))
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
                decision, rollout=roll_back(rollout, REVERTED, "spec went back to the stable revision", now)
            )
        return decision
    if any(entry.revision == target for entry in decision.failed):
        if rollout is not None and rollout.revision != target and rollout.step in ACTIVE:
            message = "spec went on to a revision that failed before"
            return replace(decision, rollout=roll_back(rollout, SUPERSEDED, message, now))
        return decision
    if blocked:
        return decision
    if rollout is None or rollout.revision != target or rollout.step in FINISHED:
        rollout = begin_rollout(target, [wave.name for wave in fleet.spec.rollout.waves], rollout, now)
    elif rollout.step in ACTIVE and [wave.name for wave in rollout.waves] != [
        wave.name for wave in fleet.spec.rollout.waves
    ]:
        # The waves were edited meanwhile: keep what is known by name, go on at the first unjudged one.
        known = {wave.name: wave for wave in rollout.waves}
        waves = [known.get(w.name, WaveStatus(name=w.name)) for w in fleet.spec.rollout.waves]
        index = next(
            (i for i, w in enumerate(waves) if not w.verdict or w.verdict == "Pending"), len(waves) - 1
        )
        current = rollout.waves[rollout.wave].name
        rollout = rollout.model_copy(update={"waves": waves, "wave": index})
        if waves[index].name != current:
            rollout = begin_wave(rollout, index, now)
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
    return step_wave(decision, rollout, fleet, target, now)


def _installing(
    decision: Decision, rollout: RolloutStatus, fleet: Fleet, target: Revision, now: float
) -> Decision:
    online = [state for state in fleet.eligible if state.online]
    serving = sum(1 for state in online if state.serves(target.revision))
    if not serving or serving * 100 < len(online) * fleet.spec.rollout.quorum_percent:
        return replace(decision, hold=_without_model(decision, fleet, target))
    return replace(decision, stable_revision=target.revision, rollout=finish(rollout, "Completed", now))


def _without_model(decision: Decision, fleet: Fleet, target: Revision) -> Hold | None:
    """Nodes that are given the first revision when they may fetch it."""
    if not decision.fetch_closed:
        return None
    waiting = 0
    for state in fleet.eligible:
        variant = fleet.variant(target, state)
        if state.online and not state.serve and variant and not state.cached(target.revision, variant.name):
            waiting += 1
    message = f"{waiting} node(s) wait to fetch the model: {decision.fetch_closed}"
    return Hold(reason="OutsideWindow", message=message) if waiting else None


def _rolling_back(decision: Decision, rollout: RolloutStatus, fleet: Fleet, now: float) -> Decision:
    # Offline nodes still carry it; they leave it when they return, and the rollback does not wait.
    if any(rollout.revision in s.serve and _has_way_back(fleet, s) for s in fleet.states if s.online):
        return replace(decision, hold=_stuck_rollback(fleet))
    # It is over when the nodes that were taken back serve again, not when their labels say so.
    if any(_comes_up(state) for state in fleet.matched):
        return replace(decision, hold=None)
    step = "Cancelled" if rollout.reason in (REVERTED, SUPERSEDED) else "Failed"
    return replace(decision, rollout=finish(rollout, step, now), hold=None)


def _has_way_back(fleet: Fleet, state: NodeState) -> bool:
    """False for a node that the stable revision has no variant for: it keeps what it has."""
    stable = fleet.stable
    return not state.matched or stable is None or fleet.variant(stable, state) is not None


def _comes_up(state: NodeState) -> bool:
    """The node was moved and its pod may still get ready by itself."""
    if not (state.online and state.moving and state.serve) or state.serves_given:
        return False
    return not any(is_broken(state, revision) for revision in state.serve)


def _stuck_rollback(fleet: Fleet) -> Hold | None:
    """Why no further node goes back: those that did use up the limit and do not come up."""
    stable = fleet.stable
    if stable is None:
        message = "the record of the stable revision is gone; nothing can be rolled back to"
        return Hold(reason="StableUnhealthy", message=message)
    for state in fleet.matched:
        returned = bool(state.moving) and state.online and not state.serves_given
        if returned and (problem := state.serve_problem(stable.revision)) is not None:
            message = f"{state.name} went back and does not serve: {problem.reason}: {problem.message}"
            return Hold(reason="StableUnhealthy", message=message)
    return None
