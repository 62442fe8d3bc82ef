# SPDX-License-Identifier: Apache-2.0
"""Table of `cache`."""

from collections.abc import Sequence
from typing import Literal

from rich.text import Text

from slmcli.lines import Cell, Lines, table
from slmcli.stores import Pin, Progress, Stored, StoreReport
from slmcli.times import span_text

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size_text(size: float | None) -> str:
    """A size with three digits at most: 512B, 1.5GiB, 120MiB; `-` when it is not known."""
    if size is None:
        return "-"
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    number = f"{size:.1f}" if unit and size < 10 else f"{size:.0f}"
    return number.removesuffix(".0") + _UNITS[unit]


def render_stores(
    reports: Sequence[StoreReport], *, width: int, owners: Literal["shown", "left out"]
) -> Lines:
    """One line per node; `owners` says whether a revision is shown with its SLMDeployment."""
    sites = any(report.site for report in reports)
    rows = [[*_row(report, owners)[:1], *([report.site or "-"] if sites else []), *_row(report, owners)[1:]]
            for report in reports]  # fmt: skip
    headers = ["NODE", *(["SITE"] if sites else []), "HELD", "FREE", "RECLAIMABLE", "PINNED", "FETCHING"]
    headers.append("PROBLEM")
    return table(headers, rows, width=width, flexible=len(headers) - 1)


def _row(report: StoreReport, owners: str) -> list[Cell]:
    stored = report.stored
    problem = "" if report.problem is None else f"{report.problem.reason}: {report.problem.message}"
    shown = Text(problem, style="red")
    if stored is None:
        return [report.node, "-", "-", "-", "-", "-", shown]
    return [
        report.node,
        size_text(stored.held_bytes),
        size_text(stored.free_bytes),
        size_text(stored.reclaimable_bytes),
        " ".join(_pin(pin, owners) for pin in stored.pins) or "-",
        _fetching(stored, owners) or "-",
        shown,
    ]


def _pin(pin: Pin, owners: str) -> str:
    mark = "*" if pin.in_use else "" if pin.complete else "(partial)"
    return _name(pin, owners) + mark


def _name(what: Pin | Progress, owners: str) -> str:
    return f"{what.namespace}/{what.deployment}:{what.revision}" if owners == "shown" else what.revision


def _fetching(stored: Stored, owners: str) -> str:
    if not stored.fetches:
        return f"{size_text(stored.partial_bytes)} partial" if stored.partial_bytes else ""
    return "; ".join(_progress(fetch, owners) for fetch in stored.fetches)


def _progress(fetch: Progress, owners: str) -> str:
    share = 100 * fetch.done_bytes // fetch.total_bytes if fetch.total_bytes else 0
    parts = [f"{_name(fetch, owners)} {min(share, 100)}% of {size_text(fetch.total_bytes)}"]
    parts += [f"{size_text(fetch.bytes_per_second)}/s"] if fetch.bytes_per_second else []
    parts += [f"{span_text(fetch.seconds_left)} left"] if fetch.seconds_left is not None else []
    parts += [f"from {fetch.origin}"] if fetch.origin else []
    return ", ".join(parts)
