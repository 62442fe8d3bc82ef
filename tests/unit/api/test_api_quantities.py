# SPDX-License-Identifier: Apache-2.0
"""Durations and quantities of the API."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.api.base import duration_seconds, quantity_value


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("1m30s", 90),
        ("250ms", 0.25),
        ("1.5h", 5400),
        ("24h", 86400),
        ("0s", 0),
        ("1h1m1s1ms", 3661.001),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "-5s", "5d", "5s\n", "1e3s", "٥s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        duration_seconds(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("512Mi", 512 * 2**20), ("500m", 0.5), ("2", 2), ("1.5Gi", 1.5 * 2**30), ("1k", 1000), ("3T", 3e12)],
)
def test_quantities(text: str, value: float) -> None:
    assert quantity_value(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "Mi", "1 Gi", "-1", "1e3", "1KB", "0x10", "1Mi\n"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        quantity_value(text)


@given(st.integers(min_value=0, max_value=10**6), st.sampled_from(["s", "m", "h"]))
def test_a_duration_is_its_number_times_its_unit(number: int, unit: str) -> None:
    assert duration_seconds(f"{number}{unit}") == number * {"s": 1, "m": 60, "h": 3600}[unit]


@given(st.text(max_size=12))
def test_any_text_is_either_read_or_refused(text: str) -> None:
    for read in (duration_seconds, quantity_value):
        try:
            assert read(text) >= 0
        except ValueError as error:
            assert repr(text) in str(error)
