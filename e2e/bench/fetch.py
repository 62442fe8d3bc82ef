# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.bench.fetch`: bringing a model to a node, and to a site, over a thin line.

Network namespaces on one machine, a token bucket before the site, and the very process that runs in a
pod. Beside it `curl -C -`, killed at the same places, and three nodes that each fetch for themselves.
Bytes are counted on the line, headers included, so that nobody's own account is believed. Needs root;
no cluster. Writes docs/benchmarks/fetch.json.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from e2e.bench.fetch_lab import Lab, need_commands
from e2e.bench.fetch_run import Bench, Measured, draw_kills, make_model, resent_percent
from e2e.bench.fetch_site import SiteMeasured, run_alone, run_shared
from e2e.rig.paths import CHECKOUT, cache_dir
from e2e.rig.shell import RigError

RESULT: Final = CHECKOUT / "docs" / "benchmarks" / "fetch.json"
SITE_NODES: Final = 3
KILLS: Final = 10
SEED: Final = 5
TARGET_THROUGHPUT: Final = 0.95
TARGET_RESENT_PERCENT: Final = 2.0
TARGET_PEAK_MEBIBYTES: Final = 64.0
TARGET_AGENT_MEBIBYTES: Final = 25.0
TARGET_SITE_COPIES: Final = 1.05
PARTS: Final = ("node", "site")
_MEBIBYTE: Final = 1 << 20

Row = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class NodeResults:
    """What one node's fetches cost."""

    ours: list[Measured] = field(default_factory=list)
    curl: list[Measured] = field(default_factory=list)
    killed_ours: Measured
    killed_curl: Measured
    warm_seconds: float
    """A fetch of what is there already."""
    verify_seconds: float
    """The same with `--deep`: every byte is hashed again."""
    sha256sum_seconds: float


def measure_node(bench: Bench, *, rounds: int) -> NodeResults:
    """Unbroken and killed downloads, ours and curl's in turn, then what verifying costs."""
    node = bench.lab.nodes[0]
    ours: list[Measured] = []
    curl: list[Measured] = []
    for number in range(rounds):
        bench.clear(node)
        curl.append(bench.run_curl(node))
        bench.clear(node)
        ours.append(bench.run_ours(node))
        _tell(f"round {number + 1} of {rounds}: ours {ours[-1].seconds:.1f} s, curl {curl[-1].seconds:.1f} s")
    warm = bench.run_ours(node)
    if warm.line_bytes > bench.model.size // 100:
        raise RigError(f"a fetch of what is there brought {warm.line_bytes} bytes over the line")
    deep = bench.run_ours(node, "--deep")
    begin = time.monotonic()
    subprocess.run(["sha256sum", bench.model.path], check=True, stdout=subprocess.DEVNULL)
    sha256sum_seconds = time.monotonic() - begin
    kills = draw_kills(KILLS, size=bench.model.size, seed=SEED)
    bench.clear(node)
    killed_curl = bench.run_curl(node, kills=kills)
    bench.clear(node)
    killed_ours = bench.run_ours(node, kills=kills)
    _tell(f"{KILLS} kills: ours {killed_ours.line_bytes} bytes, curl {killed_curl.line_bytes} bytes")
    return NodeResults(
        ours=ours, curl=curl, killed_ours=killed_ours, killed_curl=killed_curl, warm_seconds=warm.seconds,
        verify_seconds=deep.seconds, sha256sum_seconds=sha256sum_seconds,
    )  # fmt: skip


def build_row(measure: str, unit: str, ours: float, *, load: str, **more: Any) -> Row:
    """A row of the result; the ratio is ours over the peer's."""
    peer = more.get("peer")
    return {
        "measure": measure,
        "unit": unit,
        "ours": round(ours, 3),
        "peer": None if peer is None else round(peer, 3),
        "peer_name": more.get("peer_name", ""),
        "ratio": round(ours / peer, 3) if peer else None,
        "target": more.get("target"),
        "met": more.get("met"),
        "load": load,
    }


def build_node_rows(results: NodeResults, *, size: int, link: str) -> list[Row]:
    """Throughput, bytes sent again, memory, and what verifying costs."""
    load = f"{size // _MEBIBYTE} MiB over {link}"

    def speed(runs: Sequence[Measured]) -> float:
        return size / statistics.median(run.seconds for run in runs) / 1e6

    def again(killed: Measured, runs: Sequence[Measured]) -> float:
        unbroken = round(statistics.median(run.line_bytes for run in runs))
        return resent_percent(killed.line_bytes, unbroken_bytes=unbroken, size=size)

    ours, curl = speed(results.ours), speed(results.curl)
    resent = again(results.killed_ours, results.ours)
    peak = max(run.peak_bytes for run in (*results.ours, results.killed_ours)) / _MEBIBYTE
    curl_peak = max(run.peak_bytes for run in (*results.curl, results.killed_curl)) / _MEBIBYTE
    return [
        build_row(
            "throughput, verified and synced to disk", "MB/s", ours, peer=curl,
            peer_name="curl, neither", load=f"{load}; median of {len(results.ours)}",
            target=f">= {TARGET_THROUGHPUT:g} of the peer", met=ours >= TARGET_THROUGHPUT * curl,
        ),
        build_row(
            f"sent again for {KILLS} kills", "% of the model", resent,
            peer=again(results.killed_curl, results.curl), peer_name="curl -C -",
            load=f"{load}; SIGKILL at the same {KILLS} random bytes",
            target=f"<= {TARGET_RESENT_PERCENT:g}", met=resent <= TARGET_RESENT_PERCENT,
        ),
        build_row(
            "peak memory", "MiB", peak, peer=curl_peak, peer_name="curl", load=load,
            target=f"<= {TARGET_PEAK_MEBIBYTES:g}", met=peak <= TARGET_PEAK_MEBIBYTES,
        ),
        build_row(
            "verify what is there (--deep)", "s", results.verify_seconds, peer=results.sha256sum_seconds,
            peer_name="sha256sum", load=f"{size // _MEBIBYTE} MiB, cached by the kernel",
        ),
        build_row(
            "fetch what is there", "s", results.warm_seconds, load=f"{size // _MEBIBYTE} MiB, no byte moved"
        ),
    ]  # fmt: skip


def build_site_rows(shared: SiteMeasured, alone: SiteMeasured, *, size: int, link: str) -> list[Row]:
    """What the site's line carried, how long it took, and what the agents need."""
    load = f"{SITE_NODES} nodes at once, {size // _MEBIBYTE} MiB over {link}"
    peer_name = f"{SITE_NODES} independent downloads"
    # What one copy needs on the line, headers included.
    copy = alone.line_bytes / SITE_NODES
    agent = shared.agent_peak_bytes / _MEBIBYTE
    return [
        build_row(
            "on the site's line", "copies of the model", shared.line_bytes / copy, peer=float(SITE_NODES),
            peer_name=peer_name, load=load, target=f"<= {TARGET_SITE_COPIES:g}",
            met=shared.line_bytes <= TARGET_SITE_COPIES * copy,
        ),
        build_row(
            "until every node has it", "s", shared.seconds, peer=alone.seconds, peer_name=peer_name,
            load=load,
        ),
        build_row(
            "from the first node that has it to the last", "s", shared.spread_seconds,
            peer=alone.spread_seconds, peer_name=peer_name, load=load,
        ),
        build_row(
            "peak memory of a store agent", "MiB", agent, load=load,
            target=f"<= {TARGET_AGENT_MEBIBYTES:g}", met=agent <= TARGET_AGENT_MEBIBYTES,
        ),
    ]  # fmt: skip


def show(rows: Sequence[Row]) -> None:
    """Print the rows side by side."""
    for row in rows:
        peer = "" if row["peer"] is None else f"{row['peer_name']} {row['peer']:g}"
        verdict = {None: "", True: "ok", False: "MISSED"}[row["met"]]
        print(f"{row['measure']:<44} {row['ours']:>9g} {row['unit']:<20} {peer:<34} {verdict}", flush=True)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=256, help="size of the model in MiB")
    parser.add_argument("--megabits", type=float, default=100.0, help="the line, in Mbit/s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default=",".join(PARTS), help="of %(default)s; some alone write no result")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return options


def run(folder: Path, options: argparse.Namespace) -> list[Row]:
    """The parts that were asked for, as rows."""
    model = make_model(folder / "origin", megabytes=options.megabytes)
    link = f"{options.megabits:g} Mbit/s"
    rows: list[Row] = []
    with Lab(nodes=SITE_NODES, root=model.path.parent, megabits_per_second=options.megabits) as lab:
        bench = Bench(lab, model, folder=folder / "nodes")
        if "node" in options.parts:
            results = measure_node(bench, rounds=options.rounds)
            rows += build_node_rows(results, size=model.size, link=link)
        if "site" in options.parts:
            shared = run_shared(bench)
            _tell(f"site: {shared}")
            alone = run_alone(bench)
            rows += build_site_rows(shared, alone, size=model.size, link=link)
    return rows


def main() -> int:
    """Print and write the result; 1 when a target is missed or something could not be measured."""
    options = _parse()
    if os.geteuid() != 0:
        print("fetch: needs root: it makes network namespaces", file=sys.stderr)
        return 1
    need_commands(["curl", "ip", "nsenter", "setpriv", "sha256sum", "tc"])
    folder = cache_dir() / "bench-fetch"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        rows = run(folder, options)
    except RigError as error:
        print(f"fetch: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(rows)
    if set(options.parts) == set(PARTS):
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if any(row["met"] is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
