# SPDX-License-Identifier: Apache-2.0
"""Attempts of a variant or a measurement, counted in status: a restart neither forgets nor repeats one."""

from typing import Any, Final

from slmops.api.slmmodel_status import MESSAGE_LIMIT, ModelEvaluationStatus, ModelVariantStatus
from slmops.planning import times
from slmops.planning.slmmodel.job_state import Failure
from slmops.planning.slmmodel.ledger import Ledger

FIRST_SECONDS: Final = 30.0
LIMIT_SECONDS: Final = 900.0
_WAITS: Final = frozenset({"Unschedulable", "ImagePullBackOff", "NotStarted"})


def fail_attempt(
    item: ModelVariantStatus | ModelEvaluationStatus, failure: Failure, ledger: Ledger
) -> tuple[dict[str, Any], bool]:
    """Changes of `item` after a failed attempt, and whether that was the last one.

    The number of the attempt only grows: an earlier Job is never taken for the next one.
    """
    failures = item.failures + 1
    final = not failure.retried or failures > ledger.spec.jobs.backoff_limit
    changes: dict[str, Any] = {
        "attempt": item.attempt + 1,
        "failures": failures,
        "retry_at": None,
        "reason": failure.reason,
        "message": failure.message[:MESSAGE_LIMIT],
    }
    if not final:
        retry_at = ledger.now + min(LIMIT_SECONDS, FIRST_SECONDS * 2.0 ** (failures - 1))
        changes["retry_at"] = times.to_text(retry_at)
        ledger.wakes_at.append(retry_at)
    return changes, final


def must_wait(item: ModelVariantStatus | ModelEvaluationStatus, ledger: Ledger) -> bool:
    """Whether the next attempt is not due yet."""
    if item.retry_at is None:
        return False
    retry_at = times.to_seconds(item.retry_at)
    if retry_at <= ledger.now:
        return False
    ledger.wakes_at.append(retry_at)
    return True


def waited_with(item: ModelVariantStatus | ModelEvaluationStatus) -> Failure | None:
    """What the running Job was last seen waiting with."""
    return Failure(reason=item.reason, message=item.message) if item.reason in _WAITS else None


def say_running(waits: Failure | None) -> dict[str, Any]:
    """Changes while a Job runs: what it waits with, or nothing."""
    if waits is None:
        return {"reason": "", "message": "", "retry_at": None}
    return {"reason": waits.reason, "message": waits.message[:MESSAGE_LIMIT], "retry_at": None}
