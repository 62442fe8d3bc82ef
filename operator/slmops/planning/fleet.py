# SPDX-License-Identifier: Apache-2.0
"""The nodes of one SLMDeployment, sorted out for a look: who takes part, in which wave, how it fares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from slmops.api import SLMDeploymentSpec
from slmops.planning.effective import find_rule, selected_for
from slmops.planning.finding import Finding
from slmops.planning.misfit import capacity_text
from slmops.planning.needs import mib_text
from slmops.planning.nodes import (
    DOWNLOAD_REASONS,
    IMAGE_PULL_REASONS,
    OOM_KILLED,
    OOM_PROBLEM,
    NodeState,
    Problem,
)
from slmops.planning.revision import Revision, RevisionVariant
from slmops.planning.waves import assign_waves
from slmwire.labels import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Snapshot of the nodes with the two revisions that matter."""

    spec: SLMDeploymentSpec
    states: tuple[NodeState, ...]
    revisions: Mapping[str, Revision]
    stable: Revision | None
    target: Revision | None
    """Revision that spec stands for; None while its sources are not resolved."""
    wave_of: Mapping[str, int]
    """Wave index of each eligible node, by name."""
    left_out: tuple[str, ...] = ()
    """Nodes that match placement and have no site, where replicas are counted by site."""
    forbidden: Mapping[str, str] = field(default_factory=dict)
    """Nodes that match placement at a site that spec does not allow, each with what to say of it."""

    eligible: tuple[NodeState, ...] = field(init=False, compare=False, repr=False)
    """Matching nodes that the target (before it is known, the stable) has a variant for."""
    matched: tuple[NodeState, ...] = field(init=False, compare=False, repr=False)
    """All nodes that placement selects."""

    def __post_init__(self) -> None:
        wave_of = self.wave_of
        object.__setattr__(self, "eligible", tuple([s for s in self.states if s.name in wave_of]))
        object.__setattr__(self, "matched", tuple([s for s in self.states if s.matched]))

    def variant(self, revision: Revision, state: NodeState) -> RevisionVariant | None:
        """Variant of `revision` for the node."""
        return state.variant_of(revision)

    def members(self, wave: int) -> tuple[NodeState, ...]:
        """Nodes of one wave."""
        wave_of = self.wave_of
        return tuple([state for state in self.eligible if wave_of[state.name] == wave])


def build_fleet(
    spec: SLMDeploymentSpec,
    *,
    states: tuple[NodeState, ...],
    revisions: Mapping[str, Revision],
    stable: str,
    target: str,
    key: str,
    left_out: tuple[str, ...] = (),
    forbidden: Mapping[str, str] | None = None,
) -> Fleet:
    """Sort the nodes out; `key` seeds the order of nodes in percentage waves."""
    stable_revision, target_revision = revisions.get(stable), revisions.get(target)
    judge = target_revision or stable_revision
    eligible = [
        state.node
        for state in states
        if state.matched and judge is not None and state.variant_of(judge) is not None
    ]
    return Fleet(
        spec=spec,
        states=states,
        revisions=revisions,
        stable=stable_revision,
        target=target_revision,
        wave_of=assign_waves(
            spec.rollout.waves,
            eligible,
            key=key,
            site_label=spec.placement.site_label,
            # Of several replicas one stays with the stable revision until the last wave.
            reserve=1 if spec.placement.mode == "Replicas" and len(eligible) > 1 else 0,
        ),
        left_out=left_out,
        forbidden=forbidden or {},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveView:
    """How the nodes of one wave fare with the target."""

    nodes: int
    pending_prefetch: tuple[NodeState, ...]
    """Online, not yet given the target, and the model is not known to be in their cache."""
    prepared: int
    """Online and given the target or holding its model."""
    taken: int
    """Given the target."""
    settled: int
    """Serving the target and nothing else."""
    unsettled: int
    """Prepared but neither settled nor failed."""
    joinable: int
    """Online and not given the target."""
    deferred: int
    """Offline before they took the target."""
    failures: tuple[tuple[str, Problem], ...]
    """Nodes that failed after they were given the target."""

    def has_quorum(self, count: int, quorum_percent: int) -> bool:
        """Whether `count` nodes are enough of this wave."""
        return count * 100 >= self.nodes * quorum_percent


_WENT_OFFLINE: Final = Problem(reason="NodeNotReady", message="went offline after it took the revision")


def view_wave(fleet: Fleet, wave: int, target: Revision, *, since: float) -> WaveView:
    """Sort the wave's nodes. `since` is when the wave began, in seconds since the epoch.

    An offline node has failed if it took the target in this wave, that is, if its pod was made since.
    One that was given the target before (by a rollout that is tried again), or whose pod was never
    made, was offline when the wave came to it: deferred.
    """
    members = fleet.members(wave)
    pending: list[NodeState] = []
    failures: list[tuple[str, Problem]] = []
    prepared = taken = settled = unsettled = deferred = 0
    for state in members:
        variant = fleet.variant(target, state)
        assert variant is not None  # members are eligible
        has = target.revision in state.serve
        taken += has
        if not state.online:
            if has and any(p.created_at >= since for p in state.pods_of(target.revision, Role.SERVE)):
                failures.append((state.name, _WENT_OFFLINE))
            else:
                deferred += 1
            continue
        cached = state.cached(target.revision, variant.name)
        if has or cached:
            prepared += 1
        else:
            pending.append(state)
        problem = canary_problem(state, target.revision) if has else None
        if problem is not None:
            failures.append((state.name, problem))
        if state.serve == {target.revision: variant.name} and state.serves(target.revision, variant.name):
            settled += 1
        elif (has or cached) and problem is None:
            unsettled += 1
    return WaveView(
        nodes=len(members),
        pending_prefetch=tuple(pending),
        prepared=prepared,
        taken=taken,
        settled=settled,
        unsettled=unsettled,
        joinable=sum(1 for s in members if s.online and target.revision not in s.serve),
        deferred=deferred,
        failures=tuple(failures),
    )


def failures_elsewhere(fleet: Fleet, wave: int, target: Revision) -> tuple[tuple[str, Problem], ...]:
    """Nodes of other waves than `wave` on which the target crashes or is killed.

    They took it in an earlier wave, or before nodes that came or went moved them to a later one. Going
    offline does not count any more there: at the edge links come and go.
    """
    return tuple(
        (state.name, problem)
        for state in fleet.eligible
        if fleet.wave_of[state.name] != wave
        and target.revision in state.serve
        and state.online
        and (problem := canary_problem(state, target.revision))
    )


def canary_problem(state: NodeState, revision: str) -> Problem | None:
    """A problem that is the revision's own: not one of getting its files or its image."""
    # A restart may have hidden it since, but a canary that is killed for its memory has failed.
    if any(pod.last_exit_reason == OOM_KILLED for pod in state.pods_of(revision, Role.SERVE)):
        return OOM_PROBLEM
    problem = state.serve_problem(revision) if state.troubled else None
    if problem is None or problem.reason in DOWNLOAD_REASONS | IMAGE_PULL_REASONS:
        return None
    return None if problem.reason == "Unschedulable" else problem


def find_misfit(fleet: Fleet) -> Finding | None:
    """The target is too large for every node that it is meant for: refused before anything is fetched."""
    target = fleet.target
    if target is None or fleet.eligible or fleet.spec.placement.mode != "PerNode":
        return None
    tight = []
    for state in fleet.matched:
        rule = find_rule(target.profiles, state.node.labels)
        selected = selected_for(target.variants, rule, state.node.labels)
        if selected:
            tight.append((state.node, rule, min(selected, key=lambda v: (v.memory_bytes, v.size_bytes))))
    if not tight:
        return None  # no node is meant at all, which is said elsewhere
    largest, rule, _ = max(tight, key=lambda entry: (entry[0].allocatable_memory_bytes, entry[0].name))
    smallest = min((variant for _, _, variant in tight), key=lambda v: (v.memory_bytes, v.size_bytes))
    need = smallest.need.describe() if smallest.need is not None else mib_text(smallest.memory_bytes)
    return Finding(
        reason="NoVariantFits",
        message=f"spec.variants: none fits any of the {len(tight)} node(s); the smallest, {smallest.name}, "
        f"needs {need} of memory and {mib_text(smallest.size_bytes)} of disk, the largest node, "
        f"{largest.name}, can give {capacity_text(rule, largest)}; add a smaller variant, or raise the "
        "budgets (kubectl slm fit)",
    )
