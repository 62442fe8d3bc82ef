# SPDX-License-Identifier: Apache-2.0
"""Measures a variant on each device class that it is meant for: a Job for each, one at a time on a class."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from slmops.api import RETRY_ANNOTATION
from slmops.api.slmmodel import Recipe
from slmops.api.slmmodel_status import (
    MESSAGE_LIMIT,
    ModelEvaluationStatus,
    ModelVariantStatus,
    ModelVersionStatus,
)
from slmops.api.source import Source
from slmops.model.jobs import CreateJob
from slmops.model.observed import Resolved
from slmops.planning import times
from slmops.planning.revision import source_hash
from slmops.planning.slmmodel.build import JobPlace, TooLarge, build_evaluate_job
from slmops.planning.slmmodel.job_state import Failure, JobState
from slmops.planning.slmmodel.keys import evaluation_key
from slmops.planning.slmmodel.ledger import Ledger
from slmops.planning.slmmodel.retries import fail_attempt, must_wait, say_running, waited_with
from slmwire.jobs import EvaluateReport
from slmwire.paths import GOLDEN_FILE

_NO_PROFILE: Final = ("ProfileNotFound", "ProfilesUnknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The dataset of the spec: not asked for, not known yet, or its files."""

    source: Source | None = None
    resolved: Resolved | None = None
    failure: Failure | None = None

    @property
    def known(self) -> bool:
        """Whether measurements may begin."""
        return self.source is None or (self.resolved is not None and self.failure is None)

    @property
    def digest(self) -> str:
        """Empty without a dataset."""
        return self.resolved.manifest.digest if self.resolved is not None else ""


def find_dataset(ledger: Ledger) -> Dataset:
    """The dataset as it stands now. It is asked for once, so that all variants answer the same prompts, and
    again when somebody asks for another try."""
    source = ledger.spec.evaluation.dataset if ledger.spec.evaluation else None
    if source is None:
        return Dataset()
    token = ledger.observed.model.annotations.get(RETRY_ANNOTATION, "")
    answer = ledger.ask(f"{source_hash(source)}.{token}", source)
    if answer is None:
        return Dataset(source=source)
    if not isinstance(answer, Resolved):
        message = f"spec.evaluation.dataset: {answer.message}"
        return Dataset(source=source, failure=Failure(reason=answer.reason.value, message=message))
    if all(file.path != GOLDEN_FILE for file in answer.manifest.files):
        message = f"spec.evaluation.dataset: there is no {GOLDEN_FILE} among its files; put one there"
        return Dataset(
            source=source, resolved=answer, failure=Failure(reason="DatasetUnfit", message=message)
        )
    return Dataset(source=source, resolved=answer)


def profiles_of(recipe: Recipe) -> list[str]:
    """Where a variant is measured; one empty name means a node of jobs.nodeSelector."""
    return list(recipe.profiles) or [""]


def measure(
    ledger: Ledger,
    version: ModelVersionStatus,
    recipe: Recipe,
    variant: ModelVariantStatus,
    dataset: Dataset,
    *,
    known: Iterable[ModelEvaluationStatus],
) -> ModelVariantStatus:
    """The variant with its measurements one look further. `known` are those of earlier versions: what was
    measured of the same bytes in the same way is not measured again, and Jobs are numbered on."""
    if not variant.digest or ledger.spec.evaluation is None:
        return variant
    old = {entry.profile: entry for entry in variant.evaluations}
    before = {entry.key: entry for entry in known}
    if any(not entry.measured_at for entry in variant.evaluations) or not variant.evaluations:
        ledger.digests.add(variant.digest)  # its turn comes, perhaps much later
    entries = []
    for profile in profiles_of(recipe):
        entry = old.get(profile) or ModelEvaluationStatus(profile=profile)
        if dataset.known:
            key = evaluation_key(
                ledger.spec, recipe, profile=profile, digest=variant.digest, dataset=dataset.digest
            )
            earlier = before.get(key)
            if entry.key != key:
                attempt = earlier.attempt if earlier else 0
                entry = ModelEvaluationStatus(profile=profile, key=key, attempt=attempt)
            if earlier is not None and earlier.measured_at and not entry.measured_at:
                entry = earlier
        entries.append(_advance(ledger, version, recipe, variant, dataset, entry))
    return variant.model_copy(update={"evaluations": entries})


def _advance(
    ledger: Ledger,
    version: ModelVersionStatus,
    recipe: Recipe,
    variant: ModelVariantStatus,
    dataset: Dataset,
    entry: ModelEvaluationStatus,
) -> ModelEvaluationStatus:
    if entry.measured_at or entry.verdict == "Error" or not entry.key:
        return entry
    name, state = ledger.look_at("evaluate", entry.key, entry.attempt, waited=waited_with(entry))
    match state.phase:
        case "Running":
            if state.looks_again_at is not None and state.looks_again_at > ledger.now:
                ledger.wakes_at.append(state.looks_again_at)
            return entry.model_copy(update=say_running(state.waits))
        case "Succeeded":
            return _measured(ledger, entry, name, state)
        case "Failed":
            assert state.failure is not None
            return _failed(ledger, entry, name, state.failure)
        case _:
            return _begin(ledger, version, recipe, variant, dataset, entry, name)


def _measured(
    ledger: Ledger, entry: ModelEvaluationStatus, name: str, state: JobState
) -> ModelEvaluationStatus:
    if state.evaluate is None:
        failure = Failure(
            reason="EvaluationFailed", message="the Job ended with a report that is not its own"
        )
        return _failed(ledger, entry, name, failure)
    ledger.ended("evaluate", name, "Succeeded")
    return take_report(entry, state.evaluate, now=ledger.now)


def take_report(entry: ModelEvaluationStatus, report: EvaluateReport, *, now: float) -> ModelEvaluationStatus:
    """The measurement with its numbers."""
    return entry.model_copy(
        update={
            "engine": report.engine,
            "samples": report.samples,
            "exact_match": _decimal(report.exact_match),
            "perplexity": _decimal(report.perplexity),
            "score": _decimal(report.score),
            "prompt_tokens_per_second": _decimal(report.prompt_tokens_per_second),
            "tokens_per_second": _decimal(report.decode_tokens_per_second),
            "first_token": _decimal(report.first_token_seconds),
            "memory_bytes": report.memory_bytes,
            "cache_bytes_per_token": report.cache_bytes_per_token,
            "measured_at": times.to_text(now),
            "failures": 0,
            "retry_at": None,
            "reason": "",
            "message": "",
        }
    )


def _decimal(value: float | None) -> str | None:
    return None if value is None else f"{value:.6f}".rstrip("0").rstrip(".")


def _failed(
    ledger: Ledger, entry: ModelEvaluationStatus, name: str, failure: Failure
) -> ModelEvaluationStatus:
    ledger.ended("evaluate", name, failure.reason)
    if failure.reason == "StepFailed":
        failure = Failure(reason="EvaluationFailed", message=failure.message)
    changes, final = fail_attempt(entry, failure, ledger)
    return entry.model_copy(update={**changes, "verdict": "Error" if final else ""})


def _begin(
    ledger: Ledger,
    version: ModelVersionStatus,
    recipe: Recipe,
    variant: ModelVariantStatus,
    dataset: Dataset,
    entry: ModelEvaluationStatus,
    name: str,
) -> ModelEvaluationStatus:
    spec, observed = ledger.spec, ledger.observed
    if ledger.is_in_the_way(name) or spec.paused or must_wait(entry, ledger) or not dataset.known:
        return entry
    if entry.profile and observed.profiles is None:
        message = "the DeviceProfiles cannot be read; is their CustomResourceDefinition installed?"
        return entry.model_copy(update={"reason": "ProfilesUnknown", "message": message})
    view = (observed.profiles or {}).get(entry.profile)
    if entry.profile and view is None:
        message = f"there is no DeviceProfile {entry.profile}; make it, or correct the recipe's profiles"
        return entry.model_copy(update={"reason": "ProfileNotFound", "message": message[:MESSAGE_LIMIT]})
    if entry.profile in ledger.measuring:
        return entry
    assert variant.source is not None
    resolved = ledger.manifest(variant.digest)
    if resolved is None:
        answer = ledger.ask(source_hash(variant.source), variant.source)
        if answer is not None and not isinstance(answer, Resolved):
            update = {"reason": answer.reason.value, "message": answer.message[:MESSAGE_LIMIT]}
            return entry.model_copy(update=update)
        if not isinstance(answer, Resolved) or answer.manifest.digest != variant.digest:
            return entry
        resolved = answer
    place = JobPlace(
        model=observed.model,
        spec=spec,
        config=observed.config,
        recipe=recipe,
        name=name,
        version=version.version,
    )
    given = None
    if dataset.source is not None and dataset.resolved is not None:
        given = (dataset.source, dataset.resolved)
    try:
        body = build_evaluate_job(
            place, source=variant.source, resolved=resolved, dataset=given, profile=entry.profile, view=view
        )
    except TooLarge as error:
        return entry.model_copy(update={"verdict": "Error", "reason": "Unfit", "message": str(error)})
    ledger.measuring.add(entry.profile)
    why = f"variant {variant.name} on {entry.profile or 'any node'}"
    ledger.creates.append(CreateJob(name=name, work="evaluate", body=body, why=why))
    if entry.reason in _NO_PROFILE:
        entry = entry.model_copy(update=say_running(None))
    return entry.model_copy(update=ledger.say_refused(name))
