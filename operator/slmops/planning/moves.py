# SPDX-License-Identifier: Apache-2.0
"""Node label changes that bring each node to the revision it is to serve.

A node is moved by labels alone. Where its memory holds both, the new pod comes up beside the old one
(make before break); otherwise the old one goes first. A node that is offline is left as it is.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from slmops.model.plan import PatchNodeLabels
from slmops.planning.effective import capacity_bytes, find_rule
from slmops.planning.fleet import Fleet
from slmops.planning.names import Names
from slmops.planning.nodes import DOWNLOAD_REASONS, NodeState
from slmops.planning.places import EVERYWHERE, Places, fetches_ahead, serves_without_egress
from slmops.planning.revision import Revision, RevisionVariant
from slmops.planning.waves import site_of, stable_order
from slmwire.labels import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a node is to serve."""

    revision: Revision
    variant: RevisionVariant
    may_flip: bool
    """Whether the node may be switched now; otherwise it may only fetch ahead."""
    returning: bool = False
    """Goes back to a revision that it left a moment ago: still in its cache, no prefetch needed."""
    fetch_first: bool = False
    """Takes it after its model is in the cache, even if the node serves nothing so far."""
    verify_first: bool = False
    """Takes it only where the model is known to be in the cache, on the way back, too: its serving pod could
    not fetch what is missing."""


def limit_of(max_unavailable: str | int, nodes: int) -> int:
    """Nodes that may be in motion at once: the number, or the percentage of `nodes`, at least one."""
    text = str(max_unavailable)
    if text.endswith("%"):
        return max(1, nodes * int(text[:-1]) // 100)
    return max(1, int(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many nodes may be in motion at once."""

    nodes: int
    per_site: int | None


def limits_of(fleet: Fleet, *, back: bool) -> Limits:
    """The spec's limits; `back` says that a revision is being taken back."""
    rollout = fleet.spec.rollout
    bound = rollout.rollback.max_unavailable if back else None
    return Limits(
        nodes=limit_of(rollout.max_unavailable if bound is None else bound, len(fleet.matched)),
        per_site=rollout.max_unavailable_per_site,
    )


def find_unsettled(
    fleet: Fleet, wishes: Mapping[str, Wish], *, now: float, settle_seconds: float
) -> dict[str, float]:
    """Nodes to be moved whose kubelet has just come back, with the seconds to wait.

    Whether they serve is not asked: for a moment their pods are still shown as not ready, as they were
    while the node was away. The clock is the node's; one that is far off is not waited for.
    """
    return {
        state.name: settle_seconds - age
        for state in fleet.states
        if state.online
        and state.serve
        and abs(age := now - state.node.ready_since) < settle_seconds
        and not _rests(state, wishes.get(state.name))
    }


def fetches_next(state: NodeState, wish: Wish) -> bool:
    """Whether the node's next step is to fetch ahead."""
    revision, variant = wish.revision.revision, wish.variant.name
    if not state.online or wish.returning or state.serve.get(revision) == variant:
        return False
    return bool(state.serve or wish.fetch_first) and not state.cached(revision, variant)


def plan_moves(
    names: Names,
    fleet: Fleet,
    wishes: Mapping[str, Wish],
    *,
    key: str,
    cause: str,
    limits: Limits,
    unsettled: Collection[str] = (),
    places: Places = EVERYWHERE,
) -> tuple[PatchNodeLabels, ...]:
    """Patches for this look, in a stable order, within the limits of nodes in motion.

    `cause` names the rollout that nodes are moved for (a label value). It is left on a node whose
    serving pod is taken away before another is there, until one is. So the limit counts what moves
    have taken away, and neither nodes that never served nor those that broke by themselves. Nodes that
    are `unsettled` fetch ahead, and keep every pod that serves.
    """
    # Most nodes rest; only the others are worth sorting.
    restless = [state for state in fleet.states if not _rests(state, wishes.get(state.name))]
    states = sorted(restless, key=lambda state: stable_order(key, state.name))
    moving = frozenset(s.name for s in states if _in_motion(s, wishes.get(s.name), cause))
    look = _Look(names=names, fleet=fleet, cause=cause, moving=moving, unsettled=unsettled, places=places)
    budget = _Budget(limits, fleet.spec.placement.site_label, [s for s in states if s.name in moving])
    patches = []
    for state in states:
        move = _move(look, state, wishes.get(state.name), budget.left(state))
        if move is not None:
            patches.append(move.patch)
            budget.spend(state, move.cost)
    return tuple(patches)


class _Budget:
    """Nodes that may still be set in motion, in all and in each site."""

    def __init__(self, limits: Limits, site_label: str, moving: Iterable[NodeState]) -> None:
        self._limits, self._site_label = limits, site_label
        self._left = limits.nodes
        self._per_site: Counter[str] = Counter()
        for state in moving:
            self.spend(state, 1)

    def left(self, state: NodeState) -> int:
        if self._limits.per_site is None:
            return self._left
        used = self._per_site[site_of(state.node, self._site_label)]
        return min(self._left, self._limits.per_site - used)

    def spend(self, state: NodeState, cost: int) -> None:
        self._left -= cost
        if cost and self._limits.per_site is not None:
            self._per_site[site_of(state.node, self._site_label)] += cost


@dataclass(frozen=True, slots=True, kw_only=True)
class _Move:
    patch: PatchNodeLabels
    cost: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What the moves of one look have in common."""

    names: Names
    fleet: Fleet
    cause: str
    moving: frozenset[str]
    """Nodes that are in motion already; a further step of theirs costs nothing more."""
    unsettled: Collection[str]
    """Nodes that came back a moment ago."""
    places: Places


def _rests(state: NodeState, wish: Wish | None) -> bool:
    """The node was given just what it is to serve, carries no mark and lacks nothing: no patch, and not in
    motion."""
    return (
        wish is not None
        and state.matched
        and not state.prefetch
        and not state.moving
        and len(state.serve) == 1
        and state.serve.get(wish.revision.revision) == wish.variant.name
        and not (wish.verify_first and _lacks_model(state, wish.revision.revision))
    )


def _in_motion(state: NodeState, wish: Wish | None, cause: str) -> bool:
    """The node has begun to change over, or a move took its pod away and none has come up yet.

    A node whose new pod will not come up by itself while the old one serves has lost nothing. One that
    an earlier rollout moved and that is broken now is not waited for: it would block every other.
    """
    if wish is None or not state.online or not state.serve:
        return False
    if len(state.serve) > 1:
        return not (state.serves_given and is_broken(state, wish.revision.revision))
    if not state.moving or state.serves_given:
        return False
    return state.moving == cause or not any(is_broken(state, revision) for revision in state.serve)


def is_broken(state: NodeState, revision: str) -> bool:
    """The serving pod of the revision does not come up by itself."""
    problem = state.serve_problem(revision)
    # A pod does not fit for a moment while the one before it ends.
    return problem is not None and not (problem.reason == "Unschedulable" and _makes_room(state))


def _makes_room(state: NodeState) -> bool:
    """A pod is on its way out, or about to be: one that fetched holds memory until it has ended."""
    return any(
        p.deleting or (p.role is Role.PREFETCH and p.revision not in state.prefetch) for p in state.pods
    )


def _move(look: _Look, state: NodeState, wish: Wish | None, budget: int) -> _Move | None:
    names = look.names
    if not state.matched:
        gone = _drop_marks(names, state) | {names.serve_label(r): None for r in state.serve}
        return _patch(state, gone, "the node no longer matches placement")
    if wish is None:
        return _patch(state, _drop_marks(names, state), "no variant of the wanted revision suits the node")
    revision, variant = wish.revision.revision, wish.variant.name
    has, others = state.serve.get(revision), [r for r in state.serve if r != revision]
    if has == variant and wish.verify_first and _lacks_model(state, revision):
        # It serves nothing; without the label it is a node that fetches ahead when it may.
        labels = _drop_prefetch(names, state) | {names.serve_label(revision): None}
        return _patch(state, labels, f"the node lost the model of {revision} and cannot fetch it so")
    if has == variant and not others:
        if state.serves(revision, variant):
            return _patch(state, _drop_marks(names, state), "the node serves it, nothing is pending")
        return _patch(state, _drop_prefetch(names, state), "the node has it, nothing to fetch ahead")
    if not state.online:
        return None
    if not state.serve and not wish.fetch_first:
        labels = _drop_prefetch(names, state) | {names.serve_label(revision): variant}
        return _patch(state, labels, f"new node takes {revision}")
    if has == variant:
        return None if state.name in look.unsettled else _settle(look, state, wish, others, budget)
    if (not wish.returning or wish.verify_first) and not state.cached(revision, variant):
        # What the node left a moment ago is in its cache, and looking for it there is no fetch.
        if not wish.returning and not look.places.may_fetch(state.name):
            return _patch(state, _drop_prefetch(names, state), "may not fetch now")
        return _prefetch(names, state, revision, variant)
    if not wish.may_flip or state.name in look.unsettled:
        return None
    return _flip(look, state, wish, budget)


def _lacks_model(state: NodeState, revision: str) -> bool:
    """The serving pod does not find its model on the node and cannot get it."""
    problem = state.serve_problem(revision) if state.online else None
    return problem is not None and problem.reason in DOWNLOAD_REASONS


def _settle(look: _Look, state: NodeState, wish: Wish, others: list[str], budget: int) -> _Move | None:
    """The node holds the new revision beside others: drop those once nothing is lost by it."""
    names, revision = look.names, wish.revision.revision
    labels: dict[str, str | None] = {names.serve_label(r): None for r in others}
    if state.serves(revision, wish.variant.name):
        return _patch(state, labels | _drop_marks(names, state), f"{revision} serves, the other one goes")
    labels |= _drop_prefetch(names, state)
    if wish.returning and not state.serving:
        return _patch(state, labels, "what is left behind does not serve either")
    problem = state.serve_problem(revision)
    if problem is None or problem.reason != "Unschedulable" or _makes_room(state):
        return None
    # The other pods on the node leave no room for both after all.
    return _take(look, state, labels, f"{revision} does not fit beside the other one", budget)


def _prefetch(names: Names, state: NodeState, revision: str, variant: str) -> _Move | None:
    if state.prefetch == {revision: variant}:
        return None
    labels = _drop_prefetch(names, state) | {names.prefetch_label(revision): variant}
    return _patch(state, labels, f"fetch {revision} ahead")


def _flip(look: _Look, state: NodeState, wish: Wish, budget: int) -> _Move | None:
    names, revision, variant = look.names, wish.revision.revision, wish.variant
    labels = _drop_prefetch(names, state) | {names.serve_label(revision): variant.name}
    beside = look.fleet.spec.rollout.strategy == "Waves" and _fits_both(look.fleet, state, wish)
    if state.serving and revision not in state.serve and beside:
        cost = 0 if state.name in look.moving else 1
        if cost > budget:
            return None
        return _patch(state, labels, f"take {revision} beside the present revision", cost=cost)
    labels |= {names.serve_label(r): None for r in state.serve if r != revision}
    return _take(look, state, labels, f"take {revision} instead of the present revision", budget)


def _take(
    look: _Look, state: NodeState, labels: Mapping[str, str | None], why: str, budget: int
) -> _Move | None:
    """Change over at once. A node that serves pays for it and is marked until it serves again."""
    if not state.serving:
        return _patch(state, labels, why)  # it has nothing to lose
    if _is_last_replica(look.fleet, state):
        return None
    cost = 0 if state.name in look.moving else 1
    if cost > budget:
        return None
    return _patch(state, {**labels, look.names.moving_label: look.cause}, why, cost=cost)


def _is_last_replica(fleet: Fleet, state: NodeState) -> bool:
    """No other replica of its site serves, so its pod stays until another one is ready."""
    if state.suits is None or fleet.spec.rollout.strategy != "Waves":
        return False
    site = state.node.labels
    return not any(s.serving for s in fleet.states if s.name != state.name and s.node.labels == site)


def _fits_both(fleet: Fleet, state: NodeState, wish: Wish) -> bool:
    if state.suits is not None:
        return True  # the scheduler finds a place, or says that there is none
    variant = wish.variant
    if state.node.allocatable_memory_bytes == 0:
        return False
    present = 0
    for revision, name in state.serve.items():
        known = fleet.revisions.get(revision)
        old = known.variant(name) if known else None
        present += old.memory_bytes if old else variant.memory_bytes
    rule = find_rule(wish.revision.profiles, state.node.labels)
    return present + variant.memory_bytes <= capacity_bytes(rule, state.node)


def _drop_prefetch(names: Names, state: NodeState) -> dict[str, str | None]:
    return {names.prefetch_label(revision): None for revision in state.prefetch}


def _drop_marks(names: Names, state: NodeState) -> dict[str, str | None]:
    """Takes everything off but what the node is to serve."""
    return _drop_prefetch(names, state) | ({names.moving_label: None} if state.moving else {})


def _patch(state: NodeState, labels: Mapping[str, str | None], why: str, *, cost: int = 0) -> _Move | None:
    if not labels:
        return None
    return _Move(patch=PatchNodeLabels(node=state.name, labels=labels, why=why), cost=cost)


def count_moving(fleet: Fleet, wishes: Mapping[str, Wish]) -> int:
    """Online nodes that are not where they are to be, or were moved and do not serve yet."""
    return sum(
        1
        for state in fleet.matched
        if state.online
        and (wish := wishes.get(state.name)) is not None
        and (state.moving or state.serve != {wish.revision.revision: wish.variant.name})
    )


def build_wishes(
    fleet: Fleet,
    *,
    stable: str,
    canary: Iterable[str],
    may_flip_canary: bool,
    left: str,
    late: frozenset[str] = frozenset(),
) -> dict[str, Wish]:
    """What each matching node is to serve.

    `canary` names the nodes that are to have the target; all others are to have the `stable` revision
    (the target while none was promoted yet, `stable` being empty). `left` is the revision that nodes
    are being taken back from, which had the present stable before it; empty when there is none. Nodes
    in `late` only fetch the stable revision ahead. A node keeps what it has when the wanted revision has
    no variant for it or its record is gone.
    """
    chosen, ahead = frozenset(canary), fetches_ahead(fleet.spec)
    verify_first = serves_without_egress(fleet.spec)
    wishes: dict[str, Wish] = {}
    for state in fleet.matched:
        is_canary = fleet.target is not None and (state.name in chosen or not stable)
        revision = fleet.target if is_canary else fleet.stable
        if revision is None:
            continue
        variant = fleet.variant(revision, state)
        if variant is None:
            continue
        wishes[state.name] = Wish(
            revision=revision,
            variant=variant,
            # A node that has it already may still change to another variant of it.
            may_flip=revision.revision in state.serve
            or (may_flip_canary if is_canary else state.name not in late),
            returning=not is_canary and bool(left) and left in state.serve,
            fetch_first=(is_canary and bool(stable)) or ahead,
            verify_first=verify_first,
        )
    return wishes


def find_late(fleet: Fleet, failed: frozenset[str]) -> frozenset[str]:
    """Nodes that serve an earlier revision than the stable one: a wave did not wait for them, or they
    came back since. One on its way back, from a later revision or from a failed one, is none of them.
    """
    stable = fleet.stable
    if stable is None:
        return frozenset()
    known = fleet.revisions
    later = frozenset(name for name, revision in known.items() if revision.number > stable.number)
    not_late = later | failed | {stable.revision}
    return frozenset(s.name for s in fleet.matched if s.serving and not_late.isdisjoint(s.serve))
