# SPDX-License-Identifier: Apache-2.0
"""The CustomResourceDefinitions, built from the pydantic models.

`python -m slmops.api.crd` prints them, `--write` puts them into crds/, `--check` fails when a file differs.
The schema is structural: no references, no null, bounds on everything that CEL looks at. Defaults of
spec are in the schema, so that what is stored shows what is in force; an empty list or map is left out.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic.fields import FieldInfo

from slmops.api import GROUP, VERSION
from slmops.api.base import ApiModel
from slmops.api.kinds import KINDS, SLM_DEPLOYMENT, Kind

HEADER: Final = (
    "# SPDX-License-Identifier: Apache-2.0\n"
    "# Generated from operator/slmops/api by `make generate`; do not edit.\n"
)

_KEPT: Final = (
    "type",
    "format",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
)


def build_crd(kind: Kind = SLM_DEPLOYMENT) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": kind.scope,
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": [kind.short_name],
                "categories": ["slmops"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": ({"status": {}} if kind.status else {}) | dict(kind.subresources),
                    "additionalPrinterColumns": [dict(column) for column in kind.columns],
                    "schema": {"openAPIV3Schema": build_schema(kind)},
                }
            ],
        },
    }


def build_schema(kind: Kind = SLM_DEPLOYMENT) -> dict[str, Any]:
    """Structural OpenAPI v3 schema of the whole object."""
    status = {"status": _without_rules(model_schema(kind.status, with_defaults=False))} if kind.status else {}
    result: dict[str, Any] = {
        "type": "object",
        "description": describe(kind.spec),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": model_schema(kind.spec, with_defaults=True),
            **status,
        },
    }
    if kind.rules:
        result["x-kubernetes-validations"] = [dict(rule) for rule in kind.rules]
    return result


def _without_rules(node: Any) -> Any:
    """The schema without CEL: nobody but the operator writes status, and rules in lists of lists cost more
    than the API server allows."""
    if isinstance(node, dict):
        return {
            key: _without_rules(value) for key, value in node.items() if key != "x-kubernetes-validations"
        }
    return [_without_rules(value) for value in node] if isinstance(node, list) else node


def model_schema(model: type[ApiModel], *, with_defaults: bool) -> dict[str, Any]:
    """Schema of one model, everything it refers to spelled out in place.

    `with_defaults` is for spec: a default in status would claim what the operator never found out.
    """
    raw = model.model_json_schema(by_alias=True)
    properties: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        alias = field.alias or name
        schema = _node(raw["properties"][alias], with_defaults=with_defaults)
        if field.description:
            schema = {"type": schema.pop("type", None), "description": field.description} | schema
        if with_defaults and (default := default_of(field, schema)) is not None:
            schema["default"] = default
        properties[alias] = {key: value for key, value in schema.items() if value is not None}
    result: dict[str, Any] = {"type": "object", "description": describe(model)}
    if raw.get("required"):
        result["required"] = list(raw["required"])
    return result | {"properties": properties} | _extensions(raw)


def describe(model: type[ApiModel]) -> str:
    """The model's docstring, lines joined, paragraphs kept."""
    paragraphs = re.split(r"\n\s*\n", (model.__doc__ or "").strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def default_of(field: FieldInfo, schema: Mapping[str, Any]) -> Any:
    """JSON default of a field, or None when it has none or the default says nothing.

    A default that is a model is given by the fields it was built with: the API server fills in the
    rest from the defaults further down.
    """
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True, validated_data={})
    body = _plain(value)
    if body == {} and not _materialises(schema):
        return None
    return None if body == [] else body


def _plain(value: Any) -> Any:
    if isinstance(value, ApiModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value


def _materialises(schema: Mapping[str, Any]) -> bool:
    return any("default" in inner for inner in schema.get("properties", {}).values())


def models() -> dict[str, type[ApiModel]]:
    """Every model of the API by its class name, which is its name in pydantic's `$defs`."""
    found: dict[str, type[ApiModel]] = {}
    waiting = list(ApiModel.__subclasses__())
    while waiting:
        model = waiting.pop()
        waiting.extend(model.__subclasses__())
        # Others may build on a model of the API.
        ours = model.__module__.startswith(f"{__package__}.")
        if ours and found.setdefault(model.__name__, model) is not model:
            raise TypeError(f"two models of the API are called {model.__name__}; rename one of them")
    return found


def _node(raw: Mapping[str, Any], *, with_defaults: bool) -> dict[str, Any]:
    """One schema that pydantic made, in structural form."""
    if "$ref" in raw:
        name = str(raw["$ref"]).rpartition("/")[2]
        return model_schema(models()[name], with_defaults=with_defaults)
    if "anyOf" in raw:
        return _union(raw, with_defaults=with_defaults)
    result = {key: raw[key] for key in _KEPT if key in raw}
    if "const" in raw:  # a Literal of one value
        result["enum"] = [raw["const"]]
    if raw.get("type") == "integer":
        result["format"] = "int64"
    if raw.get("type") == "array":
        result["items"] = _with_keys(_node(raw["items"], with_defaults=with_defaults), raw)
    if isinstance(raw.get("additionalProperties"), Mapping):
        result["additionalProperties"] = _node(raw["additionalProperties"], with_defaults=with_defaults)
    return result | _extensions(raw)


def _with_keys(items: dict[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a list-map in which no key is ever absent, as the API server demands.

    A key that the model has a default for came later than the list: the API server puts the default into
    what an older operator has stored, which would be refused at every change of the object if it were
    required.
    """
    missing = [
        key for key in raw.get("x-kubernetes-list-map-keys", ()) if key not in items.get("required", ())
    ]
    if not missing:
        return items
    model = models()[str(raw["items"]["$ref"]).rpartition("/")[2]]
    properties = dict(items["properties"])
    for name, field in model.model_fields.items():
        alias = field.alias or name
        if alias in missing:
            properties[alias] |= {"default": field.get_default(call_default_factory=True, validated_data={})}
    return items | {"properties": properties}


def _union(raw: Mapping[str, Any], *, with_defaults: bool) -> dict[str, Any]:
    """An optional value (absent instead of null), or a number or text; nothing else is structural."""
    branches = [branch for branch in raw["anyOf"] if branch.get("type") != "null"]
    if len(branches) == 1:
        return _node(branches[0], with_defaults=with_defaults) | _extensions(raw)
    if raw.get("x-kubernetes-int-or-string") and {b["type"] for b in branches} == {"integer", "string"}:
        text = next(branch for branch in branches if branch["type"] == "string")
        number = next(branch for branch in branches if branch["type"] == "integer")
        bounds = {key: text[key] for key in ("pattern", "maxLength") if key in text}
        bounds |= {key: number[key] for key in ("minimum", "maximum") if key in number}
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]} | bounds | _extensions(raw)
    raise TypeError(f"no structural schema for a union of {branches}")


def _extensions(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key.startswith("x-kubernetes-")}


class _Dumper(yaml.SafeDumper):
    """No aliases: the API server takes them, people do not."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def render_crd(kind: Kind = SLM_DEPLOYMENT) -> str:
    """The CRD as YAML, the same text on every run."""
    return HEADER + yaml.dump(build_crd(kind), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


def main(arguments: list[str] | None = None) -> int:
    """Print, write or check the CRD files."""
    parser = argparse.ArgumentParser(
        prog="python -m slmops.api.crd", description=(__doc__ or "").splitlines()[0]
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--write", action="store_true", help="write the files")
    mode.add_argument("--check", action="store_true", help="fail when a file differs")
    parser.add_argument("--directory", type=Path, default=Path("crds"), help="folder of the files (crds)")
    options = parser.parse_args(arguments)
    code = 0
    for kind in KINDS:
        path: Path = options.directory / kind.file_name
        if options.write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(render_crd(kind))
        elif not options.check:
            sys.stdout.write(("---\n" if kind is not KINDS[0] else "") + render_crd(kind))
        elif not path.is_file() or path.read_text() != render_crd(kind):
            sys.stderr.write(f"{path} is not what the models say; run `make generate`\n")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
