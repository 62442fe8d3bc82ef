# SPDX-License-Identifier: Apache-2.0
"""Why no variant fits a node, in words and numbers."""

from collections.abc import Sequence
from typing import Protocol

from slmops.model.observed import NodeView
from slmops.planning.effective import (
    Choosable,
    ProfileRule,
    capacity_bytes,
    fits_disk,
    fits_memory,
    selected_for,
)
from slmops.planning.needs import Need, mib_text

MAX_SHOWN = 3


class Named(Choosable, Protocol):
    """A variant that can be spoken of."""

    @property
    def name(self) -> str: ...

    @property
    def need(self) -> Need | None:
        """What its memory is made up of, where that was computed."""
        ...


def describe_misfit(variants: Sequence[Named], rule: ProfileRule | None, node: NodeView) -> str:
    """Why none of the variants of a revision is for the node; the numbers of the smallest ones."""
    selected = selected_for(variants, rule, node.labels)
    of_profile = f" of DeviceProfile {rule.name}" if rule is not None and rule.name else ""
    if not selected:
        if rule is not None and rule.override is not None:
            of_class = f", and the node is{of_profile}" if of_profile else ""
            return (
                f"no variant is for the node: spec.overrides[{rule.override.name}] counts for it{of_class}; "
                "compare the override's engine, and profiles, engine and nodeSelector of the variants"
            )
        if rule is None:
            return "no variant's nodeSelector matches the node; add a variant for it or narrow placement"
        return (
            f"no variant is for the node, which is{of_profile}: compare spec.engine of the profile, and "
            "profiles, engine and nodeSelector of the variants"
        )
    tight = [v for v in selected if not fits_memory(v, rule, node)]
    large = [v for v in selected if not fits_disk(v, rule)]
    parts = []
    if tight:
        shown = sorted(tight, key=lambda v: v.memory_bytes)[:MAX_SHOWN]
        needs = ", ".join(f"{v.name} {_need_text(v)}" for v in shown)
        more = f" and {len(tight) - len(shown)} larger" if len(tight) > len(shown) else ""
        smallest = mib_text(shown[0].memory_bytes)
        parts.append(
            f"the smallest variant needs {smallest} of memory, the node can give "
            f"{capacity_text(rule, node)} ({needs}{more})"
        )
    if large and rule is not None and rule.disk_bytes is not None:
        size = min(v.size_bytes for v in large)
        parts.append(
            f"files of {mib_text(size)} are above the disk budget of {mib_text(rule.disk_bytes)}{of_profile}"
        )
    return f"{'; '.join(parts)}; add a smaller variant"


def capacity_text(rule: ProfileRule | None, node: NodeView) -> str:
    """What the node can give, and of what."""
    given = mib_text(capacity_bytes(rule, node))
    if rule is None or rule.memory is None:
        return given
    return f"{given} (budget {rule.memory} of DeviceProfile {rule.name}, allocatable " + (
        f"{mib_text(node.allocatable_memory_bytes)})"
    )


def _need_text(variant: Named) -> str:
    return variant.need.describe() if variant.need is not None else mib_text(variant.memory_bytes)
