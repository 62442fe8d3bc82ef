# SPDX-License-Identifier: Apache-2.0
"""Quality against size as an SVG: a bubble for each variant of a model, and the frontier of the best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 860, 460, 70, 170, 78, 60
_MOST_RADIUS, _LEAST_RADIUS = 22.0, 4.0
_LABEL_HEIGHT: Final = 13.0
_COLOURS: Final = {"yes": "#228833", "no": "#ee6677", "unknown": "#4477aa"}
_MEANINGS: Final = {"yes": "accepted", "no": "refused", "unknown": "not judged"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoRow:
    """One variant: `quality` higher is better, `tokens_per_second` of one stream."""

    name: str
    size_bytes: int
    quality: float
    tokens_per_second: float | None = None
    """None when it was not measured: the bubble is the smallest."""
    accepted: Literal["yes", "no", "unknown"] = "unknown"


def find_frontier(rows: Sequence[ParetoRow]) -> list[ParetoRow]:
    """Those that no other row beats in size and quality together, the smallest first."""
    frontier: list[ParetoRow] = []
    for row in sorted(rows, key=lambda row: (row.size_bytes, -row.quality)):
        if not frontier or row.quality > frontier[-1].quality:
            frontier.append(row)
    return frontier


def render_pareto(title: str, rows: Sequence[ParetoRow]) -> str:
    """An SVG that is readable without scripts or fonts; rows without a finite quality are left out."""
    shown = [row for row in rows if math.isfinite(row.quality) and row.size_bytes > 0]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="16">{escape(title)}</text>',
    ]
    if not shown:
        parts.append(f'<text x="{_LEFT}" y="{_TOP + 20}">nothing is measured yet</text>')
        return "\n".join([*parts, "</svg>"]) + "\n"
    plane = _build_plane(shown)
    parts += _axes(plane)
    frontier = find_frontier(shown)
    points = " ".join(f"{plane.x(row.size_bytes):.1f},{plane.y(row.quality):.1f}" for row in frontier)
    parts.append(f'<polyline points="{points}" fill="none" stroke="#888888" stroke-dasharray="5 4"/>')
    fastest = max((row.tokens_per_second or 0.0 for row in shown), default=0.0)
    # Large bubbles first, so that small ones stay visible.
    for row in sorted(shown, key=lambda row: -(row.tokens_per_second or 0.0)):
        parts.append(_bubble(plane, row, _radius(row, fastest)))
    parts += _labels(plane, shown, fastest)
    for index, (key, meaning) in enumerate(_MEANINGS.items()):
        x = _LEFT + 120 * index
        parts.append(f'<circle cx="{x + 6}" cy="42" r="5" fill="{_COLOURS[key]}" fill-opacity="0.6"/>')
        parts.append(f'<text x="{x + 16}" y="46">{meaning}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plane:
    """Where a size and a quality lie in the picture."""

    least_quality: float
    most_quality: float
    most_bytes: float

    def x(self, size_bytes: float) -> float:
        return _LEFT + size_bytes / self.most_bytes * (_WIDTH - _LEFT - _RIGHT)

    def y(self, quality: float) -> float:
        share = (quality - self.least_quality) / (self.most_quality - self.least_quality)
        return _TOP + (1 - share) * (_HEIGHT - _TOP - _BOTTOM)


def _build_plane(rows: Sequence[ParetoRow]) -> _Plane:
    least, most = min(row.quality for row in rows), max(row.quality for row in rows)
    margin = (most - least) * 0.08 or abs(most) * 0.05 or 1.0
    is_share = least >= 0 and most <= 1
    return _Plane(
        least_quality=max(0.0, least - margin) if is_share else least - margin,
        most_quality=min(1.0, most + margin) if is_share else most + margin,
        most_bytes=max(row.size_bytes for row in rows) * 1.05,
    )


def _axes(plane: _Plane) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for tick in range(5):
        quality = plane.least_quality + (plane.most_quality - plane.least_quality) * tick / 4
        size = plane.most_bytes * tick / 4
        parts += [
            f'<path d="M{_LEFT} {plane.y(quality):.1f}H{right}" stroke="#dddddd"/>',
            f'<text x="{_LEFT - 6}" y="{plane.y(quality) + 4:.1f}" text-anchor="end">{quality:.3g}</text>',
            f'<text x="{plane.x(size):.1f}" y="{bottom + 18}" text-anchor="middle">{_size(size)}</text>',
        ]
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{_HEIGHT - 14}" text-anchor="middle">'
        "size of the files; height: quality; area: tokens/s of one stream; dashed: frontier</text>"
    )
    return parts


def _radius(row: ParetoRow, fastest: float) -> float:
    if not row.tokens_per_second or not fastest:
        return _LEAST_RADIUS
    return max(_LEAST_RADIUS, _MOST_RADIUS * math.sqrt(row.tokens_per_second / fastest))


def _bubble(plane: _Plane, row: ParetoRow, radius: float) -> str:
    speed = "not measured" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f} tokens/s"
    hint = f"{row.name}: {_size(row.size_bytes)}, quality {row.quality:.4g}, {speed}"
    return (
        f'<circle cx="{plane.x(row.size_bytes):.1f}" cy="{plane.y(row.quality):.1f}" r="{radius:.1f}" '
        f'fill="{_COLOURS[row.accepted]}" fill-opacity="0.45" stroke="{_COLOURS[row.accepted]}">'
        f"<title>{escape(hint)}</title></circle>"
    )


def _labels(plane: _Plane, rows: Sequence[ParetoRow], fastest: float) -> list[str]:
    """Names to the right of the bubbles, moved down where they would lie on another."""
    parts: list[str] = []
    placed: list[tuple[float, float, float]] = []
    for row in sorted(rows, key=lambda row: (-row.quality, row.size_bytes)):
        x = plane.x(row.size_bytes) + _radius(row, fastest) + 4
        y = plane.y(row.quality) + 4
        width = 6.5 * len(row.name)
        while any(
            x < right and left < x + width and abs(y - other) < _LABEL_HEIGHT for left, right, other in placed
        ):
            y += 2
        placed.append((x, x + width, y))
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}">{escape(row.name)}</text>')
    return parts


def _size(size_bytes: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.3g} {unit}"
    return f"{size_bytes:.0f} B"
