# SPDX-License-Identifier: Apache-2.0
"""The reference names every field, and every reason that the planner puts into a condition."""

import ast
from pathlib import Path

import slmops.planning
from slmops.api.crd import models
from slmops.api.kinds import KINDS
from slmops.api.reference import condition_texts, render_reference

_PLANNING = Path(slmops.planning.__path__[0])
# What these build becomes a condition: Says directly, Hold in Progressing, Finding in Accepted.
_BUILDERS = {"Says", "Hold", "Finding"}


def reasons_in_code() -> set[str]:
    """Literal `reason=` of every condition that the planner builds."""
    found: set[str] = set()
    for path in _PLANNING.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _BUILDERS:
                found |= {
                    keyword.value.value
                    for keyword in node.keywords
                    if keyword.arg == "reason"
                    and isinstance(keyword.value, ast.Constant)
                    and isinstance(keyword.value.value, str)
                }
    return found


def test_every_condition_has_a_meaning_and_reasons() -> None:
    for kind in KINDS:
        if kind.conditions is not None:
            texts = dict(condition_texts(kind.conditions))
            assert set(texts) == {member.value for member in kind.conditions}
            assert all("Reasons: " in text for text in texts.values())


def test_every_reason_of_the_planner_is_documented() -> None:
    reasons = reasons_in_code()
    assert {"Accepted", "InvalidSpec", "QuorumMissing", "AllNodesReady"} <= reasons
    text = " ".join(text for kind in KINDS if kind.conditions for _, text in condition_texts(kind.conditions))
    assert {reason for reason in reasons if reason not in text} == set()


def test_every_field_of_every_model_is_there() -> None:
    page = render_reference()
    for model in models().values():
        assert f"#### {model.__name__}\n" in page
        for name, field in model.model_fields.items():
            assert f"| `{field.alias or name}` |" in page


def test_links_lead_to_sections() -> None:
    page = render_reference()
    headings = {line.lstrip("#").strip().lower() for line in page.splitlines() if line.startswith("#### ")}
    targets = {part.partition(")")[0] for part in page.split("](#")[1:]}
    assert targets and targets <= headings
