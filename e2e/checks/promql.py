# SPDX-License-Identifier: Apache-2.0
"""PromQL against what is exported: a misspelled series or label answers with nothing, and no error."""

from collections.abc import Mapping
from typing import Final

import promql_parser

from e2e.checks.exported import LABEL_VALUES

_OWN: Final = frozenset({"__name__"})


def find_problems(text: str, known: Mapping[str, frozenset[str]]) -> list[str]:
    """What is wrong with a query; `known` has the labels of every series that there is."""
    try:
        expression = promql_parser.parse(text)
    except ValueError as error:
        return [f"{text!r} cannot be parsed: {error}"]
    problems: list[str] = []
    _labels(expression, known, problems)
    return problems


def result_labels(text: str, known: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Labels that a query's result can have; raises ValueError when it cannot be parsed."""
    return _labels(promql_parser.parse(text), known, [])


def _labels(
    node: promql_parser.Expr, known: Mapping[str, frozenset[str]], problems: list[str]
) -> frozenset[str]:
    """Labels of the node's result; what it asks for in vain is added to `problems`."""
    match node:
        case promql_parser.VectorSelector():
            return _selector(node, known, problems)
        case promql_parser.MatrixSelector():
            return _selector(node.vector_selector, known, problems)
        case promql_parser.SubqueryExpr() | promql_parser.ParenExpr() | promql_parser.UnaryExpr():
            return _labels(node.expr, known, problems)
        case promql_parser.AggregateExpr():
            inner = _labels(node.expr, known, problems)
            return _aggregated(node, inner, problems)
        case promql_parser.BinaryExpr():
            return _binary(node, known, problems)
        case promql_parser.Call():
            return _call(node, known, problems)
        case _:
            return frozenset()


def _selector(
    node: promql_parser.VectorSelector, known: Mapping[str, frozenset[str]], problems: list[str]
) -> frozenset[str]:
    name = node.name or ""
    if name not in known:
        problems.append(f"no process exports {name or repr(str(node))}")
        return frozenset().union(*known.values())  # one problem is enough
    for matcher in node.matchers.matchers:
        if matcher.name not in known[name] | _OWN:
            problems.append(f"{name} has no label {matcher.name}")
        values = LABEL_VALUES.get((name, matcher.name))
        if values is not None and not matcher.value.startswith((".", "$")):
            wrong = sorted(set(matcher.value.split("|")) - values)
            problems += [f"{name}: {matcher.name} is never {value!r}" for value in wrong]
    return known[name]


def _aggregated(
    node: promql_parser.AggregateExpr, inner: frozenset[str], problems: list[str]
) -> frozenset[str]:
    modifier = node.modifier
    if modifier is None:
        return frozenset()
    named = frozenset(modifier.labels)
    problems += [f"{node.op} names {label}, which is not there: {node}" for label in sorted(named - inner)]
    return named if modifier.type == promql_parser.AggModifierType.By else inner - named


def _binary(
    node: promql_parser.BinaryExpr, known: Mapping[str, frozenset[str]], problems: list[str]
) -> frozenset[str]:
    left, right = (_labels(side, known, problems) for side in (node.lhs, node.rhs))
    operator = str(node.op).strip()
    modifier = node.modifier
    matching = modifier.matching if modifier else None
    if modifier is None or matching is None:
        return left | right if operator == "or" else left or right
    named = frozenset(matching.labels)
    problems += [
        f"{label} is not on both sides of {operator}: {node}" for label in sorted(named - (left & right))
    ]
    if modifier.card == promql_parser.VectorMatchCardinality.OneToOne:
        return named if matching.type == promql_parser.LabelModifierType.Include else left - named
    return left | frozenset(modifier.group_labels or ())


def _call(
    node: promql_parser.Call, known: Mapping[str, frozenset[str]], problems: list[str]
) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    for argument in node.args:
        found |= _labels(argument, known, problems)
    match node.func.name:
        case "label_replace":
            target, source = (node.args[index].val for index in (1, 3))
            if source not in found:
                problems.append(f"label_replace reads {source}, which is not there: {node}")
            return found | {target}
        case "histogram_quantile":
            if "le" not in found:
                problems.append(f"histogram_quantile without le: {node}")
            return found - {"le"}
        case "absent":
            return frozenset()
        case _:
            return found
