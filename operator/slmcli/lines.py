# SPDX-License-Identifier: Apache-2.0
"""Lines of text with styles: tables, cuts and wraps of a known width and height.

Everything that is shown is a list of lines, so a view can be fitted to a terminal by counting them.
"""

import textwrap
from collections.abc import Sequence
from typing import Final

from rich.text import Text

GAP: Final = 2
_NARROW: Final = 8
"""The flexible column is cut to this before others are."""
Cell = str | Text
Lines = list[Text]


def text_of(cell: Cell, style: str = "") -> Text:
    """A cell as styled text; markup in it means nothing."""
    return Text(cell, style=style) if isinstance(cell, str) else cell.copy()


def cut(cell: Cell, width: int) -> Text:
    """At most `width` columns, with an ellipsis where something is missing."""
    text = text_of(cell)
    text.truncate(max(0, width), overflow="ellipsis")
    return text


def table(headers: Sequence[str], rows: Sequence[Sequence[Cell]], *, width: int, flexible: int) -> Lines:
    """A header and one line per row, none wider than `width`. The column with the index `flexible`
    gives way first, then the widest ones."""
    body = [[text_of(cell) for cell in row] for row in rows]
    head = [Text(header, style="bold") for header in headers]
    widths = _widths([head, *body], width - GAP * (len(headers) - 1), flexible)
    return [_row(cells, widths) for cells in (head, *body)]


def _widths(rows: Sequence[Sequence[Text]], available: int, flexible: int) -> list[int]:
    widths = [max(cell.cell_len for cell in column) for column in zip(*rows, strict=True)]
    excess = sum(widths) - available
    if excess > 0:
        given = min(excess, max(0, widths[flexible] - _NARROW))
        widths[flexible] -= given
        excess -= given
    while excess > 0 and max(widths) > 1:
        widest = widths.index(max(widths))
        widths[widest] -= 1
        excess -= 1
    return widths


def _row(cells: Sequence[Text], widths: Sequence[int]) -> Text:
    line = Text()
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        shown = cut(cell, width)
        line.append_text(shown)
        if index + 1 < len(widths):
            line.append(" " * (width - shown.cell_len + GAP))
    line.rstrip()
    return line


def wrapped(text: str, *, width: int, indent: int = 0, style: str = "") -> Lines:
    """A text in as many lines as it needs."""
    margin = " " * indent
    found = textwrap.wrap(text, max(20, width), initial_indent=margin, subsequent_indent=margin)
    return [Text(line, style=style) for line in found]


def bar(done: int, total: int, *, width: int = 8) -> Text:
    """A bar that is full only when all is done."""
    filled = 0 if total <= 0 else min(width, done * width // total)
    text = Text("#" * filled, style="green")
    text.append("." * (width - filled), style="dim")
    return text
