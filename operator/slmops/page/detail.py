# SPDX-License-Identifier: Apache-2.0
"""One deployment: its waves, every node that it concerns, its metrics. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from slmops.api import SLMDeploymentSpec
from slmops.api.status import RolloutStatus, WaveStatus
from slmops.model.observed import Observed
from slmops.page.assess import Judge, assess_node, build_row, is_active
from slmops.page.documents import (
    CELL_STATES,
    Cell,
    ConditionRow,
    Detail,
    EventRow,
    Grid,
    RolloutCard,
    SiteCells,
    WaveCard,
    shorten,
)
from slmops.page.history import Point, SeriesKey
from slmops.page.plots import build_plots
from slmops.planning.conditions import find_problems
from slmops.planning.fleet import build_fleet
from slmops.planning.history import parse_stored
from slmops.planning.names import Names
from slmops.planning.nodes import Problem, read_nodes
from slmops.planning.transitions import hold_of
from slmops.planning.waves import site_of
from slmops.planning.working import in_force

MAX_PROBLEMS: Final = 200
"""Different problems with their messages; of further ones the reason is told."""
_STATE_INDEX: Final = {state: index for index, state in enumerate(CELL_STATES)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSnapshot:
    """What the document of a deployment is made of; refers to no live object."""

    observed: Observed
    now: float
    """Seconds since the epoch at which it was taken."""
    series: Mapping[SeriesKey, tuple[Point, ...]] = field(default_factory=dict)
    events: tuple[EventRow, ...] = ()
    leads: bool = True
    nodes_known: bool = True


def build_deployment(snapshot: DeploymentSnapshot) -> Detail:
    """The document; the latest event comes first."""
    deployment = snapshot.observed.deployment
    status = deployment.status
    spec = in_force(deployment.spec, deployment.annotations) if deployment.spec is not None else None
    return Detail(
        row=build_row(deployment),
        leads=snapshot.leads,
        nodes_known=snapshot.nodes_known,
        mode=spec.placement.mode if spec is not None else "",
        stable=status.stable_revision,
        update=status.update_revision,
        canary=status.canary,
        rollout=_build_rollout(status.rollout, hold_of(status)) if status.rollout is not None else None,
        grid=build_grid(snapshot.observed, spec, snapshot.now),
        plots=build_plots(spec.rollout.analysis if spec is not None else None, status, snapshot.series),
        conditions=tuple(
            ConditionRow(
                type=condition.type,
                status=condition.status,
                reason=condition.reason,
                message=shorten(condition.message),
                since=condition.last_transition_time,
            )
            for condition in status.conditions
        ),
        events=tuple(reversed(snapshot.events)),
    )


def _build_rollout(rollout: RolloutStatus, hold: str) -> RolloutCard:
    return RolloutCard(
        revision=rollout.revision,
        step=rollout.step,
        active=is_active(rollout),
        started_at=rollout.started_at,
        finished_at=rollout.finished_at or "",
        reason=rollout.reason,
        message=shorten(rollout.message),
        waves=tuple(
            WaveCard(
                name=wave.name,
                state=assess_wave(rollout, index, wave),
                verdict=wave.verdict,
                nodes=wave.nodes,
                updated=wave.updated,
                ready=wave.ready,
                deferred=wave.deferred,
                failed=wave.failed,
                started_at=wave.started_at or "",
                finished_at=wave.finished_at or "",
                awaits=hold == "AwaitingApproval" and index == rollout.wave and is_active(rollout),
            )
            for index, wave in enumerate(rollout.waves)
        ),
    )


def assess_wave(rollout: RolloutStatus, index: int, wave: WaveStatus) -> str:
    """`state` of a WaveCard."""
    if wave.verdict in ("Pass", "Skipped", "Fail"):
        return {"Pass": "done", "Skipped": "skipped", "Fail": "failed"}[wave.verdict]
    if index < rollout.wave or rollout.step == "Completed":
        return "done"
    if is_active(rollout):
        return "current" if index == rollout.wave else "next"
    return "failed" if rollout.step == "Failed" and index == rollout.wave else "unreached"


def build_grid(observed: Observed, spec: SLMDeploymentSpec | None, now: float) -> Grid:
    """Every node that placement selects or that carries the deployment's labels, by site."""
    states = tuple(str(state) for state in CELL_STATES)
    if spec is None:
        return Grid(states=states, revisions=(), problems=(), sites=())
    deployment = observed.deployment
    status = deployment.status
    names = Names(deployment.namespace, deployment.name)
    fleet = build_fleet(
        spec,
        states=read_nodes(names, spec, observed.nodes, observed.pods),
        revisions=parse_stored(observed),
        stable=status.stable_revision,
        target=status.update_revision,
        key=deployment.uid,
    )
    replicas = spec.placement.mode == "Replicas"
    judge = Judge(
        fleet=fleet,
        problems=find_problems(fleet, now),
        stable=status.stable_revision,
        rollout=status.rollout,
        replicas=replicas,
    )
    revisions, problems = _Index(), _Problems()
    sites: dict[str, list[Cell]] = {}
    for state in fleet.states:
        verdict = assess_node(state, judge)
        site = site_of(state.node, spec.placement.site_label)
        cell = (
            state.name,
            _STATE_INDEX[verdict.state],
            revisions.of(verdict.revision) if verdict.revision else -1,
            -1 if replicas else fleet.wave_of.get(state.name, -1),
            problems.of(verdict.problem),
        )
        sites.setdefault("" if site.startswith("/") else site, []).append(cell)
    return Grid(
        states=states,
        revisions=tuple(revisions.values),
        problems=tuple(problems.values),
        sites=tuple(SiteCells(name=name, cells=tuple(sites[name])) for name in _order(sites)),
    )


def _order(sites: Iterable[str]) -> list[str]:
    """By name; the nodes without a site come last."""
    return sorted(sites, key=lambda name: (not name, name))


class _Index:
    """Values in the order in which they were met."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    def of(self, value: str) -> int:
        """Index of a value."""
        return self.values.setdefault(value, len(self.values))


class _Problems:
    """Reason and message of problems, each once."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], int] = {}

    def of(self, problem: Problem | None) -> int:
        """Index of a problem; -1 for none."""
        if problem is None:
            return -1
        key = (problem.reason, shorten(problem.message))
        if key not in self.values and len(self.values) >= MAX_PROBLEMS:
            # Reasons are from a closed set, so these are few.
            key = (problem.reason, "")
        return self.values.setdefault(key, len(self.values))
