# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows is true: manifests are taken, commands parse, links and tests exist."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from jsonschema import Draft202012Validator

from e2e.checks.check import Check, CheckError
from e2e.checks.scenarios import collect_tests
from e2e.rig.paths import CHECKOUT
from slmcli.__main__ import build_parser
from slmops.api import GROUP
from slmops.api.crd import build_crd
from slmops.api.kinds import KINDS

PAGES: Final = tuple(
    sorted([*CHECKOUT.glob("docs/*.md"), *CHECKOUT.glob("*.md"), *CHECKOUT.glob("charts/*/README.md"),
            *CHECKOUT.glob("e2e/**/README.md")])
)  # fmt: skip
_YAML: Final = re.compile(r"^```yaml\n(.*?)^```", re.DOTALL | re.MULTILINE)
_FENCE: Final = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE: Final = re.compile(r"`(kubectl slm [^`]+)`")
_LINK: Final = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
_TEST: Final = re.compile(r"`((?:tests|e2e)/[\w/]+\.py)::(\w+)`")
_CUT: Final = re.compile(r"\s(?:#|\||>|&&|;).*")
SHORT: Final = ("the following arguments are required", "give the NAME")
"""In running text a command may be named without its arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where something stands."""

    page: Path
    line: int

    def __str__(self) -> str:
        page = self.page
        return f"{page.relative_to(CHECKOUT) if page.is_relative_to(CHECKOUT) else page.name}:{self.line}"


def find_all(pattern: re.Pattern[str], page: Path) -> Iterator[tuple[Place, re.Match[str]]]:
    """All places of a pattern in a page."""
    text = page.read_text()
    for match in pattern.finditer(text):
        yield Place(page=page, line=text.count("\n", 0, match.start()) + 1), match


# Manifests


@cache
def strict_schema(kind: str) -> Any:
    """Schema of a kind of ours in which unknown fields are refused, as `kubectl apply` does."""
    [found] = [entry for entry in KINDS if entry.kind == kind]
    schema = build_crd(found)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    strict: dict[str, Any] = _closed(schema)
    # Of metadata the schema says nothing; the API server knows it.
    strict["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return strict | {"required": ["apiVersion", "kind", "metadata", "spec"]}


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(entry) for entry in schema]
    if not isinstance(schema, Mapping):
        return schema
    result = {key: _closed(value) for key, value in schema.items()}
    is_object = isinstance(result.get("properties"), dict) and result.get("type") == "object"
    if is_object and not result.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


def find_faults(body: Any) -> list[str]:
    """What the API server would say of one document; nothing of kinds that are not ours."""
    if not isinstance(body, Mapping) or "kind" not in body:
        return []
    api_version, kind = str(body.get("apiVersion", "")), str(body["kind"])
    if not api_version:
        return [f"{kind}: apiVersion is missing"]
    if not api_version.startswith(f"{GROUP}/"):
        return []
    if kind not in {entry.kind for entry in KINDS}:
        return [f"{api_version} has no kind {kind}"]
    faults = Draft202012Validator(strict_schema(kind)).iter_errors(body)
    return [f"{kind} {fault.json_path.removeprefix('$.')}: {fault.message}" for fault in faults]


def check_manifests() -> str:
    """Raises CheckError with every document that the API server would refuse."""
    problems, count = [], 0
    for page in PAGES:
        for place, match in find_all(_YAML, page):
            try:
                bodies = list(yaml.safe_load_all(match[1]))
            except yaml.YAMLError as error:
                problems.append(f"{place}: {error}")
                continue
            for body in bodies:
                count += isinstance(body, Mapping) and str(body.get("apiVersion", "")).startswith(GROUP)
                problems += [f"{place}: {fault}" for fault in find_faults(body)]
    _raise(problems)
    return f"{count} manifests are taken by the schemas, to the last field"


# Commands


def find_commands(page: Path) -> Iterator[tuple[Place, str, bool]]:
    """Place, words behind `kubectl slm`, and whether it stands in running text."""
    for place, fence in find_all(_FENCE, page):
        text = fence[1].replace("\\\n", " ")
        for offset, line in enumerate(text.splitlines()):
            line = line.strip().removeprefix("$ ")
            if line.startswith("kubectl slm "):
                there = Place(page=page, line=place.line + 1 + offset)
                yield there, _CUT.sub("", line).removeprefix("kubectl slm "), False
    for place, match in find_all(_INLINE, page):
        yield place, _CUT.sub("", match[1]).replace("\n", " ").removeprefix("kubectl slm "), True


def find_fault(words: str, *, in_text: bool) -> str:
    """What the command's own parser says; empty when it takes them."""
    # `[NAME]` is what may be left out, `a|b` a choice, `…` the rest.
    plain = re.sub(r"[\[\]]", "", words).replace("…", "").replace("...", "")
    argv = [word.split("|")[0] for word in shlex.split(plain)]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            build_parser(argv).parse_args(argv)
    except SystemExit as end:
        if end.code and not (in_text and any(short in said.getvalue() for short in SHORT)):
            return said.getvalue().strip().rpartition("error: ")[2] or "it does not parse"
    return ""


def check_commands() -> str:
    """Raises CheckError with every command line that does not parse."""
    problems, count = [], 0
    for page in PAGES:
        for place, words, in_text in find_commands(page):
            count += 1
            fault = find_fault(words, in_text=in_text)
            problems += [f"{place}: kubectl slm {words}: {fault}"] if fault else []
    _raise(problems)
    return f"{count} lines of kubectl slm parse"


# Links and tests


def anchors_of(page: Path) -> frozenset[str]:
    """Anchors of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return frozenset(re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles)


def find_broken(link: str, page: Path) -> str:
    """What is wrong with a relative link; empty when it leads somewhere."""
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists():
        return "there is no such file"
    if anchor and target.suffix == ".md" and anchor not in anchors_of(target):
        return "there is no such heading"
    return ""


def check_links() -> str:
    """Raises CheckError with every link and every name of a test that leads nowhere."""
    problems, links, tests = [], 0, 0
    for page in PAGES:
        for place, match in find_all(_LINK, page):
            links += 1
            broken = find_broken(match[1], page)
            problems += [f"{place}: {match[1]}: {broken}"] if broken else []
        for place, match in find_all(_TEST, page):
            tests += 1
            path = CHECKOUT / match[1]
            if not path.is_file() or match[2] not in collect_tests(path):
                problems.append(f"{place}: {match[1]}::{match[2]}: there is no such test")
    _raise(problems)
    return f"{links} links and {tests} names of tests lead somewhere"


def _raise(problems: list[str]) -> None:
    if problems:
        raise CheckError("; ".join(problems))


CHECKS: Final = (
    Check(name="manifests in documents", run=check_manifests),
    Check(name="commands in documents", run=check_commands),
    Check(name="links in documents", run=check_links),
)
