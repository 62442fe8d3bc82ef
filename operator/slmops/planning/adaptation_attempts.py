# SPDX-License-Identifier: Apache-2.0
"""One training of a site: its Jobs, one after another, until it has ended.

Phase Training with a time in `retryAt` means that the next Job is still to be made.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from slmops.api.adaptation import Adaptation
from slmops.api.adaptation_status import MAX_TRIED, MESSAGE_LIMIT, SiteAdaptationStatus, SiteAdapter
from slmops.api.base import duration_seconds
from slmops.model.jobs import CreateJob
from slmops.model.observed import NodeView, Observed
from slmops.model.plan import Action
from slmops.planning import times
from slmops.planning.adaptation_jobs import (
    TrainPlace,
    base_digest_of,
    build_order,
    build_train_job,
    train_job_name,
    tree_digest_of,
)
from slmops.planning.adaptation_report import Attempt, read_training
from slmops.planning.adaptation_support import NO_NODES, Hosts, find_places
from slmops.planning.adaptation_triggers import variants_of_site
from slmops.planning.fleet import Fleet
from slmops.planning.names import Names
from slmops.planning.nodes import NodeState
from slmops.planning.revision import RevisionVariant
from slmops.planning.slmmodel.job_state import Failure
from slmwire.jobs import AdapterReport, TrainOutcome

MAX_AT_ONCE: Final = 4
"""Jobs over all sites of an SLMDeployment."""
MAX_FAILURES: Final = 3
FIRST_SECONDS: Final = 30.0
"""Between a failed Job and the next one; twice as long each time."""
GRACE_SECONDS: Final = 60.0
"""Beyond its deadline a Job is not waited for: its node may not answer."""
WAITING: Final = "Waiting"
_WANTED: Final = "a training is wanted and waits: "
_ENDED_LIMIT: Final = 320
"""Of the message about the last training, where why the next one waits has to stand as well."""
_RETRIED: Final = frozenset({"NodeGone", "TrainingFailed"})
_OF_THE_NODE: Final = frozenset(
    {"NodeGone", "PodLost", "NotStarted", "Unschedulable", "ImagePullBackOff", "Evicted"}
)
"""Reasons that another node may do better with."""


@dataclass(slots=True, kw_only=True)
class TrainingLook:
    """What one look at all sites goes by and collects; `now` in seconds since the epoch."""

    names: Names
    observed: Observed
    fleet: Fleet
    adaptation: Adaptation
    now: float
    hosts: Hosts
    running: int = 0
    """Jobs that run, of all sites."""
    actions: list[Action] = field(default_factory=list)
    wakes_at: list[float] = field(default_factory=list)

    @property
    def cooldown(self) -> float:
        """In seconds."""
        return duration_seconds(self.adaptation.training.cooldown)

    def hosts_of(self, site: str) -> Sequence[NodeState]:
        """The site's nodes."""
        return self.hosts.get(site, ())

    def places(self, site: str, *, without: Collection[str] = ()) -> list[tuple[NodeState, RevisionVariant]]:
        """Where the site can train now, but for some nodes."""
        return find_places(self.fleet, site, self.hosts_of(site), without=without)

    def node(self, name: str) -> NodeView | None:
        """The node, if it is there."""
        nodes = (node for node in self.observed.nodes if node.name == name and not node.deleting)
        return next(nodes, None)


def is_running(state: SiteAdaptationStatus) -> bool:
    """Whether a Job of the site exists, or is to be made that status names already."""
    return state.phase == "Training" and state.retry_at is None


# The Job that runs


def follow_training(look: TrainingLook, state: SiteAdaptationStatus) -> SiteAdaptationStatus:
    """The site after a look at its Job."""
    if not is_running(state) or not look.observed.are_jobs_known:
        return state
    if look.node(state.node) is None:
        message = f"node {state.node}, on which it trained, is gone"
        return _fail(look, state, Failure(reason="NodeGone", message=message))
    job = next((job for job in look.observed.jobs if job.name == state.job), None)
    attempt = read_training(
        job,
        look.observed.job_pods,
        order=build_order(look.adaptation, seed=state.attempt),
        digests=_digests(look, state),
        now=look.now,
    )
    if attempt.report is not None:
        return _judged(look, state, attempt.report)
    if attempt.failure is not None:
        return _fail(look, state, attempt.failure)
    overdue_at = _started(state) + duration_seconds(look.adaptation.training.deadline) + GRACE_SECONDS
    if look.now >= overdue_at:
        return _fail(look, state, attempt.waits or _overdue())
    look.wakes_at.append(overdue_at)
    if attempt.phase == "Absent":
        return _make_again(look, state)
    return _running(look, state, attempt)


def _digests(look: TrainingLook, state: SiteAdaptationStatus) -> frozenset[str]:
    """What a report may call the files that it is about: the model's own, or all that its node had."""
    served = (
        tree_digest_of(variant, look.adaptation.name)
        for revision in look.fleet.revisions.values()
        for variant in variants_of_site(revision, state.site)
        if base_digest_of(variant) == state.base_digest
    )
    return frozenset((state.base_digest, *served))


def _overdue() -> Failure:
    message = "the Job has not ended by its deadline; raise spec.adaptation.training.deadline"
    return Failure(reason="DeadlineExceeded", message=message)


def _running(look: TrainingLook, state: SiteAdaptationStatus, attempt: Attempt) -> SiteAdaptationStatus:
    if attempt.looks_again_at is not None and attempt.looks_again_at > look.now:
        look.wakes_at.append(attempt.looks_again_at)
    reason, message = ("", f"trains on node {state.node}")
    if attempt.waits is not None:
        reason, message = attempt.waits.reason, attempt.waits.message
    return _said(state, reason, message)


def _make_again(look: TrainingLook, state: SiteAdaptationStatus) -> SiteAdaptationStatus:
    """The Job that status names, made if it is not there: the operator may have died before it made it."""
    places = look.places(state.site)
    for node, variant in places:
        if node.name == state.node and base_digest_of(variant) == state.base_digest:
            _create(look, state, node.node, variant)
            return state
    if look.now - _started(state) < GRACE_SECONDS:
        # What serves may be starting anew.
        look.wakes_at.append(_started(state) + GRACE_SECONDS)
        return state
    message = f"the Job is gone, and node {state.node} no longer serves what it was for"
    return _fail(look, state, Failure(reason="PodLost", message=message))


def _started(state: SiteAdaptationStatus) -> float:
    return times.to_seconds(state.started_at) if state.started_at is not None else 0.0


# Its end


def _judged(look: TrainingLook, state: SiteAdaptationStatus, report: AdapterReport) -> SiteAdaptationStatus:
    outcome = TrainOutcome(report.outcome)
    numbers: dict[str, Any] = {
        "last_outcome": outcome.value,
        "examples": report.examples,
        "held_out": report.held_out,
        "before": _share_text(report.before),
        "after": _share_text(report.after),
        "golden_before": _share_text(report.golden_before),
        "golden_after": _share_text(report.golden_after),
    }
    state = state.model_copy(update=numbers)
    if outcome is TrainOutcome.TOO_FEW_EXAMPLES:
        tried = [*state.tried, state.node][-MAX_TRIED:]
        state = state.model_copy(update={"tried": tried})
        if len(tried) < MAX_TRIED and look.places(state.site, without=tried):
            state = _said(state, outcome.value, f"{state.node}: {report.message}; the next node is tried")
            return state.model_copy(update={"retry_at": times.to_text(look.now)})
        message = f"{report.message}, on {', '.join(tried[-5:])}"
        return _end(look, state, "Refused", outcome.value, message)
    if outcome is not TrainOutcome.ACCEPTED:
        return _end(look, state, "Refused", outcome.value, report.message)
    adapter = SiteAdapter(
        sha256=report.sha256,
        size=report.size_bytes,
        base_digest=state.base_digest,
        trained_at=times.to_text(look.now),
    )
    return _end(look, state.model_copy(update={"waiting": adapter}), "Accepted", "", report.message)


def _share_text(share: float | None) -> str | None:
    return None if share is None else f"{share:.4f}"


def _fail(look: TrainingLook, state: SiteAdaptationStatus, failure: Failure) -> SiteAdaptationStatus:
    """After a failed Job: another one later, perhaps on another node, or the end of the training."""
    failures = state.failures + 1
    tried = state.tried
    if failure.reason in _OF_THE_NODE:
        tried = [*tried, state.node][-MAX_TRIED:]
    state = state.model_copy(update={"failures": failures, "tried": tried})
    retried = (failure.retried or failure.reason in _RETRIED) and failures < MAX_FAILURES
    if not retried:
        return _end(look, state, "Failed", failure.reason, failure.message)
    retry_at = look.now + FIRST_SECONDS * 2.0 ** (failures - 1)
    look.wakes_at.append(retry_at)
    state = _said(state, failure.reason, failure.message)
    return state.model_copy(update={"retry_at": times.to_text(retry_at)})


def _end(
    look: TrainingLook, state: SiteAdaptationStatus, phase: str, reason: str, message: str
) -> SiteAdaptationStatus:
    ended = {
        "phase": phase,
        "asked_at": None,
        "retry_at": None,
        "finished_at": times.to_text(look.now),
    }
    return _said(state.model_copy(update=ended), reason, message)


def _said(state: SiteAdaptationStatus, reason: str, message: str) -> SiteAdaptationStatus:
    return state.model_copy(update={"reason": reason, "message": message[:MESSAGE_LIMIT]})


# The next Job


def begin_training(look: TrainingLook, state: SiteAdaptationStatus, *, busy: str) -> SiteAdaptationStatus:
    """The site with its next Job, where that may be made now; `busy` says why none may."""
    if state.retry_at is not None and (retry_at := times.to_seconds(state.retry_at)) > look.now:
        look.wakes_at.append(retry_at)
        return state
    if busy:
        return _waits(state, busy)
    if not look.observed.are_jobs_known:
        return _waits(state, "Jobs cannot be read")
    if look.running >= MAX_AT_ONCE:
        return _waits(state, f"{MAX_AT_ONCE} other sites train")
    # A node that failed for reasons of its own is tried again where there is no other.
    places = look.places(state.site, without=state.tried)
    if not places and state.failures:
        places = look.places(state.site)
    if not places:
        if state.phase == "Training":
            phase = "Failed" if state.failures else "Refused"
            return _end(look, state, phase, state.reason, state.message)
        return _waits(state, "no node of the site serves the stable revision")
    node, variant = places[0]
    attempt = state.attempt + 1
    started = {
        "phase": "Training",
        "job": train_job_name(look.names, site=state.site, attempt=attempt, asked_at=state.asked_at or ""),
        "node": node.name,
        "attempt": attempt,
        "retry_at": None,
        "started_at": times.to_text(look.now),
        "base_digest": base_digest_of(variant),
    }
    state = _said(state.model_copy(update=started), "", f"trains on node {node.name}")
    look.running += 1
    look.wakes_at.append(look.now + duration_seconds(look.adaptation.training.deadline) + GRACE_SECONDS)
    _create(look, state, node.node, variant)
    return state


def _waits(state: SiteAdaptationStatus, why: str) -> SiteAdaptationStatus:
    """How the last training ended, and why the next one has to wait."""
    if state.phase == "Training":
        return state  # it says why another Job is needed
    state = rest(state)
    ended = state.message[:_ENDED_LIMIT]
    return _said(state, state.reason or WAITING, f"{ended}; {_WANTED}{why}" if ended else f"{_WANTED}{why}")


def rest(state: SiteAdaptationStatus) -> SiteAdaptationStatus:
    """The site of which nothing is wanted: what it says is how its last training ended."""
    if state.reason == NO_NODES:
        return _said(state, "", "")
    ended, marked, _ = state.message.partition(_WANTED)
    if not marked:
        return state
    return _said(state, "" if state.reason == WAITING else state.reason, ended.removesuffix("; "))


def _create(
    look: TrainingLook, state: SiteAdaptationStatus, node: NodeView, variant: RevisionVariant
) -> None:
    place = TrainPlace(
        names=look.names,
        spec=look.fleet.spec,
        adaptation=look.adaptation,
        config=look.observed.config,
        site=state.site,
        node=node,
        variant=variant,
        name=state.job,
        seed=state.attempt,
    )
    why = f"train an adapter for site {state.site}, attempt {state.attempt}"
    look.actions.append(CreateJob(name=state.job, work="train", body=build_train_job(place), why=why))
