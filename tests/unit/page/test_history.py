# SPDX-License-Identifier: Apache-2.0
"""What is remembered of a rollout stays bounded, in order, and about that rollout."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.api import SLMDeploymentStatus
from slmops.page.history import MAX_POINTS, MAX_SERIES, History, Point, read_number, thin
from tests.unit.page.kit import at, measurement, rolling_status


def status(*measurements: object, **rollout: object) -> SLMDeploymentStatus:
    return SLMDeploymentStatus.model_validate(rolling_status(measurements=list(measurements), **rollout))


def test_each_measurement_is_taken_in_once() -> None:
    history = History()
    first, second = measurement("errors", 20, "0.01", "0.02"), measurement("errors", 50, "0.03", None)
    history.take_in(status(first))
    history.take_in(status(first, second))
    history.take_in(status(second))
    (points,) = history.series.values()
    assert [(point.canary, point.stable) for point in points] == [(0.01, 0.02), (0.03, None)]


def test_a_new_rollout_begins_anew() -> None:
    history = History()
    history.take_in(status(measurement("errors", 20, "0.01", "0.02")))
    history.take_in(status(measurement("quality", 90, "0.9", "0.9"), revision="three"))
    assert [metric for metric, _ in history.series] == ["quality"]
    history.take_in(SLMDeploymentStatus())
    assert [metric for metric, _ in history.series] == ["quality"], "the last rollout stays to be looked at"


def test_a_time_that_is_none_is_left_out() -> None:
    history = History()
    history.take_in(status(measurement("errors", 20, "0.01", "0.02") | {"at": "yesterday"}))
    assert history.series == {}


def test_the_number_of_series_is_bounded() -> None:
    history = History()
    for number in range(3 * MAX_SERIES):
        history.take_in(status(measurement(f"m{number}", 20, "1", "1")))
    assert len(history.series) == MAX_SERIES


@pytest.mark.parametrize("count", [1, MAX_POINTS, MAX_POINTS + 1, 5 * MAX_POINTS])
def test_a_long_rollout_is_remembered_from_its_start_with_a_bounded_number_of_points(count: int) -> None:
    history = History()
    seen = status(measurement("errors", 0, "0.01", None))
    assert seen.rollout is not None
    (one,) = seen.rollout.measurements
    for number in range(count):
        taken = one.model_copy(update={"at": at(number)})
        rollout = seen.rollout.model_copy(update={"measurements": [taken]})
        history.take_in(seen.model_copy(update={"rollout": rollout}))
    (points,) = history.series.values()
    times = [point.at for point in points]
    assert len(points) <= MAX_POINTS
    assert times == sorted(set(times))
    assert times[-1] - times[0] == count - 1


@given(st.lists(st.floats(0, 1e6), max_size=400), st.integers(2, 50))
def test_thinning_keeps_the_newest(values: list[float], limit: int) -> None:
    points = [Point(value, None, None, "") for value in values]
    kept = thin(points, limit)
    assert len(kept) == len(points) if len(points) <= limit else len(kept) <= limit
    assert kept[-1:] == points[-1:]
    assert kept[:1] == points[:1]


@given(st.text())
def test_no_text_makes_a_number_that_json_has_not(text: str) -> None:
    value = read_number(text)
    assert value is None or abs(value) < float("inf")


def test_what_is_no_number_is_none() -> None:
    assert [read_number(text) for text in (None, "", "NaN", "inf", "no data")] == [None] * 5
