# SPDX-License-Identifier: Apache-2.0
"""Machine-readable output: JSON and YAML in plain ASCII, so nothing in it acts on a terminal."""

import argparse
import json
import re
from typing import Any, Final

import yaml

DOCUMENT_VERSION: Final = "cli.slmops.dev/v1"


_NUMBER_ELSEWHERE: Final = re.compile(
    r"[-+]?(0[xob])?[0-9a-f_]*[0-9][0-9_]*(\.[0-9_]*)?(e[-+]?[0-9]+)?", re.I
)
"""Texts that a reader of YAML 1.2 may take for a number although one of 1.1 does not, as `12e34`."""


class _Dumper(yaml.SafeDumper):
    """Quotes texts that look like numbers to any reader: a revision is ten hexadecimal digits."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "'" if _NUMBER_ELSEWHERE.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def add_output_argument(parser: argparse.ArgumentParser, *more: str) -> None:
    """The flag `-o`."""
    parser.add_argument(
        "-o", "--output", choices=[*more, "json", "yaml"], default="", help="output for a program or in full"
    )


def with_head(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """A document of that kind."""
    return {"apiVersion": DOCUMENT_VERSION, "kind": kind} | body


def to_json(document: Any, *, indent: int | None = 2) -> str:
    """JSON with a line break at its end; in one line without `indent`."""
    return json.dumps(document, indent=indent, ensure_ascii=True) + "\n"


def to_yaml(document: Any) -> str:
    """YAML with keys in the order that they have."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=100)
    return text


def to_document_text(document: Any, output: str) -> str:
    """`document` as `json` or `yaml`."""
    return to_json(document) if output == "json" else to_yaml(document)


def to_document_stream(document: Any, output: str) -> str:
    """One of many: JSON in one line, or a YAML document."""
    return to_json(document, indent=None) if output == "json" else "---\n" + to_yaml(document)
