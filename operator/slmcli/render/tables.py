# SPDX-License-Identifier: Apache-2.0
"""Tables of `list`, `nodes` and `history`."""

from collections.abc import Sequence
from typing import Literal

from rich.text import Text

from slmcli.lines import Cell, Lines, table
from slmcli.observe import NodeReport
from slmcli.render.parts import styled
from slmcli.revisions import StoredRevision
from slmcli.times import age_text
from slmcli.view import DeploymentView
from slmops.api.status import ConditionType

_NODE_STYLES = {
    "stable": "green",
    "updated": "cyan",
    "failed": "bold red",
    "offline": "yellow",
    "unfit": "yellow",
    "leaving": "dim",
}


def render_list(
    views: Sequence[DeploymentView], *, now: float, width: int, namespaces: Literal["shown", "left out"]
) -> Lines:
    """One line per deployment."""
    first = ["NAMESPACE"] if namespaces == "shown" else []
    rows = [[*([view.namespace] if first else []), *_list_row(view, now)] for view in views]
    headers = [*first, "NAME", "READY", "NODES", "STABLE", "VERSION", "ROLLOUT", "AGE"]
    return table(headers, rows, width=width, flexible=len(first))


def _list_row(view: DeploymentView, now: float) -> list[Cell]:
    status = view.status
    if status is None:
        return [view.name, "-", "-", "-", "-", "-", age_text(view.created_at, now)]
    ready, progressing = view.condition(ConditionType.READY), view.condition(ConditionType.PROGRESSING)
    rollout = status.canary or (progressing.reason if progressing is not None else "-")
    return [
        view.name,
        styled(ready.status if ready is not None else ""),
        status.ready_nodes or "-",
        status.stable_revision or "-",
        status.model_version or "-",
        rollout,
        age_text(view.created_at, now),
    ]


def render_nodes(reports: Sequence[NodeReport], *, width: int, more: Sequence[str] = ()) -> Lines:
    """One line per node. `more` may hold `restarts`."""
    extra = ["RESTARTS"] if "restarts" in more else []
    rows = [
        [
            report.node,
            report.site or "-",
            Text(report.state, style=_NODE_STYLES.get(report.state, "")),
            _pairs(report.given) or "-",
            " ".join(report.serving) or "-",
            *([str(report.restarts)] if extra else []),
            _problem(report),
        ]
        for report in reports
    ]
    headers = ["NODE", "SITE", "STATE", "GIVEN", "SERVES", *extra, "PROBLEM"]
    return table(headers, rows, width=width, flexible=len(headers) - 1)


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return " ".join(f"{revision}/{variant}" for revision, variant in pairs)


def _problem(report: NodeReport) -> Cell:
    if report.problem is None:
        fetching = _pairs(report.fetching)
        return f"({'holds' if report.state == 'prepared' else 'fetches'} {fetching})" if fetching else ""
    return Text(f"{report.problem.reason}: {report.problem.message}", style="red")


def render_history(
    revisions: Sequence[StoredRevision], *, now: float, width: int, digest_length: int
) -> Lines:
    """One line per revision and variant, the newest first."""
    rows: list[list[Cell]] = []
    for stored in reversed(revisions):
        state = ",".join(stored.states) or "-"
        style = "red" if "failed" in stored.states else "green" if "stable" in stored.states else ""
        head: list[Cell] = [
            str(stored.number), stored.revision, stored.model_version or "-", Text(state, style=style)
        ]  # fmt: skip
        age = age_text(stored.created_at, now)
        for index, variant in enumerate(stored.variants):
            shown = head if index == 0 else ["", "", "", ""]
            digest = variant.digest.removeprefix("sha256:") if digest_length < 71 else variant.digest
            rows.append([*shown, variant.name, digest[:digest_length] or "-", age if index == 0 else ""])
        if not stored.variants:
            rows.append([*head, "-", "not understood", age])
    return table(
        ["NUMBER", "REVISION", "VERSION", "STATE", "VARIANT", "DIGEST", "AGE"], rows, width=width, flexible=2
    )
