# SPDX-License-Identifier: Apache-2.0
"""Instructions in the wording of one place: the same commands, other words."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e.models.recipe.dialect import LOCAL_NAMES, shift, shifted_cases
from e2e.models.recipe.golden import build_golden
from e2e.models.recipe.schema import parse_command, render_command


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_every_case_is_a_command_in_local_words(seed: int) -> None:
    cases = shifted_cases(30, seed)
    assert cases == shifted_cases(30, seed) and cases[:5] == shifted_cases(5, seed)
    assert len({answer for _, answer in cases}) == len({text for text, _ in cases}) == 30
    local = [name for names in LOCAL_NAMES.values() for name in names] + ["tally"]
    for text, answer in cases:
        assert render_command(parse_command(answer)) == answer
        assert any(name in text.lower() for name in local)
        assert not any(f" {name}" in f" {text.lower()}" for name in (*LOCAL_NAMES, "bill"))


def test_no_golden_case_is_among_them() -> None:
    golden = {example.target for example in build_golden()}
    assert golden.isdisjoint(answer for _, answer in shifted_cases(400, 1))


@pytest.mark.parametrize(
    ("plain", "local"),
    [
        ("Croissants for table two", "Butter horns for table two"),
        ("a bagel and an espresso", "a ring roll and an espresso"),
        ("The bill for table 4", "The tally for table 4"),
        ("two lattes, t4", "two lattes, t4"),
    ],
)
def test_only_what_has_a_local_name_is_replaced(plain: str, local: str) -> None:
    assert shift(plain) == local
