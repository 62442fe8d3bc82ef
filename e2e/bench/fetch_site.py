# SPDX-License-Identifier: Apache-2.0
"""Three nodes of one site want the same model at once: with store agents that share, and each alone."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from e2e.bench.fetch_lab import stop
from e2e.bench.fetch_run import Bench, peak_memory
from e2e.rig.shell import RigError
from slmfetch.store import Store
from slmwire import env, paths
from slmwire.distribution import Distribution

_POLL_SECONDS: Final = 0.02
_LIMIT_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteMeasured:
    """What it cost until every node had the model."""

    seconds: float
    line_bytes: int
    """What the origin put on the site's line, headers included."""
    bytes_from_peers: int
    agent_peak_bytes: int
    """Highest resident memory of any store agent; 0 without them."""
    node_seconds: tuple[float, ...]
    """When each node had it, in order."""

    @property
    def spread_seconds(self) -> float:
        """From the first node that had it to the last."""
        return self.node_seconds[-1] - self.node_seconds[0]


def write_distribution(bench: Bench) -> Path:
    """What the operator would write for this site."""
    nodes = {node: bench.lab.address(node) for node in bench.lab.nodes}
    told = Distribution(peer_port=paths.AGENT_PORT, sites={"site-a": nodes})
    path = bench.folder / "distribution.json"
    path.write_text(told.to_json())
    return path


def run_alone(bench: Bench) -> SiteMeasured:
    """Every node fetches from the origin."""
    for node in bench.lab.nodes:
        bench.clear(node)
    return _fetch_all(bench, agents={}, more={})


def run_shared(bench: Bench) -> SiteMeasured:
    """The nodes have store agents and know of each other."""
    lab = bench.lab
    told = write_distribution(bench)
    agents: dict[str, Any] = {}
    for node in lab.nodes:
        bench.clear(node)
    try:
        for node in lab.nodes:
            words: list[str | Path] = [
                sys.executable,
                "-m",
                "slmfetch",
                "--store",
                bench.store(node),
                "agent",
            ]
            log = bench.folder / node / "agent.log"
            agents[node] = lab.start(node, *words, env=bench.environment(node), log=log)
        for node in lab.nodes:
            try:
                lab.wait_answer(node, f"http://{lab.address(node)}:{paths.AGENT_PORT}{paths.PATH_HEALTH}")
            except RigError as error:
                log = bench.folder / node / "agent.log"
                raise RigError(f"the store agent: {error}\n{log.read_text()[-1000:]}") from error
        return _fetch_all(bench, agents=agents, more={env.DISTRIBUTION_FILE: str(told)})
    finally:
        stop(*agents.values())


def _fetch_all(bench: Bench, *, agents: dict[str, Any], more: dict[str, str]) -> SiteMeasured:
    begin_bytes, begin = bench.lab.sent_bytes(), time.monotonic()
    running = {node: bench.start_ours(node, **more) for node in bench.lab.nodes}
    finished: list[float] = []
    peak = 0
    try:
        while running:
            peak = max([peak, *(peak_memory(agent.pid) for agent in agents.values())])
            for node, process in list(running.items()):
                if process.poll() is None:
                    continue
                if process.returncode:
                    log = (bench.folder / node / "log").read_text(errors="replace")[-1500:]
                    raise RigError(f"the fetch on {node} exited {process.returncode}: {log}")
                finished.append(time.monotonic() - begin)
                del running[node]
            if time.monotonic() - begin > _LIMIT_SECONDS:
                raise RigError(f"{', '.join(running)} did not end within {_LIMIT_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)
    finally:
        stop(*running.values())
    line_bytes = bench.lab.sent_bytes() - begin_bytes
    for node in bench.lab.nodes:
        bench.check(Store(bench.store(node)).blob(bench.model.sha256))
    return SiteMeasured(
        seconds=finished[-1],
        line_bytes=line_bytes,
        bytes_from_peers=sum(int(bench.said(node).get("bytesFromPeers", 0)) for node in bench.lab.nodes),
        agent_peak_bytes=peak,
        node_seconds=tuple(finished),
    )
