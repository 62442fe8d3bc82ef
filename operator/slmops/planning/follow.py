# SPDX-License-Identifier: Apache-2.0
"""Which version of an SLMModel a deployment that follows it is to run."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from slmops.api.spec import ModelSource
from slmops.model.offers import ModelOffer, OfferedVersion

_DECIDED: Final = ("GateFailed", "VariantFailed", "AwaitingAcceptance")


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """The version to run, or why what runs is kept."""

    version: OfferedVersion | None
    problem: str = ""
    note: str = ""
    """Why a newer one that matches is not taken, once that is decided."""


def follow(source: ModelSource, offer: ModelOffer | None, *, present: str) -> Followed:
    """The newest accepted version that matches; `present` is the one of this SLMModel that runs or is being
    rolled out, empty for none.

    A version that was found before `present` is taken only if spec names it, or if `present` does not match
    what spec says now: that the newest lost its approval is no reason to go back. A `present` that is not
    offered at all says nothing: either it is older than all that are, or the SLMModel was made anew.
    """
    if offer is None:
        problem = f"there is no SLMModel {source.name} in this namespace; make it"
        return Followed(version=None, problem=problem)
    matching = [version for version in offer.versions if is_followed(source, version.version)]
    best = next((version for version in matching if version.accepted), None)
    if best is None:
        return Followed(version=None, problem=_why_none(source, matching))
    if source.version is None and present and is_followed(source, present):
        known = [version.version for version in offer.versions]
        if _is_older(best.version, present, known):
            return Followed(
                version=None,
                problem=f"version {present} is no longer accepted and {best.version} is older; to go back to "
                "it set spec.model.from.version",
            )
    return Followed(version=best, note=_why_not(matching[0]))


def is_followed(source: ModelSource, version: str) -> bool:
    """Whether spec is about this version."""
    if source.version is not None:
        return version == source.version
    return source.version_pattern is None or fnmatchcase(version, source.version_pattern)


def _why_not(newest: OfferedVersion) -> str:
    if newest.accepted or newest.reason not in _DECIDED:
        return ""
    return f"version {newest.version} is not taken: {newest.reason}: {newest.message}"


def _why_none(source: ModelSource, matching: list[OfferedVersion]) -> str:
    if matching:
        newest = matching[0]
        why = ": ".join(part for part in (newest.reason, newest.message) if part) or "it is not accepted yet"
        return f"SLMModel {source.name}, version {newest.version}: {why}"
    wanted = source.version or source.version_pattern
    if wanted is None:
        return f"SLMModel {source.name} has no version yet"
    return (
        f"SLMModel {source.name} has no version {wanted}; kubectl slm models {source.name} shows those that "
        "it has"
    )


def _is_older(version: str, present: str, known: list[str]) -> bool:
    """Names are no measure: most are digests. The order is that in which the versions were found."""
    return present in known and known.index(version) > known.index(present)
