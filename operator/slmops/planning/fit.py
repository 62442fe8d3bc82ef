# SPDX-License-Identifier: Apache-2.0
"""Which variant each node would take, with the numbers: what `kubectl slm fit` shows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from slmops.api import SLMDeploymentSpec
from slmops.api.base import LabelSelector
from slmops.api.spec import Variant
from slmops.model.observed import NodeView, ProfileView, Resolved
from slmops.model.offers import OfferedVersion
from slmops.planning.adapters import adapters_of, with_adapters
from slmops.planning.effective import (
    capacity_bytes,
    choose,
    find_rule,
    fits_disk,
    fits_memory,
    override_of,
    profile_of,
    rules_of,
    selected_for,
)
from slmops.planning.expand import expand_spec
from slmops.planning.misfit import describe_misfit
from slmops.planning.needs import Need, assess_need
from slmops.planning.residency import describe_forbidden, is_site_allowed
from slmops.planning.revision import source_hash
from slmops.planning.selectors import matches
from slmwire.manifest import ManifestError

Verdict = Literal["Fits", "Memory", "Disk", "Unknown"]
"""Whether a node can hold a variant; Memory and Disk name what there is too little of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A variant of an effective spec with what it needs."""

    name: str
    profile: str
    override: str
    node_selector: LabelSelector
    need: Need | None
    """None while the size of its files is not known."""
    size_bytes: int
    """Of its files; 0 while that is not known."""

    @property
    def memory_bytes(self) -> int:
        """What it needs; 0 while that is not known."""
        return self.need.total_bytes if self.need is not None else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A candidate on one node."""

    candidate: Candidate
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRow:
    """One node that placement selects."""

    node: str
    profile: str
    """DeviceProfile that the node is of; empty for none."""
    override: str
    """Override that counts for the node; empty for none."""
    allocatable_bytes: int
    """0 where the node does not say."""
    capacity_bytes: int
    """What a model may take of it."""
    disk_bytes: int | None
    """What its files may take at most."""
    chosen: Candidate | None
    candidates: tuple[Judged, ...]
    """Those that are meant for the node, in order of preference."""
    problem: str
    """Why none was chosen; empty when one was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitTable:
    """All nodes that placement selects, by name."""

    rows: tuple[FitRow, ...]
    idle_overrides: tuple[str, ...] = ()
    """Those that count for none of the nodes, in the order in which they are written."""

    @property
    def fits_anywhere(self) -> bool:
        """Whether some node can run some variant."""
        return any(row.chosen is not None for row in self.rows)


def assess_fit(
    spec: SLMDeploymentSpec,
    *,
    profiles: Iterable[ProfileView],
    nodes: Iterable[NodeView],
    resolved: Mapping[str, Resolved],
    offered: OfferedVersion | None = None,
) -> FitTable:
    """The choice of each node for a written spec; `resolved` by `source_hash`. Raises ExpansionError."""
    effective = expand_spec(spec, profiles=profiles, known=resolved, offered=offered)
    candidates = build_candidates(effective, resolved)
    rows = [
        _row(effective, candidates, node)
        for node in sorted(nodes, key=lambda node: node.name)
        if not node.deleting and matches(spec.placement.node_selector, node.labels)
    ]
    used = {row.override for row in rows}
    idle = tuple(override.name for override in spec.overrides or () if override.name not in used)
    return FitTable(rows=tuple(rows), idle_overrides=idle)


def build_candidates(spec: SLMDeploymentSpec, resolved: Mapping[str, Resolved]) -> tuple[Candidate, ...]:
    """The variants of an effective spec with what they need."""
    result = []
    for variant in spec.variants:
        found = resolved.get(source_hash(variant.source))
        found = _with_adapters(found, variant) if found is not None else None
        result.append(
            Candidate(
                name=variant.name,
                profile=profile_of(variant),
                override=override_of(variant),
                node_selector=variant.node_selector,
                need=assess_need(spec, variant, found),
                size_bytes=found.manifest.size_bytes if found is not None else 0,
            )
        )
    return tuple(result)


def _with_adapters(found: Resolved, variant: Variant) -> Resolved:
    try:
        return with_adapters(found, adapters_of(variant))
    except ManifestError:
        return found  # said where the files are resolved


def _row(spec: SLMDeploymentSpec, candidates: Sequence[Candidate], node: NodeView) -> FitRow:
    rules = rules_of(spec)
    rule = find_rule(rules, node.labels)
    is_allowed = is_site_allowed(spec, node.labels)
    chosen = choose(candidates, rules, node) if is_allowed else None
    meant = selected_for(candidates, rule, node.labels)

    def judge(candidate: Candidate) -> Verdict:
        if candidate.need is None:
            return "Unknown"
        if not fits_memory(candidate, rule, node):
            return "Memory"
        return "Fits" if fits_disk(candidate, rule) else "Disk"

    return FitRow(
        node=node.name,
        profile=rule.name if rule is not None else "",
        override=rule.override_name if rule is not None else "",
        allocatable_bytes=node.allocatable_memory_bytes,
        capacity_bytes=capacity_bytes(rule, node),
        disk_bytes=rule.disk_bytes if rule is not None else None,
        chosen=chosen,
        candidates=tuple(Judged(candidate=candidate, verdict=judge(candidate)) for candidate in meant),
        problem=""
        if chosen is not None
        else describe_misfit(candidates, rule, node)
        if is_allowed
        else describe_forbidden(spec, node),
    )
