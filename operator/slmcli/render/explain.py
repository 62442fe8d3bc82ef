# SPDX-License-Identifier: Apache-2.0
"""`explain`: the standing in sentences."""

from collections.abc import Sequence

from rich.text import Text

from slmcli.lines import Lines, wrapped
from slmcli.render.parts import render_metrics
from slmcli.standing import Standing
from slmcli.times import age_text


def render_standing(standing: Standing, *, now: float, width: int) -> Lines:
    """Summary, reasons, what it waits for, what comes next, what was decided, what one can do."""
    lines: Lines = [Text(line.plain, style="bold") for line in wrapped(standing.summary, width=width)]
    lines += _list("Why", standing.because, width=width)
    lines += _list("Waits for", standing.waits_for, width=width)
    lines += _list("Next", standing.next, width=width)
    if standing.measurements:
        lines += [Text(), Text("Measurements", style="bold")]
        lines += render_metrics(standing.measurements, now=now, width=width)
        lines += [
            line
            for metric in standing.measurements
            if metric.latest is not None and metric.latest.message
            for line in wrapped(f"{metric.name}: {metric.latest.message}", width=width, indent=2, style="dim")
        ]
    decided = [f"{age_text(entry.at, now)} ago: {entry.text}" for entry in standing.decisions]
    lines += _list("Decisions", decided, width=width)
    if standing.actions:
        lines += [Text(), Text("You can", style="bold")]
        for action in standing.actions:
            lines += wrapped(f"{action.effect}:", width=width, indent=2)
            # Never broken into lines of ours: it is there to be copied.
            lines.append(Text(f"    {action.command}", style="cyan", no_wrap=True, overflow="ignore"))
    return lines


def _list(title: str, entries: Sequence[str], *, width: int) -> Lines:
    if not entries:
        return []
    lines = [Text(), Text(title, style="bold")]
    for entry in entries:
        found = wrapped(entry, width=width, indent=4)
        found[0] = Text("  - " + found[0].plain[4:])
        lines += found
    return lines
