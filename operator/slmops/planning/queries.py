# SPDX-License-Identifier: Apache-2.0
"""The user's PromQL: its variables, and what is wrong with it.

`$selector` stands for the label matchers of the side that is asked about, `$canary` and `$stable` for
those of the new and of the stable revision: all three go inside braces, `foo{$selector,code="500"}`.
`$window` is a duration such as `300s`. Any other `$word` is an error; `$1` of label_replace is left alone.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import promql_parser

from slmwire import metrics

VARIABLES: Final = ("selector", "canary", "stable", "window")
_VARIABLE: Final = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_MESSAGE_LENGTH: Final = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Which pods the variables stand for."""

    namespace: str
    deployment: str
    canary: str
    """The new revision."""
    stable: str
    """The stable revision."""


def build_promql(text: str, sides: Sides, *, revision: str, window_seconds: float) -> str:
    """The query as it is sent; `revision` is the side that is asked about.

    Unknown variables stay as they are: `find_query_problem` refuses them beforehand.
    """
    values = {
        "selector": build_matchers(sides, revision),
        "canary": build_matchers(sides, sides.canary),
        "stable": build_matchers(sides, sides.stable),
        "window": f"{max(1, math.ceil(window_seconds))}s",
    }
    return _replace(text, values)


def build_matchers(sides: Sides, revision: str) -> str:
    """Label matchers of the pods of one revision, without braces."""
    labels = {
        metrics.LABEL_NAMESPACE: sides.namespace,
        metrics.LABEL_DEPLOYMENT: sides.deployment,
        metrics.LABEL_REVISION: revision,
    }
    return ",".join(f"{name}={quote(value)}" for name, value in labels.items())


def find_query_problem(text: str) -> str:
    """What is wrong with a query and how to mend it; empty when nothing is."""
    used = set(_VARIABLE.findall(text))
    unknown = sorted(used - set(VARIABLES))
    if unknown:
        return f"${unknown[0]} is no variable; there are {', '.join(f'${name}' for name in VARIABLES)}"
    if not used & {"selector", "canary"}:
        return (
            "it selects none of this deployment's new pods and would judge others'; put $selector (or "
            "$canary) into the braces of its series, as in up{$selector}"
        )
    sides = Sides(namespace="namespace", deployment="name", canary="canary", stable="stable")
    try:
        parsed = promql_parser.parse(build_promql(text, sides, revision="canary", window_seconds=300.0))
    except ValueError as error:
        return f"does not parse as PromQL: {_shorten(str(error))}"
    kind = _kind_of(parsed)
    return _KIND_CURES.get(kind, "")


_KIND_CURES: Final = {
    "string": "gives a string; a query must give one number",
    "matrix": "gives a range of values; take one of it, as rate(...[$window]) or sum(...) do",
    "scalar": "gives a scalar; wrap it into vector(...)",
}


def _kind_of(expression: object) -> str:
    """string, scalar, matrix or vector, as far as the form of the expression tells."""
    match expression:
        case promql_parser.StringLiteral():
            return "string"
        case promql_parser.NumberLiteral():
            return "scalar"
        case promql_parser.MatrixSelector() | promql_parser.SubqueryExpr():
            return "matrix"
        case promql_parser.ParenExpr() | promql_parser.UnaryExpr():
            return _kind_of(expression.expr)
        case promql_parser.BinaryExpr():
            both = {_kind_of(expression.lhs), _kind_of(expression.rhs)}
            return "scalar" if both == {"scalar"} else "vector"
        case promql_parser.Call():
            return str(expression.func.return_type).rpartition(".")[2].lower()
    return "vector"


def _replace(text: str, values: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda found: values.get(found[1], found[0]), text)


def _shorten(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= _MESSAGE_LENGTH else line[: _MESSAGE_LENGTH - 3] + "..."


def quote(text: str) -> str:
    """A PromQL string literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
