# SPDX-License-Identifier: Apache-2.0
"""Who waits for a place is just who would be told to fetch."""

from functools import cache
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from slmops.model.observed import NodeView, PodView
from slmops.planning.fleet import build_fleet
from slmops.planning.moves import Limits, Wish, fetches_next, plan_moves
from slmops.planning.names import Names
from slmops.planning.nodes import read_node
from slmops.planning.places import EVERYWHERE, Places
from slmops.planning.revision import Revision, parse_revision
from slmwire.labels import Role
from tests.unit.planning.fleet_sim import FleetSim
from tests.unit.planning.fleet_situations import installed

NAMES = Names("shop", "orders")
_OLD_NEW = st.sampled_from([0, 1])


@cache
def made() -> tuple[FleetSim, tuple[Revision, Revision]]:
    """A spec and two revisions of it, the older first."""
    sim = installed(1)
    sim.set_version("v2")
    sim.settle()
    views = sorted(sim.cluster.revision_views(), key=lambda view: view.number)
    old, new = (parse_revision(view.revision, view.number, view.data) for view in views)
    return sim, (old, new)


@given(
    online=st.booleans(),
    serve=st.dictionaries(_OLD_NEW, st.sampled_from(["int4", "other"])),
    prefetch=st.dictionaries(_OLD_NEW, st.sampled_from(["int4", "other"])),
    ready=st.sets(st.tuples(_OLD_NEW, st.sampled_from([Role.SERVE, Role.PREFETCH]))),
    unsettled=st.booleans(),
    flags=st.fixed_dictionaries({flag: st.booleans() for flag in ("may_flip", "returning", "fetch_first")}),
)
def test_a_place_makes_a_difference_for_nodes_that_fetch_next_and_for_no_others(
    online: bool,
    serve: dict[int, str],
    prefetch: dict[int, str],
    ready: set[tuple[int, Role]],
    unsettled: bool,
    flags: dict[str, Any],
) -> None:
    sim, revisions = made()
    labels = {"slm": "yes"}
    labels |= {NAMES.serve_label(revisions[index].revision): variant for index, variant in serve.items()}
    labels |= {
        NAMES.prefetch_label(revisions[index].revision): variant for index, variant in prefetch.items()
    }
    pods = tuple(
        PodView(
            name=f"{role}-{index}",
            node="n",
            revision=revisions[index].revision,
            variant="int4",
            role=role,
            ready=True,
        )
        for index, role in ready
    )
    node = NodeView(name="n", labels=labels, ready=online, allocatable_memory_bytes=4 << 30)
    state = read_node(NAMES, sim.spec, node, pods)
    fleet = build_fleet(
        sim.spec,
        states=(state,),
        revisions={revision.revision: revision for revision in revisions},
        stable=revisions[0].revision,
        target=revisions[1].revision,
        key="k",
    )
    wish = Wish(revision=revisions[1], variant=revisions[1].variants[0], **flags)

    def ahead(places: Places) -> dict[str, str]:
        """The node's prefetch labels after the look."""
        found: dict[str, str | None] = {NAMES.prefetch_label(r): v for r, v in state.prefetch.items()}
        for patch in plan_moves(
            NAMES,
            fleet,
            {"n": wish},
            key="k",
            cause="c",
            limits=Limits(nodes=1, per_site=None),
            unsettled={"n"} if unsettled else (),
            places=places,
        ):
            found |= {key: value for key, value in patch.labels.items() if key.endswith(".prefetch")}
        return {key: value for key, value in found.items() if value is not None}

    nobody = Places(taken=frozenset())
    if fetches_next(state, wish):
        assert ahead(EVERYWHERE) == {NAMES.prefetch_label(revisions[1].revision): "int4"}
        assert ahead(nobody) == {}
    else:
        assert ahead(EVERYWHERE) == ahead(nobody)
