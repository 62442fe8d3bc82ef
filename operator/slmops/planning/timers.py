# SPDX-License-Identifier: Apache-2.0
"""When to look again although nothing has happened."""

from math import isfinite

from slmops.api import SLMDeploymentSpec
from slmops.api.base import duration_seconds
from slmops.api.status import RolloutStatus
from slmops.planning import times
from slmops.planning.decision import ACTIVE, FINISHED, Decision
from slmops.planning.judge import next_measurement_seconds
from slmops.planning.resolution import Resolution
from slmops.planning.wave_steps import soak_seconds
from slmops.planning.windows import seconds_to_change


def earliest(*waits: float | None) -> float | None:
    """The shortest of the waits, at least a tenth of a second; None if there is none."""
    known = [wait for wait in waits if wait is not None and isfinite(wait)]
    return max(0.1, min(known)) if known else None


def requeue_seconds(
    spec: SLMDeploymentSpec,
    decision: Decision,
    resolution: Resolution,
    target: str,
    now: float,
    *,
    turn_at: float | None = None,
) -> float | None:
    """Seconds until a timer may change the plan; events wake it earlier. `turn_at` is when nodes take turns
    in fetching."""
    # What is due already is under way, and its answer wakes the planner.
    waits = [failure.retry_at - now for _, failure in resolution.failures if failure.retry_at > now]
    rollout = decision.rollout
    if rollout is not None and _starts_again(decision, rollout, target):
        waits.append(0.0)
    if rollout is not None and (rollout.step in ACTIVE or decision.outside_windows) and not decision.paused:
        change = seconds_to_change(spec.rollout.windows, now)
        waits += [] if change is None else [change]
    # While paused nobody gets a turn, and who fetches beyond the end of a window is stopped.
    waits += [] if turn_at is None or (decision.paused and not decision.fetch_closed) else [turn_at - now]
    change = seconds_to_change(spec.distribution.windows, now)
    waits += [] if change is None else [change]
    if rollout is not None and rollout.step not in FINISHED and decision.measures:
        measurement = next_measurement_seconds(spec.rollout.analysis, rollout, now=now)
        waits += [] if measurement is None else [measurement]
    if rollout is not None and rollout.step not in FINISHED and rollout.paused_at is None:
        waits += _timers(spec, rollout, now)
    return earliest(*waits)


def _starts_again(decision: Decision, rollout: RolloutStatus, target: str) -> bool:
    """The rollout has just ended, and its revision is wanted (again)."""
    return (
        rollout.step in ("Failed", "Cancelled")
        and rollout.revision == target != decision.stable_revision
        and decision.measures
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
        waits.append(soak_seconds(spec.rollout, rollout.wave) - step_age)
    return [wait for wait in waits if wait > 0]
