# SPDX-License-Identifier: Apache-2.0
"""Brings the files of a variant into being: the Job that makes them, then their digest."""

from dataclasses import dataclass
from typing import Any

from slmops.api.slmmodel import Recipe
from slmops.api.slmmodel_status import MESSAGE_LIMIT, ModelVariantStatus, ModelVersionStatus
from slmops.model.jobs import CreateJob
from slmops.model.observed import Resolved, ResolveFailure
from slmops.planning.revision import source_hash
from slmops.planning.slmmodel.build import JobPlace, TooLarge, build_optimise_job
from slmops.planning.slmmodel.job_state import Failure, JobState
from slmops.planning.slmmodel.ledger import Ledger
from slmops.planning.slmmodel.retries import fail_attempt, must_wait, say_running, waited_with
from slmops.planning.slmmodel.sources import PublishError, pin_source, publish_target, published_source


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceNow:
    """The source's files of one version: None while they are not known to this process."""

    digest: str
    resolved: Resolved | None


def bring_files(
    ledger: Ledger,
    version: ModelVersionStatus,
    recipe: Recipe,
    variant: ModelVariantStatus,
    source: SourceNow,
) -> ModelVariantStatus:
    """The variant one look further on the way to its files; unchanged when it has them."""
    if variant.step in ("Failed", "Rejected", "Accepted") or variant.digest:
        return variant
    if variant.source is not None:
        return _find_digest(ledger, variant)
    if not recipe.steps:
        return _take_source(ledger, variant, source)
    return _make(ledger, version, recipe, variant, source)


def making_key(version: ModelVersionStatus, variant: ModelVariantStatus) -> str:
    """Identity of the work: the place of what is published has the version's name in it."""
    return f"{version.version}/{variant.name}/{variant.key}"


def _changed(variant: ModelVariantStatus, **changes: Any) -> ModelVariantStatus:
    return variant.model_copy(update=changes)


def _take_source(ledger: Ledger, variant: ModelVariantStatus, source: SourceNow) -> ModelVariantStatus:
    if source.resolved is None:
        return variant
    return _with_files(variant, source.resolved, pin_source(ledger.spec.source, source.resolved))


def _with_files(variant: ModelVariantStatus, resolved: Resolved, pinned: Any) -> ModelVariantStatus:
    return _changed(
        variant,
        step="Evaluating",
        source=pinned,
        digest=resolved.manifest.digest,
        size_bytes=resolved.manifest.size_bytes,
        progress="",
        reason="",
        message="",
        failures=0,
        retry_at=None,
    )


def _find_digest(ledger: Ledger, variant: ModelVariantStatus) -> ModelVariantStatus:
    """Of what was published: from its place, as any node would find it."""
    assert variant.source is not None
    answer = ledger.ask(source_hash(variant.source), variant.source)
    if isinstance(answer, Resolved):
        return _with_files(variant, answer, pin_source(variant.source, answer))
    if isinstance(answer, ResolveFailure):
        message = f"what was published cannot be read: {answer.message}"[:MESSAGE_LIMIT]
        return _changed(variant, reason=answer.reason.value, message=message)
    return variant


def _make(
    ledger: Ledger,
    version: ModelVersionStatus,
    recipe: Recipe,
    variant: ModelVariantStatus,
    source: SourceNow,
) -> ModelVariantStatus:
    name, state = ledger.look_at(
        "optimise", making_key(version, variant), variant.attempt, waited=waited_with(variant)
    )
    match state.phase:
        case "Running":
            if state.looks_again_at is not None and state.looks_again_at > ledger.now:
                ledger.wakes_at.append(state.looks_again_at)
            step = _step_of(state, steps=len(recipe.steps))
            return _changed(variant, step=step, progress=state.progress, **say_running(state.waits))
        case "Succeeded":
            return _published(ledger, version, variant, name, state)
        case "Failed":
            assert state.failure is not None
            return _failed(ledger, variant, name, state.failure)
        case _:
            return _begin(ledger, version, recipe, variant, name, source)


def _step_of(state: JobState, *, steps: int) -> str:
    """The last container publishes; before it run the fetcher and the steps."""
    done = int(state.progress.partition("/")[0] or 0)
    return "Publishing" if done > steps else "Optimising"


def _published(
    ledger: Ledger, version: ModelVersionStatus, variant: ModelVariantStatus, name: str, state: JobState
) -> ModelVariantStatus:
    if state.publish is None or ledger.spec.publish is None:
        failure = Failure(reason="NotPublished", message="the Job ended with a report that is not its own")
        return _failed(ledger, variant, name, failure)
    target = publish_target(ledger.spec.publish, version=version.version, variant=variant.name)
    try:
        source = published_source(target, state.publish)
    except PublishError as error:
        return _failed(ledger, variant, name, Failure(reason="NotPublished", message=str(error)))
    ledger.ended("optimise", name, "Succeeded")
    done = _changed(
        variant,
        step="Publishing",
        source=source,
        signed=state.publish.signed is True,
        progress=state.progress,
        **say_running(None),
    )
    return _find_digest(ledger, done)


def _failed(ledger: Ledger, variant: ModelVariantStatus, name: str, failure: Failure) -> ModelVariantStatus:
    ledger.ended("optimise", name, failure.reason)
    changes, final = fail_attempt(variant, failure, ledger)
    return _changed(variant, step="Failed" if final else "Optimising", progress="", **changes)


def _begin(
    ledger: Ledger,
    version: ModelVersionStatus,
    recipe: Recipe,
    variant: ModelVariantStatus,
    name: str,
    source: SourceNow,
) -> ModelVariantStatus:
    spec = ledger.spec
    idle = variant if variant.step == "Optimising" else _changed(variant, step="Optimising", progress="")
    if ledger.is_in_the_way(name) or spec.paused or must_wait(variant, ledger) or source.resolved is None:
        return idle
    if ledger.making >= spec.jobs.parallelism:
        return idle
    observed = ledger.observed
    place = JobPlace(
        model=observed.model,
        spec=spec,
        config=observed.config,
        recipe=recipe,
        name=name,
        version=version.version,
    )
    try:
        body = build_optimise_job(place, source=spec.source, resolved=source.resolved)
    except TooLarge as error:
        return _changed(idle, step="Failed", reason="Unfit", message=str(error)[:MESSAGE_LIMIT])
    ledger.making += 1
    ledger.creates.append(CreateJob(name=name, work="optimise", body=body, why=f"variant {variant.name}"))
    return _changed(idle, **ledger.say_refused(name))
