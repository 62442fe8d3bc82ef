# SPDX-License-Identifier: Apache-2.0
"""Helm on the chart of this checkout."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from e2e.rig.paths import CHECKOUT
from e2e.rig.shell import run
from e2e.rig.tools import tool

CHART: Final = CHECKOUT / "charts" / "slmops"
RELEASE: Final = "slmops"
NAMESPACE: Final = "slmops-system"


def helm(*arguments: str, timeout_seconds: float = 180) -> str:
    """Run Helm, return its output; RigError with Helm's words on failure."""
    return run([str(tool("helm")), *arguments], timeout_seconds=timeout_seconds).stdout


def render_chart(values: Mapping[str, Any] | None = None, *, kube_version: str = "1.34.0") -> str:
    """`helm template` with `values` over the chart's own; RigError when it is refused."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(dict(values or {}), file)
        file.flush()
        return helm(
            "template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--kube-version", kube_version,
            "--values", str(Path(file.name)),
        )  # fmt: skip


def objects(text: str) -> list[dict[str, Any]]:
    """The objects in rendered YAML."""
    return [body for body in yaml.safe_load_all(text) if body]


def find(bodies: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The only object of a kind, or that with a name; LookupError when there is none."""
    found = [b for b in bodies if b["kind"] == kind and name in ("", b["metadata"]["name"])]
    if len(found) != 1:
        raise LookupError(f"{len(found)} objects of kind {kind} named {name or 'anything'}")
    return found[0]
