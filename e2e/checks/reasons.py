# SPDX-License-Identifier: Apache-2.0
"""docs/troubleshooting.md explains each reason of conditions, nodes and Events, and no other."""

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from e2e.checks.check import Check, CheckError
from e2e.rig.paths import CHECKOUT

PAGE: Final = CHECKOUT / "docs" / "troubleshooting.md"
_FOLDERS: Final = ("operator/slmops", "operator/slmwire")
_WORD: Final = re.compile(r"[A-Z][A-Za-z]+")
OF_KUBERNETES: Final = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError", "CrashLoopBackOff",
     "OOMKilled", "Unschedulable", "Evicted"}
)  # fmt: skip
"""Of kubelets and the scheduler: handed on as they come."""
ANSWERS: Final = frozenset(
    f"{name.capitalize()}{outcome}"
    for name in ("promote", "skip", "abort", "undo", "retry")
    for outcome in ("Refused", "Done")
)
"""Events about requests by annotation."""
NO_REASONS: Final = frozenset({"Event", "Events"})
"""Words of the first column that say where a reason is seen."""
NOT_SEEN: Final = frozenset({"ForeignObject"})
"""Reasons of errors within; users see WriteFailed."""


def find_used(trees: Iterable[ast.AST]) -> frozenset[str]:
    """What is given as `reason=`, whole or by a choice between texts."""
    found: set[str] = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "reason":
                found |= {word for word in _texts(node.value) if _WORD.fullmatch(word)}
    return frozenset(found)


def _texts(tree: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def find_explained(text: str) -> frozenset[str]:
    """The first column of all tables."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    return frozenset(word for row in rows for word in _WORD.findall(row)) - NO_REASONS


def find_problems(text: str, *, used: frozenset[str], said: frozenset[str]) -> list[str]:
    """`said` holds all texts of the code: a reason may be made of a step or of a class before it is used."""
    explained = find_explained(text)
    missing = sorted(used - explained - NOT_SEEN)
    stale = sorted(explained - used - said - OF_KUBERNETES)
    return [
        *(f"{word} is not explained: give it a line with cause and cure" for word in missing),
        *(f"{word} is explained, and nothing says it: take it out" for word in stale),
    ]


def _sources() -> list[Path]:
    return [path for folder in _FOLDERS for path in sorted((CHECKOUT / folder).rglob("*.py"))]


def check_reasons() -> str:
    """Raises CheckError with every problem."""
    trees = [ast.parse(path.read_text()) for path in _sources()]
    said = frozenset(word for tree in trees for word in _texts(tree) if _WORD.fullmatch(word))
    problems = find_problems(PAGE.read_text(), used=find_used(trees) | ANSWERS, said=said)
    if problems:
        raise CheckError(f"{PAGE.relative_to(CHECKOUT)}: {'; '.join(problems)}")
    return f"{len(find_used(trees))} reasons are explained"


CHECKS: Final = (Check(name="reasons", run=check_reasons),)
