# SPDX-License-Identifier: Apache-2.0
"""What people ask for by annotation: read once each, carried out on the rollout's state, answered.

An annotation's value names what it is about, so that a late or repeated request cannot hit another
revision or wave than the one that its author saw.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from slmops import api
from slmops.api.status import (
    MAX_FAILED_REVISIONS,
    FailedRevision,
    OperationStatus,
    PinnedRevision,
    RolloutStatus,
)
from slmops.planning import times
from slmops.planning.decision import ABORTED, ACTIVE, begin_wave, finish, roll_back, update_wave

ALL_WAVES: Final = "*"
"""No wave can have this name."""
_ANNOTATIONS: Final = {
    "undo": api.UNDO_ANNOTATION,
    "abort": api.ABORT_ANNOTATION,
    "promote": api.PROMOTE_ANNOTATION,
    "skip": api.SKIP_ANNOTATION,
}
_VALUE: Final = re.compile(r"([0-9a-f]{10})(?:/([a-z0-9](?:[-a-z0-9]*[a-z0-9])?|\*))?(?:@.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a request may change, and what it is judged by."""

    rollout: RolloutStatus | None
    failed: tuple[FailedRevision, ...]
    pinned: PinnedRevision | None
    stable: str
    wanted: str
    """Revision that spec stands for; empty while its files are not known."""
    known: frozenset[str]
    """Revisions of the history."""
    gated: frozenset[str]
    """Waves that begin only when somebody approves them."""

    @property
    def target(self) -> str:
        """Revision that is to be rolled out."""
        return target_of(self.pinned, self.wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    message: str
    standing: Standing


_Answer = _Refused | _Done


def target_of(pinned: PinnedRevision | None, wanted: str) -> str:
    """The pinned revision as long as spec stands for what it stood for when it was pinned.

    That spec's files are not known (after a restart while their source is away) does not unpin it.
    """
    if pinned is not None and wanted in ("", pinned.instead_of):
        return pinned.revision
    return wanted


def heed(
    standing: Standing, annotations: Mapping[str, str], answered: list[OperationStatus], *, now: float
) -> tuple[Standing, list[OperationStatus]]:
    """Carry out the requests that were not answered yet; the new standing and all answers."""
    if standing.pinned is not None and standing.wanted not in ("", standing.pinned.instead_of):
        standing = replace(standing, pinned=None)  # spec has changed since
    answers = {answer.operation: answer for answer in answered}
    for operation, annotation in _ANNOTATIONS.items():
        token = annotations.get(annotation, "")[:256]
        known = answers.get(operation)
        if not token or (known is not None and known.token == token):
            continue
        if not standing.wanted:
            continue  # nobody can say yet what it would be about
        answer = _carry_out(operation, token, standing, now)
        if isinstance(answer, _Done):
            standing = answer.standing
        answers[operation] = OperationStatus(
            operation=operation,
            token=token,
            outcome="Done" if isinstance(answer, _Done) else "Refused",
            message=answer.message[:512],
            at=times.to_text(now),
        )
    return standing, [answers[name] for name in sorted(answers)]


def retry(standing: Standing, token: str, *, now: float) -> tuple[Standing, OperationStatus]:
    """Forget that the wanted revision failed."""
    target = standing.target
    failed = tuple(entry for entry in standing.failed if entry.revision != target)
    done = len(failed) < len(standing.failed)
    message = f"revision {target} is tried again" if done else f"revision {target} has not failed"
    answer = OperationStatus(
        operation="retry",
        token=token[:256],
        outcome="Done" if done else "Refused",
        message=message,
        at=times.to_text(now),
    )
    return replace(standing, failed=failed), answer


def _carry_out(operation: str, token: str, standing: Standing, now: float) -> _Answer:
    match = _VALUE.fullmatch(token)
    if match is None:
        return _Refused(
            message=f"{token[:80]!r} names no revision; write REVISION or REVISION/WAVE, for example "
            f"{standing.target or '0123456789'}"
        )
    revision, wave = match[1], match[2] or ""
    handlers: dict[str, Callable[[Standing, str, str, float], _Answer]] = {
        "undo": _undo,
        "abort": _abort,
        "promote": _promote,
        "skip": _skip,
    }
    return handlers[operation](standing, revision, wave, now)


def _undo(standing: Standing, revision: str, wave: str, now: float) -> _Answer:
    if revision == standing.target:
        return _Refused(message=f"revision {revision} is the one that is wanted already")
    has_failed = any(entry.revision == revision for entry in standing.failed)
    if revision == standing.wanted:
        # Also one that failed: retry is about the revision that is wanted, and that must be it first.
        again = "; it was rolled back before, slmops.dev/retry tries it again" if has_failed else ""
        return _Done(
            message=f"back to spec's revision {revision}{again}", standing=replace(standing, pinned=None)
        )
    if has_failed:
        return _Refused(
            message=f"revision {revision} was rolled back before; choose another one of `kubectl slm history`"
        )
    if revision not in standing.known:
        return _Refused(
            message=f"revision {revision} is not in the history; see `kubectl slm history` or raise "
            "spec.revisionHistoryLimit"
        )
    pinned = PinnedRevision(revision=revision, instead_of=standing.wanted, at=times.to_text(now))
    return _Done(
        message=f"revision {revision} is wanted instead of {standing.wanted} until spec changes",
        standing=replace(standing, pinned=pinned),
    )


def _under_way(standing: Standing, revision: str, wave: str) -> RolloutStatus | _Refused:
    """The rollout that a request is about, or why there is none."""
    rollout = standing.rollout
    if rollout is None or rollout.step not in ACTIVE or rollout.revision != standing.target:
        return _Refused(message="no rollout is under way")
    if rollout.revision != revision:
        return _Refused(message=f"revision {rollout.revision} is being rolled out, not {revision}")
    present = rollout.waves[rollout.wave].name
    if wave not in ("", ALL_WAVES, present):
        return _Refused(message=f"the rollout is at wave {present}, not {wave}")
    return rollout


def _abort(standing: Standing, revision: str, wave: str, now: float) -> _Answer:
    rollout = _under_way(standing, revision, "")
    if isinstance(rollout, _Refused):
        return rollout
    message = "aborted by hand"
    entry = FailedRevision(revision=revision, reason=ABORTED, message=message, at=times.to_text(now))
    failed = (*(f for f in standing.failed if f.revision != revision), entry)[-MAX_FAILED_REVISIONS:]
    changed = replace(standing, rollout=roll_back(rollout, ABORTED, message, now), failed=failed)
    return _Done(message=f"revision {revision} is rolled back", standing=changed)


def _promote(standing: Standing, revision: str, wave: str, now: float) -> _Answer:
    rollout = _under_way(standing, revision, wave)
    if isinstance(rollout, _Refused):
        return rollout
    at = times.to_text(now)
    if wave == ALL_WAVES:
        promoted = rollout.model_copy(update={"promoted_at": at})
        return _Done(
            message="the rollout goes through all waves without approval, soak and analysis",
            standing=replace(standing, rollout=promoted),
        )
    present = rollout.waves[rollout.wave]
    waits = rollout.step == "Prefetching" and present.approved_at is None and present.name in standing.gated
    if not waits:
        return _Refused(
            message=f"wave {present.name} does not wait for approval; slmops.dev/skip ends its analysis, "
            f"{revision}/* promotes to all waves"
        )
    approved = update_wave(rollout, rollout.wave, present.model_copy(update={"approved_at": at}))
    return _Done(message=f"wave {present.name} is approved", standing=replace(standing, rollout=approved))


def _skip(standing: Standing, revision: str, wave: str, now: float) -> _Answer:
    rollout = _under_way(standing, revision, wave)
    if isinstance(rollout, _Refused):
        return rollout
    present = rollout.waves[rollout.wave]
    if rollout.step == "Prefetching" and not present.ready:
        return _Refused(
            message=f"wave {present.name} has moved no node yet, there is nothing to skip; "
            "slmops.dev/promote approves it"
        )
    last = rollout.wave + 1 == len(rollout.waves)
    if last and not any(entry.ready for entry in rollout.waves):
        return _Refused(
            message=f"no node serves revision {revision} yet; to skip the last wave would make it the stable "
            "one, with nothing to go back to"
        )
    at = times.to_text(now)
    skipped = present.model_copy(update={"verdict": "Skipped", "approved_at": at, "finished_at": at})
    rollout = update_wave(rollout, rollout.wave, skipped)
    message = f"wave {present.name} is judged no further"
    if not last:
        return _Done(
            message=message, standing=replace(standing, rollout=begin_wave(rollout, rollout.wave + 1, now))
        )
    changed = replace(standing, rollout=finish(rollout, "Completed", now), stable=revision)
    return _Done(message=f"{message}; revision {revision} is promoted", standing=changed)
