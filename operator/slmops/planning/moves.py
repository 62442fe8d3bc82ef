# SPDX-License-Identifier: Apache-2.0
"""Node label changes that bring each node to the revision it is to serve.

A node is moved by labels alone. Where its memory holds both, the new pod comes up beside the old one
(make before break); otherwise the old one goes first. A node that is offline is left as it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from slmops.model.plan import PatchNodeLabels
from slmops.planning.fleet import Fleet
from slmops.planning.names import Names
from slmops.planning.nodes import NodeState
from slmops.planning.revision import Revision, RevisionVariant
from slmops.planning.waves import stable_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a node is to serve."""

    revision: Revision
    variant: RevisionVariant
    may_flip: bool
    """Whether the node may be switched now; otherwise it may only fetch ahead."""
    returning: bool = False
    """Goes back to a revision that it left a moment ago: still in its cache, no prefetch needed."""


def limit_of(max_unavailable: str | int, nodes: int) -> int:
    """Nodes that may be in motion at once: the number, or the percentage of `nodes`, at least one."""
    text = str(max_unavailable)
    if text.endswith("%"):
        return max(1, nodes * int(text[:-1]) // 100)
    return max(1, int(text))


def plan_moves(
    names: Names, fleet: Fleet, wishes: Mapping[str, Wish], *, key: str
) -> tuple[PatchNodeLabels, ...]:
    """Patches for this look, in a stable order, within the spec's limit of nodes in motion."""
    states = sorted(fleet.states, key=lambda state: stable_order(key, state.name))
    limit = limit_of(fleet.spec.rollout.max_unavailable, len(fleet.matched))
    budget = limit - sum(1 for state in states if _in_motion(state, wishes.get(state.name)))
    patches = []
    for state in states:
        move = _move(names, fleet, state, wishes.get(state.name), budget)
        if move is not None:
            patches.append(move.patch)
            budget -= move.cost
    return tuple(patches)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Move:
    patch: PatchNodeLabels
    cost: int = 0


def _in_motion(state: NodeState, wish: Wish | None) -> bool:
    """The node has begun to change over, or serves nothing although it was given a revision."""
    if wish is None or not state.online or not state.serve:
        return False
    return len(state.serve) > 1 or not state.serving


def _move(names: Names, fleet: Fleet, state: NodeState, wish: Wish | None, budget: int) -> _Move | None:
    if not state.matched:
        return _forget(names, state)
    if wish is None:
        return None
    revision, variant = wish.revision.revision, wish.variant.name
    has, others = state.serve.get(revision), [r for r in state.serve if r != revision]
    if has == variant and not others:
        return _patch(state, _drop_prefetch(names, state), "the node serves it, nothing to fetch ahead")
    if not state.online:
        return None
    if not state.serve:
        return _patch(state, {names.serve_label(revision): variant}, f"new node takes {revision}")
    if has == variant:
        return _settle(names, state, wish, others, budget)
    if not wish.returning and not state.cached(revision, variant):
        return _prefetch(names, state, revision, variant)
    if not wish.may_flip:
        return None
    return _flip(names, fleet, state, wish, budget)


def _forget(names: Names, state: NodeState) -> _Move | None:
    labels: dict[str, str | None] = {names.serve_label(r): None for r in state.serve}
    labels |= _drop_prefetch(names, state)
    return _patch(state, labels, "the node no longer matches placement")


def _settle(names: Names, state: NodeState, wish: Wish, others: list[str], budget: int) -> _Move | None:
    """The node holds the new revision beside others: drop those once nothing is lost by it."""
    revision = wish.revision.revision
    labels: dict[str, str | None] = {names.serve_label(r): None for r in others}
    labels |= _drop_prefetch(names, state)
    if state.serves(revision, wish.variant.name):
        return _patch(state, labels, f"{revision} serves, the other revision goes")
    if wish.returning and not state.serving:
        return _patch(state, labels, "what is left behind does not serve either")
    problem = state.serve_problem(revision)
    if problem is not None and problem.reason == "Unschedulable" and (budget > 0 or not state.serving):
        # The other pods on the node leave no room for both after all.
        return _patch(state, labels, f"{revision} does not fit beside the other revision", cost=1)
    return None


def _prefetch(names: Names, state: NodeState, revision: str, variant: str) -> _Move | None:
    if state.prefetch == {revision: variant}:
        return None
    labels = _drop_prefetch(names, state) | {names.prefetch_label(revision): variant}
    return _patch(state, labels, f"fetch {revision} ahead")


def _flip(names: Names, fleet: Fleet, state: NodeState, wish: Wish, budget: int) -> _Move | None:
    revision, variant = wish.revision.revision, wish.variant
    free = not state.serving  # it has nothing to lose, and is counted as in motion already
    if budget <= 0 and not free:
        return None
    cost = 0 if free else 1
    labels = {names.serve_label(revision): variant.name} | _drop_prefetch(names, state)
    if state.serving and revision not in state.serve and _fits_both(fleet, state, variant):
        return _patch(state, labels, f"take {revision} beside the present revision", cost=cost)
    labels |= {names.serve_label(r): None for r in state.serve if r != revision}
    return _patch(state, labels, f"take {revision} instead of the present revision", cost=cost)


def _fits_both(fleet: Fleet, state: NodeState, variant: RevisionVariant) -> bool:
    allocatable = state.node.allocatable_memory_bytes
    if allocatable == 0:
        return False
    present = 0
    for revision, name in state.serve.items():
        known = fleet.revisions.get(revision)
        old = known.variant(name) if known else None
        present += old.memory_bytes if old else variant.memory_bytes
    return present + variant.memory_bytes <= allocatable


def _drop_prefetch(names: Names, state: NodeState) -> dict[str, str | None]:
    return {names.prefetch_label(revision): None for revision in state.prefetch}


def _patch(state: NodeState, labels: Mapping[str, str | None], why: str, *, cost: int = 0) -> _Move | None:
    if not labels:
        return None
    return _Move(patch=PatchNodeLabels(node=state.name, labels=labels, why=why), cost=cost)


def build_wishes(
    fleet: Fleet, *, canary: Iterable[str], may_flip_canary: bool, rolling_back: str
) -> dict[str, Wish]:
    """What each matching node is to serve.

    `canary` names the nodes that are to have the target; all others are to have the stable revision
    (the target while there is none). `rolling_back` is the revision that nodes return from; empty
    when there is none. A node that the wanted revision has no variant for keeps what it has.
    """
    chosen = frozenset(canary)
    wishes: dict[str, Wish] = {}
    for state in fleet.matched:
        is_canary = fleet.target is not None and (state.name in chosen or fleet.stable is None)
        revision = fleet.target if is_canary else fleet.stable
        if revision is None:
            continue
        variant = fleet.variant(revision, state)
        if variant is None:
            continue
        wishes[state.name] = Wish(
            revision=revision,
            variant=variant,
            may_flip=may_flip_canary or not is_canary,
            returning=not is_canary and bool(rolling_back) and rolling_back in state.serve,
        )
    return wishes
