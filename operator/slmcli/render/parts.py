# SPDX-License-Identifier: Apache-2.0
"""What several pictures show: headline, conditions, waves, metrics, nodes with a problem, the log."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.text import Text

from slmcli.lines import Lines, bar, cut, table, wrapped
from slmcli.times import age_text, seconds_of
from slmcli.view import DeploymentView, EventView
from slmops.api.status import Condition, Measurement, MetricState, NodeCounts, RolloutStatus, WaveStatus

STYLES: Final = {
    "Pass": "green",
    "True": "green",
    "Done": "green",
    "Completed": "green",
    "Fail": "bold red",
    "Failed": "bold red",
    "RollingBack": "bold red",
    "False": "red",
    "Refused": "red",
    "Warning": "yellow",
    "Unknown": "yellow",
    "NoData": "yellow",
    "Inconclusive": "yellow",
    "ProviderError": "yellow",
}


def styled(word: str) -> Text:
    """A verdict, step or status in its colour."""
    return Text(word or "-", style=STYLES.get(word, "cyan" if word else "dim"))


def render_headline(view: DeploymentView, *, width: int) -> Lines:
    """Name, model, revisions and the counts of nodes."""
    status = view.status
    first = Text(f"{view.namespace}/{view.name}", style="bold")
    if view.spec is not None:
        first.append(f"  model {view.spec.model.name} {view.spec.model.version}", style="")
    if view.deleting:
        first.append("  being deleted", style="yellow")
    if status is None:
        return [cut(first, width)]
    stable = status.stable_revision
    first.append(f"  stable {stable or '-'}{f' ({status.model_version})' if status.model_version else ''}")
    second = Text(counts_text(status.nodes))
    lines = [cut(first, width), cut(second, width)]
    if status.pinned is not None:
        pin = f"pinned to {status.pinned.revision} instead of {status.pinned.instead_of}, until spec changes"
        lines.append(cut(Text(pin, style="yellow"), width))
    if view.paused:
        by = "the annotation slmops.dev/paused" if view.paused == "annotation" else "spec.rollout.paused"
        lines.append(cut(Text(f"paused by {by}", style="yellow"), width))
    return lines


def counts_text(nodes: NodeCounts) -> str:
    """The counts of nodes in half a line; zeros that say nothing are left out."""
    text = f"nodes {nodes.ready} of {nodes.total} ready, {nodes.stable} stable, {nodes.updated} updated"
    for name in ("offline", "failed", "unfit"):
        if count := getattr(nodes, name):
            text += f", {count} {name}"
    return text


def render_rollout_line(rollout: RolloutStatus, *, now: float, width: int) -> Lines:
    """The step, the wave and how long it has been there."""
    line = Text(f"rollout {rollout.revision}  ")
    line.append_text(styled(rollout.step))
    if rollout.wave < len(rollout.waves) and rollout.finished_at is None:
        wave = rollout.waves[rollout.wave].name
        line.append(f" in wave {wave} ({rollout.wave + 1} of {len(rollout.waves)})")
    line.append(
        f" for {age_text(rollout.step_started_at, now)}, begun {age_text(rollout.started_at, now)} ago"
    )
    if rollout.paused_at is not None:
        line.append(f", its clocks stand since {age_text(rollout.paused_at, now)}", style="yellow")
    return [cut(line, width)]


def render_conditions(conditions: Sequence[Condition], *, now: float, width: int) -> Lines:
    """One line per condition, and the message below where it is not the good state."""
    lines = table(
        ["CONDITION", "STATUS", "REASON", "AGE"],
        [[c.type, styled(c.status), c.reason, age_text(c.last_transition_time, now)] for c in conditions],
        width=width,
        flexible=2,
    )
    result = lines[:1]
    for condition, line in zip(conditions, lines[1:], strict=True):
        result.append(line)
        if condition.status != "True" or condition.type == "Progressing":
            result += wrapped(condition.message, width=width, indent=2, style="dim")
    return result


def wave_state(rollout: RolloutStatus, index: int) -> str:
    """Verdict of a wave, the step of the one under way, or nothing for one to come."""
    verdict = rollout.waves[index].verdict
    current = index == rollout.wave and rollout.finished_at is None
    return rollout.step if current and verdict in ("", "Pending") else verdict


def render_waves(rollout: RolloutStatus, *, width: int, rows: int | None = None) -> Lines:
    """The waves; at most `rows` of them, those around the current one."""
    shown = _around(len(rollout.waves), rollout.wave, rows)
    lines = table(
        ["WAVE", "PROGRESS", "READY", "UPDATED", "DEFERRED", "FAILED", "STATE"],
        [_wave_row(rollout, index, rollout.waves[index]) for index in shown],
        width=width,
        flexible=0,
    )
    return lines + _left_out(len(rollout.waves) - len(shown), "wave")


def _wave_row(rollout: RolloutStatus, index: int, wave: WaveStatus) -> list[str | Text]:
    current = index == rollout.wave and rollout.finished_at is None
    return [
        Text(wave.name, style="bold" if current else ""),
        bar(wave.ready, wave.nodes),
        f"{wave.ready}/{wave.nodes}",
        str(wave.updated),
        str(wave.deferred),
        Text(str(wave.failed), style="bold red" if wave.failed else ""),
        styled(wave_state(rollout, index)),
    ]


def _around(count: int, current: int, rows: int | None) -> range:
    if rows is None or count <= rows:
        return range(count)
    start = max(0, min(current - rows // 2, count - rows))
    return range(start, start + rows)


def _left_out(count: int, noun: str) -> Lines:
    return [Text(f"... {count} more {noun}{'' if count == 1 else 's'}", style="dim")] if count > 0 else []


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricLine:
    """The latest measurement of a metric, with its running counts in the current wave."""

    name: str
    state: MetricState | None
    latest: Measurement | None

    @property
    def verdict(self) -> str:
        """The latest verdict."""
        return self.latest.verdict if self.latest is not None else (self.state.verdict if self.state else "")


def latest_metrics(rollout: RolloutStatus) -> tuple[MetricLine, ...]:
    """One entry per metric that was measured or is counted; those that do not pass come first.

    Measurements of earlier waves are left out once the current wave has its own.
    """
    wave = rollout.waves[rollout.wave].name if rollout.wave < len(rollout.waves) else ""
    latest: dict[str, Measurement] = {}
    for measurement in rollout.measurements:
        known = latest.get(measurement.metric)
        if known is None or measurement.wave == wave or known.wave != wave:
            latest[measurement.metric] = measurement
    states = {state.name: state for state in rollout.metrics}
    names = [*states, *(name for name in latest if name not in states)]
    found = [MetricLine(name=n, state=states.get(n), latest=latest.get(n)) for n in names]
    return tuple(sorted(found, key=lambda line: (line.verdict == "Pass", line.name)))


def render_metrics(
    metrics: Sequence[MetricLine], *, now: float, width: int, rows: int | None = None
) -> Lines:
    """Value, stable value, samples, p-value and verdict of each metric."""
    shown = metrics if rows is None else metrics[:rows]
    lines = table(
        ["METRIC", "NEW", "STABLE", "SAMPLES", "P-VALUE", "PASSES", "VERDICT", "AGE"],
        [_metric_row(line, now) for line in shown],
        width=width,
        flexible=0,
    )
    return lines + _left_out(len(metrics) - len(shown), "metric")


def _metric_row(line: MetricLine, now: float) -> list[str | Text]:
    latest = line.latest
    passes = str(line.state.consecutive_passes) if line.state else "-"
    name = line.name + (" (dry run)" if latest is not None and latest.dry_run else "")
    if latest is None:
        return [name, "-", "-", "-", "-", passes, styled(line.verdict), "-"]
    return [
        name if not latest.variant else f"{name} [{latest.variant}]",
        short_number(latest.canary),
        short_number(latest.stable),
        f"{latest.canary_samples}/{latest.stable_samples}",
        short_number(latest.p_value),
        passes,
        styled(latest.verdict),
        age_text(latest.at, now),
    ]


def short_number(text: str | None) -> str:
    """A decimal of status in at most four significant digits; what is no number is kept, cut short."""
    if text is None:
        return "-"
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text[:12]


def render_worst(view: DeploymentView, *, width: int, rows: int | None = None) -> Lines:
    """Nodes with a problem, one line each."""
    nodes = view.status.worst_nodes if view.status is not None else []
    shown = nodes if rows is None else nodes[:rows]
    lines = table(
        ["NODE", "REASON", "MESSAGE"],
        [[node.node, Text(node.reason, style="red"), node.message] for node in shown],
        width=width,
        flexible=2,
    )
    return lines + _left_out(len(nodes) - len(shown), "node")


def render_log(
    view: DeploymentView, events: Sequence[EventView], *, now: float, width: int, rows: int
) -> Lines:
    """The latest Events and operations, the newest first."""
    entries = [(event.at, event.kind, event.reason, event.message) for event in events]
    operations = view.status.operations if view.status is not None else []
    entries += [(o.at, o.outcome, o.operation, f"{o.outcome}: {o.message}") for o in operations]
    entries.sort(key=lambda entry: seconds_of(entry[0]) or 0.0, reverse=True)
    return table(
        ["AGO", "WHAT", "MESSAGE"],
        [
            [age_text(at, now), Text(reason, style=STYLES.get(kind, "")), message]
            for at, kind, reason, message in entries[:rows]
        ],
        width=width,
        flexible=2,
    )
