# SPDX-License-Identifier: Apache-2.0
"""Where output goes: a terminal with colours and a width, or a pipe, which gets plain whole lines."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TextIO

from rich.console import Console, RenderableType

PIPE_WIDTH: Final = 4000
"""Nothing is cut or wrapped for a pipe: names stay whole for grep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """`live` says that it can be redrawn; without it no control code is written."""

    out: TextIO
    width: int
    live: bool = False

    def show(self, *parts: RenderableType) -> None:
        """Write renderables one below the other."""
        self.out.write(to_text(parts, width=self.width, style="coloured" if self.live else "plain"))
        self.out.flush()

    def write(self, text: str) -> None:
        """Write text as it is."""
        self.out.write(text)
        self.out.flush()

    def console(self) -> Console:
        """A console on the real terminal, for a view that redraws itself."""
        return Console(file=self.out, force_terminal=True, highlight=False, markup=False, emoji=False)


def to_text(
    parts: tuple[RenderableType, ...], *, width: int, style: Literal["coloured", "plain"] = "plain"
) -> str:
    """The parts as text of at most `width` columns; plain text has no control code in it."""
    colours = style == "coloured"
    console = Console(
        width=width,
        force_terminal=colours,
        no_color=not colours,
        color_system="standard" if colours else None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        for part in parts:
            console.print(part, crop=False)
    return "".join(line.rstrip() + "\n" for line in capture.get().splitlines())


def find_terminal(
    out: TextIO, environ: Mapping[str, str], *, wanted: Literal["best", "plain"] = "best"
) -> Terminal:
    """The terminal behind `out`; plain when it is none, when NO_COLOR is set or when it is asked for."""
    reconfigure: Any = getattr(out, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # a name that the terminal's encoding lacks must not end the command
    is_terminal = out.isatty()
    width = shutil.get_terminal_size((80, 24)).columns if is_terminal else PIPE_WIDTH
    dumb = environ.get("TERM", "") in ("", "dumb") and sys.platform != "win32"
    return Terminal(
        out=out,
        width=max(40, width),
        live=is_terminal and wanted == "best" and not environ.get("NO_COLOR") and not dumb,
    )
