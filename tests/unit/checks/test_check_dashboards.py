# SPDX-License-Identifier: Apache-2.0
"""Dashboards: the JSON is what Grafana reads, and the check finds what it is there to find."""

from dataclasses import replace
from typing import Any

import pytest

from e2e.checks.dashboards import DASHBOARDS, find_dashboard_problems, known_to_dashboards
from e2e.checks.grafana import COLUMNS, Dashboard, Kind, Panel, Query, Row, build_dashboard, choose

KNOWN = known_to_dashboards()
PANEL = Panel(title="P", text="x", queries=(Query(expr='sum(slmstore_bytes{slm_node=~"$node"})'),))
GOOD = Dashboard(
    name="x",
    title="X",
    text="x",
    variables=(choose("node", "Node", "slmstore_bytes", "slm_node"),),
    rows=(Row(title="R", panels=(PANEL,)),),
)


def problems_of(dashboard: Dashboard) -> str:
    return "; ".join(find_dashboard_problems(build_dashboard(dashboard), KNOWN))


def with_panel(**changes: Any) -> Dashboard:
    return replace(GOOD, rows=(Row(title="R", panels=(replace(PANEL, **changes),)),))


@pytest.mark.parametrize(
    ("dashboard", "said"),
    [
        (GOOD, ""),
        (with_panel(queries=(Query(expr='sum(slmstore_byte{slm_node=~"$node"})'),)), "exports slmstore_byte"),
        (with_panel(queries=(Query(expr='sum(slmstore_bytes{slm_node=~"$nod"})'),)), "no variable nod"),
        (with_panel(queries=(Query(expr="sum(slmstore_bytes)"),)), "nothing uses the variable node"),
        (with_panel(text=""), "X: P: has no description or no query"),
        (with_panel(queries=()), "X: P: has no description or no query"),
        (with_panel(width=30), "beyond the edge"),
        (with_panel(text="in slmops-system"), "names the namespace"),
        (
            replace(GOOD, variables=(choose("node", "Node", "slmstore_bytes", "slm_nod"),)),
            "names slm_nod, which is not there",
        ),
    ],
)
def test_what_is_wrong_with_a_dashboard_is_named(dashboard: Dashboard, said: str) -> None:
    problems = problems_of(dashboard)
    assert (said in problems) if said else problems == ""


def test_panels_that_lie_on_each_other_are_named() -> None:
    body = build_dashboard(GOOD)
    body["panels"].append(body["panels"][-1] | {"id": 9})
    assert "lies on another panel" in "; ".join(find_dashboard_problems(body, KNOWN))


def test_panels_flow_from_left_to_right_and_below() -> None:
    panels = tuple(replace(PANEL, title=str(i), width=10, height=4 + i) for i in range(3))
    body = build_dashboard(replace(GOOD, rows=(Row(title="A", panels=panels), Row(title="B", panels=panels))))
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in body["panels"]]
    assert places == [(0, 0), (0, 1), (10, 1), (0, 6), (0, 12), (0, 13), (10, 13), (0, 18)]
    assert [p["id"] for p in body["panels"]] == list(range(1, 9))


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=[d.name for d in DASHBOARDS])
def test_the_shipped_ones_can_be_loaded_by_grafana(dashboard: Dashboard) -> None:
    body = build_dashboard(dashboard)
    assert body["uid"] == f"slmops-{dashboard.name}" and len(body["uid"]) <= 40
    assert body["id"] is None and 36 <= body["schemaVersion"] <= 41
    first, *others = body["templating"]["list"]
    assert (first["name"], first["type"]) == ("datasource", "datasource")
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert all(v["datasource"] == source and v["allValue"] == ".*" for v in others)
    panels = [p for p in body["panels"] if p["type"] != "row"]
    assert all(p["datasource"] == source for p in panels)
    assert all(t["datasource"] == source and t["instant"] != t["range"] for p in panels for t in p["targets"])
    assert all(len({t["refId"] for t in p["targets"]}) == len(p["targets"]) for p in panels)
    assert {p["type"] for p in panels} <= {kind.value for kind in Kind}
    assert all(p["gridPos"]["w"] <= COLUMNS for p in panels)
    assert len({p["title"] for p in panels}) == len(panels)


def test_a_table_hides_time_and_names_its_columns() -> None:
    table = replace(
        PANEL, kind=Kind.TABLE, queries=(Query(expr="a", legend="One"), Query(expr="b", legend=""))
    )
    body = build_dashboard(replace(GOOD, rows=(Row(title="R", panels=(table,)),)))["panels"][1]
    options = body["transformations"][1]["options"]
    assert options["renameByName"] == {"Value #A": "One"}
    assert options["excludeByName"] == {"Time": True, "Value #B": True}
