# SPDX-License-Identifier: Apache-2.0
"""Nodes on the new version over time, stacked by wave: as block characters or as an SVG."""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from xml.sax.saxutils import escape

_COLOURS: Final = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb")
_EIGHTHS: Final = " ▁▂▃▄▅▆▇█"
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 860, 380, 80, 50, 50


def block_chart(report: Mapping[str, Any], *, columns: int) -> list[str]:
    """One line of blocks for each wave: its height is the share of the wave's nodes that have it."""
    history, end = report["history"], max(report["minutes"], 1e-9)
    lines = []
    for wave in report["waves"]:
        if not wave["nodes"]:
            continue
        values = [_value_at(history, end * (column + 1) / columns, wave["name"]) for column in range(columns)]
        blocks = "".join(_block(value, wave["nodes"]) for value in values)
        lines.append(f"{wave['name']:<20} |{blocks}| of {wave['nodes']:,}")
    if lines:
        right = f"{end:.1f} min"
        lines.append(f"{'':<20}  0{right:>{max(1, columns - 1)}}")
    return lines


def _block(value: int, nodes: int) -> str:
    if value == 0:
        return " "
    return _EIGHTHS[max(1, min(8, value * 8 // nodes))]


def _value_at(history: Sequence[Mapping[str, Any]], minutes: float, wave: str) -> int:
    value = 0
    for point in history:
        if point["minutes"] > minutes + 1e-9:
            break
        value = int(point["byWave"].get(wave, 0))
    return value


def build_svg(report: Mapping[str, Any], *, title: str) -> str:
    """A stacked step chart, readable without scripts or fonts."""
    waves = [wave["name"] for wave in report["waves"]]
    history = [*report["history"], {"minutes": report["minutes"], "byWave": report["history"][-1]["byWave"]}]
    end = float(max(point["minutes"] for point in history)) or 1.0
    most = max(1, int(report["exposure"]["most"]))
    width, height = _WIDTH - _LEFT - 20, _HEIGHT - _TOP - _BOTTOM

    def x(minutes: float) -> float:
        return _LEFT + minutes / end * width

    def y(nodes: float) -> float:
        return _TOP + height - nodes / most * height

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="16">{escape(title)}</text>',
    ]
    for tick in range(5):
        nodes, minutes = most * tick / 4, end * tick / 4
        parts += [
            f'<path d="M{_LEFT} {y(nodes):.1f}h{width}" stroke="#dddddd"/>',
            f'<text x="{_LEFT - 6}" y="{y(nodes) + 4:.1f}" text-anchor="end">{nodes:,.0f}</text>',
            f'<text x="{x(minutes):.1f}" y="{_HEIGHT - 28}" text-anchor="middle">{minutes:,.1f}</text>',
        ]
    below = [0.0] * len(history)
    for index, wave in enumerate(waves):
        above = [low + point["byWave"].get(wave, 0) for low, point in zip(below, history, strict=True)]
        outline = [*_steps(history, above), *reversed(_steps(history, below))]
        points = " ".join(f"{x(minutes):.1f},{y(nodes):.1f}" for minutes, nodes in outline)
        colour = _COLOURS[index % len(_COLOURS)]
        parts.append(f'<polygon points="{points}" fill="{colour}"/>')
        column = _LEFT + index * min(130, width // max(1, len(waves)))
        parts.append(f'<rect x="{column}" y="31" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{column + 14}" y="41">{escape(wave)}</text>')
        below = above
    parts.append(
        f'<text x="{_LEFT + width / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">'
        "minutes; nodes that run the new version, by wave</text>"
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _steps(history: Sequence[Mapping[str, Any]], values: Sequence[float]) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for point, value in zip(history, values, strict=True):
        if points:
            points.append((point["minutes"], points[-1][1]))
        points.append((point["minutes"], value))
    return points
