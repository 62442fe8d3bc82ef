# SPDX-License-Identifier: Apache-2.0
"""Conditions, counters and the texts that people read."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Literal, TypeVar

from slmops.api import SLMDeploymentSpec
from slmops.api.status import (
    MAX_WORST_NODES,
    Condition,
    ConditionType,
    NodeCounts,
    NodeProblem,
    ReasonCount,
    SLMDeploymentStatus,
)
from slmops.model.observed import Deployment
from slmops.planning import times
from slmops.planning.access import PATIENCE_SECONDS, find_wait
from slmops.planning.decision import ACTIVE, BLOCKS, FEEDBACK_HOLD, Decision
from slmops.planning.finding import Finding
from slmops.planning.fleet import Fleet
from slmops.planning.nodes import NodeState, Problem, unfit_reason
from slmops.planning.places import fetches_ahead
from slmops.planning.residency import SITE_NOT_ALLOWED
from slmops.planning.resolution import Resolution
from slmwire.labels import Role
from slmwire.reasons import Reason

Truth = Literal["True", "False", "Unknown"]
Kind = TypeVar("Kind", bound=StrEnum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Says:
    """Status, reason and message of a condition, before times are put to it."""

    status: Truth
    reason: str
    message: str


def merge_conditions(
    old: Iterable[Condition], new: Mapping[Kind, Says], *, generation: int, now: float
) -> list[Condition]:
    """Conditions with their transition times: kept while the status stays the same."""
    before = {condition.type: condition for condition in old}
    result = []
    for kind, says in new.items():
        known = before.get(kind)
        same = known is not None and known.status == says.status
        result.append(
            Condition(
                type=kind,
                status=says.status,
                reason=says.reason,
                message=says.message[:2048],
                last_transition_time=known.last_transition_time if known and same else times.to_text(now),
                observed_generation=generation,
            )
        )
    return sorted(result, key=lambda condition: condition.type)


def count_nodes(fleet: Fleet, problems: dict[str, Problem], decision: Decision, target: str) -> NodeCounts:
    """Counters over the matching nodes."""
    judge = fleet.target or fleet.stable
    matched = fleet.matched
    offline = _offline(matched)
    unfit = 0 if judge is None else sum(1 for s in matched if fleet.variant(judge, s) is None)
    return NodeCounts(
        total=len(matched) - unfit,
        ready=sum(1 for s in matched if s.serving),
        stable=sum(1 for s in matched if decision.stable_revision in s.serve),
        updated=sum(1 for s in matched if target in s.serve),
        offline=len(offline),
        # That nodes elsewhere get no pod is as spec wants it: their number is with the reasons.
        failed=sum(1 for name in problems if name not in offline and name not in fleet.forbidden),
        unfit=unfit + len(fleet.left_out),
    )


def _offline(states: Iterable[NodeState]) -> frozenset[str]:
    return frozenset(state.name for state in states if not state.online)


def find_problems(fleet: Fleet, now: float) -> dict[str, Problem]:
    """One problem for each node that has one, the gravest first found."""
    problems: dict[str, Problem] = {name: _no_site(fleet) for name in fleet.left_out}
    problems |= {n: Problem(reason=SITE_NOT_ALLOWED, message=why) for n, why in fleet.forbidden.items()}
    judge = fleet.target or fleet.stable
    for state in fleet.matched:
        if judge is not None and fleet.variant(judge, state) is None:
            problems[state.name] = unfit_reason(judge, state)
            continue
        if not state.online:
            problems[state.name] = Problem(reason="NodeNotReady", message="the kubelet does not report")
            continue
        found = [p for r in state.serve if (p := state.serve_problem(r)) is not None]
        found += [p for r in state.prefetch if (p := state.prefetch_problem(r)) is not None]
        if found:
            problems[state.name] = found[0]
        elif (wait := find_wait(state, fleet.revisions)) and now - wait.since >= PATIENCE_SECONDS:
            problems[state.name] = Problem(reason="VolumesNotReady", message=wait.message)
    return problems


def _no_site(fleet: Fleet) -> Problem:
    return Problem(
        reason="NoSite",
        message=f"the node has no label {fleet.spec.placement.site_label}, so no replica comes to it; "
        "label it with its site",
    )


def worst_nodes(problems: dict[str, Problem]) -> list[NodeProblem]:
    """At most ten; nodes that are merely offline come last, with those that are left out on purpose."""
    late = ("NodeNotReady", SITE_NOT_ALLOWED)
    order = sorted(problems.items(), key=lambda item: (item[1].reason in late, item[0]))
    return [
        NodeProblem(node=node, reason=problem.reason, message=problem.message[:512])
        for node, problem in order[:MAX_WORST_NODES]
    ]


def count_reasons(problems: dict[str, Problem]) -> list[ReasonCount]:
    """How many nodes have each reason; reasons are from a closed set, so the list stays short."""
    counts = Counter(problem.reason for problem in problems.values())
    return [ReasonCount(reason=reason, nodes=counts[reason]) for reason in sorted(counts)]


def say_accepted(finding: Finding | None, note: str = "") -> Says:
    """Accepted; a finding here is one that only keeps rollouts from beginning or going on. `note` is what
    a person should know although nothing is wrong."""
    if finding is None:
        message = "the spec makes sense" + (f"; {note}" if note else "")
        return Says(status="True", reason="Accepted", message=message)
    return Says(
        status="False",
        reason=finding.reason,
        message=f"{finding.message}; until then no rollout begins or goes on, and the stable revision is "
        "looked after",
    )


def say_resolved(resolution: Resolution) -> Says:
    """ModelResolved."""
    if resolution.unmet is not None:
        return _say_unmet(resolution.unmet)
    if not resolution.revision:
        return _say_unresolved(resolution)
    # The same files may be those of several variants.
    size = sum({variant.digest: variant.size_bytes for variant in resolution.variants}.values())
    return Says(
        status="True",
        reason="Resolved",
        message=f"{len(resolution.variants)} variant(s), {size} bytes in all, known by digest"
        + (f"; {resolution.note}" if resolution.note else ""),
    )


def _say_unmet(unmet: Finding) -> Says:
    message = f"{unmet.message}; what runs is kept"
    return Says(status="False", reason=unmet.reason, message=message)


def _say_unresolved(resolution: Resolution) -> Says:
    if resolution.failures:
        variant, failure = resolution.failures[0]
        again = f", tried again at {times.to_text(failure.retry_at)}" if isfinite(failure.retry_at) else ""
        return Says(
            status="False",
            reason=failure.reason,
            message=f"variant {variant}: {failure.message}; what serves is left alone{again}",
        )
    if resolution.unsigned:
        variant, error = resolution.unsigned[0]
        return Says(
            status="False",
            reason=Reason.SIGNATURE_INVALID,
            message=f"variant {variant}: {error}; what serves is left alone",
        )
    unknown = ", ".join(request.variant for request in resolution.requests if request.known is None)
    checked = ", ".join(request.variant for request in resolution.requests)
    message = f"finding out the files of {unknown}" if unknown else f"checking the signature of {checked}"
    return Says(status="Unknown", reason="Resolving", message=message)


def say_signed(spec: SLMDeploymentSpec, resolution: Resolution) -> Says | None:
    """SignatureVerified; None where spec asks for no signature."""
    if spec.model.signature is None or resolution.unmet is not None:
        return None
    refused = [(v, f.message) for v, f in resolution.failures if f.reason is Reason.SIGNATURE_INVALID]
    for variant, error in (*resolution.unsigned, *refused):
        if not resolution.revision:
            what = "the model is not taken"
        elif spec.model.signature.policy == "Warn":
            what = "policy Warn takes the model all the same"
        else:
            what = "the revision is the stable one already and is left alone"
        return Says(
            status="False", reason=Reason.SIGNATURE_INVALID, message=f"variant {variant}: {error}; {what}"
        )
    for variant, failure in resolution.failures:
        return Says(status="Unknown", reason="Verifying", message=f"variant {variant}: {failure.message}")
    if resolution.requests:
        waiting = ", ".join(request.variant for request in resolution.requests)
        return Says(status="Unknown", reason="Verifying", message=f"checking the signature of {waiting}")
    keys = sorted({found.signature.key for found in resolution.resolved.values() if found.signature})
    return Says(
        status="True",
        reason="Verified",
        message=f"{len(resolution.variants)} variant(s), signed by {', '.join(keys)}",
    )


def find_unchecked(spec: SLMDeploymentSpec, resolution: Resolution, deployment: Deployment) -> str:
    """Why a rollout of spec's revision may not go on: a signature that spec requires was never checked. Empty
    when it was, under the same spec; a check that is only made again, after a restart, holds up nothing."""
    signature = spec.model.signature
    if signature is None or signature.policy == "Warn" or not resolution.requests:
        return ""
    if not resolution.revision:
        return ""  # what is under way is something else
    status = deployment.status
    verified = any(
        c.type == ConditionType.SIGNATURE_VERIFIED and c.status == "True" for c in status.conditions
    )
    if verified and deployment.generation == status.observed_generation:
        return ""
    says = say_signed(spec, resolution)
    return f"spec.model.signature: {says.message}" if says else ""


def unless_unsure(says: Says, deployment: Deployment) -> Says:
    """What was known of the same spec, while `says` is that nothing is known yet: after a restart of the
    operator everything is checked again, which is no news."""
    if says.status != "Unknown" or deployment.generation != deployment.status.observed_generation:
        return says
    known = [c for c in deployment.status.conditions if c.type == ConditionType.SIGNATURE_VERIFIED]
    return next((Says(status=c.status, reason=c.reason, message=c.message) for c in known), says)


def say_ready(fleet: Fleet, counts: NodeCounts, problems: dict[str, Problem]) -> Says:
    """Ready: every reachable node that the model is meant for serves."""
    if fleet.spec.placement.mode == "Replicas" and fleet.spec.placement.replicas == 0:
        return Says(status="True", reason="ScaledToZero", message="spec.placement.replicas is 0")
    if counts.total == 0:
        message = "no node matches spec.placement.nodeSelector"
        if counts.unfit:
            message = f"{counts.unfit} node(s) match placement, but no variant suits them"
        if fleet.forbidden:
            message += f"; {len(fleet.forbidden)} that do are at sites which spec.privacy.allowedSites lacks"
        return Says(status="False", reason="NoMatchingNodes", message=message)
    known = fleet.target is not None or fleet.stable is not None
    waiting = [s for s in (fleet.eligible if known else fleet.matched) if s.online and not s.serving]
    offline = f"; {counts.offline} offline" if counts.offline else ""
    if not waiting:
        if counts.ready == 0:
            return Says(
                status="False", reason="NodesOffline", message=f"all {counts.total} node(s) are offline"
            )
        message = f"{counts.ready} of {counts.total} node(s) serve{offline}"
        return Says(status="True", reason="AllNodesReady", message=message)
    first = waiting[0].name
    problem = problems.get(first)
    why = f"{problem.reason}: {problem.message}" if problem else _awaited(fleet, waiting[0])
    return Says(
        status="False",
        reason=problem.reason if problem else "NodesNotReady",
        message=f"{counts.ready} of {counts.total} node(s) serve{offline}; {first}: {why}",
    )


def _awaited(fleet: Fleet, state: NodeState) -> str:
    """What a node without a problem waits for."""
    if not state.serve and fetches_ahead(fleet.spec):
        return "fetching the model" if state.prefetch else "waits until it may fetch the model"
    if not state.serve or any(p.role is Role.SERVE and not p.deleting for p in state.pods):
        wait = find_wait(state, fleet.revisions)
        return f"starting; {wait.message}" if wait else "starting"
    # Admission refuses pods to the controller alone, which says so in Events that are not ours to read.
    kind = "daemonset" if state.suits is None else "replicaset"
    return (
        f"no pod yet; if that lasts, kubectl describe {kind} names the cause (Pod Security level, quota, "
        "priority class)"
    )


def say_progressing(
    fleet: Fleet, decision: Decision, resolution: Resolution, *, moving: int, unfetched: int = 0
) -> Says:
    """Progressing: something is being moved or judged; False with the reason where it stands still.

    `moving` is how many online nodes still move, `unfetched` how many of them may not fetch now.
    """
    rollout, hold = decision.rollout, decision.hold
    if hold is not None and hold.reason == "Paused":
        return Says(status="False", reason=hold.reason, message=hold.message)
    if hold is not None and hold.reason in BLOCKS:
        return Says(status="False", reason=hold.reason, message=hold.message)
    if rollout is not None and rollout.step in ACTIVE:
        wave = rollout.waves[rollout.wave]
        where = f"revision {rollout.revision}, wave {wave.name} ({rollout.wave + 1} of {len(rollout.waves)})"
        if hold is None:
            return Says(status="True", reason=rollout.step, message=where)
        held = hold.reason not in ("Prefetching", "Flipping", "Soaking", "Analysing")
        return Says(
            status="False" if held else "True", reason=hold.reason, message=f"{where}: {hold.message}"
        )
    if not resolution.revision and (rollout is None or rollout.step != "RollingBack"):
        # "Complete" here would tell GitOps that a new spec is in force before anything was done for it.
        resolved = say_resolved(resolution)
        if resolution.failures or resolution.unsigned or resolution.unmet:
            return Says(status="False", reason="ModelNotResolved", message=resolved.message)
        return Says(status="True", reason="Resolving", message=resolved.message)
    if rollout is not None and rollout.step == "RollingBack" and hold is not None:
        return Says(status="False", reason=hold.reason, message=f"{hold.message}; {rollout.message}")
    if rollout is not None and rollout.step == "Installing" and hold is not None:
        return Says(
            status="False", reason=hold.reason, message=f"revision {rollout.revision}: {hold.message}"
        )
    if rollout is not None and rollout.step in ("Installing", "RollingBack"):
        message = rollout.message or f"revision {rollout.revision} goes to {len(fleet.eligible)} node(s)"
        return Says(status="True", reason=rollout.step, message=message)
    if moving and decision.outside_windows:
        message = (
            f"{moving} node(s) move to the stable revision when a window of spec.rollout.windows is open"
        )
        return Says(status="False", reason="OutsideWindow", message=message)
    if moving and unfetched and decision.fetch_closed:
        message = f"{unfetched} node(s) lack the stable revision's model: {decision.fetch_closed}"
        return Says(status="False", reason="OutsideWindow", message=message)
    if moving:
        return Says(
            status="True", reason="Converging", message=f"{moving} node(s) move to the stable revision"
        )
    return Says(status="False", reason="Complete", message="nothing to do")


def say_succeeded(decision: Decision, target: str, wanted: str) -> Says:
    """RolloutSucceeded: the revision that spec stands for, `wanted`, is the stable one. `target` differs
    from it while another one is pinned."""
    if target and target == decision.stable_revision and target != wanted:
        return Says(
            status="False",
            reason="Pinned",
            message=f"revision {target} was taken up by hand instead of {wanted or 'the present spec'}; it "
            "stays until spec changes or slmops.dev/undo names another revision",
        )
    if not target:
        return Says(status="Unknown", reason="InProgress", message="the model's files are not known yet")
    if target == decision.stable_revision:
        return Says(status="True", reason="Promoted", message=f"revision {target} is the stable one")
    failure = next((entry for entry in decision.failed if entry.revision == target), None)
    if failure is not None:
        return Says(
            status="False",
            reason=failure.reason,
            message=f"revision {target} failed: {failure.message}; it is not tried again by itself: change "
            "spec, or set the annotation slmops.dev/retry to a new value",
        )
    what = "waits until spec is accepted" if _is_blocked(decision) else "is being rolled out"
    if decision.hold is not None and decision.hold.reason == FEEDBACK_HOLD:
        what = "waits until the rules of spec.feedback hold"
    return Says(status="Unknown", reason="InProgress", message=f"revision {target} {what}")


def _is_blocked(decision: Decision) -> bool:
    return decision.hold is not None and decision.hold.reason in BLOCKS


def canary_text(decision: Decision, target: str) -> str:
    """The rollout in a table cell; empty when spec's revision is the stable one and nothing moves."""
    rollout = decision.rollout
    if rollout is None or rollout.step in ("Completed", "Cancelled"):
        return ""
    if rollout.step == "Failed" and rollout.revision != target:
        return ""
    if rollout.step in ACTIVE:
        return f"{rollout.revision} {rollout.step} {rollout.wave + 1}/{len(rollout.waves)}"
    return f"{rollout.revision} {rollout.step}"


def with_condition_only(
    status: SLMDeploymentStatus, says: dict[ConditionType, Says], *, generation: int, now: float
) -> SLMDeploymentStatus:
    """Status in which only the given conditions change; everything else stays as it was."""
    kept = [c for c in status.conditions if c.type not in says]
    merged = merge_conditions(status.conditions, says, generation=generation, now=now)
    conditions = sorted([*kept, *merged], key=lambda c: c.type)
    return status.model_copy(update={"observed_generation": generation, "conditions": conditions})
