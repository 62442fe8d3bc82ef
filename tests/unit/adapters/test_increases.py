# SPDX-License-Identifier: Apache-2.0
"""Counts since a moment over restarts, late looks and pods that come and go."""

import math
from array import array
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmops.adapters.exposition import BUCKETS_AT, Exposition, Layout
from slmops.adapters.increases import (
    MAX_GONE,
    MAX_MARKS,
    MAX_PINS,
    Increases,
    PodCounts,
    latest_start,
)

LAYOUT = Layout(latency=(1.0, math.inf))


def look(requests: float, errors: float = 0.0, *, process: float | None = None) -> Exposition:
    counters = array("d", (requests, errors, *(0.0,) * (BUCKETS_AT - 2), requests / 2, requests))
    return Exposition(layout=LAYOUT, counters=counters, process_started_at=process)


def requests(counts: PodCounts, since: float) -> float | None:
    grown = counts.increase(since)
    return None if grown is None else grown[0]


@dataclass
class Step:
    """What happens between two looks."""

    served: int
    restart: bool
    served_after: int


STEPS = st.lists(
    st.builds(Step, served=st.integers(0, 20), restart=st.booleans(), served_after=st.integers(0, 20)),
    min_size=1,
    max_size=40,
)


@settings(deadline=None)
@given(STEPS, st.integers(0, 100), st.booleans())
def test_resets_lose_only_what_no_look_saw(steps: list[Step], first: int, tells_start: bool) -> None:
    """Against a model that knows every request; `first` were served before the first look."""
    counter, process, seen, at = first, 1000.0, 0, 100.0
    counts = PodCounts(look(first, process=process if tells_start else None), at=at, began_at=0.0)
    previous = counts.increase(at)
    for step in steps:
        before = counter
        if step.restart:
            counter, process = step.served_after, process + 60
            # What a dead process served after the last look is lost; without its start time a new one
            # that is ahead of the old one passes for the old one.
            hidden = not tells_start and counter >= before
            seen += counter - before if hidden else counter
        else:
            counter += step.served
            seen += step.served
        at += 10
        counts.observe(look(counter, process=process if tells_start else None), at=at)
        grown = counts.increase(100.0)
        assert grown is not None and previous is not None
        assert grown[0] == seen
        assert all(new >= old >= 0 for new, old in zip(grown, previous, strict=True))
        previous = grown


@settings(deadline=None)
@given(STEPS, st.integers(1, 5))
def test_a_moving_window_never_counts_more_than_a_longer_one(steps: list[Step], width: int) -> None:
    counts = PodCounts(look(0), at=0.0, began_at=-50.0)
    total, at = 0, 0.0
    for step in steps:
        total, at = total + step.served, at + 10
        counts.observe(look(total), at=at)
        whole, part = requests(counts, -50.0), requests(counts, at - 10 * width)
        assert whole == total
        assert part is not None and 0 <= part <= whole
        assert len(counts._marks) <= MAX_MARKS and len(counts._pins) <= MAX_PINS


def test_first_look_after_the_beginning_is_the_baseline() -> None:
    counts = PodCounts(look(500), at=10.0, began_at=0.0)
    assert requests(counts, 5.0) == 0
    counts.observe(look(520), at=20.0)
    assert requests(counts, 5.0) == 20
    assert requests(counts, 15.0) == 0
    assert requests(counts, 21.0) is None, "no look since then"


def test_all_of_a_pod_that_began_later_counts() -> None:
    assert requests(PodCounts(look(500), at=10.0, began_at=6.0), 5.0) == 500
    assert requests(PodCounts(look(500), at=10.0, began_at=5.0), 5.0) == 500
    # One whose clock is ahead of ours did not begin after it answered.
    assert requests(PodCounts(look(500), at=10.0, began_at=99.0), 5.0) == 500


@pytest.mark.parametrize(
    ("process", "node_time", "began"),
    [
        (None, 1000.0, 50.0),
        (900.0, None, 50.0),
        (900.0, 1000.0, 100.0),  # 100 s old by a clock that is off by 800 s
        (100.0, 1000.0, 50.0),  # older than the pod: nonsense, the pod's age counts
        (1100.0, 1000.0, 50.0),  # not begun yet: nonsense
    ],
)
def test_when_counters_were_zero(process: float | None, node_time: float | None, began: float) -> None:
    found = latest_start(created_at=50.0, process_started_at=process, node_time=node_time, now=200.0)
    assert found == began


def _observe(increases: Increases, pod: str, count: float, at: float, variant: str = "a") -> None:
    increases.observe(pod, look(count, count / 10), variant=variant, at=at, began_at=0.0)


def test_pods_add_up_by_variant() -> None:
    increases = Increases()
    for pod, variant in (("p1", "a"), ("p2", "a"), ("p3", "b")):
        _observe(increases, pod, 10, 1.0, variant)
        _observe(increases, pod, 30, 2.0, variant)
    growth = increases.growth(1.0)
    assert {name: (g.requests, g.errors) for name, g in growth.items()} == {"a": (40, 4), "b": (20, 2)}
    assert growth["a"].latency == {1.0: 20, math.inf: 40}
    assert growth["a"].first_token == {}


def test_a_pod_that_is_gone_counts_until_the_window_has_passed_it() -> None:
    increases = Increases()
    for at in (1.0, 2.0):
        _observe(increases, "dead", 10 * at, at)
        _observe(increases, "alive", 10 * at, at)
    assert increases.growth(1.0)["a"].requests == 20
    increases.forget_gone(["alive"])
    _observe(increases, "alive", 25, 3.0)
    assert increases.growth(1.0)["a"].requests == 25, "an error stays an error"
    for step in range(MAX_PINS):
        assert increases.growth(2.5 + step / 100)["a"].requests == 0
    increases.forget_gone(["alive"])
    assert len(increases) == 1


def test_what_is_remembered_is_bounded() -> None:
    increases = Increases()
    increases.growth(0.0)
    for i in range(MAX_GONE * 3):
        _observe(increases, f"p{i}", 1, float(i + 1))
        increases.forget_gone([f"p{i}"])
        assert len(increases) <= MAX_GONE + 1
    assert len(increases._layouts) == 1


def test_another_layout_is_another_server() -> None:
    increases = Increases()
    _observe(increases, "p", 10, 1.0)
    counters = array("d", (50.0, *(0.0,) * (BUCKETS_AT - 1)))
    increases.observe("p", Exposition(layout=Layout(), counters=counters), variant="a", at=2.0, began_at=0.0)
    assert increases.growth(1.0)["a"].requests == 0
    _observe(increases, "q", 10, 2.0)
    _observe(increases, "q", 14, 3.0)
    # A histogram that one pod lacks is that of the others.
    assert increases.growth(1.0)["a"].latency == {1.0: 2, math.inf: 4}


def test_a_look_that_came_late_is_left_out() -> None:
    increases = Increases()
    _observe(increases, "p", 10, 1.0)
    _observe(increases, "p", 30, 3.0)
    _observe(increases, "p", 20, 2.0)
    assert increases.growth(1.0)["a"].requests == 20
