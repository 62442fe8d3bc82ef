# SPDX-License-Identifier: Apache-2.0
"""How a deployment and each of its nodes fare, in the page's few words. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from slmops.api import SLMDeploymentStatus
from slmops.api.status import Condition, ConditionType, RolloutStatus
from slmops.model.observed import Deployment
from slmops.page.documents import CellState, Health, Row, shorten
from slmops.planning.decision import ACTIVE, FINISHED
from slmops.planning.fleet import Fleet
from slmops.planning.nodes import NodeState, Problem, pod_problem
from slmops.planning.times import to_seconds
from slmops.planning.transitions import hold_of
from slmwire.labels import Role

_GRAVE: Final = (
    ConditionType.ACCEPTED,
    ConditionType.MODEL_RESOLVED,
    ConditionType.SIGNATURE_VERIFIED,
    ConditionType.ROLLOUT_SUCCEEDED,
    ConditionType.READY,
)
"""Conditions by how much a False one tells, the most telling first."""


def assess_health(deployment: Deployment) -> tuple[Health, str, str]:
    """(health, reason, message) of a deployment."""
    status = deployment.status
    found = {condition.type: condition for condition in status.conditions}
    if deployment.spec is None:
        return Health.FAILING, "InvalidSpec", deployment.spec_error
    if deployment.deleting_since is not None:
        return Health.ROLLING, "Deleting", "the operator takes it off its nodes"
    if not found:
        return Health.UNKNOWN, "", "the operator has not looked at it yet"
    bad = next((c for kind in _GRAVE if (c := found.get(kind)) is not None and c.status == "False"), None)
    held = hold_of(status)
    progressing = found.get(ConditionType.PROGRESSING)
    if bad is not None and bad.type not in (ConditionType.ROLLOUT_SUCCEEDED, ConditionType.READY):
        return Health.FAILING, bad.reason, bad.message
    if held and progressing is not None:
        return Health.HELD, progressing.reason, progressing.message
    if is_active(status.rollout) and progressing is not None:
        health = Health.FAILING if progressing.reason == "RollingBack" else Health.ROLLING
        return health, progressing.reason, progressing.message
    if bad is not None:
        return _assess_bad(bad, status), bad.reason, bad.message
    ready = found.get(ConditionType.READY)
    return Health.OK, ready.reason if ready else "", ready.message if ready else ""


def _assess_bad(bad: Condition, status: SLMDeploymentStatus) -> Health:
    if bad.type == ConditionType.READY and status.nodes.offline and not status.nodes.failed:
        return Health.OFFLINE
    # Somebody went back by hand: nothing is wrong with what runs.
    return Health.OK if bad.reason == "Pinned" else Health.FAILING


def is_active(rollout: RolloutStatus | None) -> bool:
    """Whether a rollout is under way."""
    return rollout is not None and rollout.step not in FINISHED


def build_row(deployment: Deployment) -> Row:
    """A deployment's row."""
    health, reason, message = assess_health(deployment)
    status, spec = deployment.status, deployment.spec
    rollout = status.rollout if is_active(status.rollout) else None
    waves = rollout.waves if rollout is not None else []
    current = rollout.wave if rollout is not None and rollout.wave < len(waves) else -1
    return Row(
        namespace=deployment.namespace,
        name=deployment.name,
        model=spec.model.name if spec is not None and spec.model.name else "",
        version=status.model_version or (spec.model.version if spec is not None else "") or "",
        health=health,
        reason=reason,
        message=shorten(message),
        ready=status.nodes.ready,
        total=status.nodes.total,
        offline=status.nodes.offline,
        failed=status.nodes.failed,
        step=rollout.step if rollout is not None else "",
        wave=waves[current].name if current >= 0 else "",
        wave_number=current + 1,
        waves=len(waves),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """What the state of a node is told by."""

    fleet: Fleet
    problems: Mapping[str, Problem]
    stable: str
    rollout: RolloutStatus | None
    replicas: bool

    @property
    def canary(self) -> str:
        """The revision under trial; empty when there is none."""
        rollout = self.rollout
        return rollout.revision if rollout is not None and rollout.revision != self.stable else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """State of a node, the revision that it serves or is to serve, and what is wrong."""

    state: CellState
    revision: str = ""
    problem: Problem | None = None


def assess_node(state: NodeState, judge: Judge) -> Verdict:
    """How one node fares."""
    problem = judge.problems.get(state.name)
    revision = _revision(state, judge)
    unfit = problem is not None and problem.reason in ("Unfit", "NoSite")
    if unfit and not state.serving:
        return Verdict(state=CellState.UNFIT, problem=problem)
    if not state.online:
        return _assess_offline(state, judge, revision, problem)
    if judge.replicas:
        problem = next(filter(None, map(pod_problem, state.pods)), None)
    if problem is not None and not unfit:
        return Verdict(state=CellState.FAILING, revision=revision, problem=problem)
    if judge.canary and state.serves(judge.canary):
        return Verdict(state=CellState.CANARY, revision=judge.canary)
    if judge.stable and state.serves(judge.stable):
        return Verdict(state=CellState.STABLE, revision=judge.stable)
    if state.serve or state.prefetch or any(not pod.deleting for pod in state.pods):
        return Verdict(state=CellState.MOVING, revision=revision)
    return Verdict(state=CellState.SPARE if judge.replicas else CellState.WAITING)


def _revision(state: NodeState, judge: Judge) -> str:
    """The revision that the node was given: the newer one while it has two."""
    given = [*state.serve, *(pod.revision for pod in state.pods if pod.role is Role.SERVE)]
    newest = next((name for name in (judge.canary, judge.stable) if name and name in given), "")
    return newest or next(iter(given), "")


def _assess_offline(state: NodeState, judge: Judge, revision: str, problem: Problem | None) -> Verdict:
    rollout = judge.rollout
    if judge.canary and rollout is not None and rollout.step in ACTIVE and not judge.replicas:
        wave = judge.fleet.wave_of.get(state.name)
        if judge.canary not in state.serve:
            if wave is not None and wave <= rollout.wave:
                return Verdict(state=CellState.DEFERRED, revision=revision, problem=problem)
        elif wave == rollout.wave and any(
            pod.created_at >= to_seconds(rollout.wave_started_at)
            for pod in state.pods_of(judge.canary, Role.SERVE)
        ):
            went = Problem(reason="NodeNotReady", message="went offline after it took the revision")
            return Verdict(state=CellState.FAILING, revision=revision, problem=went)
    return Verdict(state=CellState.OFFLINE, revision=revision, problem=problem)
