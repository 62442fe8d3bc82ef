# SPDX-License-Identifier: Apache-2.0
"""What must hold at every look, whatever happens; `watch` makes a simulation check it all the time."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace

from slmops.api import SLMDeploymentStatus
from slmops.api.base import quantity_value
from slmops.api.status import MAX_MEASUREMENTS, MAX_WORST_NODES
from slmops.model.observed import OwnedKind
from slmops.model.plan import ApplyObject, DeleteObject, PatchNodeLabels
from slmops.planning import times
from slmops.planning.effective import find_rule
from slmops.planning.metric_rules import is_read_off_pods
from slmops.planning.moves import limit_of
from slmops.planning.nodes import read_nodes
from slmops.planning.plan import plan
from slmops.planning.residency import is_site_allowed
from slmops.planning.revision import parse_revision
from slmops.planning.waves import site_of
from slmops.planning.windows import is_open
from tests.unit.planning.fleet_cluster import SimNode
from tests.unit.planning.fleet_sim import FleetSim, Look

STATUS_LIMIT_BYTES = 64 * 1024


@dataclass(kw_only=True)
class Watch:
    """Checks that remember: which nodes a move has taken down, how far each rollout has come."""

    replan_every: int = 4
    """Looks without any effect are planned anew to check them at every n-th; 0 plans nothing anew."""
    taken_down: set[str] = field(default_factory=set)
    progress: dict[str, int] = field(default_factory=dict)

    broken: bool = False
    """A check has failed, so nothing can be said about what follows."""

    def __call__(self, sim: FleetSim, look: Look) -> None:
        self.broken = True
        self._check(sim, look)
        self.broken = False

    def _check(self, sim: FleetSim, look: Look) -> None:
        check_bounded(look)
        effect = bool(look.plan.actions or look.plan.transitions)
        if self.replan_every and (effect or len(sim.looks) % self.replan_every == 0):
            check_deterministic(look)
            check_quiet(sim, look)
        check_workloads_before_labels(sim, look)
        check_no_failed_revision(sim, look)
        check_make_before_break(sim, look)
        check_settled(sim, look)
        check_timers(look)
        check_promotion(look)
        check_places(sim, look)
        check_sites(sim, look)
        check_held_before_served(sim, look)
        self.check_waves(look)
        self.check_unavailable(sim, look)

    def check_waves(self, look: Look) -> None:
        """Waves of one rollout only go forward, as far as status was written and spec is the same."""
        rollout = look.observed.deployment.status.rollout
        if rollout is None:
            return
        key = f"{rollout.revision}/{rollout.started_at}/{look.observed.deployment.status.observed_generation}"
        assert rollout.wave >= self.progress.get(key, 0), f"wave went back: {rollout}"
        self.progress[key] = rollout.wave

    def check_unavailable(self, sim: FleetSim, look: Look) -> None:
        """Of the nodes that served before a move, no more than maxUnavailable are down through moves."""
        if look.observed.deployment.deleting_since is not None:
            return
        taken = False
        for action in look.plan.actions:
            if isinstance(action, PatchNodeLabels) and _takes_away(sim, action):
                self.taken_down.add(action.node)
                taken = True
        self.taken_down = {
            name
            for name in self.taken_down
            if name in sim.cluster.nodes and not _serves_after(sim, look, name)
        }
        matched = [n for n in sim.cluster.nodes.values() if is_meant(sim, n)]
        online = {n.name for n in matched if n.online}
        rollout = sim.spec.rollout
        if taken and rollout.strategy == "Waves":
            bounds = [rollout.max_unavailable, rollout.rollback.max_unavailable or 0]
            # Just after a rollback nodes may still be on their way that were moved under its limit.
            limit = max(limit_of(bound, len(matched)) for bound in bounds)
            down = sorted(self.taken_down & online - _left_broken(sim, look))
            assert len(down) <= limit, f"{down} are down through moves, {limit} allowed\n{sim.explain()}"
            sites = Counter(site_of(sim.cluster.nodes[name].view(), "site") for name in down)
            per_site = rollout.max_unavailable_per_site or len(matched)
            assert max(sites.values(), default=0) <= per_site, f"{sites}\n{sim.explain()}"


def is_meant(sim: FleetSim, node: SimNode) -> bool:
    """Whether placement selects the node, at a site that spec allows."""
    return node.labels.get("slm") == "yes" and is_site_allowed(sim.spec, node.labels)


def watch(sim: FleetSim, *, replan_every: int = 4) -> FleetSim:
    """Check the simulation at every look from now on."""
    sim.checks.append(Watch(replan_every=replan_every))
    return sim


def check_deterministic(look: Look) -> None:
    """Equal arguments, equal plan; the order of nodes and pods means nothing."""
    observed = look.observed
    mirrored = replace(
        observed, nodes=observed.nodes[::-1], pods=observed.pods[::-1], owned=observed.owned[::-1]
    )
    again = plan(mirrored, look.at)
    assert again.status == look.plan.status
    assert [a for a in again.actions if not isinstance(a, DeleteObject)] == [
        a for a in look.plan.actions if not isinstance(a, DeleteObject)
    ]


def check_bounded(look: Look) -> None:
    """Status stays small whatever the fleet does, and is what the API accepts."""
    status = look.plan.status
    assert len(status.worst_nodes) <= MAX_WORST_NODES
    if status.rollout:
        assert len(status.rollout.measurements) <= MAX_MEASUREMENTS
    text = json.dumps(status.to_body())
    assert len(text) < STATUS_LIMIT_BYTES
    assert SLMDeploymentStatus.model_validate(json.loads(text)) == status


def check_timers(look: Look) -> None:
    """Nothing has begun in the future, whatever stood still in between."""
    rollout = look.plan.status.rollout
    if rollout is not None:
        for at in (rollout.step_started_at, rollout.wave_started_at, rollout.paused_at or rollout.started_at):
            assert times.to_seconds(at) <= look.at, f"{at} is in the future: {rollout}"


def check_promotion(look: Look) -> None:
    """A stable revision gives way to one of which each wave passed, was empty or was skipped by hand, and
    what is being taken back is not taken up again before it is finished."""
    old, new = look.observed.deployment.status, look.plan.status
    before, after = old.rollout, new.rollout
    if old.stable_revision and new.stable_revision != old.stable_revision:
        assert after is not None and (after.step, after.revision) == ("Completed", new.stable_revision)
        assert {wave.verdict for wave in after.waves} <= {"Pass", "Skipped"}, after
        by_hand = after.promoted_at or any(wave.approved_at for wave in after.waves)
        assert by_hand or any(wave.verdict == "Pass" for wave in after.waves), after
    same = before is not None and after is not None and before.started_at == after.started_at
    if same and before and after and before.revision == after.revision and before.step == "RollingBack":
        assert after.step in ("RollingBack", "Failed", "Cancelled"), after


def check_quiet(sim: FleetSim, look: Look) -> None:
    """A look that leads to no action leads to nothing when it is repeated, now or before its timer."""
    outcome = look.plan
    if outcome.actions or look.observed.deployment.deleting_since is not None:
        return
    before, rollout = look.observed.deployment.status.rollout, outcome.status.rollout
    analysis = sim.spec.rollout.analysis
    if (
        rollout
        and (before is None or before.step != rollout.step)
        and any(map(is_read_off_pods, analysis.metrics))
    ):
        return  # what is read off the pods is known at once, at the next look for the step that has begun
    after = replace(
        look.observed, deployment=replace(look.observed.deployment, status=outcome.status), readings=()
    )
    for later in (0.0, 0.99 * (outcome.requeue_after_seconds or 1000.0)):
        again = plan(after, look.at + later)
        assert again.status == outcome.status, f"status changed by itself after {later} s"
        assert not again.actions and not again.transitions, f"{again.actions} after {later} s"


def check_workloads_before_labels(sim: FleetSim, look: Look) -> None:
    """No node carries a label of ours that no DaemonSet selects, none that is in use is deleted."""
    selectors = dict(sim.cluster.selectors())
    labels = {node.name: dict(node.labels) for node in sim.cluster.nodes.values()}
    for action in look.plan.actions:
        if isinstance(action, ApplyObject) and action.kind is OwnedKind.DAEMON_SET:
            affinity = action.body["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
            term = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0]
            selectors[action.name] = (
                term["matchExpressions"][0]["key"],
                term["matchExpressions"][0]["values"][0],
            )
        elif isinstance(action, DeleteObject):
            selectors.pop(action.name, None)
        elif isinstance(action, PatchNodeLabels) and action.node in labels:
            node = labels[action.node]
            node.update({k: v for k, v in action.labels.items() if v is not None})
            for key in [k for k, v in action.labels.items() if v is None]:
                node.pop(key, None)
    selected = set(selectors.values())
    for name, mine in labels.items():
        for key, value in mine.items():
            if key.startswith(sim.names.label_prefix) and key != sim.names.moving_label:
                assert (key, value) in selected, f"{name} carries {key}={value} without a DaemonSet"


def check_no_failed_revision(sim: FleetSim, look: Look) -> None:
    """A revision that failed is given to no node."""
    failed = {entry.revision for entry in look.plan.status.failed_revisions}
    for action in look.plan.actions:
        if isinstance(action, PatchNodeLabels):
            given = {
                k.removeprefix(sim.names.label_prefix) for k, v in action.labels.items() if v is not None
            }
            assert not given & failed, f"{action} gives a failed revision"


def check_places(sim: FleetSim, look: Look) -> None:
    """No more nodes of a site fetch ahead than may, none outside the windows, and where that is limited no
    node is given a revision before it holds the model."""
    limits, observed = sim.spec.distribution, look.observed
    if observed.deployment.deleting_since is not None or sim.spec.placement.mode != "PerNode":
        return
    if not limits.windows and limits.max_concurrent_per_site is None:
        return
    states = {s.name: s for s in read_nodes(sim.names, sim.spec, observed.nodes, observed.pods)}
    patched = {a.node: a.labels for a in look.plan.actions if isinstance(a, PatchNodeLabels)}
    prefix, fetching = sim.names.label_prefix, Counter[str]()
    for state in states.values():
        labels = {**state.node.labels, **patched.get(state.name, {})}
        ahead = {
            key.removeprefix(prefix).removesuffix(".prefetch"): value
            for key, value in labels.items()
            if key.startswith(prefix) and key.endswith(".prefetch") and value is not None
        }
        settle = observed.config.node_settle_seconds
        told_at = [state.node.ready_since, *(pod.ready_changed_at for pod in state.pods)]
        # It was told before, and has not said yet that it is done.
        silent = state.prefetch == ahead and any(abs(look.at - at) < settle for at in told_at)
        if state.online and state.matched and not silent:
            fetching[site_of(state.node, "site")] += any(not state.cached(*pair) for pair in ahead.items())
    rollout = look.plan.status.rollout
    paused = any(c.type == "Progressing" and c.reason == "Paused" for c in look.plan.status.conditions)
    pinned, stable = look.plan.status.pinned, observed.deployment.status.stable_revision
    undone = pinned is not None and pinned.revision != stable
    closed = not is_open(limits.windows, look.at) and not undone
    allowed = 0 if closed else limits.max_concurrent_per_site
    going_back = rollout is not None and rollout.step in ("RollingBack", "Failed", "Cancelled")
    if going_back and sim.spec.privacy.egress == "Denied":
        return  # nodes look whether they still hold what they left, which is no fetch
    if allowed is not None and (closed or not paused):
        assert max(fetching.values(), default=0) <= allowed, f"{fetching}, {allowed} allowed\n{sim.explain()}"
    if rollout is None or rollout.step in ("RollingBack", "Failed", "Cancelled"):
        return  # the way back needs no fetch
    for name, changes in patched.items():
        for key, value in changes.items():
            tail = key.removeprefix(prefix)
            if value is not None and "." not in tail and tail not in ("moving", "release"):
                assert states[name].cached(tail, value), f"{name} is given {tail} before it holds the model"


def check_sites(sim: FleetSim, look: Look) -> None:
    """No node at a site that spec does not allow is given anything, and it keeps nothing that it has."""
    observed = look.observed
    if sim.spec.placement.mode != "PerNode" or observed.deployment.deleting_since is not None:
        return
    patched = {a.node: a.labels for a in look.plan.actions if isinstance(a, PatchNodeLabels)}
    for node in observed.nodes:
        if is_site_allowed(sim.spec, node.labels):
            continue
        after = {**node.labels, **patched.get(node.name, {})}
        left = [key for key, value in after.items() if key.startswith(sim.names.label_prefix) and value]
        held = any(c.type == "Accepted" and c.status == "False" for c in look.plan.status.conditions)
        assert not left or held or not observed.deployment.has_finalizer, f"{node.name} keeps {left}"


def check_held_before_served(sim: FleetSim, look: Look) -> None:
    """With egress Denied no node is given a revision, not even on the way back, before it holds the model."""
    observed, spec = look.observed, sim.spec
    if spec.privacy.egress != "Denied" or observed.deployment.deleting_since is not None:
        return
    states = {s.name: s for s in read_nodes(sim.names, spec, observed.nodes, observed.pods)}
    for action in look.plan.actions:
        if not isinstance(action, PatchNodeLabels):
            continue
        for key, value in action.labels.items():
            tail = key.removeprefix(sim.names.label_prefix)
            if value is not None and "." not in tail and tail not in ("moving", "release"):
                held = states[action.node].cached(tail, value)
                assert held, f"{action.node} is given {tail} before it holds the model"


def check_make_before_break(sim: FleetSim, look: Look) -> None:
    """Where memory holds both, a node never loses a serving pod before another one is ready."""
    recreate = sim.spec.rollout.strategy == "Recreate"
    if look.observed.deployment.deleting_since is not None or recreate:
        return
    for action in look.plan.actions:
        if not isinstance(action, PatchNodeLabels) or not _takes_away(sim, action):
            continue
        node = sim.cluster.nodes[action.node]
        need = [p.memory_bytes for p in sim.cluster.pods if p.node == node.name and p.role == "serve"]
        new, capacity = _memory_of(sim, action, node)
        swaps = any(key in node.labels for key, value in action.labels.items() if value is not None)
        assert swaps or sum(need) + new + node.others_bytes > capacity, (
            f"{action} takes the serving pod away though both fit"
        )


def _memory_of(sim: FleetSim, action: PatchNodeLabels, node: SimNode) -> tuple[int, int]:
    """What the node is given asks for, and what models may take of the node."""
    for view in sim.cluster.revision_views():
        name = action.labels.get(sim.names.serve_label(view.revision))
        if name is not None:
            revision = parse_revision(view.revision, view.number, view.data)
            variant, rule = revision.variant(name), find_rule(revision.profiles, node.labels)
            assert variant is not None
            room = node.memory_bytes if rule is None else rule.capacity_bytes(node.memory_bytes)
            return variant.memory_bytes, room
    return int(quantity_value(sim.spec.variants[0].resources.requests.memory or "0")), node.memory_bytes


def check_settled(sim: FleetSim, look: Look) -> None:
    """No serving pod is taken from a node that came back a moment ago: its Service would hang."""
    if look.observed.deployment.deleting_since is not None:
        return
    for action in look.plan.actions:
        if not isinstance(action, PatchNodeLabels):
            continue
        node = sim.cluster.nodes.get(action.node)
        if node is None or not node.online or not is_meant(sim, node):
            continue
        lost = set(sim.given(action.node)) - _given_after(sim, action)
        if lost & sim.cluster.serving_revisions(action.node):
            away = abs(look.at - node.ready_since)
            assert away >= look.observed.config.node_settle_seconds, f"{action} {away} s after its return"


def _given_after(sim: FleetSim, action: PatchNodeLabels) -> set[str]:
    prefix = sim.names.label_prefix
    given = set(sim.given(action.node))
    for key, value in action.labels.items():
        tail = key.removeprefix(prefix)
        if value is None:
            given.discard(tail)
        elif "." not in tail and tail not in ("moving", "release"):
            given.add(tail)
    return given


def _takes_away(sim: FleetSim, action: PatchNodeLabels) -> bool:
    """The node matches, serves what it was given, and nothing that the patch leaves it with serves."""
    node = sim.cluster.nodes.get(action.node)
    if node is None or not node.online or not is_meant(sim, node):
        return False
    serving = sim.cluster.serving_revisions(action.node) & set(sim.given(action.node))
    return bool(serving) and not serving & _given_after(sim, action)


def _left_broken(sim: FleetSim, look: Look) -> set[str]:
    """Nodes that an earlier rollout took down and whose pod does not come up: not waited for."""
    rollout = look.plan.status.rollout
    cause = str(int(times.to_seconds(rollout.started_at))) if rollout else ""
    key = sim.names.moving_label
    marks = {name: labels[key] for name, labels in sim.our_labels().items() if key in labels}
    ending = {pod.node for pod in sim.cluster.pods if pod.gone_at is not None}
    stuck = {p.node for p in sim.cluster.pods if p.phase == "Broken" or p.termination or not p.scheduled}
    return {name for name, mark in marks.items() if mark != cause and name in stuck - ending}


def _serves_after(sim: FleetSim, look: Look, name: str) -> bool:
    given = set(sim.given(name))
    for action in look.plan.actions:
        if isinstance(action, PatchNodeLabels) and action.node == name:
            given = _given_after(sim, action)
    return bool(sim.cluster.serving_revisions(name) & given)
