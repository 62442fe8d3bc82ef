# SPDX-License-Identifier: Apache-2.0
"""The chart's dashboards: what they show, and the check that they ask for what is there."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from e2e.checks.check import Check, CheckError
from e2e.checks.dashboard_fleet import FLEET, ROLLOUT
from e2e.checks.dashboard_serving import SERVING
from e2e.checks.dashboard_store import STORE
from e2e.checks.grafana import COLUMNS, Dashboard, build_dashboard
from e2e.checks.helm import CHART, NAMESPACE, objects, render_chart
from e2e.checks.monitoring import RULES, known_series, read_rules
from e2e.checks.promql import find_problems

DASHBOARDS: Final[tuple[Dashboard, ...]] = (FLEET, ROLLOUT, SERVING, STORE)
FOLDER: Final = CHART / "dashboards"
_ALERT_LABELS: Final = frozenset({"alertname", "alertstate", "severity"})
_DURATIONS: Final = {"$__rate_interval": "5m", "$__range": "6h", "$__interval": "1m"}
_VALUES: Final = re.compile(r"label_values\((.+), (\w+)\)")
_VARIABLE: Final = re.compile(r"\$\{?(?!__)([a-z_]+)")


def known_to_dashboards() -> dict[str, frozenset[str]]:
    """What can be asked for: what is exported and recorded, and Prometheus' own series of alerts."""
    known = known_series(read_rules(RULES.read_text()))
    return {**known, "ALERTS": _ALERT_LABELS | frozenset().union(*known.values())}


def find_dashboard_problems(body: Mapping[str, Any], known: Mapping[str, frozenset[str]]) -> list[str]:
    """Queries that ask in vain, variables and texts that are missing, panels that lie on each other."""
    where = body["title"]
    problems = [f"{where}: {problem}" for text in _queries(body) for problem in _find(text, known)]
    variables = [variable["name"] for variable in body["templating"]["list"]]
    used = set(_VARIABLE.findall(json.dumps(body)))
    problems += [f"{where}: there is no variable {name}" for name in sorted(used - set(variables))]
    problems += [f"{where}: nothing uses the variable {name}" for name in variables if name not in used]
    if NAMESPACE in json.dumps(body):
        problems.append(f"{where}: names the namespace {NAMESPACE}")
    cells: set[tuple[int, int]] = set()
    for panel in body["panels"]:
        name, place = f"{where}: {panel['title']}", panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        if own & cells or place["x"] + place["w"] > COLUMNS:
            problems.append(f"{name}: lies on another panel, or beyond the edge")
        cells |= own
        if panel["type"] != "row" and not (panel["description"] and panel["targets"]):
            problems.append(f"{name}: has no description or no query")
    return problems


def _queries(body: Mapping[str, Any]) -> Iterator[str]:
    for panel in body["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in body["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]


def _find(text: str, known: Mapping[str, frozenset[str]]) -> list[str]:
    for name, duration in _DURATIONS.items():
        text = text.replace(name, duration)
    values = _VALUES.fullmatch(text)
    # The values of a label are those that an aggregation by it would give.
    return find_problems(f"count by ({values[2]}) ({values[1]})" if values else text, known)


def check_dashboards() -> str:
    """Every query asks for what is exported or recorded, and the chart renders every dashboard."""
    known = known_to_dashboards()
    bodies = [build_dashboard(dashboard) for dashboard in DASHBOARDS]
    problems = [problem for body in bodies for problem in find_dashboard_problems(body, known)]
    if problems:
        raise CheckError("; ".join(problems))
    settings = {
        "enabled": True,
        "namespace": "grafana",
        "label": "show",
        "labelValue": "yes",
        "folderAnnotation": "in",
        "folder": "Edge",
    }
    maps = [
        body
        for body in objects(render_chart({"monitoring": {"dashboards": settings}}))
        if body["kind"] == "ConfigMap"
    ]
    shown = [json.loads(text) for body in maps for text in body["data"].values()]
    found = [body["metadata"] for body in maps]
    if sorted(body["uid"] for body in shown) != sorted(body["uid"] for body in bodies) or not all(
        (data["namespace"], data["labels"].get("show"), data["annotations"].get("in"))
        == ("grafana", "yes", "Edge")
        for data in found
    ):
        raise CheckError("monitoring.dashboards: the ConfigMaps are not as the values say")
    queries = sum(1 for body in bodies for _ in _queries(body))
    return f"{len(bodies)} dashboards, {queries} queries"


CHECKS: Final = (Check(name="dashboards", run=check_dashboards),)
