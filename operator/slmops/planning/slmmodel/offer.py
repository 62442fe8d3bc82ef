# SPDX-License-Identifier: Apache-2.0
"""The offer to SLMDeployments, from an SLMModel's status."""

from slmops.api.slmmodel_status import (
    ModelEvaluationStatus,
    ModelVariantStatus,
    ModelVersionStatus,
    SLMModelStatus,
)
from slmops.api.variant import AUTO
from slmops.model.offers import Measured, ModelOffer, OfferedVariant, OfferedVersion
from slmops.planning.slmmodel.gates import value_of


def to_offer(namespace: str, name: str, status: SLMModelStatus) -> ModelOffer:
    """All versions, the newest first; of each, the variants that passed, in order of preference."""
    return ModelOffer(
        name=name, namespace=namespace, versions=tuple(_version(version) for version in status.versions)
    )


def _version(version: ModelVersionStatus) -> OfferedVersion:
    offered = (_variant(version, variant) for variant in version.variants if variant.step == "Accepted")
    return OfferedVersion(
        version=version.version,
        accepted=version.accepted,
        variants=tuple(variant for variant in offered if variant is not None),
        reason="" if version.accepted else version.reason,
        message="" if version.accepted else version.message,
    )


def _variant(version: ModelVersionStatus, variant: ModelVariantStatus) -> OfferedVariant | None:
    if variant.source is None:
        return None
    passed = [entry for entry in variant.evaluations if entry.verdict == "Pass"]
    cache = [e.cache_bytes_per_token for e in passed if e.cache_bytes_per_token is not None]
    profiles = [entry.profile for entry in passed] if variant.evaluations else variant.profiles
    return OfferedVariant(
        name=variant.name,
        source=variant.source,
        engine=_engine(variant, passed),
        profiles=tuple(profile for profile in profiles if profile),
        size_bytes=variant.size_bytes,
        cache_bytes_per_token=max(cache, default=None),
        measured={entry.profile: _measured(version, entry) for entry in passed},
    )


def _engine(variant: ModelVariantStatus, passed: list[ModelEvaluationStatus]) -> str:
    """The recipe's, else the one that it was measured with on every class."""
    if variant.engine not in ("", AUTO):
        return variant.engine
    engines = {entry.engine for entry in passed}
    return engines.pop() or variant.engine if len(engines) == 1 else variant.engine


def _measured(version: ModelVersionStatus, entry: ModelEvaluationStatus) -> Measured:
    quality = value_of(entry, version.metric) if version.metric else None
    if version.metric == "Perplexity" and quality is not None:
        # The geometric mean of the tokens' probabilities: 0 to 1, more is better.
        quality = 1 / quality if quality >= 1 else 1.0
    speed = entry.tokens_per_second
    return Measured(
        quality=quality,
        decode_tokens_per_second=float(speed) if speed is not None else None,
        memory_bytes=entry.memory_bytes,
    )
