# SPDX-License-Identifier: Apache-2.0
"""The check of tests/scenarios.toml finds what it is there to find."""

from pathlib import Path

import pytest

from e2e.checks.scenarios import find_problems

GOOD = """
[[scenario]]
number = 1
title = "no data holds"
level = "planner"
tests = ["tests/unit/planning/test_x.py::test_one[case]", "tests/unit/planning/test_x.py::TestTwo::test_in"]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "tests" / "unit" / "planning"
    folder.mkdir(parents=True)
    (folder / "test_x.py").write_text(
        "def test_one(): pass\nclass TestTwo:\n    async def test_in(self): pass\ndef helper(): pass\n"
    )
    return tmp_path


def test_tests_that_exist_are_fine(root: Path) -> None:
    assert find_problems(GOOD, root=root, required=frozenset({1})) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("test_one[case]", "test_gone", "test_gone does not exist"),
        ("TestTwo::test_in", "TestTwo::test_out", "test_out does not exist"),
        ("test_one[case]", "helper", "helper does not exist"),
        ("test_x.py::test_one", "test_y.py::test_one", "does not exist"),
        ('"planner"', '"e2e"', "no test lies below e2e/suite/"),
        ('"planner"', '"hope"', "level 'hope'"),
        ("number = 1", "number = 2", "scenario 1 is missing"),
        ('title = "no data holds"', "", "no title"),
    ],
)
def test_what_does_not_exist_is_named(root: Path, old: str, new: str, said: str) -> None:
    problems = find_problems(GOOD.replace(old, new), root=root, required=frozenset({1}))
    assert any(said in problem for problem in problems), problems


def test_a_number_occurs_once(root: Path) -> None:
    problems = find_problems(GOOD + GOOD, root=root, required=frozenset({1}))
    assert problems == ["scenario 1 occurs twice"]
