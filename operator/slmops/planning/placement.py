# SPDX-License-Identifier: Apache-2.0
"""What each node is to serve, and the label changes of a look, as far as fetching is allowed now."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from slmops.api.status import RolloutStatus
from slmops.model.plan import PatchNodeLabels
from slmops.planning import times
from slmops.planning.decision import ACTIVE, Decision
from slmops.planning.fleet import Fleet
from slmops.planning.moves import Limits, Wish, build_wishes, fetches_next, find_late, plan_moves
from slmops.planning.names import Names
from slmops.planning.nodes import NodeState
from slmops.planning.places import Fetch, Places, assign_places, is_limited
from slmops.planning.waves import stable_order

Patches = tuple[PatchNodeLabels, ...]


def find_wishes(fleet: Fleet, decision: Decision) -> dict[str, Wish]:
    """What each matching node is to serve, as the rollout stands."""
    rollout = decision.rollout
    target = fleet.target.revision if fleet.target else ""
    canary: list[str] = []
    may_flip = True
    left = ""
    failed = frozenset(entry.revision for entry in decision.failed)
    if rollout is not None and rollout.step in ACTIVE and rollout.revision == target:
        may_flip = rollout.step == "Flipping" and not decision.closed
        canary = [s.name for s in fleet.eligible if target in s.serve or _may_join(fleet, s, rollout, failed)]
    elif rollout is not None and rollout.step in ("RollingBack", "Failed", "Cancelled"):
        left = rollout.revision
    return build_wishes(
        fleet,
        stable=decision.stable_revision,
        canary=canary,
        may_flip_canary=may_flip,
        left=left,
        late=find_late(fleet, failed) if decision.outside_windows else frozenset(),
    )


def _may_join(fleet: Fleet, state: NodeState, rollout: RolloutStatus, failed: frozenset[str]) -> bool:
    """Whether a node without the target is to get it in this wave."""
    if fleet.wave_of[state.name] > rollout.wave:
        return False
    if fleet.stable is None or fleet.variant(fleet.stable, state) is None:
        return True
    # A new node serves the stable revision first, and a node with a failed one goes back to it first:
    # neither may wait for a fetch and for a wave's turn.
    return bool(state.serve) and failed.isdisjoint(state.serve)


def cause_of(rollout: RolloutStatus | None) -> str:
    """Label value that tells a rollout from every other of this deployment."""
    return str(int(times.to_seconds(rollout.started_at))) if rollout is not None else "none"


def place_nodes(
    names: Names,
    fleet: Fleet,
    wishes: Mapping[str, Wish],
    decision: Decision,
    *,
    key: str,
    cause: str,
    limits: Limits,
    unsettled: Collection[str],
    settle_seconds: float,
    now: float,
) -> tuple[Patches, Places]:
    """Patches and who may fetch; `key`, `cause` and `unsettled` as in `plan_moves`, `settle_seconds` as in
    `assign_places`.

    While paused no node is moved but away from a site that is not allowed, and a fetch does not go on outside
    the windows. Replicas are moved
    nevertheless, `plan_replicas` sorts that out.
    """
    spec = fleet.spec
    fetches = find_fetches(fleet, wishes, key=key) if is_limited(spec) else []
    places = assign_places(
        spec, fetches, key=key, closed=decision.fetch_closed, now=now, settle_seconds=settle_seconds
    )
    if decision.paused and spec.placement.mode == "PerNode":
        ended = [fetch for fetch in fetches if not places.may_fetch(fetch.state.name)]
        stopped = take_back(names, ended) if decision.fetch_closed else ()
        return (*stopped, *leave_forbidden(names, fleet)), places
    patches = plan_moves(
        names, fleet, wishes, key=key, cause=cause, limits=limits, unsettled=unsettled, places=places
    )
    return patches, places


def find_fetches(fleet: Fleet, wishes: Mapping[str, Wish], *, key: str) -> list[Fetch]:
    """Nodes whose next step is to fetch ahead, in the order in which nodes are moved."""
    found = [
        Fetch(state=state, revision=wish.revision.revision, variant=wish.variant.name)
        for state in fleet.matched
        if (wish := wishes.get(state.name)) is not None and fetches_next(state, wish)
    ]
    return sorted(found, key=lambda fetch: stable_order(key, fetch.state.name))


def leave_forbidden(names: Names, fleet: Fleet) -> Patches:
    """Patches that take everything off the nodes at sites that spec does not allow."""
    states = tuple(state for state in fleet.states if state.name in fleet.forbidden)
    outside = replace(fleet, states=states, wave_of={})
    return plan_moves(names, outside, {}, key="", cause="", limits=Limits(nodes=0, per_site=None))


def take_back(names: Names, fetches: Iterable[Fetch]) -> Patches:
    """Patches that stop every fetch that is under way; what has come is kept on the node."""
    return tuple(
        PatchNodeLabels(
            node=fetch.state.name,
            labels={names.prefetch_label(revision): None for revision in fetch.state.prefetch},
            why="may not fetch now",
        )
        for fetch in fetches
        if fetch.state.prefetch
    )
