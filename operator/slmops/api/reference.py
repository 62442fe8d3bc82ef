# SPDX-License-Identifier: Apache-2.0
"""The API reference in Markdown, built from the models: `python -m slmops.api.reference` prints it."""

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Final

from slmops.api import base, source
from slmops.api.base import ApiModel
from slmops.api.crd import default_of, describe, model_schema, models
from slmops.api.kinds import KINDS, Kind
from slmops.api.status import ConditionType

_PATTERN_NAMES: Final = {
    base.DURATION_PATTERN: "duration (`90s`, `1m30s`)",
    base.QUANTITY_PATTERN: "quantity (`512Mi`, `500m`)",
    base.DECIMAL_PATTERN: 'decimal (`"0.02"`)',
    base.DECIMAL_OR_PERCENT_PATTERN: 'decimal or percentage (`"0.02"`, `"10%"`)',
    base.NAME_PATTERN: "DNS label",
    base.SHA256_PATTERN: "64 hex digits",
    source.FILE_PATH_PATTERN: "relative path",
}
_HEAD: Final = """<!-- Generated from operator/slmops/api by `make generate`; do not edit. -->
# API reference
"""


def render_reference() -> str:
    """The whole page."""
    shown: set[type[ApiModel]] = set()
    return "\n".join([_HEAD, *(part for kind in KINDS for part in _kind(kind, shown))])


def _kind(kind: Kind, shown: set[type[ApiModel]]) -> Iterator[str]:
    """One kind; models that an earlier kind has shown are only referred to."""
    yield f"## {kind.kind}\n\n{kind.introduction}"
    if kind.conditions is not None:
        yield "### Conditions\n"
        yield _conditions(kind.conditions)
    for title, root in (("Spec", kind.spec), ("Status", kind.status)):
        if root is None:
            continue
        yield f"### {title}\n"
        for model in _reached(root):
            if model not in shown:
                shown.add(model)
                yield _section(model, with_defaults=title == "Spec")


def condition_texts(conditions: type[StrEnum] = ConditionType) -> Iterator[tuple[str, str]]:
    """(type, meaning with reasons) of each condition: the strings below the enum's members."""
    body = ast.parse(inspect.getsource(conditions)).body[0]
    assert isinstance(body, ast.ClassDef)
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.Assign)
            and isinstance(statement.value, ast.Constant)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            yield str(statement.value.value), " ".join(str(following.value.value).split())


def _conditions(conditions: type[StrEnum]) -> str:
    rows = ["True is the good state of each.\n", "| type | meaning | reasons |", "|---|---|---|"]
    for kind, text in condition_texts(conditions):
        meaning, _, reasons = text.partition(" Reasons: ")
        rows.append(f"| `{kind}` | {meaning} | {reasons.rstrip('.')} |")
    rows.append("\nWhat each reason means and what to do: [troubleshooting](troubleshooting.md).\n")
    return "\n".join(rows)


def _reached(root: type[ApiModel]) -> list[type[ApiModel]]:
    """`root` and every model below it, in the order in which a reader meets them."""
    known, found, waiting = models(), [], [root]
    while waiting:
        model = waiting.pop(0)
        if model in found:
            continue
        found.append(model)
        text = json.dumps(model.model_json_schema(by_alias=True)["properties"])
        inner = [known[name] for name in re.findall(r"#/\$defs/(\w+)", text)]
        waiting = inner + waiting
    return found


def _section(model: type[ApiModel], *, with_defaults: bool) -> str:
    raw = model.model_json_schema(by_alias=True)
    rows = [f"#### {model.__name__}\n", describe(model) + "\n"]
    rows += ["| field | type | default | meaning |", "|---|---|---|---|"] if with_defaults else []
    rows += [] if with_defaults else ["| field | type | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        alias = field.alias or name
        cells = [f"`{alias}`", _type(raw["properties"][alias])]
        if with_defaults:
            schema = model_schema(model, with_defaults=True)["properties"][alias]
            default = default_of(field, schema)
            cells.append("required" if field.is_required() else _default(default))
        cells.append((field.description or "") + _bounds(raw["properties"][alias]))
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    rules = [rule["message"] for rule in _rules(raw)]
    if rules:
        rows += ["", "Rules:", "", *(f"- {message}" for message in rules)]
    return "\n".join(rows) + "\n"


def _rules(raw: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """CEL rules of the model itself, then of its fields."""
    yield from raw.get("x-kubernetes-validations", [])
    for name, node in raw["properties"].items():
        for rule in node.get("x-kubernetes-validations", []):
            yield {"message": f"`{name}`: {rule['message']}"}


def _type(node: Mapping[str, Any]) -> str:
    if "$ref" in node:
        name = str(node["$ref"]).rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in node:
        return " or ".join(_type(branch) for branch in node["anyOf"] if branch.get("type") != "null")
    if "enum" in node:
        return " or ".join(f"`{value}`" for value in node["enum"])
    if node.get("type") == "array":
        return f"list of {_type(node['items'])}"
    if isinstance(node.get("additionalProperties"), Mapping):
        return f"map to {_type(node['additionalProperties'])}"
    return _PATTERN_NAMES.get(node.get("pattern", ""), str(node.get("type", "object")))


def _bounds(node: Mapping[str, Any]) -> str:
    branch = next((b for b in node.get("anyOf", []) if b.get("type") != "null"), node)
    low, high = branch.get("minimum"), branch.get("maximum")
    if low is not None and high is not None:
        return f" ({low} to {high})"
    if low is not None:
        return f" (at least {low})"
    return ""


def _default(value: Any) -> str:
    if value is None:
        return ""
    return "its defaults" if value == {} else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    sys.stdout.write(render_reference())
