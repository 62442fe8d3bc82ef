# SPDX-License-Identifier: Apache-2.0
"""Table of `fit`."""

from typing import Literal

from rich.text import Text

from slmcli.lines import Cell, Lines, table, wrapped
from slmcli.render.cache import size_text
from slmops.planning.fit import Candidate, FitRow, FitTable
from slmops.planning.needs import Need

_VERDICTS = {"Fits": "fits", "Memory": "too little memory", "Disk": "above the disk budget", "Unknown": "?"}


def render_fit(fit: FitTable, *, width: int, detail: Literal["problems", "all"]) -> Lines:
    """One line per node; below it the candidates of a node that none fits, or of all."""
    headers = ["NODE", "PROFILE", "VARIANT", "NEEDS", "WEIGHTS", "CACHE", "ENGINE", "NODE GIVES", "FILES"]
    headers += ["DISK BUDGET"]
    rows = [_row(row) for row in fit.rows]
    if any(row.override for row in fit.rows):
        # Most deployments have none, and the table is wide as it is.
        headers.insert(2, "OVERRIDE")
        for row, cells in zip(fit.rows, rows, strict=True):
            cells.insert(2, row.override or "-")
    lines = table(headers, rows, width=width, flexible=0)
    result = lines[:1]
    for row, line in zip(fit.rows, lines[1:], strict=True):
        result.append(line)
        if row.problem:
            result += wrapped(row.problem, width=width, indent=2, style="red")
        if row.problem or detail == "all":
            result += [_candidate(judged.candidate, judged.verdict) for judged in row.candidates]
    count = sum(row.chosen is not None for row in fit.rows)
    result.append(Text(f"{count} of {len(fit.rows)} node(s) can run it", style="bold"))
    return result


def _row(row: FitRow) -> list[Cell]:
    chosen = row.chosen
    name: Cell = chosen.name if chosen is not None else Text("none fits", style="bold red")
    files = chosen.size_bytes if chosen is not None else 0
    return [
        row.node,
        row.profile or "-",
        name,
        *_need(chosen.need if chosen is not None else None),
        _given(row),
        size_text(files or None) if files else "?" if chosen is not None else "-",
        size_text(row.disk_bytes),
    ]


def _need(need: Need | None) -> list[Cell]:
    """Sum, weights, cache and the engine's own."""
    if need is None:
        return ["?", "?", "?", "?"]
    weights: Cell = size_text(need.weights_bytes) if need.weights_bytes else "?"
    overhead: Cell = size_text(need.overhead_bytes) if need.weights_bytes else "?"
    cache: Cell = "?" if need.cache_bytes is None else size_text(need.cache_bytes)
    return [size_text(need.total_bytes), weights, cache, overhead]


def _given(row: FitRow) -> str:
    if not row.allocatable_bytes:
        return "?"
    given = size_text(row.capacity_bytes)
    return given if row.capacity_bytes == row.allocatable_bytes else (
        f"{given} of {size_text(row.allocatable_bytes)}"
    )  # fmt: skip


def _candidate(candidate: Candidate, verdict: str) -> Text:
    need = candidate.need.describe() if candidate.need is not None else "memory not known"
    style = {"Fits": "green", "Unknown": "yellow"}.get(verdict, "red")
    return Text(f"    {candidate.name}: {need}: {_VERDICTS[verdict]}", style=style)
