# SPDX-License-Identifier: Apache-2.0
"""The Prometheus that the chart can bring: Prometheus' own tool takes what is rendered for it."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from e2e.checks.check import Check, CheckError
from e2e.checks.helm import CHART, RELEASE, find, objects, render_chart
from e2e.rig.paths import CHECKOUT
from e2e.rig.shell import run
from e2e.rig.tools import tool

NAME: Final = f"{RELEASE}-prometheus"
SCRAPES: Final = CHART / "files" / "scrapes.yaml"
MANIFEST: Final = CHECKOUT / "manifests" / "prometheus.yaml"
FORMS: Final[tuple[Mapping[str, Any], ...]] = (
    {},
    {"prometheus": {"install": {"siteLabel": "", "scrapeInterval": "2s", "retention": "12h"}}},
    {"storeAgent": {"enabled": False}, "watchNamespaces": ["shop", "clinic"], "nameOverride": "edge"},
    {"monitoring": {"prometheusRule": {"overrides": {"SLMOpsRolledBack": {"enabled": False}}}}},
)
"""Values that change its configuration."""
_HEAD: Final = """\
# SPDX-License-Identifier: Apache-2.0
# Generated from charts/slmops/files/scrapes.yaml by `make generate`; do not edit.
# For a Prometheus without the operator of that name: what the chart's PodMonitors and PrometheusRule would
# make. Copy the jobs into your configuration, and charts/slmops/files/rules.yaml beside it. Its account must
# be allowed to list and watch pods, and nodes for slm_site. prometheus.install of the chart brings one.
rule_files: [rules.yaml]
"""


def render_manifest() -> str:
    """manifests/prometheus.yaml: the chart's jobs for a Prometheus of somebody's own."""
    text = SCRAPES.read_text()
    return _HEAD + text[text.index("scrape_configs:") :]


def with_prometheus(values: Mapping[str, Any] | None = None, **install: Any) -> list[dict[str, Any]]:
    """The objects of the chart with its Prometheus; `install` is put over its values."""
    given = dict(values or {})
    own = given.get("prometheus", {})
    own = own | {"install": {"enabled": True} | own.get("install", {}) | install}
    return objects(render_chart(given | {"prometheus": own}))


def configuration(bodies: list[dict[str, Any]]) -> dict[str, str]:
    """The files that it reads, by name."""
    return dict(find(bodies, "ConfigMap", find_name(bodies))["data"])


def find_name(bodies: list[dict[str, Any]]) -> str:
    """What its objects are called."""
    (name,) = (body["metadata"]["name"] for body in bodies if is_own(body) and body["kind"] == "Deployment")
    return str(name)


def is_own(body: Mapping[str, Any]) -> bool:
    """Whether an object is of it and not of the operator or the store agents."""
    labels = body["metadata"].get("labels") or {}
    return bool(labels.get("app.kubernetes.io/component") == "prometheus")


def check_configuration() -> str:
    """promtool takes the configuration of each form together with its rules."""
    for values in FORMS:
        files = configuration(with_prometheus(values))
        with tempfile.TemporaryDirectory(prefix="slmops-prometheus-") as folder:
            for name, text in files.items():
                (Path(folder) / name).write_text(text)
            run([str(tool("promtool")), "check", "config", str(Path(folder) / "prometheus.yml")])
    return f"promtool takes {len(FORMS)} forms of its configuration"


def check_rules() -> str:
    """Without values of the user's it has the rules and the jobs of the files, and nothing else."""
    files = configuration(with_prometheus())
    plain = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    if yaml.safe_load(files["rules.yaml"]) != plain:
        raise CheckError("the rules of prometheus.install are not files/rules.yaml")
    jobs = [job["job_name"] for job in yaml.safe_load(files["prometheus.yml"])["scrape_configs"]]
    named = [job["job_name"] for job in yaml.safe_load(SCRAPES.read_text())["scrape_configs"]]
    if jobs != named:
        raise CheckError(f"prometheus.install scrapes {jobs}; files/scrapes.yaml has {named}")
    return "its rules and jobs are those of the chart's files"


CHECKS: Final = (
    Check(name="chart Prometheus", run=check_configuration),
    Check(name="chart Prometheus' rules", run=check_rules),
)
