# SPDX-License-Identifier: Apache-2.0
"""Files that are generated from the API's models and the chart; `make generate` writes them."""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from e2e.checks.argocd import CONFIG_MAP, render_config_map
from e2e.checks.chart_prometheus import MANIFEST, render_manifest
from e2e.checks.check import Check, CheckError
from e2e.checks.dashboards import DASHBOARDS, FOLDER
from e2e.checks.grafana import render_dashboard
from e2e.checks.helm import CHART, NAMESPACE, render_chart
from e2e.rig.paths import CHECKOUT
from slmops.api.crd import render_crd
from slmops.api.kinds import KINDS
from slmops.api.reference import render_reference

_README: Final = CHART / "README.md"
_TABLE: Final = re.compile(r"(<!-- values:[^\n]*-->\n).*?(<!-- /values -->)", re.DOTALL)
_INSTALL_HEAD: Final = f"""\
# SPDX-License-Identifier: Apache-2.0
# Generated from charts/slmops by `make generate`; do not edit.
# For clusters without Helm: put your registry before the images, then
#   kubectl apply --server-side -f install.yaml
# Where a Prometheus is to judge new versions, set SLMOPS_PROMETHEUS_URL of the operator, too.
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    # For the store agents, which mount a folder of the node; the operator meets restricted.
    pod-security.kubernetes.io/enforce: privileged
"""
_DEFAULTS_HEAD: Final = """\
# SPDX-License-Identifier: Apache-2.0
# Generated from values.yaml by `make generate`; do not edit. Fills in what older values lack.
"""


def render_install() -> str:
    """The chart as plain manifests, with its namespace."""
    text = render_chart({"crds": {"keep": False}})
    text = text.replace("app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: kubectl")
    text = re.sub(r"^    helm\.sh/chart: .*\n|^# Source: .*\n", "", text, flags=re.MULTILINE)
    return _INSTALL_HEAD + re.sub(r"\n{2,}", "\n", text)


def render_defaults() -> str:
    """The chart's values where its templates can read them, without comments."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    return _DEFAULTS_HEAD + yaml.safe_dump(values, sort_keys=False)


def render_chart_readme() -> str:
    """The chart's README with its table of values."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    rows = ["", "| value | default | meaning |", "|---|---|---|", *_rows(schema, values, ""), ""]
    table = "\n".join(rows)
    return _TABLE.sub(lambda match: f"{match[1]}{table}\n{match[2]}", _README.read_text())


def _rows(schema: Mapping[str, Any], values: Mapping[str, Any], prefix: str) -> list[str]:
    rows: list[str] = []
    for name, node in schema["properties"].items():
        if name == "global":
            continue  # Helm's own
        if "properties" in node:
            rows += _rows(node, values[name], f"{prefix}{name}.")
        else:
            meaning = node["description"].replace("|", "\\|")
            rows.append(f"| `{prefix}{name}` | `{json.dumps(values[name])}` | {meaning} |")
    return rows


GENERATED: Final[Mapping[Path, Callable[[], str]]] = {
    # In this order: the manifests are rendered from the chart's copy of the CRD.
    **{
        folder / kind.file_name: partial(render_crd, kind)
        for kind in KINDS
        for folder in (CHECKOUT / "crds", CHART / "files")
    },
    CHART / "files" / "defaults.yaml": render_defaults,
    **{FOLDER / f"{dashboard.name}.json": partial(render_dashboard, dashboard) for dashboard in DASHBOARDS},
    CHECKOUT / "manifests" / "install.yaml": render_install,
    MANIFEST: render_manifest,
    CONFIG_MAP: render_config_map,
    _README: render_chart_readme,
    CHECKOUT / "docs" / "reference.md": render_reference,
}


def write_generated() -> list[Path]:
    """Bring all of them up to date; those that changed, relative to the checkout."""
    changed = []
    for path, render in GENERATED.items():
        text = render()
        if not path.is_file() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            changed.append(path.relative_to(CHECKOUT))
    return changed


def check_generated() -> str:
    """Every generated file is what its generator says now."""
    stale = [
        str(path.relative_to(CHECKOUT))
        for path, render in GENERATED.items()
        if not path.is_file() or path.read_text() != render()
    ]
    if stale:
        raise CheckError(f"{', '.join(stale)}: not what is generated now; run `make generate`")
    return f"{len(GENERATED)} files are up to date"


CHECKS: Final = (Check(name="generated files", run=check_generated),)
