# SPDX-License-Identifier: Apache-2.0
"""`spec.overrides[]`: which nodes each is for, and what it makes of the variants there.

Overrides whose nodes cannot be the same ones are put in the order of their names: to sort the list or to put
a new site in its middle is no new revision.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Final

from pydantic import Field

from slmops.api.base import ApiModel, LabelSelector, quantity_value
from slmops.api.overrides import Override
from slmops.api.spec import ResourceAmounts, Resources
from slmops.api.variant import VariantRuntime
from slmops.model.observed import ProfileView
from slmops.planning.selectors import matches

_EVERYWHERE: Final = LabelSelector()


class OverrideRule(ApiModel):
    """What a revision keeps of an override: which nodes of a class it is for."""

    name: str = Field(description="Name of the override.")
    site_label: str | None = Field(default=None, description="Label that names the site.")
    sites: list[str] | None = Field(default=None, description="Its values, sorted; unset means any node.")
    node_selector: LabelSelector | None = Field(default=None, description="Labels of the nodes.")

    @cached_property
    def _site_set(self) -> frozenset[str]:
        return frozenset(self.sites or ())

    def is_for(self, labels: Mapping[str, str]) -> bool:
        """Whether it is for a node with these labels, which is of the right class."""
        if self.sites is not None and labels.get(self.site_label or "") not in self._site_set:
            return False
        return self.node_selector is None or matches(self.node_selector, labels)


def rule_of_override(override: Override, *, site_label: str) -> OverrideRule:
    """What the planner goes by."""
    sites = sorted(override.sites) if override.sites is not None else None
    return OverrideRule(
        name=override.name,
        site_label=site_label if sites is not None else None,
        sites=sites,
        node_selector=override.node_selector,
    )


def overrides_of_class(overrides: Iterable[Override], profile: str) -> list[Override]:
    """Those that may be for nodes of the profile (empty: of none), up to the first that is for all."""
    result = []
    for override in overrides:
        if override.profiles is not None and profile not in override.profiles:
            continue
        result.append(override)
        if is_for_all(override):
            break
    return result


def is_for_all(override: Override) -> bool:
    """Whether it is for every node of its classes, so that none after it is ever reached there."""
    return override.sites is None and override.node_selector in (None, _EVERYWHERE)


def in_order(overrides: Iterable[Override]) -> list[Override]:
    """The same choice for every node, and the same order however those that cannot meet were written.

    Again and again the one with the least name is taken of those that no earlier one can meet.
    """
    waiting = list(overrides)
    before = {
        one.name: {earlier.name for earlier in waiting[:index] if can_meet(earlier, one)}
        for index, one in enumerate(waiting)
    }
    result = []
    while waiting:
        chosen = min((o for o in waiting if not before[o.name]), key=lambda override: override.name)
        waiting.remove(chosen)
        result.append(chosen)
        for names in before.values():
            names.discard(chosen.name)
    return result


def can_meet(one: Override, other: Override) -> bool:
    """Whether a node might match both; True where that cannot be told from sites, profiles and labels."""
    for ours, theirs in ((one.sites, other.sites), (one.profiles, other.profiles)):
        if ours is not None and theirs is not None and set(ours).isdisjoint(theirs):
            return False
    labels = _labels_of(other)
    return all(labels.get(key, value) == value for key, value in _labels_of(one).items())


def _labels_of(override: Override) -> Mapping[str, str]:
    return override.node_selector.match_labels if override.node_selector is not None else {}


def say_unknown_profiles(overrides: Iterable[Override] | None, profiles: Iterable[ProfileView] | None) -> str:
    """Which overrides name a DeviceProfile that is none of `profiles`: they may be meant for later, or be a
    slip of the pen. Empty when all are known, and while the profiles cannot be read (None)."""
    if not overrides or profiles is None:
        return ""
    known = frozenset(profile.name for profile in profiles)
    found = [
        f"spec.overrides[{override.name}].profiles: there is no DeviceProfile {', '.join(unknown)}"
        for override in overrides
        if (unknown := sorted(set(override.profiles or ()) - known))
    ]
    return "; ".join(found)


def overridden_runtime(override: Override | None, runtime: VariantRuntime | None) -> VariantRuntime | None:
    """The override's settings before those that the variant has on its class of devices."""
    if override is None or override.runtime is None:
        return runtime
    values = runtime.model_dump(exclude_none=True) if runtime is not None else {}
    values |= override.runtime.model_dump(exclude_none=True)
    return VariantRuntime.model_validate(values) if values else None


def overridden_resources(override: Override | None, resources: Resources) -> Resources:
    """The override's amounts before the variant's; no request is above its limit afterwards."""
    if override is None or override.resources is None:
        return resources
    changes: dict[str, dict[str, Any]] = {"requests": {}, "limits": {}}
    for kind in ("cpu", "memory"):
        own_request = getattr(override.resources.requests, kind)
        own_limit = getattr(override.resources.limits, kind)
        request = own_request or getattr(resources.requests, kind)
        limit = own_limit or getattr(resources.limits, kind)
        if request and limit and quantity_value(request) > quantity_value(limit):
            request, limit = (limit, limit) if own_limit else (request, request)
        changes["requests"][kind], changes["limits"][kind] = request, limit
    return Resources(
        requests=ResourceAmounts(**changes["requests"]), limits=ResourceAmounts(**changes["limits"])
    )
