# SPDX-License-Identifier: Apache-2.0
"""How many variants an effective spec may have, and what is said where there are more."""

from typing import Final

from slmops.api import SLMDeploymentSpec

MAX_VARIANTS: Final = 64
"""Of an effective spec: a revision with all pod templates has to fit one object."""


def say_too_many(spec: SLMDeploymentSpec, count: int, *, profiles: int, where: str) -> str:
    """What makes the `count` variants of so many profiles, and the cure; `where` is the field in which a
    variant names its profiles."""
    overrides = len(spec.overrides or ())
    limit = f"{count} combinations, at most {MAX_VARIANTS} can be kept"
    if spec.adaptation is not None:
        return (
            f"spec.adaptation.sites: {len(spec.adaptation.sites)} sites, {overrides} overrides, {profiles} "
            f"DeviceProfiles and the variants make {limit}; name fewer sites, give overrides the sites and "
            f"profiles that they are for, and name in {where} which profiles each variant is for"
        )
    if not overrides:
        return (
            f"spec.variants: with {profiles} DeviceProfiles there are {limit}; name in {where} which "
            "profiles each variant is for"
        )
    return (
        f"spec.overrides: {overrides} overrides, {profiles} DeviceProfiles and the variants make {limit}; "
        "let one override name several sites, name in overrides[].profiles which profiles each is for, and "
        f"in {where} which each variant is for"
    )
