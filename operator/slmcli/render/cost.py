# SPDX-License-Identifier: Apache-2.0
"""The table and the document of `cost`."""

from collections.abc import Sequence
from typing import Any, Literal

from rich.text import Text

from slmcli.cost.collect import NotCounted
from slmcli.cost.estimate import CostRow, Costs
from slmcli.cost.prices import Prices
from slmcli.lines import Cell, Lines, table, wrapped
from slmcli.output import with_head
from slmcli.times import clock_text, span_text

_STEPS = ("", "k", "M", "G", "T")


def count_text(value: float) -> str:
    """A count with three digits at most: 12, 3.4k, 120M."""
    step = 0
    while value >= 999.5 and step < len(_STEPS) - 1:
        value, step = value / 1000, step + 1
    number = f"{value:.1f}" if step and value < 9.95 else f"{value:.0f}"
    return number.removesuffix(".0") + _STEPS[step]


def amount_text(value: float | None) -> str:
    """An estimate with three digits that count; `-` when it is not known."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 1e-4 else f"{value:.1e}"


def render_costs(
    rows: Sequence[CostRow],
    total: Costs,
    left: Sequence[NotCounted],
    *,
    period_seconds: float,
    prices: Prices | None,
    width: int,
    names: Literal["shown", "left out"],
) -> Lines:
    """What is counted, then what a period costs by that rate."""
    money = prices.currency if prices is not None else "money: give --prices"
    opening = (
        f"per {span_text(period_seconds)} at the mean rates since each server's start; estimates, "
        f"see docs/cost.md ({money})"
    )
    first = ["DEPLOYMENT"] if names == "shown" else []
    headers = [*first, "SITE", "NODES", "RUNNING", "INPUT", "OUTPUT", "BUSY<=", "KWH", "ENERGY", "DEVICES"]
    headers += ["TOTAL", "PER 1K TOKENS", "CLOUD"]
    cells: list[list[Cell]] = [
        [*(["/".join(row.deployment)] if first else []), row.site or "-", *_cells(row.costs)] for row in rows
    ]
    if len(rows) > 1:
        cells.append([*([""] if first else []), Text("all", style="bold"), *_cells(total)])
    counted = (
        f"counted since the starts: {count_text(total.counted_input)} input and "
        f"{count_text(total.counted_output)} output tokens by {total.pods} pod(s)"
    )
    lines = [*wrapped(opening, width=width), *table(headers, cells, width=width, flexible=0)]
    lines += wrapped(counted, width=width)
    for entry in left:
        lines += wrapped(f"not counted: pod {entry.pod} on {entry.node or '-'} {entry.why}", width=width)
    return lines


def _cells(costs: Costs) -> list[Cell]:
    return [
        str(costs.nodes),
        span_text(costs.since_seconds),
        count_text(costs.input_tokens),
        count_text(costs.output_tokens),
        f"{100 * costs.busy_share:.0f}%",
        *map(
            amount_text,
            (
                costs.kilowatt_hours,
                costs.energy,
                costs.devices,
                costs.total,
                costs.per_thousand_tokens,
                costs.cloud,
            ),
        ),
    ]


def cost_document(
    rows: Sequence[CostRow],
    total: Costs,
    left: Sequence[NotCounted],
    *,
    period_seconds: float,
    prices: Prices | None,
    now: float,
) -> dict[str, Any]:
    """`CostReport`."""
    body = {
        "at": clock_text(now),
        "periodSeconds": period_seconds,
        "currency": prices.currency if prices is not None else None,
        "cloudName": prices.cloud.name if prices is not None and prices.cloud is not None else None,
        "items": [
            {"namespace": row.deployment[0], "name": row.deployment[1], "site": row.site or None}
            | _document(row.costs)
            for row in rows
        ],
        "total": _document(total),
        "notCounted": [
            {
                "namespace": e.deployment[0],
                "name": e.deployment[1],
                "pod": e.pod,
                "node": e.node,
                "why": e.why,
            }
            for e in left
        ],
    }
    return with_head("CostReport", body)


def _document(costs: Costs) -> dict[str, Any]:
    return {
        "nodes": costs.nodes,
        "pods": costs.pods,
        "sinceSeconds": costs.since_seconds,
        "countedInputTokens": costs.counted_input,
        "countedOutputTokens": costs.counted_output,
        "inputTokens": costs.input_tokens,
        "outputTokens": costs.output_tokens,
        "busyShareAtMost": costs.busy_share,
        "kilowattHours": costs.kilowatt_hours,
        "energyCost": costs.energy,
        "deviceCost": costs.devices,
        "totalCost": costs.total,
        "costPerThousandTokens": costs.per_thousand_tokens,
        "cloudCost": costs.cloud,
    }
