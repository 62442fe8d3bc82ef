# SPDX-License-Identifier: Apache-2.0
"""Size against quality as an SVG: what no other variant beats in both lies on a line."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Literal

WIDTH: Final = 640
HEIGHT: Final = 360
_MARGIN: Final = 56
_COLOURS: Final = {"yes": "#2e7d32", "no": "#c62828", "unknown": "#757575"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoRow:
    """One variant on one device class; None where it was not measured."""

    name: str
    size_bytes: int
    quality: float | None
    tokens_per_second: float | None
    accepted: Literal["yes", "no", "unknown"]


def render_pareto(title: str, rows: Sequence[ParetoRow]) -> str:
    """The plot as one `<svg>` element; rows without quality are left out."""
    known = [(row, row.quality) for row in rows if row.quality is not None and row.size_bytes > 0]
    sizes = [math.log10(row.size_bytes) for row, _ in known] or [0.0]
    qualities = [quality for _, quality in known] or [0.0]

    def place(row: ParetoRow, quality: float) -> tuple[float, float]:
        x = _scale(math.log10(row.size_bytes), min(sizes), max(sizes), _MARGIN, WIDTH - _MARGIN)
        return x, _scale(quality, min(qualities), max(qualities), HEIGHT - _MARGIN, _MARGIN)

    best: list[str] = []
    reached = -math.inf
    parts = []
    for row, quality in sorted(known, key=lambda pair: (pair[0].size_bytes, -pair[1])):
        x, y = place(row, quality)
        if quality > reached:
            reached = quality
            best.append(f"{x:.1f},{y:.1f}")
        speed = "" if row.tokens_per_second is None else f", {row.tokens_per_second:.3g} tok/s"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{_COLOURS[row.accepted]}"/>'
            f'<text x="{x + 8:.1f}" y="{y - 6:.1f}">{escape(row.name)} ({quality:.3g}{speed})</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11"><text x="{_MARGIN}" y="20" font-size="14">{escape(title)}</text>'
        f'<polyline points="{" ".join(best)}" fill="none" stroke="#90a4ae"/>{"".join(parts)}'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}">size (logarithmic)</text></svg>'
    )


def _scale(value: float, low: float, high: float, start: float, end: float) -> float:
    return (start + end) / 2 if high == low else start + (end - start) * (value - low) / (high - low)
