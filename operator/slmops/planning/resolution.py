# SPDX-License-Identifier: Apache-2.0
"""Which files each variant stands for: from a stored revision where one knows, else resolved afresh.

Where spec asks for a signature it also judges whether the files may be taken.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from slmops.api import SLMDeploymentSpec
from slmops.api.spec import Signature
from slmops.api.status import VariantStatus
from slmops.model.observed import Resolved, ResolveFailure, SignatureCheck
from slmops.model.plan import ResolveRequest
from slmops.planning.adapters import adapters_of, with_adapters
from slmops.planning.finding import Finding
from slmops.planning.revision import Revision, RevisionVariant, resolution_key, revision_of, source_hash
from slmwire.manifest import ManifestError
from slmwire.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """Outcome for all variants of the present spec."""

    variants: tuple[VariantStatus, ...]
    resolved: Mapping[str, Resolved]
    """By variant; complete when `revision` is set."""
    requests: tuple[ResolveRequest, ...]
    failures: tuple[tuple[str, ResolveFailure], ...]
    revision: str
    """Empty until every variant is resolved, and while the signature policy refuses one."""
    unsigned: tuple[tuple[str, str], ...] = ()
    """(variant, why its signature does not hold)"""
    note: str = ""
    """What is to be said beside, although nothing is wrong."""
    unmet: Finding | None = None
    """Why nobody can say what spec stands for; `revision` is what it stood for last."""


def resolve(
    spec: SLMDeploymentSpec,
    *,
    outcomes: Mapping[str, Resolved | ResolveFailure],
    stored: Iterable[Revision],
    stable: str = "",
    rolling: str = "",
) -> Resolution:
    """Resolve every variant of `spec`.

    A source as written is resolved once: a stored revision that was made from the same words wins
    over a fresh answer. So every node gets the same bytes even if a mutable reference moves on, and
    going back to an earlier spec needs no network.

    `stable` and `rolling` are the revisions that are the stable one and being rolled out: a signature
    that cannot be checked for the moment stops neither, one that does not hold stops what is being
    rolled out and leaves alone what is stable.
    """
    signature = spec.model.signature
    known = known_sources(stored)
    resolved: dict[str, Resolved] = {}
    requests: list[ResolveRequest] = []
    failures: list[tuple[str, ResolveFailure]] = []
    for variant in spec.variants:
        key = resolution_key(variant.source, signature)
        before = known.get(source_hash(variant.source))
        outcome = outcomes.get(key)
        if signature is None:
            outcome = before or outcome
        elif before is not None and not _is_about(outcome, before):
            outcome = None
        if isinstance(outcome, Resolved):
            resolved[variant.name] = (
                outcome if before is None else replace(before, signature=outcome.signature)
            )
            continue
        if before is not None:
            resolved[variant.name] = replace(before, signature=None)
        if isinstance(outcome, ResolveFailure):
            failures.append((variant.name, outcome))
        requests.append(
            ResolveRequest(
                source_hash=key,
                variant=variant.name,
                source=variant.source,
                signature=signature,
                known=before,
            )
        )
    for variant in spec.variants:
        if variant.name in resolved and (adapters := adapters_of(variant)):
            try:
                resolved[variant.name] = with_adapters(resolved[variant.name], adapters)
            except ManifestError as problem:
                del resolved[variant.name]
                failure = ResolveFailure(reason=Reason.UNFIT, message=str(problem), retry_at=math.inf)
                failures.append((variant.name, failure))
    variants = tuple(
        VariantStatus(
            name=variant.name,
            source_hash=source_hash(variant.source),
            digest=found.manifest.digest,
            reference=found.reference,
            size_bytes=found.manifest.size_bytes,
        )
        for variant in spec.variants
        if (found := resolved.get(variant.name)) is not None
    )
    complete = len(resolved) == len(spec.variants)
    revision = revision_of(spec, {v.name: v.digest for v in variants}) if complete else ""
    waiting = {request.variant for request in requests}
    unsigned = tuple(
        (name, error)
        for name, found in resolved.items()
        if signature is not None and name not in waiting and (error := _error_of(found.signature))
    )
    if not _is_taken(signature, revision, stable, rolling, pending=bool(requests), unsigned=bool(unsigned)):
        revision = ""
    return Resolution(
        variants=variants,
        resolved=resolved,
        requests=tuple(requests),
        failures=tuple(failures),
        revision=revision,
        unsigned=unsigned,
    )


def sources_of(spec: SLMDeploymentSpec) -> frozenset[str]:
    """Identity of every question that the spec asks about its sources."""
    return frozenset(resolution_key(variant.source, spec.model.signature) for variant in spec.variants)


def due_requests(
    resolution: Resolution, outcomes: Mapping[str, Resolved | ResolveFailure], now: float
) -> tuple[ResolveRequest, ...]:
    """The questions to be asked now: a failed one waits for its time."""
    due = []
    for request in resolution.requests:
        outcome = outcomes.get(request.source_hash)
        if not isinstance(outcome, ResolveFailure) or outcome.retry_at <= now:
            due.append(request)
    return tuple(due)


def keep_wanted(wanted: Revision | None, unmet: Finding) -> Resolution:
    """The outcome while spec cannot be worked out: what it stood for last."""
    return Resolution(
        variants=tuple(_status_of(variant) for variant in wanted.variants) if wanted is not None else (),
        resolved={},
        requests=(),
        failures=(),
        revision=wanted.revision if wanted is not None else "",
        unmet=unmet,
    )


def _status_of(variant: RevisionVariant) -> VariantStatus:
    return VariantStatus(
        name=variant.name,
        source_hash=variant.source_hash,
        digest=variant.manifest.digest,
        reference=variant.reference,
        size_bytes=variant.size_bytes,
    )


def known_sources(stored: Iterable[Revision]) -> dict[str, Resolved]:
    """By source hash: what the newest revision made from these words has."""
    return {
        entry.source_hash: Resolved(
            manifest=entry.base or entry.manifest,
            reference=entry.reference,
            signature=SignatureCheck(text=entry.signature),
            geometry=entry.geometry,
        )
        for revision in sorted(stored, key=lambda r: r.number)
        for entry in revision.variants
    }


def _error_of(check: SignatureCheck | None) -> str:
    """Why the signature does not hold; only a key that made it says that it does."""
    if check is None:
        return "the signature was not checked"
    return check.error or ("" if check.key else "no key made the signature")


def _is_about(outcome: Resolved | ResolveFailure | None, known: Resolved) -> bool:
    """A check holds for the files that it was made of."""
    return not isinstance(outcome, Resolved) or outcome.manifest.digest == known.manifest.digest


def _is_taken(
    signature: Signature | None, revision: str, stable: str, rolling: str, *, pending: bool, unsigned: bool
) -> bool:
    if signature is None or signature.policy == "Warn" or revision == stable:
        return True
    return not unsigned and (not pending or revision == rolling)
