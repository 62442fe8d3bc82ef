# SPDX-License-Identifier: Apache-2.0
"""The report for people."""

from collections.abc import Mapping
from typing import Any, Final

from slmcli.simulate.plot import block_chart

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def report_text(report: Mapping[str, Any], *, columns: int) -> str:
    """One simulated rollout."""
    nodes, exposure, requests, cost = report["nodes"], report["exposure"], report["requests"], report["cost"]
    lines = [
        f"{report['verdict']} after {_time(report['minutes'])} ({report['message']})",
        "",
        f"{'WAVE':<20} {'NODES':>8} {'UPDATED':>8} {'DEFERRED':>8} {'FAILED':>7}  "
        f"{'BEGIN':>10} {'END':>10}  VERDICT",
    ]
    lines += [
        f"{w['name']:<20} {w['nodes']:>8,} {w['updated']:>8,} {w['deferred']:>8,} {w['failed']:>7,}  "
        f"{_time(w['beginMinutes']):>10} {_time(w['endMinutes']):>10}  {w['verdict']}"
        for w in report["waves"]
    ]
    lines += ["", *block_chart(report, columns=columns), ""]
    decided = exposure["decidedMinutes"]
    lines += [
        f"nodes      {nodes['matching']:,} take part, {nodes['onNewVersion']:,} on the new version then, "
        f"{nodes['offline']:,} are offline",
        f"exposure   {exposure['most']:,} nodes at most, {exposure['nodeMinutes']:,.0f} node-minutes"
        + (
            ""
            if decided is None
            else f"; {exposure['atDecision']:,} when the rollback began, at {_time(decided)}"
        ),
        f"links      {_size(report['bytes']['total'])} in all over {report['bytes']['sites']:,} link(s), "
        f"{_size(report['bytes']['largestSite'])} over the busiest",
        f"requests   {requests['onNewVersion']:,} to the new version, {requests['failedOnNewVersion']:,} of "
        f"them failed; {requests['withoutPod']:,} found no pod",
        f"work       {report['moves']:,} moves, {cost['patches']:,} label patches, {cost['looks']:,} looks; "
        f"{cost['plannerCpuSeconds']:.1f} s of {cost['cpuSeconds']:.1f} s CPU in the planner",
    ]
    return "\n".join([*lines, *(f"note       {note}" for note in report["notes"])])


def summary_text(summary: Mapping[str, Any]) -> str:
    """Several seeds."""
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in summary["verdicts"].items())
    lines = [f"{summary['runs']} runs: {verdicts}", "", f"{'':<28} {'MEDIAN':>14} {'P95':>14}"]
    labels = {
        "minutes": "minutes",
        "bytes": "bytes over links",
        "exposedAtDecision": "nodes exposed at rollback",
        "exposedMost": "nodes exposed at most",
        "exposedNodeMinutes": "node-minutes of exposure",
        "requestsFailed": "requests failed on it",
    }
    for key, label in labels.items():
        median, worst = summary[key]["median"], summary[key]["p95"]
        if key == "bytes":
            lines.append(f"{label:<28} {_size(median):>14} {_size(worst):>14}")
        else:
            lines.append(f"{label:<28} {median:>14,g} {worst:>14,g}")
    return "\n".join(lines)


def _time(minutes: float | None) -> str:
    if minutes is None:
        return "-"
    seconds = round(minutes * 60)
    hours, rest = divmod(seconds, 3600)
    return f"{hours}h{rest // 60:02}m" if hours else f"{rest // 60}m{rest % 60:02}s"


def _size(size_bytes: float) -> str:
    value, unit = float(size_bytes), 0
    while value >= 1000 and unit + 1 < len(_UNITS):
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {_UNITS[unit]}"
