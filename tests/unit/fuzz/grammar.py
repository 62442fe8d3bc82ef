# SPDX-License-Identifier: Apache-2.0
"""Bodies to throw at a reader: any JSON, what a schema allows, and valid bodies that were damaged."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from hypothesis import strategies as st

Body = dict[str, Any]
Path = tuple[str | int, ...]

ODD_TEXT: Final = (
    "", " ", "0", "-1", "1e400", "NaN", "9" * 32, "9" * 26 + "Ti", "99999999999h", "0.000001ms", "0s", "0Mi",
    "100%", "999999%", "a" * 64, "../..", "/", "//", "/etc", "/var/lib/slmops/../..", "http://[", "http://",
    "http://h:99999/x", "https://user:pw@169.254.169.254/x", "http://[::1%25x]/", "file:///", "\x00", "\n",
    "\u202e", "\U0001f600", "é" * 40, "{{ 1 }}", "$(id)", "%s", "*", "[", "up[", "Europe/Nowhere", "24:61",
    "sha256:" + "0" * 64, "true", "null", "~", "slmops.dev/x",
)  # fmt: skip
"""Strings that a reader may trip over. No lone surrogates: the API server stores none."""
ODD_NUMBER: Final = (0, 1, -1, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63))

text = st.one_of(st.sampled_from(ODD_TEXT), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
numbers = st.one_of(st.sampled_from(ODD_NUMBER), st.integers(-(2**63), 2**63 - 1))
scalars = st.one_of(st.none(), st.booleans(), numbers, st.floats(allow_nan=False, allow_infinity=False), text)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)
"""Any JSON value that the API server can hold."""


def instances(schema: Mapping[str, Any], *, depth: int = 0) -> st.SearchStrategy[Any]:
    """Values that a structural schema allows, most of them small; CEL rules are not looked at."""
    if "enum" in schema:
        return st.sampled_from(list(schema["enum"]))
    if schema.get("x-kubernetes-int-or-string"):
        return st.one_of(st.integers(0, 2**31 - 1), st.sampled_from(ODD_TEXT))
    match schema.get("type"):
        case "object":
            return _objects(schema, depth)
        case "array":
            low = schema.get("minItems", 0)
            high = max(low, min(schema.get("maxItems", 3), low + 2, 3 if depth < 5 else 1))
            return st.lists(instances(schema["items"], depth=depth + 1), min_size=low, max_size=high)
        case "string":
            return _strings(schema)
        case "integer":
            return _integers(schema)
        case "boolean":
            return st.booleans()
        case _:
            return values


def _objects(schema: Mapping[str, Any], depth: int) -> st.SearchStrategy[Any]:
    known: Mapping[str, Any] = schema.get("properties") or {}
    extra = schema.get("additionalProperties")
    if not known and isinstance(extra, Mapping):
        return st.dictionaries(text, instances(extra, depth=depth + 1), max_size=3)
    if not known:
        return st.dictionaries(text, values, max_size=2)
    needed = set(schema.get("required") or ())
    parts = {name: instances(entry, depth=depth + 1) for name, entry in known.items()}
    return st.fixed_dictionaries(
        {name: parts[name] for name in needed if name in parts},
        optional={name: part for name, part in parts.items() if name not in needed},
    )


def _strings(schema: Mapping[str, Any]) -> st.SearchStrategy[str]:
    low, high = schema.get("minLength", 0), schema.get("maxLength", 40)
    if "pattern" in schema:
        # A dollar in a class or behind a backslash stands for itself.
        drawn = st.from_regex(
            re.sub(r"(\[(?:\\.|[^]\\])*\]|\\.)|\$", lambda m: m[1] or r"\Z", schema["pattern"])
        )
        return drawn.filter(lambda found: low <= len(found) <= high)
    fitting = [odd for odd in ODD_TEXT if low <= len(odd) <= high]
    free = st.text(st.characters(exclude_categories=["Cs"]), min_size=low, max_size=min(high, max(low, 20)))
    return st.one_of(st.sampled_from(fitting), free) if fitting else free


def _integers(schema: Mapping[str, Any]) -> st.SearchStrategy[int]:
    wide = 2**31 - 1 if schema.get("format") == "int32" else 2**63 - 1
    low, high = schema.get("minimum", -wide), schema.get("maximum", wide)
    edges = [n for n in (low, high, 0, 1) if low <= n <= high]
    return st.one_of(st.sampled_from(edges), st.integers(low, high))


def paths_of(value: Any, path: Path = ()) -> Iterator[Path]:
    """Paths of everything inside."""
    entries: Iterator[tuple[str | int, Any]] = iter(())
    if isinstance(value, dict):
        entries = iter(value.items())
    elif isinstance(value, list):
        entries = iter(enumerate(value))
    for key, inner in entries:
        yield (*path, key)
        yield from paths_of(inner, (*path, key))


def get(body: Any, path: Path) -> Any:
    """What lies at a path."""
    for key in path:
        body = body[key]
    return body


@st.composite
def damaged(draw: st.DrawFn, bodies: Sequence[Body], *, most: int = 3) -> Body:
    """A valid body with up to `most` of: a part replaced, dropped, doubled, moved or taken from another."""
    body: Body = copy.deepcopy(draw(st.sampled_from(list(bodies))))
    for _ in range(draw(st.integers(1, most))):
        found = list(paths_of(body))
        if not found:
            return body
        path = draw(st.sampled_from(found))
        holder: Any = get(body, path[:-1])
        key: Any = path[-1]
        match draw(st.sampled_from(["odd", "any", "drop", "double", "swap", "grow"])):
            case "odd":
                holder[key] = draw(st.sampled_from([*ODD_TEXT, *ODD_NUMBER]))
            case "any":
                holder[key] = draw(values)
            case "drop":
                del holder[key]
            case "double" if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
            case "swap":
                other = draw(st.sampled_from(list(bodies)))
                donor = draw(st.sampled_from(list(paths_of(other))))
                holder[key] = copy.deepcopy(get(other, donor))
            case _:
                if isinstance(holder[key], list):
                    holder[key] = holder[key] * 20
                elif isinstance(holder, dict):
                    holder[draw(text)] = draw(values)
    return body
