# SPDX-License-Identifier: Apache-2.0
"""Which files each variant stands for: from a stored revision where one knows, else resolved afresh."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from slmops.api import SLMDeploymentSpec
from slmops.api.status import VariantStatus
from slmops.model.observed import Resolved, ResolveFailure
from slmops.model.plan import ResolveRequest
from slmops.planning.revision import Revision, revision_of, source_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """Outcome for all variants of the present spec."""

    variants: tuple[VariantStatus, ...]
    resolved: Mapping[str, Resolved]
    """By variant; complete when `revision` is set."""
    requests: tuple[ResolveRequest, ...]
    failures: tuple[tuple[str, ResolveFailure], ...]
    revision: str
    """Empty until every variant is resolved."""


def resolve(
    spec: SLMDeploymentSpec,
    *,
    outcomes: Mapping[str, Resolved | ResolveFailure],
    stored: Iterable[Revision],
) -> Resolution:
    """Resolve every variant of `spec`.

    A source as written is resolved once: a stored revision that was made from the same words wins
    over a fresh answer. So every node gets the same bytes even if a mutable reference moves on, and
    going back to an earlier spec needs no network.
    """
    known: dict[str, Resolved] = {}
    for revision in sorted(stored, key=lambda r: r.number):
        for entry in revision.variants:
            known[entry.source_hash] = Resolved(manifest=entry.manifest, reference=entry.reference)
    resolved: dict[str, Resolved] = {}
    requests: list[ResolveRequest] = []
    failures: list[tuple[str, ResolveFailure]] = []
    for variant in spec.variants:
        identity = source_hash(variant.source)
        outcome = known.get(identity) or outcomes.get(identity)
        if isinstance(outcome, Resolved):
            resolved[variant.name] = outcome
            continue
        if outcome is not None:
            failures.append((variant.name, outcome))
        requests.append(ResolveRequest(source_hash=identity, variant=variant.name, source=variant.source))
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
    complete = not requests
    return Resolution(
        variants=variants,
        resolved=resolved,
        requests=tuple(requests),
        failures=tuple(failures),
        revision=revision_of(spec, {v.name: v.digest for v in variants}) if complete else "",
    )
