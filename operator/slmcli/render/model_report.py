# SPDX-License-Identifier: Apache-2.0
"""The page that `models --report` writes: a plot and a table for each version, and no script."""

import math
from collections.abc import Sequence
from html import escape
from typing import Final, Literal

from slmcli.models import ModelRow, ModelView, rows_of
from slmcli.render.models import HEADERS, texts_of
from slmcli.render.pareto import ParetoRow, render_pareto

_STYLE: Final = (
    "body{font-family:sans-serif;margin:2em;max-width:60em}table{border-collapse:collapse}"
    "td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left}.Pass{color:#2e7d32}"
    ".Fail,.Error{color:#c62828}svg{max-width:100%}"
)
_FIELDS: Final = {"ExactMatch": "exact_match", "Perplexity": "perplexity", "Score": "score"}


def render_report(views: Sequence[ModelView]) -> str:
    """A whole HTML page."""
    parts = ["<h1>Models</h1>"]
    for view in views:
        parts.append(f"<h2>{escape(view.namespace)}/{escape(view.name)}</h2>")
        rows = rows_of([view])
        for version in view.status.versions if view.status is not None else ():
            own = [row for row in rows if row.version == version.version]
            state = "accepted" if version.accepted else f"{version.reason}: {version.message}".rstrip(": ")
            parts += [
                f"<h3>{escape(version.version)}</h3>",
                f"<p>{escape(version.reference)}, {escape(state)}</p>",
                render_pareto(f"{view.name} {version.version}", [_point(r, version.metric) for r in own]),
                _table(own),
            ]
        if not rows:
            parts.append("<p>There is no version yet.</p>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Models</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _point(row: ModelRow, metric: str) -> ParetoRow:
    entry = row.evaluation
    text = getattr(entry, _FIELDS[metric]) if entry is not None and metric in _FIELDS else None
    quality = float(text) if text else math.nan  # not measured: not drawn
    if metric == "Perplexity" and quality > 0:
        quality = 1 / quality
    verdict = entry.verdict if entry is not None else row.variant.verdict
    accepted: Literal["yes", "no", "unknown"] = "yes" if verdict == "Pass" else "no" if verdict else "unknown"
    speed = entry.tokens_per_second if entry is not None else None
    return ParetoRow(
        name=f"{row.variant.name} {row.profile}".strip(),
        size_bytes=row.variant.size_bytes,
        quality=quality,
        tokens_per_second=float(speed) if speed else None,
        accepted=accepted,
    )


def _table(rows: Sequence[ModelRow]) -> str:
    head = "".join(f"<th>{name.capitalize()}</th>" for name in HEADERS)
    lines = [f"<table><tr>{head}</tr>"]
    for row in rows:
        style = row.verdict if row.verdict in ("Pass", "Fail", "Error") else ""
        cells = "".join(f"<td>{escape(text)}</td>" for text in texts_of(row))
        lines.append(f'<tr class="{style}">{cells}</tr>')
    return "\n".join([*lines, "</table>"])
