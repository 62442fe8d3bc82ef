# SPDX-License-Identifier: Apache-2.0
"""Rows of docs/benchmarks/fleet.json from what the parts have measured. Pure functions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

SAME_WORK: Final = "same work"
MOVES: Final = "moves"
IDLE: Final = "idle"
OURS: Final = "ours"
ARGO: Final = "argo"
DAEMON_SETS: Final = "daemonsets"
PEER_NAMES: Final = {ARGO: "Argo Rollouts", DAEMON_SETS: "plain DaemonSets"}
MAX_WALL_OF_ARGO: Final = 0.5
MAX_WALL_OF_FLOOR: Final = 1.2
MAX_REQUESTS_OF_ARGO: Final = 0.4
MAX_CPU_OF_ARGO: Final = 1.0
MAX_CPU_PERCENT: Final = 25.0
MAX_MEGABYTES: Final = 200.0
MAX_WRITES_PER_NODE: Final = 3.0
MAX_EVENT_TO_WRITE_MS: Final = 300.0
MAX_IDLE_CPU_PERCENT: Final = 1.0

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One side's way from applying a version until all of it is promoted and settled, or until it ended.

    What could not be measured is None.
    """

    wanted: int
    """Deployments."""
    done: int
    """Deployments that were promoted and had nothing but the new pods at the end."""
    moved: int
    """Nodes that had a ready pod of the new version at the end."""
    wall_seconds: float
    cpu_seconds: float | None = None
    peak_bytes: int | None = None
    """Of the controller's resident memory since it started."""
    requests: float | None = None
    """API requests that the controller counted itself."""
    writes: Mapping[str, float] = field(default_factory=dict)
    """Those of them that write, by resource; Leases left out."""
    server_writes: float | None = None
    """Writes that the API server took from everybody; Leases left out."""
    event_to_write_seconds: float | None = None
    """95th percentile."""
    problem: str = ""
    """Why it ended before all were done."""

    @property
    def reached(self) -> bool:
        """Whether all of the work was done."""
        return not self.problem and self.done == self.wanted


def build_row(measure: str, unit: str, ours: float | None, *, load: str, **more: Any) -> Row:
    """A row; `limit` is the most that meets the target, `of_peer` takes it as a multiple of the peer."""
    peer: float | None = more.get("peer")
    limit: float | None = more.get("limit")
    ratio = ours / peer if ours is not None and peer else None
    relative = bool(more.get("of_peer"))
    judged = ratio if relative else ours
    met = None
    if limit is not None and not (relative and peer is None):
        met = judged is not None and judged <= limit
    return {
        "measure": measure,
        "unit": unit,
        "ours": _rounded(ours),
        "peer": _rounded(peer),
        "peer_name": more.get("peer_name", ""),
        "ratio": _rounded(ratio),
        "target": None if limit is None else f"<= {limit:g}{' x peer' if relative else ''}",
        "met": met,
        "load": load,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _megabytes(size: int | None) -> float | None:
    return None if size is None else size / 1e6


def _explained(load: str, **runs: Run | None) -> str:
    """The load, and what was not reached."""
    problems = [
        f"{name} reached {run.done} of {run.wanted}: {in_short(run.problem) or 'not all'}"
        for name, run in runs.items()
        if run is not None and not run.reached
    ]
    return "; ".join([load, *problems])


def in_short(problem: str) -> str:
    """A problem for a table: its first clause, without folders of the machine."""
    first = re.split(r"[;\n]", problem, maxsplit=1)[0]
    return re.sub(r"(/[\w.@+-]+)+(/[\w.@+-]+)", r"\2", first)[:200]


def build_done_row(part: str, run: Run, *, load: str, peer: Run | None = None, peer_name: str = "") -> Row:
    """How many deployments came through; met when all of ours did."""
    row = build_row(
        f"{part}: deployments promoted and settled", "", run.done, load=load,
        peer=None if peer is None else peer.done, peer_name=peer_name,
    )  # fmt: skip
    return row | {"target": str(run.wanted), "met": run.reached}


def build_same_work_rows(runs: Mapping[str, Run], *, load: str) -> list[Row]:
    """Ours beside each peer that has run; what a side did not finish is not compared."""
    ours = runs.get(OURS)
    rows: list[Row] = []
    for key, peer_name in PEER_NAMES.items():
        peer = runs.get(key)
        if ours is None or (peer is None and (rows or key != ARGO)):
            continue
        sides = {OURS: ours, peer_name: peer}
        text = _explained(load, **sides)
        rows.append(build_done_row(SAME_WORK, ours, load=text, peer=peer, peer_name=peer_name))
        compared: list[tuple[str, str, float | None, float | None, float | None]] = [
            (
                "apply until all settled", "s", ours.wall_seconds, peer.wall_seconds if peer else None,
                MAX_WALL_OF_ARGO if key == ARGO else MAX_WALL_OF_FLOOR,
            ),
            (
                "writes to the API server by all clients", "", ours.server_writes,
                peer.server_writes if peer else None, None,
            ),
        ]  # fmt: skip
        if key == ARGO:
            compared += [
                (
                    "API requests of the controller", "", ours.requests, peer.requests if peer else None,
                    MAX_REQUESTS_OF_ARGO,
                ),
                (
                    "CPU of the controller", "s", ours.cpu_seconds, peer.cpu_seconds if peer else None,
                    MAX_CPU_OF_ARGO,
                ),
                (
                    "peak memory of the controller", "MB", _megabytes(ours.peak_bytes),
                    _megabytes(peer.peak_bytes) if peer else None, None,
                ),
            ]  # fmt: skip
        for measure, unit, mine, other, limit in compared:
            rows.append(
                build_row(
                    f"{SAME_WORK}: {measure}", unit, mine if ours.reached else None, load=text,
                    peer=other if peer and peer.reached else None, peer_name=peer_name, limit=limit,
                    of_peer=True,
                )
            )  # fmt: skip
    return rows


def build_moves_rows(run: Run, *, load: str) -> list[Row]:
    """What one operator needs for many rollouts at once. Kept when not all were reached, and said so."""
    text = _explained(load, ours=run)
    cpu = run.cpu_seconds / run.wall_seconds * 100 if run.cpu_seconds is not None else None
    p95 = run.event_to_write_seconds
    rows = [
        build_done_row(MOVES, run, load=text),
        build_row(
            f"{MOVES}: apply until all settled", "s", run.wall_seconds if run.reached else None, load=text
        ),
        build_row(
            f"{MOVES}: operator CPU", "% of a core", cpu, load=text, limit=MAX_CPU_PERCENT
        ),
        build_row(
            f"{MOVES}: operator peak memory", "MB", _megabytes(run.peak_bytes), load=text,
            limit=MAX_MEGABYTES,
        ),
        build_row(
            f"{MOVES}: p95 event to first write", "ms", None if p95 is None else p95 * 1000, load=text,
            limit=MAX_EVENT_TO_WRITE_MS,
        ),
    ]  # fmt: skip
    if run.moved and run.writes:
        each = sum(run.writes.values()) / run.moved
        rows.append(
            build_row(f"{MOVES}: API writes per node moved", "", each, load=text, limit=MAX_WRITES_PER_NODE)
        )
        rows += [
            build_row(f"{MOVES}: of these to {resource}", "", count / run.moved, load=text)
            for resource, count in run.writes.items()
        ]
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """A stretch of time in which nothing is to be done."""

    seconds: float
    cpu_seconds: float
    resident_bytes: int
    requests: float
    beats: int
    """Nodes that reported their status meanwhile."""


def build_idle_rows(install: Run, rest: Rest | None, *, load: str) -> list[Row]:
    """The cost of a settled fleet; without figures when it never settled."""
    text = _explained(load, ours=install)
    rows = [build_done_row(IDLE, install, load=text)]
    cpu = rest.cpu_seconds / rest.seconds * 100 if rest else None
    rows.append(build_row(f"{IDLE}: operator CPU", "% of a core", cpu, load=text, limit=MAX_IDLE_CPU_PERCENT))
    if rest:
        minutes = rest.seconds / 60
        rows += [
            build_row(f"{IDLE}: operator memory", "MB", _megabytes(rest.resident_bytes), load=text),
            build_row(
                f"{IDLE}: API requests of the operator", "1/min", rest.requests / minutes, load=text
            ),
            build_row(f"{IDLE}: node status reports", "1/min", rest.beats / minutes, load=text),
        ]  # fmt: skip
    return rows


def replace_part(rows: Sequence[Row], part: str, new: Sequence[Row]) -> list[Row]:
    """`rows` with those of one part taken out and `new` put in, the parts in their usual order."""
    kept = [row for row in rows if not str(row["measure"]).startswith(f"{part}: ")]
    order = {name: index for index, name in enumerate((SAME_WORK, MOVES, IDLE))}
    return sorted([*kept, *new], key=lambda row: order.get(str(row["measure"]).partition(":")[0], 9))
