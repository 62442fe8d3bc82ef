# SPDX-License-Identifier: Apache-2.0
"""`plan_model(observed, now)`: one look at an SLMModel, and what follows from it."""

from slmops.api import ACCEPT_ANNOTATION, RETRY_ANNOTATION, SLMModelSpec
from slmops.api.base import duration_seconds
from slmops.api.slmmodel_status import (
    ModelConditionType,
    ModelSourceStatus,
    ModelVersionStatus,
    SLMModelStatus,
)
from slmops.model.jobs import DeleteJob
from slmops.model.slmmodel import ModelObserved, ModelPlan
from slmops.planning.conditions import Says, merge_conditions
from slmops.planning.finding import Finding
from slmops.planning.slmmodel.conditions import say_all, say_ready
from slmops.planning.slmmodel.judge import judge_variants, judge_version
from slmops.planning.slmmodel.keys import version_key
from slmops.planning.slmmodel.ledger import Ledger
from slmops.planning.slmmodel.measure import Dataset, find_dataset, measure
from slmops.planning.slmmodel.transitions import transitions_between
from slmops.planning.slmmodel.validate import find_problem
from slmops.planning.slmmodel.variants import SourceNow, bring_files, making_key
from slmops.planning.slmmodel.versions import (
    find_files,
    find_source,
    heed_retry,
    is_current,
    trimmed,
    with_version,
)
from slmops.planning.timers import earliest


def plan_model(observed: ModelObserved, now: float) -> ModelPlan:
    """What to do about one SLMModel. Pure: equal arguments, equal plan.

    `now` is in seconds since the epoch. The plan is complete and idempotent: carrying out any part of it and
    planning again leads to the same end.
    """
    model = observed.model
    if model.deleting:
        return ModelPlan(status=model.status)  # the Jobs go with their owner
    finding = find_problem(model, observed.config)
    if finding is not None or model.spec is None:
        return _refuse(observed, finding or Finding(reason="InvalidSpec", message=model.spec_error), now)
    return _plan_accepted(observed, model.spec, now)


def _refuse(observed: ModelObserved, finding: Finding, now: float) -> ModelPlan:
    model = observed.model
    message = f"{finding.message}; nothing that is offered is touched"
    kept = {
        ModelConditionType(c.type): Says(status=c.status, reason=c.reason, message=c.message)
        for c in model.status.conditions
    }
    says = {
        **kept,
        ModelConditionType.ACCEPTED: Says(status="False", reason=finding.reason, message=message),
        ModelConditionType.READY: say_ready(model.status.versions)
        if model.status.versions
        else Says(status="False", reason="NotAccepted", message=message),
    }
    status = model.status.model_copy(
        update={
            "observed_generation": model.generation,
            "conditions": merge_conditions(
                model.status.conditions, says, generation=model.generation, now=now
            ),
        }
    )
    return ModelPlan(status=status, transitions=transitions_between(model.status, status))


def _plan_accepted(observed: ModelObserved, spec: SLMModelSpec, now: float) -> ModelPlan:
    model = observed.model
    old, token = model.status, model.annotations.get(RETRY_ANNOTATION, "")
    ledger = Ledger(observed, spec, now)
    source, failure = find_source(ledger, old.source)
    versions = list(old.versions)
    if source is not None and not spec.paused and is_current(ledger, source):
        versions = with_version(spec, versions, source, now=now)
    versions = heed_retry(old, versions, token)
    dataset = Dataset() if versions and versions[0].accepted else find_dataset(ledger)
    if versions and source is not None and _is_wanted(spec, versions[0]):
        accept = model.annotations.get(ACCEPT_ANNOTATION, "")
        newest = _advance(ledger, versions, source, dataset)
        versions[0] = judge_version(spec, newest, accepted_by_hand=accept, now=now)
    versions = trimmed(versions, limit=spec.version_history_limit, in_use=observed.in_use)
    says = say_all(spec, versions, failure=failure, source_known=source is not None, dataset=dataset)
    status = _status(observed, versions, source, says, now).model_copy(update={"retry_token": token})
    return ModelPlan(
        status=status,
        actions=(*_deletions(ledger), *ledger.creates),
        resolve=tuple(ledger.requests.values()),
        questions=frozenset(ledger.questions),
        digests=frozenset(ledger.digests),
        transitions=transitions_between(old, status),
        outcomes=tuple(ledger.outcomes),
        requeue_after_seconds=earliest(*(at - now for at in ledger.wakes_at if at > now)),
    )


def _is_wanted(spec: SLMModelSpec, newest: ModelVersionStatus) -> bool:
    """Whether the newest version is still that of spec, and not finished. It is not after a change of spec
    while a new version may not begin yet: paused, or the other source is not known."""
    return not newest.accepted and newest.key == version_key(spec, newest.digest)


def _advance(
    ledger: Ledger, versions: list[ModelVersionStatus], source: ModelSourceStatus, dataset: Dataset
) -> ModelVersionStatus:
    """The newest version one look further."""
    spec, newest = ledger.spec, versions[0]
    recipes = {recipe.name: recipe for recipe in spec.recipes}
    files = SourceNow(digest=newest.digest, resolved=None)
    if any(not variant.digest for variant in newest.variants):
        files = SourceNow(digest=newest.digest, resolved=find_files(ledger, source, newest.digest))
    known = [e for v in versions[1:] for variant in v.variants for e in variant.evaluations if e.key]
    _count_running(ledger, newest)
    variants = []
    for variant in newest.variants:
        recipe = recipes[variant.name]
        variant = bring_files(ledger, newest, recipe, variant, files)
        variants.append(measure(ledger, newest, recipe, variant, dataset, known=known))
    return newest.model_copy(update={"variants": judge_variants(spec, variants)})


def _count_running(ledger: Ledger, newest: ModelVersionStatus) -> None:
    for variant in newest.variants:
        if variant.source is None and ledger.runs("optimise", making_key(newest, variant), variant.attempt):
            ledger.making += 1
        for entry in variant.evaluations:
            if entry.key and not entry.measured_at and ledger.runs("evaluate", entry.key, entry.attempt):
                ledger.measuring.add(entry.profile)


def _deletions(ledger: Ledger) -> list[DeleteJob]:
    """Jobs whose end was read go when their logs have been kept for long enough, others at once."""
    ttl = duration_seconds(ledger.spec.jobs.ttl)
    result = []
    for job in ledger.observed.jobs:
        if job.name in ledger.current or job.deleting:
            continue
        if job.state == "Active":
            result.append(DeleteJob(name=job.name, why="no longer wanted"))
        elif job.finished_at + ttl <= ledger.now:
            result.append(DeleteJob(name=job.name, why="its report was taken, and its time is over"))
        else:
            ledger.wakes_at.append(job.finished_at + ttl)
    return result


def _status(
    observed: ModelObserved,
    versions: list[ModelVersionStatus],
    source: ModelSourceStatus | None,
    says: dict[ModelConditionType, Says],
    now: float,
) -> SLMModelStatus:
    model = observed.model
    accepted = next((version.version for version in versions if version.accepted), "")
    newest = versions[0] if versions else None
    progress = ""
    if newest is not None:
        done = sum(variant.step in ("Accepted", "Rejected", "Failed") for variant in newest.variants)
        progress = f"{done}/{len(newest.variants)} {newest.reason}"
    return model.status.model_copy(
        update={
            "observed_generation": model.generation,
            "source": source if source is not None else model.status.source,
            "latest_version": newest.version if newest else "",
            "accepted_version": accepted,
            "progress": progress,
            "versions": versions,
            "conditions": merge_conditions(
                model.status.conditions, says, generation=model.generation, now=now
            ),
        }
    )
