# SPDX-License-Identifier: Apache-2.0
"""Which changes of status may wait a moment, so that a fleet on the move costs few writes.

While nodes change over one by one and metrics come in, counters and texts differ at every look. They
may be written together a little later: what the rollout has decided never waits, because it must be
stored before anything is done about it.
"""

import time
from collections.abc import Callable
from typing import Final

from slmops.api import SLMDeploymentStatus
from slmops.api.feedback_status import FeedbackRuleStatus, FeedbackStatus
from slmops.api.status import NodeCounts

COUNTERS_SECONDS: Final = 2.0
"""Least time between two writes of which the later one changes counters and texts alone."""
MAX_COUNTERS_SECONDS: Final = 20.0
"""The same where many deployments are on the move: counters are never older than this."""
COUNTERS_PER_SECOND: Final = 5.0
"""Such writes that all deployments together aim at. Each is a disk write of the API server's store."""


def differ_in_counters_only(old: SLMDeploymentStatus, new: SLMDeploymentStatus) -> bool:
    """Whether the new status decides nothing that the old one did not."""
    return _decisions(old) == _decisions(new)


def _decisions(status: SLMDeploymentStatus) -> SLMDeploymentStatus:
    rollout = status.rollout
    if rollout is not None:
        counters = {"nodes": 0, "updated": 0, "ready": 0, "deferred": 0, "failed": 0}
        # Readings are handed in again until they are stored, so a measurement that leads to no step may
        # wait as well; one that does is stored with it.
        rollout = rollout.model_copy(
            update={
                "waves": [wave.model_copy(update=counters) for wave in rollout.waves],
                "metrics": [],
                "measurements": [],
                "baseline": [],
            }
        )
    return status.model_copy(
        update={
            "nodes": NodeCounts(),
            "feedback": _feedback_decisions(status.feedback),
            "ready_nodes": "",
            "reasons": [],
            "worst_nodes": [],
            "variants": [variant.model_copy(update={"nodes": 0}) for variant in status.variants],
            "rollout": rollout,
            "conditions": [c.model_copy(update={"message": ""}) for c in status.conditions],
        }
    )


def _feedback_decisions(feedback: FeedbackStatus | None) -> FeedbackStatus | None:
    """Which rules have fired; what they measure may wait as the measurements of a rollout do."""
    if feedback is None:
        return None
    rules = [
        FeedbackRuleStatus(name=rule.name, digest=rule.digest, fired_at=rule.fired_at)
        for rule in feedback.rules
    ]
    return feedback.model_copy(update={"rules": rules})


class Traffic:
    """Counts the deployments whose counters are changing, for all paces of one process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed_at: dict[int, float] = {}

    def note(self, pace: int) -> None:
        """The counters of this one have changed."""
        self._changed_at[pace] = self._clock()

    def interval_seconds(self) -> float:
        """Time between two writes of one deployment's counters."""
        horizon = self._clock() - MAX_COUNTERS_SECONDS
        self._changed_at = {pace: at for pace, at in self._changed_at.items() if at > horizon}
        return min(max(len(self._changed_at) / COUNTERS_PER_SECOND, COUNTERS_SECONDS), MAX_COUNTERS_SECONDS)


class StatusPace:
    """Says how long a status may wait to be written. Starts with nothing written."""

    def __init__(self, traffic: Traffic, clock: Callable[[], float] = time.monotonic) -> None:
        self._traffic = traffic
        self._clock = clock
        self._written_at = float("-inf")

    def wait_seconds(self, old: SLMDeploymentStatus, new: SLMDeploymentStatus) -> float:
        """Seconds until the status should be written; 0 means now."""
        if not differ_in_counters_only(old, new):
            return 0.0
        self._traffic.note(id(self))
        return max(self._written_at + self._traffic.interval_seconds() - self._clock(), 0.0)

    def written(self) -> None:
        """A status has been written."""
        self._written_at = self._clock()
