# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.bench.fleet`: what the rollout engine costs and how fast it is with many rollouts.

Real API server, controller-manager (with its own limits), scheduler; the nodes are KWOK's. Three parts:

- A: the same work as Argo Rollouts and as plain DaemonSets, each on a fresh control plane.
- B: many rollouts at once by one operator.
- C: many resources and nodes and nothing to do.

Writes docs/benchmarks/fleet.json after each part and each side, so that a later failure loses nothing;
a part that is not run keeps its rows. All of it takes about an hour on 2 cores. For a try:

    python -m e2e.bench.fleet --same 5x3 --moves 4x3 --idle 4x5 --rest 10 --out FILE
"""

import argparse
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from e2e.bench.fleet_measure import rest, work
from e2e.bench.fleet_peers import build_side
from e2e.bench.fleet_rows import (
    ARGO,
    DAEMON_SETS,
    IDLE,
    MOVES,
    OURS,
    SAME_WORK,
    Row,
    Run,
    build_idle_rows,
    build_moves_rows,
    build_same_work_rows,
    in_short,
    replace_part,
)
from e2e.bench.fleet_sides import CANARY_PERCENT, MAX_UNAVAILABLE
from e2e.bench.fleet_site import Site, say
from e2e.rig import RigError
from e2e.rig.control_plane import Store
from e2e.rig.paths import CHECKOUT
from e2e.rig.tools import FAMILY_OF, family_version, tool

RESULT: Final = CHECKOUT / "docs" / "benchmarks" / "fleet.json"
SIDES: Final = (OURS, ARGO, DAEMON_SETS)


@dataclass(frozen=True, slots=True)
class Size:
    """Deployments, and nodes of each."""

    deployments: int
    nodes: int

    def __str__(self) -> str:
        return f"{self.deployments} deployments of {self.nodes} nodes"


def parse_size(text: str) -> Size:
    """`100x5`; ArgumentTypeError for anything else."""
    found = re.fullmatch(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: must be DEPLOYMENTSxNODES, for example 100x5")
    return Size(int(found[1]), int(found[2]))


def parse_names(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Some of the known names, separated by commas, in their usual order."""
    named = {name.strip() for name in text.split(",")}
    if unknown := sorted(named - set(known)):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: must be of {', '.join(known)}")
    return tuple(name for name in known if name in named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for."""

    sides: tuple[str, ...]
    same: Size
    moves: Size
    idle: Size
    rest_seconds: float
    deadline_seconds: float
    store: Store
    out: Path


def _say_load(size: Size, options: Options) -> str:
    return f"{size} (KWOK), {os.cpu_count()} CPUs for everything, {options.store}"


def _rollout_load(size: Size, options: Options) -> str:
    return f"{_say_load(size, options)}; waves {CANARY_PERCENT} % and 100 %, maxUnavailable {MAX_UNAVAILABLE}"


def run_side(key: str, size: Size, options: Options) -> Run:
    """Install v1 and measure the way to v2, on a control plane of its own."""
    try:
        with _open_site(key, size, options) as site:
            side = build_side(key, site, pods=size.nodes)
            side.start()
            sizes: dict[str, Any] = {
                "deployments": size.deployments,
                "nodes_each": size.nodes,
                "deadline_seconds": options.deadline_seconds,
            }
            installed = work(site, side, "v1", **sizes)
            if not installed.reached:
                return _not_begun(size, f"v1 was not installed: {installed.problem}")
            return work(site, side, "v2", **sizes)
    except Exception as error:  # whatever it is, the other sides and parts go on
        return _not_begun(size, _tell(key, error))


def _tell(name: str, error: Exception) -> str:
    """Say what went wrong; the same in one line for the rows."""
    if isinstance(error, RigError):
        say(f"{name}: {error}")
        return str(error)
    say(f"{name}: {''.join(traceback.format_exception(error))}")
    return f"{type(error).__name__}: {error}"


def _open_site(name: str, size: Size, options: Options) -> Site:
    return Site(name, nodes=size.deployments * size.nodes, nodes_per_group=size.nodes, store=options.store)


def _not_begun(size: Size, problem: str) -> Run:
    return Run(wanted=size.deployments, done=0, moved=0, wall_seconds=0.0, problem=problem)


Save = Callable[[list[Row]], None]


def run_same_work(options: Options, save: Save) -> None:
    """Part A; the rows grow with each side that has run."""
    if ARGO in options.sides:
        tool("rollouts-controller")  # built before anything is under the clock
    version = family_version(FAMILY_OF["rollouts-controller"])
    judged = f"judged by one measurement of each wave (Argo {version}: of the first)"
    load = f"{_rollout_load(options.same, options)}, {judged}"
    runs: dict[str, Run] = {}
    for key in options.sides:
        runs[key] = run_side(key, options.same, options)
        save(build_same_work_rows(runs, load=load))


def run_moves(options: Options, save: Save) -> None:
    """Part B."""
    save(build_moves_rows(run_side(OURS, options.moves, options), load=_rollout_load(options.moves, options)))


def run_idle(options: Options, save: Save) -> None:
    """Part C."""
    size = options.idle
    nodes = size.deployments * size.nodes
    load = f"{_say_load(size, options)}; {nodes} nodes report every 5 min, {options.rest_seconds:g} s at rest"
    install, quiet = _not_begun(size, "not installed"), None
    try:
        with _open_site("idle", size, options) as site:
            side = build_side(OURS, site, pods=size.nodes)
            side.start()
            install = work(
                site, side, "v1", deployments=size.deployments, nodes_each=size.nodes,
                deadline_seconds=options.deadline_seconds,
            )  # fmt: skip
            if install.reached:
                rest(site, side, seconds=min(20.0, options.rest_seconds))  # what the install left behind
                say(f"idle: {options.rest_seconds:g} s at rest")
                quiet = rest(site, side, seconds=options.rest_seconds)
    except Exception as error:
        problem = _tell("idle", error)
        if install.reached:
            load += f"; not left at rest: {in_short(problem)}"
        else:
            install = _not_begun(size, problem)
    save(build_idle_rows(install, quiet, load=load))


PARTS: Final[dict[str, tuple[str, Callable[[Options, Save], None]]]] = {
    "A": (SAME_WORK, run_same_work),
    "B": (MOVES, run_moves),
    "C": (IDLE, run_idle),
}


def load_rows(path: Path) -> list[Row]:
    """Rows of an earlier run; none when there is no file."""
    return list(json.loads(path.read_text())) if path.exists() else []


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the file whole, so that whoever is ended in between leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".new")
    partial.write_text(json.dumps(rows, indent=2) + "\n")
    partial.replace(path)


def show(rows: Sequence[Row]) -> None:
    """Print the rows side by side."""
    for row in rows:
        ours = "-" if row["ours"] is None else f"{row['ours']:g}"
        peer = "" if row["peer"] is None else f"{row['peer_name']} {row['peer']:g} ({row['ratio'] or 0:g})"
        verdict = {None: "", True: "ok", False: "MISSED"}[row["met"]]
        target = row["target"] or ""
        print(
            f"{row['measure']:<52} {ours:>9} {row['unit']:<11} {peer:<34} {target:<14} {verdict}", flush=True
        )


def _read_options() -> tuple[tuple[str, ...], Options]:
    parser = argparse.ArgumentParser(
        prog="python -m e2e.bench.fleet", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", default="A,B,C", type=lambda text: parse_names(text, tuple(PARTS)))
    parser.add_argument(
        "--sides", default=",".join(SIDES), type=lambda text: parse_names(text, SIDES), help="of part A"
    )
    parser.add_argument("--same", default="100x5", type=parse_size, metavar="DxN", help="size of part A")
    parser.add_argument("--moves", default="200x5", type=parse_size, metavar="DxN", help="size of part B")
    parser.add_argument("--idle", default="200x15", type=parse_size, metavar="DxN", help="size of part C")
    parser.add_argument("--rest", default=60.0, type=float, metavar="SECONDS", help="at rest, in part C")
    parser.add_argument(
        "--deadline", default=1200.0, type=float, metavar="SECONDS", help="of each installation and rollout"
    )
    parser.add_argument("--store", default="etcd", choices=["etcd", "kine"])
    parser.add_argument("--out", default=RESULT, type=Path)
    read = parser.parse_args()
    return read.parts, Options(
        sides=read.sides,
        same=read.same,
        moves=read.moves,
        idle=read.idle,
        rest_seconds=read.rest,
        deadline_seconds=read.deadline,
        store=read.store,
        out=read.out,
    )


def main() -> int:
    """Run the parts, print and write the result; 1 when a target is missed."""
    parts, options = _read_options()
    # Whoever ends us must not leave a control plane behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    missed = False
    for name in parts:
        title, run_part = PARTS[name]
        new: list[Row] = []

        def save(rows: list[Row], title: str = title, new: list[Row] = new) -> None:
            new[:] = rows
            write_rows(options.out, replace_part(load_rows(options.out), title, rows))

        say(f"part {name}: {title}")
        run_part(options, save)
        show(new)
        missed = missed or any(row["met"] is False for row in new)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
