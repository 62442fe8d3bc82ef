# SPDX-License-Identifier: Apache-2.0
"""Which node belongs to which wave, and what selectors select."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.api.base import LabelSelector
from slmops.api.spec import Wave
from slmops.model.observed import NodeView
from slmops.planning.moves import limit_of
from slmops.planning.selectors import matches
from slmops.planning.waves import assign_waves

LAB = Wave(name="lab", node_selector=LabelSelector(match_labels={"site": "lab"}))
REST = Wave(name="rest", percent=100)

names = st.lists(st.text("abcdefgh0123456789", min_size=1, max_size=8), unique=True, max_size=60)
percentages = st.lists(st.integers(1, 99), unique=True, max_size=6).map(sorted)


def node(name: str, **labels: str) -> NodeView:
    return NodeView(name=name, labels=labels, ready=True)


def percent_waves(percents: list[int]) -> list[Wave]:
    return [*(Wave(name=f"w{p}", percent=p) for p in percents), REST]


@given(names, percentages)
def test_waves_reach_their_cumulative_percentages(names: list[str], percents: list[int]) -> None:
    waves = percent_waves(percents)
    found = assign_waves(waves, [node(name) for name in names], key="k")
    assert set(found) == set(names)
    for index, wave in enumerate(waves):
        assert wave.percent is not None
        reached = sum(1 for wave_index in found.values() if wave_index <= index)
        assert reached == math.ceil(len(names) * wave.percent / 100)


@given(names, percentages, st.randoms(use_true_random=False))
def test_waves_do_not_depend_on_the_order_of_nodes(
    names: list[str], percents: list[int], random: object
) -> None:
    waves = percent_waves(percents)
    nodes = [node(name) for name in names]
    shuffled = list(nodes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign_waves(waves, nodes, key="k") == assign_waves(waves, shuffled, key="k")


@given(names, percentages, st.text("xyz", min_size=1, max_size=6))
def test_one_more_node_moves_no_other_by_more_than_one_place(
    names: list[str], percents: list[int], added: str
) -> None:
    waves = percent_waves(percents)
    before = assign_waves(waves, [node(name) for name in names], key="k")
    after = assign_waves(waves, [node(name) for name in [*names, added]], key="k")
    # Each wave's end moves by at most one place, so at most one node crosses each of them.
    moved = [name for name in names if before[name] != after[name]]
    assert len(moved) <= len(waves) - 1
    assert all(abs(before[name] - after[name]) <= len(waves) for name in moved)


@given(names.filter(bool))
def test_key_decides_who_goes_first(names: list[str]) -> None:
    waves = [Wave(name="canary", percent=1), REST]
    first = {
        name
        for key in map(str, range(200))
        for name, index in assign_waves(waves, [node(name) for name in names], key=key).items()
        if index == 0
    }
    assert len(first) >= min(len(names), 2), "not the same node for every deployment"


def test_selector_waves_count_towards_the_percentages() -> None:
    nodes = [node(f"n{i}", site="lab" if i < 3 else "shop") for i in range(10)]
    waves = [LAB, Wave(name="half", percent=50), REST]
    found = list(assign_waves(waves, nodes, key="k").values())
    assert [found.count(index) for index in range(3)] == [3, 2, 5]


def test_a_node_belongs_to_the_first_selector_that_matches() -> None:
    second = Wave(name="all", node_selector=LabelSelector())
    found = assign_waves([LAB, second, REST], [node("a", site="lab"), node("b")], key="k")
    assert found == {"a": 0, "b": 1}


def test_percentages_that_the_selectors_have_passed_are_empty() -> None:
    nodes = [node(f"n{i}", site="lab" if i < 8 else "shop") for i in range(10)]
    found = list(assign_waves([LAB, Wave(name="half", percent=50), REST], nodes, key="k").values())
    assert [found.count(index) for index in range(3)] == [8, 0, 2]


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        ({}, {}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "1", "b": "2"}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "2"}, False),
        ({"matchLabels": {"a": "1"}}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, {"a": "2"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": []}]}, {"a": ""}, False),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {"a": "1"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"a": ""}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"b": ""}, False),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"b": ""}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"a": ""}, False),
        (
            {"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]},
            {"a": "1"},
            False,
        ),
    ],
)
def test_selectors(selector: dict[str, object], labels: dict[str, str], expected: bool) -> None:
    assert matches(LabelSelector.model_validate(selector), labels) is expected


@pytest.mark.parametrize(
    ("bound", "nodes", "limit"),
    [("10%", 3000, 300), ("10%", 5, 1), ("100%", 7, 7), (3, 10, 3), ("3", 10, 3), (0, 10, 1), ("25%", 10, 2)],
)
def test_max_unavailable(bound: str | int, nodes: int, limit: int) -> None:
    assert limit_of(bound, nodes) == limit
