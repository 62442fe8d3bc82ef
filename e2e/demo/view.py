# SPDX-License-Identifier: Apache-2.0
"""Pictures of an SLMDeployment for a terminal: pure functions from Kubernetes objects to tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from e2e.lib.observe import condition, is_true, label_prefix

Json = Mapping[str, Any]

_VERDICT_STYLES = {"Pass": "green", "Fail": "bold red", "NoData": "yellow", "Inconclusive": "yellow"}


def render(resource: Json, nodes: Sequence[Json], pods: Sequence[Json]) -> RenderableType:
    """Nodes, waves and metrics of one deployment at this moment."""
    parts: list[RenderableType] = [_headline(resource), _nodes_table(resource, nodes, pods)]
    rollout = resource.get("status", {}).get("rollout") or {}
    if rollout.get("waves"):
        parts.append(_waves_table(rollout))
    if rollout.get("measurements"):
        parts.append(_metrics_table(rollout))
    return Group(*parts)


def one_line(resource: Json) -> str:
    """The same for a log: changes only when something happened that a reader wants to know."""
    status = resource.get("status", {})
    progressing = condition(resource, "Progressing")
    return (
        f"nodes {status.get('readyNodes', '?')} ready, stable {status.get('stableRevision') or '-'}, "
        f"{progressing.get('reason', 'starting')}: {progressing.get('message', '')}"
    )


def _headline(resource: Json) -> Text:
    status = resource.get("status", {})
    progressing = condition(resource, "Progressing")
    text = Text()
    text.append(f"{resource['metadata']['name']}  ", style="bold")
    text.append(f"stable {status.get('stableRevision') or '-'} ({status.get('modelVersion') or '-'})  ")
    text.append(f"ready {status.get('readyNodes', '-')}  ")
    text.append(f"{progressing.get('reason', '-')}", style="cyan")
    text.append(f"  {progressing.get('message', '')}", style="dim")
    return text


def _nodes_table(resource: Json, nodes: Sequence[Json], pods: Sequence[Json]) -> Table:
    metadata, status = resource["metadata"], resource.get("status", {})
    prefix = label_prefix(metadata["namespace"], metadata["name"])
    names = {
        status.get("stableRevision"): "stable",
        (status.get("rollout") or {}).get("revision"): "new",
    } | ({status["stableRevision"]: "stable"} if status.get("stableRevision") else {})
    table = Table(box=None, pad_edge=False)
    for column in ("NODE", "SITE", "LINK", "GIVEN", "FETCHING", "SERVES"):
        table.add_column(column)
    for node in nodes:
        labels = node["metadata"]["labels"]
        given = [key.removeprefix(prefix) for key in labels if key.startswith(prefix)]
        serve = [g for g in given if not g.endswith(".prefetch")]
        fetch = [g.removesuffix(".prefetch") for g in given if g.endswith(".prefetch")]
        online = is_true(node, "Ready")
        name = node["metadata"]["name"]
        ready = sorted(
            pod["metadata"]["labels"].get("slmops.dev/revision", "?")
            for pod in pods
            if pod["spec"].get("nodeName") == name
            and pod["metadata"]["labels"].get("slmops.dev/role") == "serve"
            and is_true(pod, "Ready")
        )
        table.add_row(
            name,
            labels.get("slmops.dev/site", "-"),
            Text("up", style="green") if online else Text("offline", style="red"),
            " ".join(f"{r} ({names.get(r, 'old')})" for r in sorted(serve)) or "-",
            " ".join(fetch) or "-",
            Text(" ".join(ready), style="green") if ready and online else Text(" ".join(ready) or "-"),
        )
    return table


def _waves_table(rollout: Json) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("WAVE", "NODES", "UPDATED", "READY", "DEFERRED", "FAILED", "VERDICT"):
        table.add_column(column)
    for index, wave in enumerate(rollout["waves"]):
        current = index == rollout.get("wave") and not rollout.get("finishedAt")
        verdict = wave.get("verdict", "")
        shown = rollout["step"] if current and verdict in ("", "Pending") else verdict or "-"
        numbers = [str(wave.get(key, 0)) for key in ("nodes", "updated", "ready", "deferred", "failed")]
        name = Text(wave["name"], style="bold" if current else "")
        table.add_row(name, *numbers, Text(shown, style=_VERDICT_STYLES.get(verdict, "cyan")))
    return table


def _metrics_table(rollout: Json) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("METRIC", "WAVE", "NEW", "STABLE", "SAMPLES", "VERDICT", "WHY"):
        table.add_column(column)
    latest: dict[str, Json] = {m["metric"]: m for m in rollout["measurements"]}
    for measurement in latest.values():
        table.add_row(
            measurement["metric"],
            measurement["wave"],
            measurement.get("canary", "-"),
            measurement.get("stable", "-"),
            f"{measurement.get('canarySamples', 0)}/{measurement.get('stableSamples', 0)}",
            Text(measurement["verdict"], style=_VERDICT_STYLES.get(measurement["verdict"], "")),
            Text(measurement.get("message", ""), style="dim"),
        )
    return table
