# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.bench.rollout`: from `kubectl apply` to the first Ready pod, and the gap of one flip.

The peer is what a user would write without us: a DaemonSet of the very same pods, and its
RollingUpdate. Both run one after the other on the same node of the same rig: the first pod with an
empty store, the flip with both versions cached. Writes docs/benchmarks/rollout.json.
"""

import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from e2e.bench.rollout_peer import SELECTOR, Peer, copy_template
from e2e.bench.rollout_steps import STEPS, Timeline
from e2e.lib import Cluster, Deployment, NodeClient, Traffic, install_operator, open_cluster, rig_images
from e2e.lib.manifests import model_dir
from e2e.lib.traffic import TrafficReport
from e2e.rig.paths import CHECKOUT

RESULT: Final = CHECKOUT / "docs" / "benchmarks" / "rollout.json"
NAMESPACE: Final = "slmops-bench"
NAME: Final = "orders"
STORE: Final = "/var/lib/slmops/bench"
ROUNDS: Final = 3
TARGET_GAP_MS: Final = 250.0
TRAFFIC: Final[Mapping[str, Any]] = {
    "interval_seconds": 0.02,
    "timeout_seconds": 2.0,
    "workers": 4,
    "path": "/v1/completions",
    "bodies": [{"model": "orders", "prompt": "one cola for table 3", "max_tokens": 1, "temperature": 0}],
}

Row = dict[str, Any]


def make_deployment(cluster: Cluster, node: str) -> Deployment:
    """The deployment under test: one node, one wave."""
    options = {
        "nodes": {"matchLabels": {"kubernetes.io/hostname": node}},
        "rollout": {"waves": [{"name": "all", "percent": 100}], "soak": "1s"},
        "cache": {"hostPath": STORE, "deletionPolicy": "Retain"},
    }
    return Deployment(cluster, NAME, NAMESPACE, options)


def clear_store(cluster: Cluster, node: str) -> None:
    """Make the node's store empty."""
    shutil.rmtree(cluster.rig.node_path(node, STORE), ignore_errors=True)


def flip_ours(deployment: Deployment, client: NodeClient) -> TrafficReport:
    """What requests on the node saw while v2 was rolled out: fetched ahead, flipped, judged, promoted."""
    with Traffic([client], deployment.service_address(), **TRAFFIC) as requests:
        deployment.apply("v2")
        deployment.wait_promoted("v2")
        return requests.stop()


class Measured:
    """Everything that the rounds have measured."""

    def __init__(self) -> None:
        self.ours: list[Mapping[str, float]] = []
        self.peer: list[Mapping[str, float]] = []
        self.flips: dict[str, list[TrafficReport]] = {"ours": [], "recreate": [], "surge": []}

    def run_round(self, cluster: Cluster, node: str, client: NodeClient) -> None:
        """Ours, then the peer."""
        deployment = make_deployment(cluster, node)
        clear_store(cluster, node)
        pods = f"slmops.dev/deployment={NAME},slmops.dev/role=serve"
        with Timeline(cluster, namespace=NAMESPACE, pods=pods, deployment=NAME) as timeline:
            deployment.apply("v1")
            self.ours.append(timeline.wait_ready())
        deployment.wait_installed()
        templates = {"v1": copy_template(deployment, node, suffix="v1")}
        self.flips["ours"].append(flip_ours(deployment, client))
        templates["v2"] = copy_template(deployment, node, suffix="v2")
        deployment.delete()
        wait_pods_gone(cluster, pods)

        peer = Peer(cluster, namespace=NAMESPACE, templates=templates)
        clear_store(cluster, node)
        with Timeline(cluster, namespace=NAMESPACE, pods=SELECTOR) as timeline:
            cluster.apply(*peer.objects("v1", surge=False))
            self.peer.append(timeline.wait_ready())
        peer.update("v2", surge=False)  # from here on both versions are in the store
        for version, strategy in (("v1", "recreate"), ("v2", "surge")):
            report = peer.measure_flip(client, version, surge=strategy == "surge", traffic=TRAFFIC)
            self.flips[strategy].append(report)
        peer.delete()


def wait_pods_gone(cluster: Cluster, selector: str) -> None:
    """Wait until no pod is left."""
    cluster.wait_for(
        "the pods being gone",
        lambda: not cluster.find_all("pods", namespace=NAMESPACE, selector=selector),
        timeout_seconds=60,
    )


def build_row(measure: str, unit: str, ours: float, peer: float | None, peer_name: str, **more: Any) -> Row:
    """A row of the result; the ratio is ours over the peer."""
    return {
        "measure": measure,
        "unit": unit,
        "ours": round(ours, 3),
        "peer": None if peer is None else round(peer, 3),
        "peer_name": peer_name,
        "ratio": round(ours / peer, 3) if peer else None,
        "target": more.get("target"),
        "met": more.get("met"),
        "load": more["load"],
    }


def build_step_rows(ours: Sequence[Mapping[str, float]], peer: Sequence[Mapping[str, float]]) -> list[Row]:
    """Seconds of each step, and in all."""
    megabytes = sum(file.stat().st_size for file in model_dir("v1").iterdir()) / 1e6
    load = f"one node, image present, store empty, model of {megabytes:.1f} MB; median of {len(ours)}"
    rows = []
    for step in (*STEPS, "total"):
        mine = [one[step] for one in ours if step in one]
        other = [one[step] for one in peer if step in one]
        if not mine:
            continue
        rows.append(
            build_row(
                f"apply to first Ready pod: {step}", "s", statistics.median(mine),
                statistics.median(other) if other else None, "plain DaemonSet" if other else "", load=load,
            )
        )  # fmt: skip
    return rows


def build_flip_rows(flips: Mapping[str, Sequence[TrafficReport]], node: str) -> list[Row]:
    """Longest gap and lost requests of a flip, against both ways that a DaemonSet has."""
    load = f"a request every 20 ms on the node, both versions cached; median of {len(flips['ours'])}"

    def gap(name: str) -> float:
        return statistics.median(1000 * report.longest_gap_seconds(node) for report in flips[name])

    def lost(name: str) -> float:
        return statistics.median(len(report.failures) for report in flips[name])

    rows = []
    for name, text in (
        ("recreate", "DaemonSet RollingUpdate"),
        ("surge", "DaemonSet RollingUpdate maxSurge 1"),
    ):
        rows.append(
            build_row(
                "longest serving gap of one flip", "ms", gap("ours"), gap(name), text, load=load,
                target=f"<= {TARGET_GAP_MS:g} ms", met=gap("ours") <= TARGET_GAP_MS,
            )
        )  # fmt: skip
        rows.append(
            build_row(
                "requests without an answer in one flip", "", lost("ours"), lost(name), text, load=load,
                target="0", met=lost("ours") == 0,
            )
        )  # fmt: skip
    return rows


def show(rows: Sequence[Row]) -> None:
    """Print the rows side by side."""
    for row in rows:
        peer = "" if row["peer"] is None else f"{row['peer_name']} {row['peer']:g}"
        verdict = {None: "", True: "ok", False: "MISSED"}[row["met"]]
        print(f"{row['measure']:<44} {row['ours']:>9g} {row['unit']:<3} {peer:<48} {verdict}", flush=True)


def main() -> int:
    """Run the rounds, print and write the result; 1 when a target is missed."""
    cluster = open_cluster()
    images = rig_images(cluster)
    install_operator(cluster, images=images)
    cluster.make_namespace(NAMESPACE)
    node = cluster.edge_nodes[0]
    client = NodeClient(cluster, node, image=images.runtime)
    measured = Measured()
    for number in range(ROUNDS):
        measured.run_round(cluster, node, client)
        print(f"round {number + 1} of {ROUNDS} is done", file=sys.stderr, flush=True)
    clear_store(cluster, node)
    cluster.delete("namespace", NAMESPACE)
    rows = [*build_step_rows(measured.ours, measured.peer), *build_flip_rows(measured.flips, node)]
    show(rows)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if any(row["met"] is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
