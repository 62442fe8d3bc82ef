# SPDX-License-Identifier: Apache-2.0
"""What a look decides about a rollout, and how a rollout's status is begun and changed."""

from dataclasses import dataclass
from typing import Final

from slmops.api.status import FailedRevision, RolloutStatus, WaveStatus
from slmops.planning import times

ACTIVE: Final = frozenset({"Prefetching", "Flipping", "Soaking", "Analysing"})
"""Steps in which the new revision may be on nodes of finished waves or of the current one."""
FINISHED: Final = frozenset({"Completed", "Failed", "Cancelled"})
REVERTED: Final = "Reverted"
SUPERSEDED: Final = "Superseded"
ABORTED: Final = "Aborted"
NOT_ACCEPTED: Final = "NotAccepted"
"""Reason of a hold: spec keeps the rollout from beginning or going on."""


FEEDBACK_HOLD: Final = "FeedbackHold"
"""Reason of a hold: a rule of spec.feedback has frozen rollouts."""
BLOCKS: Final = frozenset({NOT_ACCEPTED, FEEDBACK_HOLD})
"""Reasons of a hold that nothing is measured for."""


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
    closed: bool = False
    """No node may begin to take the new revision now."""
    fetch_closed: str = ""
    """Why no node may fetch a model ahead now; empty when they may."""

    @property
    def outside_windows(self) -> bool:
        """No window is open, in a spec that makes sense."""
        return self.closed and self.measures

    @property
    def measures(self) -> bool:
        """Whether measurements are to be taken."""
        return not self.paused and (self.hold is None or self.hold.reason not in BLOCKS)


def begin_rollout(revision: str, waves: list[str], before: RolloutStatus | None, now: float) -> RolloutStatus:
    """A rollout at its first wave; `before` is the one that it follows."""
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


def begin_wave(rollout: RolloutStatus, index: int, now: float) -> RolloutStatus:
    """The rollout at the begin of a wave."""
    at = times.to_text(now)
    following = {
        "wave": index,
        "step": "Prefetching",
        "step_started_at": at,
        "wave_started_at": at,
        "paused_at": None,  # timers that begin now have not stood yet
        "metrics": [],
    }
    fresh = WaveStatus(name=rollout.waves[index].name)
    return update_wave(rollout.model_copy(update=following), index, fresh)


def roll_back(rollout: RolloutStatus, reason: str, message: str, now: float) -> RolloutStatus:
    """The rollout on its way back, and why."""
    return rollout.model_copy(
        update={
            "step": "RollingBack",
            "step_started_at": times.to_text(now),
            "paused_at": None,
            "reason": reason,
            "message": message[:2048],
        }
    )


def finish(rollout: RolloutStatus, step: str, now: float) -> RolloutStatus:
    """The rollout at its end: Completed, Failed or Cancelled."""
    at = times.to_text(now)
    ended = {"step": step, "step_started_at": at, "finished_at": at, "paused_at": None}
    return rollout.model_copy(update=ended)


def running(rollout: RolloutStatus) -> RolloutStatus:
    """The rollout without the mark of timers that stand; what begins now begins with whole timers."""
    return rollout if rollout.paused_at is None else rollout.model_copy(update={"paused_at": None})


def update_wave(rollout: RolloutStatus, index: int, wave: WaveStatus) -> RolloutStatus:
    """The rollout with another summary of one wave."""
    if rollout.waves[index] == wave:
        return rollout
    return rollout.model_copy(update={"waves": [*rollout.waves[:index], wave, *rollout.waves[index + 1 :]]})
