# SPDX-License-Identifier: Apache-2.0
"""Which version of an SLMModel a deployment that follows it is to run."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from slmops.api.spec import ModelSource
from slmops.model.offers import ModelOffer, OfferedVersion

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """The version to run, or why what runs is kept."""

    version: OfferedVersion | None
    problem: str = ""


def follow(source: ModelSource, offer: ModelOffer | None, *, present: str) -> Followed:
    """The newest accepted version that matches; `present` is the one of this SLMModel that runs or is being
    rolled out, empty for none.

    An older version than `present` is taken only if spec names it, or if `present` does not match what spec
    says now: that the newest was deleted or lost its approval is no reason to go back.
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
            what = "is no longer accepted" if present in known else "is no longer offered"
            return Followed(
                version=None,
                problem=f"version {present} {what} and {best.version} is older; to go back to it set "
                "spec.model.from.version",
            )
    return Followed(version=best)


def is_followed(source: ModelSource, version: str) -> bool:
    """Whether spec is about this version."""
    if source.version is not None:
        return version == source.version
    return source.version_pattern is None or fnmatchcase(version, source.version_pattern)


def _why_none(source: ModelSource, matching: list[OfferedVersion]) -> str:
    if matching:
        newest = matching[0]
        why = ": ".join(part for part in (newest.reason, newest.message) if part) or "it is not accepted yet"
        return f"SLMModel {source.name}, version {newest.version}: {why}"
    wanted = source.version or source.version_pattern
    if wanted is None:
        return f"SLMModel {source.name} has no version yet"
    return f"SLMModel {source.name} has no version {wanted}; see spec.versions of it"


def _is_older(version: str, present: str, known: list[str]) -> bool:
    if version == present:
        return False
    if present in known:
        return known.index(version) > known.index(present)
    return _order(version) < _order(present)


def _order(version: str) -> tuple[list[tuple[int, int, str]], bool, list[tuple[int, int, str]]]:
    """Sort key in which 2.10 comes after 2.9, and 2.0-rc1 before 2.0."""
    release, _, preliminary = version.partition("-")
    return _parts(release), not preliminary, _parts(preliminary)


def _parts(text: str) -> list[tuple[int, int, str]]:
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in _DIGITS.split(text) if part]
