# SPDX-License-Identifier: Apache-2.0
"""The table of `models`."""

from collections.abc import Sequence

from rich.text import Text

from slmcli.lines import Cell, Lines, table, wrapped
from slmcli.models import ModelRow, ModelView, rows_of

HEADERS = ("VERSION", "VARIANT", "PROFILE", "SIZE", "MEMORY", "TOK/S", "MATCH", "PPL", "VERDICT", "REASON")
_STYLES = {"Pass": "green", "Fail": "red", "Error": "bold red"}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def render_models(views: Sequence[ModelView], *, width: int) -> Lines:
    """One line for each measurement; with several models, each has its name in front."""
    rows = rows_of(views)
    several = len(views) > 1
    body = [[*([row.model] if several else []), *_cells(row)] for row in rows]
    headers = [*(["MODEL"] if several else []), *HEADERS]
    lines: Lines = []
    for view in views:
        for condition in view.status.conditions if view.status is not None else ():
            if condition.status != "True" and (condition.type != "Ready" or condition.reason != "InProgress"):
                name = f"{view.name}: " if several else ""
                text = f"{name}{condition.type}: {condition.reason}: {condition.message}"
                lines += wrapped(text, width=width, style="yellow")
    if not body:
        return lines
    return [*lines, *table(headers, body, width=width, flexible=len(headers) - 1)]


def _cells(row: ModelRow) -> list[Cell]:
    verdict = Text(row.verdict or "-", style=_STYLES.get(row.verdict, ""))
    version = f"{row.version}*" if row.accepted else row.version
    return [version, *texts_of(row)[1:-2], verdict, Text(row.reason, style=_STYLES.get(row.verdict, ""))]


def texts_of(row: ModelRow) -> list[str]:
    """Cells of a row as plain text, in the order of HEADERS; `-` where nothing is known."""
    entry = row.evaluation
    return [
        row.version,
        row.variant.name,
        row.profile or "-",
        size_text(row.variant.size_bytes),
        size_text(entry.memory_bytes if entry else None),
        (entry.tokens_per_second if entry else None) or "-",
        (entry.exact_match if entry else None) or "-",
        (entry.perplexity if entry else None) or "-",
        row.verdict or "-",
        row.reason,
    ]


def size_text(size_bytes: int | None) -> str:
    """Bytes as people read them."""
    if not size_bytes:
        return "-"
    value, unit = float(size_bytes), 0
    while value >= 1024 and unit + 1 < len(_UNITS):
        value /= 1024
        unit += 1
    return f"{value:.3g} {_UNITS[unit]}" if value < 1000 else f"{value:.0f} {_UNITS[unit]}"
