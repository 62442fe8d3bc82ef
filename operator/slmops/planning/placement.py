# SPDX-License-Identifier: Apache-2.0
"""The label changes of a look, as far as fetching is allowed now."""

from collections.abc import Collection, Iterable, Mapping

from slmops.model.plan import PatchNodeLabels
from slmops.planning.decision import Decision
from slmops.planning.fleet import Fleet
from slmops.planning.moves import Limits, Wish, fetches_next, plan_moves
from slmops.planning.names import Names
from slmops.planning.places import Fetch, Places, assign_places, is_limited
from slmops.planning.waves import stable_order

Patches = tuple[PatchNodeLabels, ...]


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

    While paused no node is moved, but a fetch does not go on outside the windows. Replicas are moved
    nevertheless, `plan_replicas` sorts that out.
    """
    spec = fleet.spec
    fetches = find_fetches(fleet, wishes, key=key) if is_limited(spec) else []
    places = assign_places(
        spec, fetches, key=key, closed=decision.fetch_closed, now=now, settle_seconds=settle_seconds
    )
    if decision.paused and spec.placement.mode == "PerNode":
        ended = [fetch for fetch in fetches if not places.may_fetch(fetch.state.name)]
        return take_back(names, ended) if decision.fetch_closed else (), places
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
