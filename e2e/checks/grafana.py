# SPDX-License-Identifier: Apache-2.0
"""A small description of Grafana dashboards, and the JSON that Grafana 11 and later read.

Panels stand in rows, from left to right, in a grid of 24 columns. Every query and variable goes to the data
source that the dashboard's first variable names, so a dashboard works wherever it is imported.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

SCHEMA_VERSION: Final = 39
"""Of Grafana 11.0; later versions migrate it when they load it."""
PLUGIN_VERSION: Final = "11.0.0"
COLUMNS: Final = 24
_SOURCE: Final[Mapping[str, str]] = {"type": "prometheus", "uid": "${datasource}"}


class Kind(StrEnum):
    """Types of panels, as Grafana names them."""

    SERIES = "timeseries"
    STAT = "stat"
    TABLE = "table"
    STATES = "state-timeline"
    BARS = "bargauge"
    HEATMAP = "heatmap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One query; `legend` names a series by its labels, `{{label}}`, or a column of a table."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel. `unit` is Grafana's name of the unit, `text` what the panel says of itself."""

    title: str
    text: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Kind = Kind.SERIES
    width: int = 8
    height: int = 8
    stacked: str = "none"
    steps: tuple[tuple[float | None, str], ...] = ((None, "green"),)
    """Thresholds: (from, colour), the first from None."""
    mappings: Mapping[str, str] = field(default_factory=dict)
    """Texts that are shown for values."""
    maximum: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A choice of label values; everything is chosen at first. `query` is `label_values(selector, label)`."""

    name: str
    label: str
    query: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """One dashboard; `name` is that of its file and part of its uid."""

    name: str
    title: str
    text: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]


def choose(name: str, label: str, series: str, label_name: str, matchers: str = "") -> Variable:
    """A choice among the values that a label has in a series."""
    selector = f"{series}{{{matchers}}}" if matchers else series
    return Variable(name=name, label=label, query=f"label_values({selector}, {label_name})")


def rate(series: str, matchers: str) -> str:
    """PromQL for the rate of a counter, over as long as the panel's resolution asks for."""
    return f"rate({series}{{{matchers}}}[$__rate_interval])"


def render_dashboard(dashboard: Dashboard) -> str:
    """The dashboard's JSON."""
    return json.dumps(build_dashboard(dashboard), indent=1, ensure_ascii=False) + "\n"


def build_dashboard(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana's model; ids and places follow from the order."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row in dashboard.rows:
        panels.append(
            {
                "collapsed": False,
                "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": top},
                "id": len(panels) + 1,
                "panels": [],
                "title": row.title,
                "type": "row",
            }
        )
        top += 1
        left = tallest = 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                top, left, tallest = top + tallest, 0, 0
            place = {"h": panel.height, "w": panel.width, "x": left, "y": top}
            panels.append(_panel(panel, number=len(panels) + 1, place=place))
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest
    return {
        "annotations": {"list": []},
        "description": dashboard.text,
        "editable": True,
        "graphTooltip": 1,
        "id": None,
        "links": [
            {
                "asDropdown": True,
                "icon": "external link",
                "includeVars": True,
                "keepTime": True,
                "tags": ["slmops"],
                "targetBlank": False,
                "title": "SLMOps",
                "type": "dashboards",
            }
        ],
        "panels": panels,
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": ["slmops"],
        "templating": {"list": [_source_variable(), *(_variable(v) for v in dashboard.variables)]},
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "",
        "title": dashboard.title,
        "uid": f"slmops-{dashboard.name}",
        "version": 1,
    }


def _source_variable() -> dict[str, Any]:
    return {
        "current": {},
        "hide": 0,
        "includeAll": False,
        "label": "Data source",
        "multi": False,
        "name": "datasource",
        "options": [],
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "type": "datasource",
    }


def _variable(variable: Variable) -> dict[str, Any]:
    return {
        # Series without the label (slm_site, where no relabelling sets it) match as well.
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "datasource": dict(_SOURCE),
        "definition": variable.query,
        "hide": 0,
        "includeAll": True,
        "label": variable.label,
        "multi": True,
        "name": variable.name,
        "options": [],
        "query": {
            "qryType": 1,
            "query": variable.query,
            "refId": "PrometheusVariableQueryEditor-VariableQuery",
        },
        "refresh": 2,
        "regex": "",
        "sort": 1,
        "type": "query",
    }


def _panel(panel: Panel, *, number: int, place: Mapping[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "color": {"mode": "palette-classic" if panel.kind is Kind.SERIES else "thresholds"},
        "custom": _custom(panel),
        "mappings": _mappings(panel.mappings),
        "min": 0,
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": colour, "value": start} for start, colour in panel.steps],
        },
        "unit": panel.unit,
    }
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    body: dict[str, Any] = {
        "datasource": dict(_SOURCE),
        "description": panel.text,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "gridPos": dict(place),
        "id": number,
        "options": _options(panel.kind),
        # Without it Grafana takes a panel for one of version 6 and migrates it.
        "pluginVersion": PLUGIN_VERSION,
        "targets": [_target(panel.kind, query, index) for index, query in enumerate(panel.queries)],
        "title": panel.title,
        "type": panel.kind.value,
    }
    if panel.kind is Kind.TABLE:
        body["transformations"] = _columns(panel.queries)
    return body


def _target(kind: Kind, query: Query, index: int) -> dict[str, Any]:
    now = kind in (Kind.STAT, Kind.TABLE, Kind.BARS)
    return {
        "datasource": dict(_SOURCE),
        "editorMode": "code",
        "expr": query.expr,
        "format": {Kind.TABLE: "table", Kind.HEATMAP: "heatmap"}.get(kind, "time_series"),
        "instant": now,
        "legendFormat": query.legend or "__auto",
        "range": not now,
        "refId": chr(ord("A") + index),
    }


def _custom(panel: Panel) -> dict[str, Any]:
    match panel.kind:
        case Kind.SERIES:
            return {
                "drawStyle": "line",
                "fillOpacity": 30 if panel.stacked == "normal" else 5,
                "lineWidth": 1,
                "showPoints": "never",
                "spanNulls": False,
                "stacking": {"group": "A", "mode": panel.stacked},
            }
        case Kind.STATES:
            return {"fillOpacity": 80, "lineWidth": 0}
        case Kind.TABLE:
            return {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True}
        case _:
            return {}


def _options(kind: Kind) -> dict[str, Any]:
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    match kind:
        case Kind.SERIES:
            return {
                "legend": {
                    "calcs": ["lastNotNull", "max"],
                    "displayMode": "table",
                    "placement": "bottom",
                    "showLegend": True,
                },
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case Kind.STAT:
            return {
                "colorMode": "value",
                "graphMode": "none",
                "justifyMode": "auto",
                "orientation": "auto",
                "reduceOptions": reduce,
                "textMode": "auto",
            }
        case Kind.BARS:
            return {
                "displayMode": "basic",
                "orientation": "horizontal",
                "reduceOptions": reduce,
                "showUnfilled": True,
            }
        case Kind.STATES:
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
                "mergeValues": True,
                "rowHeight": 0.8,
                "showValue": "never",
            }
        case Kind.HEATMAP:
            return {
                "calculate": False,
                "cellGap": 1,
                "color": {"mode": "scheme", "scheme": "Spectral", "steps": 64},
                "legend": {"show": True},
                "tooltip": {"mode": "single", "yHistogram": False},
                "yAxis": {"axisPlacement": "left", "unit": "s"},
            }
        case Kind.TABLE:
            return {"cellHeight": "sm", "footer": {"show": False}, "showHeader": True}


def _columns(queries: Sequence[Query]) -> list[dict[str, Any]]:
    """One line per set of labels, and a column for each query that has a legend."""
    if len(queries) == 1:
        names = {"Value": queries[0].legend}
    else:
        names = {f"Value #{chr(ord('A') + i)}": query.legend for i, query in enumerate(queries)}
    hidden = {"Time": True, **{column: True for column, name in names.items() if not name}}
    shown = {column: name for column, name in names.items() if name}
    return [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": hidden, "indexByName": {}, "renameByName": shown}},
    ]


def _mappings(texts: Mapping[str, str]) -> list[dict[str, Any]]:
    if not texts:
        return []
    options = {value: {"index": index, "text": text} for index, (value, text) in enumerate(texts.items())}
    return [{"options": options, "type": "value"}]
