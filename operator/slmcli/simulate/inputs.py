# SPDX-License-Identifier: Apache-2.0
"""Reads the SLMDeployment and the fleet from YAML; every error is one line with the place and the cure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from slmcli.simulate.settings import MAX_NODES, Effect, Group, InputError
from slmops.api import KIND, SLMDeploymentSpec
from slmops.api.base import quantity_value
from slmops.planning.names import Names

_NUMBERS: Final = {
    "linkMbps": "link_mbps",
    "offlinePercent": "offline_percent",
    "meanOutageMinutes": "mean_outage_minutes",
    "startSeconds": "start_seconds",
}
_GROUP_FIELDS: Final = ("name", "count", "labels", "sites", "memory", *_NUMBERS)


def read_deployment(path: Path) -> tuple[Names, SLMDeploymentSpec]:
    """The one SLMDeployment of a file of one or more documents."""
    found = [d for d in _documents(path) if isinstance(d, Mapping) and d.get("kind") == KIND]
    if len(found) != 1:
        count = "no object" if not found else f"{len(found)} objects"
        raise InputError(f"{path}: {count} of kind {KIND}; give a file that holds exactly one")
    body = found[0]
    metadata = body.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if not isinstance(name, str) or not name:
        raise InputError(f"{path}: metadata.name is missing; give the {KIND} a name")
    namespace = metadata.get("namespace") if isinstance(metadata, Mapping) else None
    try:
        spec = SLMDeploymentSpec.model_validate(body.get("spec") or {})
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}") from None
    if spec.model.from_ is not None:
        raise InputError(
            f"{path}: spec.model.from names an SLMModel, which nobody is asked for here; write its variants "
            "into spec.variants and the version into spec.model.version"
        )
    if not spec.variants:
        raise InputError(f"{path}: spec.variants: give at least 1")
    return Names(str(namespace or "default"), name), spec


def first_problem(error: ValidationError) -> str:
    """`spec.variants[0].source: message` of the first of the errors."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = "spec"
    for part in problem["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return f"{path}: {problem['msg']}"


def read_fleet(path: Path) -> tuple[Group, ...]:
    """Groups of nodes: `groups: [{name, count, labels, sites, memory, linkMbps, ...}]`."""
    documents = _documents(path)
    body = documents[0] if len(documents) == 1 else None
    rows = body.get("groups") if isinstance(body, Mapping) else None
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: must hold one document with `groups:`, a list of groups of nodes")
    groups = tuple(_group(f"{path}: groups[{index}]", row) for index, row in enumerate(rows))
    names = [group.name for group in groups]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: two groups are called {name!r}; give each a name of its own")
    if sum(group.count for group in groups) > MAX_NODES:
        raise InputError(f"{path}: more than {MAX_NODES} nodes; lower the counts")
    return groups


def parse_effects(texts: list[str]) -> Effect:
    """`error-rate=0.1`, `score=0.5`, `crash-percent=5`, `latency=1.5`, in any combination."""
    fields = {
        "error-rate": ("error_rate", 1.0),
        "score": ("score", 1.0),
        "crash-percent": ("crash_percent", 100.0),
        "latency": ("latency_factor", 100.0),
    }
    values: dict[str, float] = {}
    for text in ",".join(texts).split(",") if texts else []:
        key, _, value = text.partition("=")
        if key not in fields:
            raise InputError(f"--bad {text}: must be one of {', '.join(f'{name}=NUMBER' for name in fields)}")
        name, most = fields[key]
        values[name] = number(f"--bad {key}", value, least=0.01 if key == "latency" else 0.0, most=most)
    return Effect(**values)


def parse_sizes(text: str | None, variants: list[str]) -> dict[str, int]:
    """`2.5` for all variants, or `int4=0.7,fp16=2`; gigabytes to bytes."""
    sizes: dict[str, int] = {}
    for part in text.split(",") if text else []:
        name, equals, value = part.rpartition("=")
        if equals and name not in variants:
            raise InputError(
                f"--size-gb {part}: there is no variant {name!r}; there are {', '.join(variants)}"
            )
        sizes[name] = int(number("--size-gb", value, least=1e-6, most=1e6) * 1e9)
    return sizes


def number(where: str, value: Any, *, least: float, most: float) -> float:
    """A number within bounds."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: {value!r} is not a number") from None
    if not least <= result <= most:
        raise InputError(f"{where}: {value} must be from {least:g} to {most:g}")
    return result


def _group(where: str, row: Any) -> Group:
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: must be an object with name and count")
    for key in row:
        if key not in _GROUP_FIELDS:
            raise InputError(f"{where}.{key}: unknown; a group has {', '.join(_GROUP_FIELDS)}")
    name, labels = row.get("name"), row.get("labels", {})
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}.name: must be a text; it becomes part of the nodes' names")
    if not isinstance(labels, Mapping) or not all(
        isinstance(k, str) and isinstance(v, str) for k, v in labels.items()
    ):
        raise InputError(f"{where}.labels: must map texts to texts; put numbers and true into quotes")
    fields: dict[str, float] = {
        field: number(f"{where}.{key}", row[key], **_bounds(key))
        for key, field in _NUMBERS.items()
        if key in row
    }
    return Group(
        name=name,
        count=_whole(f"{where}.count", row.get("count"), least=1),
        labels=dict(labels),
        sites=_whole(f"{where}.sites", row.get("sites", 0), least=0),
        memory_bytes=_memory(f"{where}.memory", row.get("memory", "8Gi")),
        **fields,
    )


def _bounds(key: str) -> dict[str, float]:
    return {
        "linkMbps": {"least": 0.001, "most": 1e6},
        "offlinePercent": {"least": 0.0, "most": 100.0},
        "meanOutageMinutes": {"least": 0.1, "most": 1e6},
        "startSeconds": {"least": 0.1, "most": 1e5},
    }[key]


def _whole(where: str, value: Any, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_NODES:
        raise InputError(f"{where}: {value!r} is not a whole number from {least} to {MAX_NODES}")
    return value


def _memory(where: str, value: Any) -> int:
    try:
        return int(quantity_value(str(value)))
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def _documents(path: Path) -> list[Any]:
    try:
        return [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d is not None]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"{path}: is not YAML: {text}") from None
