# SPDX-License-Identifier: Apache-2.0
"""`status`: where a deployment stands, whole or fitted to a terminal, and as one line for a log."""

from collections.abc import Sequence
from typing import Final

from rich.text import Text

from slmcli.lines import Lines, cut, table, wrapped
from slmcli.render.parts import (
    STYLES,
    latest_metrics,
    render_conditions,
    render_headline,
    render_log,
    render_metrics,
    render_rollout_line,
    render_waves,
    render_worst,
)
from slmcli.times import age_text
from slmcli.view import DeploymentView, EventView
from slmops.api.status import Condition, ConditionType

LOG_ROWS: Final = 6
JUDGES: Final = {"Prometheus": "Prometheus", "Direct": "the operator itself (Direct), asking the pods"}
NO_STATUS: Final = (
    "the operator has not looked at it yet; if that lasts, see whether it runs: "
    "kubectl get pods -A -l app.kubernetes.io/name=slmops"
)


def render_status(
    view: DeploymentView, events: Sequence[EventView], *, now: float, width: int, wide: Sequence[str] = ()
) -> Lines:
    """Everything, section by section. `wide` may hold `messages` and `variants`."""
    lines = render_headline(view, width=width)
    lines += [line for note in view.notes for line in wrapped(note, width=width, style="yellow")]
    status = view.status
    if status is None:
        return lines + wrapped(NO_STATUS, width=width, style="yellow")
    if not view.up_to_date:
        lines += wrapped(_behind(view), width=width, style="yellow")
    rollout = status.rollout
    if rollout is not None:
        lines += render_rollout_line(rollout, now=now, width=width)
        if rollout.message:
            lines += wrapped(f"{rollout.reason}: {rollout.message}", width=width, indent=2, style="dim")
    lines += _section(render_conditions(status.conditions, now=now, width=width))
    if rollout is not None and rollout.waves:
        lines += _section(render_waves(rollout, width=width))
    if rollout is not None and (metrics := latest_metrics(rollout)):
        lines += _section(render_metrics(metrics, now=now, width=width))
        if rollout.judged_by is not None:
            lines.append(cut(Text(f"  judged by {JUDGES[rollout.judged_by]}", style="dim"), width))
        for metric in metrics:
            if (
                metric.latest is not None
                and metric.latest.message
                and ("messages" in wide or metric.verdict != "Pass")
            ):
                lines += wrapped(
                    f"{metric.name}: {metric.latest.message}", width=width, indent=2, style="dim"
                )
    if status.worst_nodes:
        lines += _section(render_worst(view, width=width))
    if "variants" in wide and status.variants:
        lines += _section(_render_variants(view, width=width))
    if status.failed_revisions:
        lines += _section(_render_failed(view, now=now, width=width))
    log = render_log(view, events, now=now, width=width, rows=LOG_ROWS)
    return lines + (_section(log) if len(log) > 1 else [])


def _section(lines: Lines) -> Lines:
    return [Text(), *lines]


def _behind(view: DeploymentView) -> str:
    seen = view.status.observed_generation if view.status is not None else 0
    return f"the operator has not acted on the latest spec yet (generation {view.generation}, seen {seen})"


def _render_variants(view: DeploymentView, *, width: int) -> Lines:
    variants = view.status.variants if view.status is not None else []
    return table(
        ["VARIANT", "NODES", "BYTES", "DIGEST", "REFERENCE"],
        [[v.name, str(v.nodes), str(v.size_bytes), v.digest, v.reference] for v in variants],
        width=width,
        flexible=4,
    )


def _render_failed(view: DeploymentView, *, now: float, width: int) -> Lines:
    failed = view.status.failed_revisions if view.status is not None else []
    return table(
        ["FAILED", "REASON", "AGO", "MESSAGE"],
        [[f.revision, Text(f.reason, style="red"), age_text(f.at, now), f.message] for f in failed],
        width=width,
        flexible=3,
    )


def render_live(
    view: DeploymentView,
    events: Sequence[EventView],
    *,
    now: float,
    width: int,
    height: int,
    note: str = "",
) -> Lines:
    """The same in exactly at most `height` lines: long parts are cut to what matters now."""
    lines = render_headline(view, width=width)
    lines += [cut(Text(text, style="yellow"), width) for text in view.notes[:1]]
    footer = [cut(Text(note or "Ctrl-C ends", style="yellow" if note else "dim"), width)]
    status = view.status
    if status is None:
        return _fit(lines + wrapped(NO_STATUS, width=width, style="yellow"), footer, height)
    if not view.up_to_date:
        lines.append(cut(Text(_behind(view), style="yellow"), width))
    rollout = status.rollout
    if rollout is not None:
        lines += render_rollout_line(rollout, now=now, width=width)
    lines += _short_conditions(status.conditions, width=width)
    metrics = latest_metrics(rollout) if rollout is not None else ()
    wanted = {
        "waves": len(rollout.waves) if rollout is not None else 0,
        "metrics": len(metrics),
        "worst": len(status.worst_nodes),
        "log": len(events) + len(status.operations),
    }
    rows = share_rows(wanted, height - len(lines) - len(footer))
    if rollout is not None and rows["waves"]:
        lines += render_waves(rollout, width=width, rows=rows["waves"])
    if rows["metrics"]:
        lines += render_metrics(metrics, now=now, width=width, rows=rows["metrics"])
    if rows["worst"]:
        lines += render_worst(view, width=width, rows=rows["worst"])
    if rows["log"]:
        lines += render_log(view, events, now=now, width=width, rows=rows["log"])
    return _fit(lines, footer, height)


_OVERHEAD: Final = {"waves": 2, "metrics": 2, "worst": 2, "log": 1}
"""Lines that a section costs beside its rows: the header and, where something is left out, a note."""


def share_rows(wanted: dict[str, int], available: int) -> dict[str, int]:
    """Rows of each section, given one by one in the order of the sections until no line is left."""
    rows = dict.fromkeys(wanted, 0)
    while True:
        grew = False
        for name, most in wanted.items():
            if rows[name] == most:
                continue
            cost = 1 + (_OVERHEAD[name] if rows[name] == 0 else 0)
            if cost <= available:
                rows[name] += 1
                available -= cost
                grew = True
        if not grew:
            return rows


def _fit(lines: Lines, footer: Lines, height: int) -> Lines:
    return [*lines[: max(0, height - len(footer))], *footer]


_SHORT: Final = {"True": "yes", "False": "no"}


def _short_conditions(conditions: Sequence[Condition], *, width: int) -> Lines:
    summary = Text()
    for condition in conditions:
        summary.append(f"{'  ' if summary else ''}{condition.type} ")
        word = _SHORT.get(condition.status, "?")
        summary.append(word, style=STYLES.get(condition.status, ""))
    lines = [cut(summary, width)]
    for condition in conditions:
        telling = condition.type == ConditionType.PROGRESSING or condition.status != "True"
        if telling and condition.reason not in ("Complete", "InProgress"):
            text = Text(condition.reason, style="cyan")
            text.append(f": {condition.message}", style="dim")
            lines.append(cut(text, width))
    return lines


def render_change(view: DeploymentView) -> str:
    """One line that changes when something happened that a reader wants to know."""
    status = view.status
    if status is None:
        return "the operator has not looked at it yet"
    progressing = view.condition(ConditionType.PROGRESSING)
    ready = view.condition(ConditionType.READY)
    parts = [f"ready {status.ready_nodes or '-'}", f"stable {status.stable_revision or '-'}"]
    rollout = view.rollout
    if rollout is not None:
        where = f" wave {view.wave.name} ({rollout.wave + 1}/{len(rollout.waves)})" if view.wave else ""
        parts.append(f"rollout {rollout.revision} {rollout.step}{where}")
    if progressing is not None:
        parts.append(f"{progressing.reason}: {progressing.message}")
    if ready is not None and ready.status != "True":
        parts.append(f"{ready.reason}: {ready.message}")
    return "; ".join(parts)
