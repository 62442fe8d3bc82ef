# SPDX-License-Identifier: Apache-2.0
"""Versions: what the source stands for, when another one begins, and which are kept."""

import json
import re
from collections.abc import Collection, Sequence
from typing import Final

from slmops.api import SLMModelSpec
from slmops.api.base import duration_seconds
from slmops.api.slmmodel_status import (
    ModelSourceStatus,
    ModelVariantStatus,
    ModelVersionStatus,
    SLMModelStatus,
)
from slmops.model.observed import Resolved, ResolveFailure
from slmops.planning import times
from slmops.planning.revision import source_hash
from slmops.planning.slmmodel.judge import JUDGED
from slmops.planning.slmmodel.keys import variant_key, version_key
from slmops.planning.slmmodel.ledger import Ledger
from slmops.planning.slmmodel.sources import is_pinned

SHORT_LENGTH: Final = 10
LOOK_AGAIN_SECONDS: Final = 60.0
"""A look at the source that is younger answers a deployment that asks for one."""
MAX_STATUS_BYTES: Final = 400_000
"""Of versions that need not be kept: an object may have a megabyte and a half, and what the API server notes
about its fields takes as much again."""
SUPERSEDED: Final = "Superseded"
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def find_source(
    ledger: Ledger, old: ModelSourceStatus | None
) -> tuple[ModelSourceStatus | None, ResolveFailure | None]:
    """What the source stands for, and why the latest attempt to find out failed, if it did.

    A mutable source is asked again when its time has come or spec has changed.
    """
    spec, model = ledger.spec, ledger.observed.model
    identity = source_hash(spec.source)
    known = old if old is not None and old.source_hash == identity else None
    question = identity if known is None else _question(known)
    if known is not None and not _is_due(ledger, known):
        return known, None
    answer = ledger.ask(question, spec.source)
    if isinstance(answer, Resolved):
        found = ModelSourceStatus(
            source_hash=identity,
            digest=answer.manifest.digest,
            reference=answer.reference[:500],
            checked_at=times.to_text(ledger.now),
            checked_generation=model.generation,
            checks=known.checks + 1 if known is not None else 1,
        )
        return found, None
    return known, answer


def find_files(ledger: Ledger, source: ModelSourceStatus, digest: str) -> Resolved | None:
    """The files behind the source's digest; asked again when this process does not know them."""
    resolved = ledger.manifest(digest)
    if resolved is None and digest == source.digest:
        answer = ledger.ask(_question(source), ledger.spec.source)
        if isinstance(answer, Resolved) and answer.manifest.digest == digest:
            return answer
    return resolved


def is_current(ledger: Ledger, known: ModelSourceStatus) -> bool:
    """Whether the source was looked at since spec was written: who changes bytes and the name of the version
    in one go must not see the old bytes under the new name."""
    return is_pinned(ledger.spec.source) or known.checked_generation == ledger.observed.model.generation


def _question(known: ModelSourceStatus) -> str:
    """Identity of the next question about the source: an answer counts once."""
    return f"{known.source_hash}.{known.checks}"


def _is_due(ledger: Ledger, known: ModelSourceStatus) -> bool:
    spec = ledger.spec
    if is_pinned(spec.source) or spec.paused:
        return False
    if known.checked_generation != ledger.observed.model.generation:
        return True
    if isinstance(ledger.observed.resolutions.get(_question(known)), Resolved):
        return True  # asked again for its files; it may have moved on
    asked_since = ledger.observed.look_asked_at - times.to_seconds(known.checked_at)
    if asked_since >= LOOK_AGAIN_SECONDS:
        return True
    if spec.poll_interval is None:
        return False
    due_at = times.to_seconds(known.checked_at) + duration_seconds(spec.poll_interval)
    if due_at > ledger.now:
        ledger.wakes_at.append(due_at)
    return due_at <= ledger.now


def with_version(
    spec: SLMModelSpec, versions: Sequence[ModelVersionStatus], source: ModelSourceStatus, *, now: float
) -> list[ModelVersionStatus]:
    """Versions with that of the present source and recipes in front."""
    key = version_key(spec, source.digest)
    if versions and versions[0].key == key:
        return list(versions)
    others = [_superseded(v) if index == 0 else v for index, v in enumerate(versions) if v.key != key]
    earlier = next((version for version in versions if version.key == key), None)
    if earlier is not None:
        return [_revived(earlier), *others]
    fresh = ModelVersionStatus(
        version=_name(spec, source, {version.version for version in versions}),
        key=key,
        digest=source.digest,
        reference=source.reference,
        created_at=times.to_text(now),
        metric=spec.evaluation.metric if spec.evaluation else "",
        reason="InProgress",
        variants=[_begin_variant(spec, index, source.digest, versions) for index in range(len(spec.recipes))],
    )
    return [fresh, *others]


def _begin_variant(
    spec: SLMModelSpec, index: int, digest: str, versions: Sequence[ModelVersionStatus]
) -> ModelVariantStatus:
    """What an earlier version has made in the same way is taken over."""
    recipe = spec.recipes[index]
    key = variant_key(spec, recipe, digest)
    fresh = ModelVariantStatus(
        name=recipe.name, key=key, engine=recipe.engine or "", profiles=list(recipe.profiles)
    )
    for version in versions:
        for variant in version.variants:
            if variant.key == key and variant.digest and variant.source is not None:
                update = {
                    "step": "Evaluating",
                    "source": variant.source,
                    "digest": variant.digest,
                    "size_bytes": variant.size_bytes,
                    "signed": variant.signed,
                }
                return fresh.model_copy(update=update)
    return fresh


def _name(spec: SLMModelSpec, source: ModelSourceStatus, taken: set[str]) -> str:
    commit = _COMMIT.fullmatch(source.reference)
    short = source.reference if commit else source.digest.removeprefix("sha256:")
    base = spec.version or short[:SHORT_LENGTH]
    numbers = [_number(name, base) for name in taken]
    # A number that is free because its version was dropped is not given again: it has been published under.
    number = max(numbers, default=0) + 1
    return base if number == 1 else f"{base}-{number}"


def _number(name: str, base: str) -> int:
    """1 for `base` itself, n for `base-n`, 0 for another name."""
    if name == base:
        return 1
    tail = name.removeprefix(f"{base}-")
    return int(tail) if tail != name and tail.isascii() and tail.isdecimal() else 0


def _superseded(version: ModelVersionStatus) -> ModelVersionStatus:
    """A version that another one takes the place of before it was decided."""
    if version.accepted or version.reason not in ("InProgress", "Paused", "AwaitingAcceptance"):
        return version
    variants = [
        variant
        if variant.step in JUDGED
        else variant.model_copy(
            update={"step": "Failed", "progress": "", "reason": SUPERSEDED, "message": ""}
        )
        for variant in version.variants
    ]
    return version.model_copy(
        update={
            "reason": SUPERSEDED,
            "message": "a newer version took its place before it was decided",
            "variants": variants,
        }
    )


def _revived(version: ModelVersionStatus) -> ModelVersionStatus:
    """A version that is wanted again: what it has is kept, what was given up begins anew."""
    if version.accepted:
        return version
    return version.model_copy(update={"variants": [try_again(variant) for variant in version.variants]})


def try_again(variant: ModelVariantStatus) -> ModelVariantStatus:
    """The variant with new attempts at all that failed. Numbers go on: Jobs of before may still exist."""
    fresh = {"failures": 0, "retry_at": None, "reason": "", "message": ""}
    evaluations = [
        entry
        if entry.measured_at
        else entry.model_copy(update={**fresh, "verdict": "", "attempt": entry.attempt + 1})
        for entry in variant.evaluations
    ]
    update: dict[str, object] = {**fresh, "verdict": "", "evaluations": evaluations}
    if variant.digest:
        update["step"] = "Evaluating"
    else:
        step = "Publishing" if variant.source is not None else "Optimising"
        update |= {"step": step, "attempt": variant.attempt + 1}
    return variant.model_copy(update=update)


def heed_retry(
    status: SLMModelStatus, versions: list[ModelVersionStatus], token: str
) -> list[ModelVersionStatus]:
    """Versions after the retry annotation got a new value: what failed in the newest one is tried again."""
    if not versions or token == status.retry_token or not token or versions[0].accepted:
        return versions
    newest = versions[0]
    variants = [
        try_again(variant)
        if variant.step == "Failed"
        or variant.retry_at is not None
        or any(e.verdict == "Error" or e.retry_at is not None for e in variant.evaluations)
        else variant
        for variant in newest.variants
    ]
    return [newest.model_copy(update={"variants": variants}), *versions[1:]]


def trimmed(
    versions: list[ModelVersionStatus], *, limit: int, in_use: Collection[str]
) -> list[ModelVersionStatus]:
    """The newest ones, as many as fit into one object; however old they are, the newest that is accepted and
    those of `in_use`."""
    offered = next((version for version in versions if version.accepted), None)
    kept: list[ModelVersionStatus] = []
    size = 0
    for index, version in enumerate(versions):
        if index >= limit and version is not offered and version.version not in in_use:
            continue
        size += len(json.dumps(version.to_body(), separators=(",", ":"))) if len(versions) > 1 else 0
        if index == 0 or version is offered or size <= MAX_STATUS_BYTES:
            kept.append(version)
    return kept
