# SPDX-License-Identifier: Apache-2.0
"""Replicas as slots: the account in status loses nothing, and scaling keeps the shares."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from slmops.api import SLMDeploymentSpec
from slmops.model.observed import NodeView, PodView
from slmops.planning.replicas import count_replicas
from slmops.planning.slots import MAX_SITES, Order, Slot, deal, find_site_problem, fit, fold, lay_out, unfold
from slmwire.labels import Role
from tests.unit.planning.replica_sim import replica_spec

ORDER = Order(target="new", stable="old")
_GIVEN: list[dict[str, str]] = [
    {"old": "int4"},
    {"new": "int4"},
    {"new": "fp32"},
    {"old": "int4", "new": "int4"},
    {"gone": "int4"},
    {"gone": "int4", "old": "int4"},
    {"gone": "int4", "old": "fp32", "new": "int4"},
]
SLOTS = st.lists(st.builds(lambda serve: Slot(serve=serve), st.sampled_from(_GIVEN)), max_size=12)
SITES = st.lists(
    st.tuples(
        st.sampled_from(["", "a", "b"]),
        st.builds(
            lambda serve, moving: Slot(serve=serve, moving=moving),
            st.sampled_from(_GIVEN),
            st.sampled_from(["", "17"]),
        ),
    ),
    max_size=20,
)


def _key(site: str, slot: Slot) -> tuple[object, ...]:
    return site, tuple(sorted(slot.serve.items())), slot.moving


@given(SITES)
def test_status_keeps_every_slot(slots: list[tuple[str, Slot]]) -> None:
    counts = fold(slots, ORDER)
    back = [(site, slot) for site, found in unfold(counts).items() for slot in found]
    assert Counter(_key(*pair) for pair in back) == Counter(_key(*pair) for pair in slots)
    assert fold(back, ORDER) == counts
    # Every pod that a slot asks for is asked for in a Deployment, and no other.
    assert sum(count_replicas(back).values()) == sum(len(slot.serve) for _, slot in slots)


@given(SLOTS, st.integers(0, 12))
def test_fitting_gives_the_wanted_number_and_is_done_once(slots: list[Slot], replicas: int) -> None:
    placed = fit(slots, replicas, ORDER)
    assert len(placed) == replicas
    assert fit(placed, replicas, ORDER) == placed
    assert placed == sorted(placed, key=ORDER.rank)


@given(SLOTS, st.integers(0, 12))
def test_scaling_up_takes_nothing_away(slots: list[Slot], more: int) -> None:
    before, after = (
        count_replicas(("", s) for s in x) for x in (slots, fit(slots, len(slots) + more, ORDER))
    )
    assert before == after


@given(SLOTS, st.integers(1, 12))
def test_scaling_down_keeps_the_shares(slots: list[Slot], replicas: int) -> None:
    def shares(found: list[Slot]) -> tuple[int, int]:
        stable = sum(1 for slot in found if set(slot.serve) == {"old"})
        return stable, sum(1 for slot in found if slot.serve) - stable

    stable, others = shares(slots)
    kept_stable, kept_others = shares(fit(slots, replicas, ORDER))
    if stable:
        assert any("old" in slot.serve for slot in fit(slots, replicas, ORDER))
    if stable and replicas > 1:
        assert kept_stable >= 1, "the last stable replica was taken"
    if others and (replicas > 1 or not stable):
        assert kept_others >= 1, "the last canary was taken"
    if len(slots) > replicas > 1 and stable and others:
        exact = others * replicas / len(slots)
        assert abs(kept_others - exact) <= 1


@given(SLOTS, st.integers(1, 12))
def test_scaling_down_takes_no_stable_pod_that_is_needed(slots: list[Slot], replicas: int) -> None:
    """A canary that is kept may still be starting: the stable pod of a slot that goes stays beside it."""
    stable = sum(1 for slot in slots if set(slot.serve) == {"old"})
    kept = sum(1 for slot in fit(slots, replicas, ORDER) if "old" in slot.serve)
    assert kept >= min(stable, replicas)


@given(SLOTS, st.integers(1, 12))
def test_scaling_down_outside_a_rollout_takes_what_is_left_behind(slots: list[Slot], replicas: int) -> None:
    order = Order(target="old", stable="old")
    stable = sum(1 for slot in slots if set(slot.serve) == {"old"})
    kept = sum(1 for slot in fit(slots, replicas, order) if "old" in slot.serve)
    assert kept >= min(stable, replicas)


def _pod(
    name: str, revision: str, *, ready: bool = True, deleting: bool = False, stuck: bool = False
) -> PodView:
    return PodView(
        name=name,
        node="",
        revision=revision,
        variant="int4",
        role=Role.SERVE,
        ready=ready,
        deleting=deleting,
        unschedulable=stuck,
    )


def test_ready_pods_go_first_to_slots_that_have_nothing_else() -> None:
    both, alone = Slot(serve={"new": "int4", "old": "int4"}), Slot(serve={"old": "int4"})
    pods = [_pod("a", "old", ready=False), _pod("b", "old"), _pod("c", "new")]
    first, second = deal([both, alone], pods)
    assert {pod.name for pod in first} == {"a", "c"}
    assert {pod.name for pod in second} == {"b"}


def test_a_pod_that_waits_for_room_sees_the_one_that_ends() -> None:
    slots = [Slot(serve={"old": "int4"}), Slot(serve={"new": "int4"})]
    pods = [_pod("a", "old"), _pod("b", "old", deleting=True), _pod("c", "new", ready=False, stuck=True)]
    first, second = deal(slots, pods)
    assert [pod.name for pod in first] == ["a"]
    assert {pod.name for pod in second} == {"b", "c"}


@given(SLOTS, st.lists(st.tuples(st.sampled_from(["old", "new"]), st.booleans()), max_size=12))
def test_every_pod_is_dealt_once_and_only_where_it_is_asked_for(
    slots: list[Slot], pods: list[tuple[str, bool]]
) -> None:
    views = [_pod(f"p{i}", revision, ready=ready) for i, (revision, ready) in enumerate(pods)]
    dealt = deal(slots, views)
    names = [pod.name for mine in dealt for pod in mine]
    assert len(names) == len(set(names))
    for slot, mine in zip(slots, dealt, strict=True):
        assert all(slot.serve.get(pod.revision) == pod.variant for pod in mine)
        assert len({pod.revision for pod in mine}) == len(mine)


def _spec(**placement: object) -> SLMDeploymentSpec:
    return SLMDeploymentSpec.model_validate(replica_spec(placement=placement))


def _node(name: str, site: str) -> NodeView:
    labels = {"slm": "yes"} | ({"site": site} if site else {})
    return NodeView(name=name, labels=labels, ready=True)


def test_sites_come_from_matching_nodes_and_the_others_are_left_out() -> None:
    nodes = [_node("n1", "a"), _node("n2", "b"), _node("n3", "a"), _node("n4", "")]
    layout = lay_out(
        _spec(replicaScope="PerSite", replicas=2),
        counts=[],
        nodes=nodes,
        pods=[],
        revisions={},
        order=ORDER,
        key="uid",
    )
    assert layout is not None and layout.left_out == ("n4",)
    assert {state.name for state in layout.states} == {
        "a/replica-0",
        "a/replica-1",
        "b/replica-0",
        "b/replica-1",
    }


def test_more_sites_than_status_can_hold_are_refused() -> None:
    nodes = [_node(f"n{i}", f"site-{i}") for i in range(MAX_SITES + 1)]
    spec = _spec(replicaScope="PerSite", replicas=1)
    assert find_site_problem(spec, nodes[:-1]) is None
    finding = find_site_problem(spec, nodes)
    assert finding is not None and "nodeSelector" in finding.message and str(MAX_SITES) in finding.message
    finding = find_site_problem(_spec(replicaScope="PerSite", replicas=1000), nodes[:3])
    assert finding is not None and "spec.placement.replicas" in finding.message
    assert find_site_problem(_spec(replicas=1000), nodes) is None
