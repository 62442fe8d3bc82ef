# SPDX-License-Identifier: Apache-2.0
"""Sites of `spec.adaptation` as classes of nodes: `spec.overrides[]` made longer.

For each site stand, in the order of the list, the user's overrides that a node of it may match, each for this
site alone, and behind them one that changes nothing. So every node of the site is of a class that no node
elsewhere is of, and what counts for it is what counted before.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Final

from pydantic import Field

from slmops.api import SLMDeploymentSpec
from slmops.api.base import NAME_PATTERN, duration_seconds
from slmops.api.overrides import Adapter, Override
from slmops.api.spec import Variant
from slmops.api.variant import AUTO
from slmops.model.observed import Resolved
from slmops.planning.adapters import TrainedAdapter
from slmops.planning.effective import Examples, ProfileRule
from slmops.planning.needs import engine_of_files
from slmops.planning.overrides import can_meet, is_for_all
from slmwire.manifest import Manifest

MAX_OVERRIDES: Final = 128
"""That the list may grow to: each is at least one class, and a revision has room for 64."""
ENGINE: Final = "onnxruntime"
"""The engine whose adapters can be trained."""
TrainedAdapters = Mapping[str, TrainedAdapter]
"""By site."""


class SiteOverride(Override):
    """An override for one site that adapts the model."""

    adapted_site: str = Field(description="The site.")


def with_sites(spec: SLMDeploymentSpec) -> list[Override]:
    """The overrides that count. ValueError, with the cure, when they become too many."""
    overrides = list(spec.overrides or ())
    adaptation = spec.adaptation
    if adaptation is None:
        return overrides
    names = _Names(override.name for override in overrides)
    result: list[Override] = []
    for site in sorted(adaptation.sites):
        result += _of_site(site, overrides, names)
        if len(result) > MAX_OVERRIDES:
            raise ValueError(
                f"spec.adaptation.sites: {len(adaptation.sites)} sites, each with the overrides that count "
                f"there, make more than {MAX_OVERRIDES} classes of nodes; name fewer sites, or give "
                "overrides the sites that they are for"
            )
    return [*result, *_elsewhere(overrides, frozenset(adaptation.sites))]


def _of_site(site: str, overrides: Iterable[Override], names: "_Names") -> list[Override]:
    plain = SiteOverride.model_construct(name=names.plain(site), sites=[site], adapted_site=site)
    result: list[Override] = []
    for override in overrides:
        if not can_meet(override, plain):
            continue
        fields = {name: getattr(override, name) for name in Override.model_fields}
        changes = {"name": names.pair(override.name, site), "sites": [site], "adapted_site": site}
        result.append(SiteOverride.model_construct(**fields | changes))
        if is_for_all(override.model_copy(update={"sites": None})) and override.profiles is None:
            return result  # no node of the site is left for those behind it
    return [*result, plain]


def _elsewhere(overrides: Iterable[Override], adapted: frozenset[str]) -> list[Override]:
    """The user's overrides without the sites that have classes of their own."""
    result = []
    for override in overrides:
        if override.sites is None:
            result.append(override)
            continue
        left = [site for site in override.sites if site not in adapted]
        if left:
            same = len(left) == len(override.sites)
            result.append(override if same else override.model_copy(update={"sites": left}))
    return result


class _Names:
    """Names of overrides that are made: labels that no other one has, the same at each look."""

    def __init__(self, given: Iterable[str]) -> None:
        self._given = set(given)

    def plain(self, site: str) -> str:
        return self._take(_slug(site), key=site)

    def pair(self, override: str, site: str) -> str:
        return self._take(f"{override}-{_slug(site)}", key=f"{override}/{site}")

    def _take(self, name: str, *, key: str) -> str:
        if name in self._given:
            name = f"{name}-{_digest(key)}"
        self._given.add(name)
        return name


def _slug(site: str) -> str:
    """The site as a DNS label; with a hash where letters had to be changed."""
    if re.fullmatch(NAME_PATTERN, site):
        return site
    plain = re.sub(r"[^a-z0-9]+", "-", site.lower()).strip("-")
    return f"{plain}-{_digest(site)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def find_site(rules: Iterable[ProfileRule], *, profile: str, override: str) -> str:
    """The one site that a class of a stored revision is for; empty when it is for several or for any."""
    for rule in rules:
        if (rule.name, rule.override_name) == (profile, override) and rule.override is not None:
            sites = rule.override.sites or ()
            return sites[0] if len(sites) == 1 else ""
    return ""


# What a variant has at such a site


def site_of(override: Override | None) -> str:
    """The site that adapts the model and has this override alone; empty for any other one."""
    return override.adapted_site if isinstance(override, SiteOverride) else ""


def examples_of(
    spec: SLMDeploymentSpec,
    variant: Variant,
    override: Override | None,
    *,
    engine: str | None,
    found: Resolved | None,
) -> Examples | None:
    """What the server of a variant keeps of feedback; None where it keeps nothing.

    `engine` is what the variant is told to run on, `found` its files, where they are known.
    """
    site, adaptation = site_of(override), spec.adaptation
    if not site or adaptation is None or found is None or not _is_trainable(variant, engine, found.manifest):
        return None
    collect = adaptation.collect
    return Examples(
        site=site,
        retention_seconds=int(duration_seconds(collect.retention)),
        max_examples=collect.max_examples,
        redact=sorted(collect.redact),
        patterns=sorted(collect.patterns),
    )


def _is_trainable(variant: Variant, engine: str | None, files: Manifest) -> bool:
    oci = variant.source.oci
    if oci is not None and oci.delivery == "ImageVolume":
        return False  # nothing can stand beside the image
    if engine not in (None, "", AUTO, ENGINE):
        return False
    # A model.onnx alone does not tell, and onnxruntime takes it.
    return engine_of_files(files) in ("", ENGINE)


def adapters_with(
    own: list[Adapter] | None, trained: TrainedAdapter | None, *, examples: Examples | None, base: str
) -> list[Adapter] | None:
    """An override's adapters and the one that was trained at the site, if it is for files with the digest
    `base`. It is the default then, and replaces one of its name."""
    if trained is None or examples is None or trained.base_digest != base:
        return own
    others = [adapter for adapter in own or () if adapter.name != trained.adapter.name]
    plain = [a.model_copy(update={"default": None}) if a.default else a for a in others]
    return [*plain, trained.adapter]
