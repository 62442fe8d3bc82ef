# SPDX-License-Identifier: Apache-2.0
"""The annotations of a deployment, heeded: which rollout stands after what was asked for by hand."""

from dataclasses import dataclass

from slmops.api import RETRY_ANNOTATION, SLMDeploymentSpec
from slmops.api.status import OperationStatus
from slmops.model.observed import Observed
from slmops.planning.decision import FINISHED
from slmops.planning.operations import Standing, heed, retry


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What was asked for by hand and is answered."""

    retry_token: str
    answers: list[OperationStatus]


def heed_annotations(
    observed: Observed, spec: SLMDeploymentSpec, wanted: str, known: frozenset[str], now: float
) -> tuple[Standing, Answers]:
    """What stands after the requests made by annotation, and the answers to them.

    `wanted` is the revision that spec stands for, empty while its files are not known; `known` are the
    revisions of the history.
    """
    old, annotations = observed.deployment.status, observed.deployment.annotations
    standing = Standing(
        rollout=old.rollout,
        failed=tuple(old.failed_revisions),
        pinned=old.pinned,
        stable=old.stable_revision,
        wanted=wanted,
        known=known,
        gated=frozenset(wave.name for wave in spec.rollout.waves if wave.approval == "Manual"),
    )
    standing, answers = heed(standing, annotations, old.operations, now=now)
    token = annotations.get(RETRY_ANNOTATION, "")
    # The token is used up only by a look that knows which revision it is about.
    if not token or token == old.retry_token or not wanted:
        return standing, Answers(retry_token=old.retry_token, answers=answers)
    standing, answer = retry(standing, token, now=now)
    others = [entry for entry in answers if entry.operation != answer.operation]
    answers = sorted([*others, answer], key=lambda entry: entry.operation)
    return standing, Answers(retry_token=token, answers=answers)


def begins(standing: Standing) -> bool:
    """A rollout in waves is wanted and has not begun."""
    rollout, target = standing.rollout, standing.target
    if not standing.stable or target in ("", standing.stable):
        return False
    if any(entry.revision == target for entry in standing.failed):
        return False
    return rollout is None or rollout.revision != target or rollout.step in FINISHED
