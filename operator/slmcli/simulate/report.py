# SPDX-License-Identifier: Apache-2.0
"""What a simulation found, as one plain object: the same in JSON, YAML and text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from slmcli.simulate.fleet import sizes_by_site
from slmcli.simulate.simulation import Simulation
from slmops.api.status import ConditionType, WaveStatus
from slmops.planning import times
from slmops.planning.nodes import choose_variant
from slmops.planning.selectors import matches

MAX_POINTS: Final = 400
"""Of the history; more are thinned out evenly."""
_MINUTE: Final = 60.0


def build_report(simulation: Simulation, *, seed: int) -> dict[str, Any]:
    """Result of one simulated rollout; times are minutes since its begin."""
    status, record, cluster = simulation.status, simulation.record, simulation.cluster
    rollout, now = status.rollout, cluster.now
    start = simulation.settings.start_seconds
    sites = sizes_by_site(simulation.nodes, now)
    finished = rollout.finished_at if rollout is not None else None
    return {
        "seed": seed,
        "verdict": record.verdict,
        "message": _message(simulation),
        "minutes": _minutes(finished, start) if finished else _round((now - start) / _MINUTE),
        "nodes": {
            "total": len(simulation.nodes),
            "matching": _matching(simulation),
            "onNewVersion": round(cluster.tally.exposed.value),
            "offline": sum(not node.online for node in simulation.nodes),
        },
        "waves": [_wave(wave, start) for wave in (rollout.waves if rollout is not None else [])],
        "bytes": {
            "total": round(sum(sites.values())),
            "sites": len(sites),
            "largestSite": round(max(sites.values(), default=0)),
        },
        "exposure": {
            "atDecision": record.exposed_at_decision,
            "most": round(cluster.tally.exposed.most),
            "nodeMinutes": _round(cluster.tally.exposed.area(now) / _MINUTE),
            "decidedMinutes": (
                None if record.decided_at is None else _round((record.decided_at - start) / _MINUTE)
            ),
        },
        "requests": _requests(simulation),
        "moves": record.moves,
        "cost": {
            "looks": record.looks,
            "patches": record.patches,
            "plannerCpuSeconds": round(record.plan_cpu_seconds, 2),
            "cpuSeconds": round(record.cpu_seconds, 2),
        },
        "history": _history(simulation, start),
        "notes": _notes(simulation),
    }


def summarise(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median and 95th percentile over several seeds, and how often each verdict came."""
    verdicts: dict[str, int] = {}
    for report in reports:
        verdicts[report["verdict"]] = verdicts.get(report["verdict"], 0) + 1
    numbers = {
        "minutes": [r["minutes"] for r in reports],
        "bytes": [r["bytes"]["total"] for r in reports],
        "exposedAtDecision": [r["exposure"]["atDecision"] for r in reports],
        "exposedMost": [r["exposure"]["most"] for r in reports],
        "exposedNodeMinutes": [r["exposure"]["nodeMinutes"] for r in reports],
        "requestsFailed": [r["requests"]["failedOnNewVersion"] for r in reports],
    }
    return {
        "runs": len(reports),
        "verdicts": dict(sorted(verdicts.items())),
        **{
            key: {"median": _percentile(values, 0.5), "p95": _percentile(values, 0.95)}
            for key, values in numbers.items()
        },
    }


def _percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: a value that was really seen."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _message(simulation: Simulation) -> str:
    conditions = {c.type: c for c in simulation.status.conditions}
    kinds = {
        "Refused": ConditionType.ACCEPTED,
        "Held": ConditionType.PROGRESSING,
        "Unfinished": ConditionType.PROGRESSING,
    }
    found = conditions.get(kinds.get(simulation.record.verdict, ConditionType.ROLLOUT_SUCCEEDED))
    return f"{found.reason}: {found.message}" if found is not None else ""


def _matching(simulation: Simulation) -> int:
    spec, target = simulation.versions.spec, simulation.versions.target
    return sum(
        matches(spec.placement.node_selector, node.view.labels)
        and choose_variant(target, node.view) is not None
        for node in simulation.nodes
    )


def _wave(wave: WaveStatus, start: float) -> dict[str, Any]:
    return {
        "name": wave.name,
        "nodes": wave.nodes,
        "updated": wave.updated,
        "deferred": wave.deferred,
        "failed": wave.failed,
        "verdict": wave.verdict or "NotBegun",
        "beginMinutes": _minutes(wave.started_at, start),
        "endMinutes": _minutes(wave.finished_at, start),
    }


def _minutes(text: str | None, start: float) -> float | None:
    return None if text is None else _round(max(0.0, times.to_seconds(text) - start) / _MINUTE)


def _round(value: float) -> float:
    return round(value, 2)


def _requests(simulation: Simulation) -> dict[str, int]:
    """Expected numbers: node-minutes times the rate, and the share of them that fails."""
    cluster, settings = simulation.cluster, simulation.settings
    target, rate = simulation.versions.target.revision, settings.requests_per_node_minute
    now, tally = cluster.now, cluster.tally
    on_new = (
        sum(g.area(now) for (revision, _), g in tally.serving.items() if revision == target) / _MINUTE * rate
    )
    on_old = (
        sum(g.area(now) for (revision, _), g in tally.serving.items() if revision != target) / _MINUTE * rate
    )
    return {
        "onNewVersion": round(on_new),
        "failedOnNewVersion": round(on_new * simulation.traffic.rates(target)),
        "onStable": round(on_old),
        "withoutPod": round(tally.idle.area(now) / _MINUTE * rate),
    }


def _history(simulation: Simulation, start: float) -> list[dict[str, Any]]:
    """Nodes that run the new version over time, by the wave in which they took it."""
    points = simulation.cluster.tally.history
    rollout = simulation.status.rollout
    names = [wave.name for wave in rollout.waves] if rollout is not None else []
    if len(points) > MAX_POINTS:
        step = len(points) / (MAX_POINTS - 1)
        points = [points[int(i * step)] for i in range(MAX_POINTS - 1)] + [points[-1]]
    return [
        {
            "minutes": _round((at - start) / _MINUTE),
            "byWave": {
                names[wave] if wave < len(names) else str(wave): count for wave, count in counts.items()
            },
        }
        for at, counts in points
    ]


def _notes(simulation: Simulation) -> list[str]:
    notes = [
        f"metric {metric.name}: a query of your own cannot be simulated; it is taken to be healthy"
        for metric in simulation.versions.spec.rollout.analysis.metrics
        if metric.preset is None
    ]
    if _matching(simulation) < len(simulation.nodes):
        outside = len(simulation.nodes) - _matching(simulation)
        notes.append(f"{outside} node(s) do not match placement or have no variant; they take no part")
    return notes
