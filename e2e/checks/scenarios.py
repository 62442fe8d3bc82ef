# SPDX-License-Identifier: Apache-2.0
"""tests/scenarios.toml names the tests that prove each hard scenario: every name must exist.

A renamed or deleted test fails here instead of quietly
leaving its scenario unproven.
"""

import ast
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from e2e.checks.check import Check, CheckError

ROOT: Final = Path(__file__).resolve().parents[2]
FILE: Final = ROOT / "tests" / "scenarios.toml"
LEVELS: Final = ("planner", "unit", "apiserver", "e2e")
_FOLDERS: Final = {
    "planner": "tests/unit/planning/",
    "unit": "tests/unit/",
    "apiserver": "tests/apiserver/",
    "e2e": "e2e/suite/",
}
REQUIRED: Final = frozenset({1, 2, 3, 10, 12, 15, 16, 18, 21})
"""Scenarios that must be proven now."""


def collect_tests(path: Path) -> frozenset[str]:
    """Names of the tests in a file, `Class::test` for those in a class."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            inner = (n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}::{n.name}" for n in inner if n.name.startswith("test")}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            found.add(node.name)
    return frozenset(found)


def find_problems(text: str, *, root: Path = ROOT, required: frozenset[int] = REQUIRED) -> list[str]:
    """What is wrong with the file's text; empty when every scenario's tests exist."""
    entries = tomllib.loads(text).get("scenario", [])
    problems: list[str] = []
    numbers: list[int] = [entry.get("number", 0) for entry in entries]
    problems += [f"scenario {n} occurs twice" for n in sorted({n for n in numbers if numbers.count(n) > 1})]
    problems += [f"scenario {n} is missing" for n in sorted(required - set(numbers))]
    for entry in entries:
        problems += _check_entry(entry, root)
    return problems


def _check_entry(entry: Mapping[str, Any], root: Path) -> list[str]:
    where = f"scenario {entry.get('number')}"
    if not entry.get("title"):
        return [f"{where}: no title"]
    level = entry.get("level")
    if level not in LEVELS:
        return [f"{where}: level {level!r} is none of {', '.join(LEVELS)}"]
    tests = entry.get("tests", [])
    if not tests:
        return [f"{where}: no tests"]
    problems = [f"{where}: {name} does not exist" for name in tests if not _exists(name, root)]
    if not any(str(name).startswith(_FOLDERS[level]) for name in tests):
        problems.append(f"{where}: level is {level}, but no test lies below {_FOLDERS[level]}")
    return problems


def _exists(identifier: str, root: Path) -> bool:
    file, _, name = identifier.partition("::")
    path = root / file
    return path.is_file() and name.partition("[")[0] in collect_tests(path)


def check_scenarios() -> str:
    """Raises CheckError with every problem."""
    text = FILE.read_text()
    problems = find_problems(text)
    if problems:
        raise CheckError("; ".join(f"{FILE.relative_to(ROOT)}: {problem}" for problem in problems))
    entries = tomllib.loads(text)["scenario"]
    return f"{len(entries)} scenarios, {sum(len(entry['tests']) for entry in entries)} tests"


CHECKS: Final = (Check(name="scenarios", run=check_scenarios),)
