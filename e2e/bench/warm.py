# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.bench.warm`: from the end of a pod to its successor being Ready, the model in the store.

What a node does after a crash, an update of the node or an eviction, split into its steps. A DaemonSet
makes the successor when the old pod has ended, which takes as long as that drains; what counts is the
successor's own time. Its floor is what the server needs to load the model, the rest is overhead. Beside
it the same pod from a DaemonSet written by hand. Runs on a real node of the rig and writes
docs/benchmarks/warm.json.
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from e2e.bench.rollout import (
    NAME,
    NAMESPACE,
    build_row,
    clear_store,
    make_deployment,
    show,
    wait_pods_gone,
)
from e2e.bench.rollout_peer import SELECTOR, Peer, copy_template
from e2e.bench.rollout_steps import STEPS, Timeline
from e2e.lib import Cluster, install_operator, open_cluster, rig_images
from e2e.rig.paths import CHECKOUT

RESULT: Final = CHECKOUT / "docs" / "benchmarks" / "warm.json"
ROUNDS: Final = 5
TARGET_OVERHEAD_SECONDS: Final = 1.5
OURS: Final = f"slmops.dev/deployment={NAME},slmops.dev/role=serve"

Row = dict[str, Any]
Steps = Mapping[str, float]


def replace_pod(cluster: Cluster, selector: str) -> Steps:
    """Delete the pod that the selector finds and time its successor; the seconds of each step."""
    (old,) = cluster.find_all("pods", namespace=NAMESPACE, selector=selector)
    with Timeline(cluster, namespace=NAMESPACE, pods=selector, ignore=(old["metadata"]["name"],)) as timeline:
        cluster.delete("pod", old["metadata"]["name"], namespace=NAMESPACE)
        steps = timeline.wait_ready()
    cluster.wait_for(
        "the old pod being gone",
        lambda: len(cluster.find_all("pods", namespace=NAMESPACE, selector=selector)) == 1,
        timeout_seconds=60,
    )
    return steps


def measure(cluster: Cluster, node: str) -> tuple[list[Steps], list[Steps]]:
    """Rounds of ours, then of the peer, on one node with one store."""
    deployment = make_deployment(cluster, node)
    clear_store(cluster, node)
    deployment.apply("v1")
    deployment.wait_installed()
    ours = [replace_pod(cluster, OURS) for _ in range(ROUNDS)]
    peer = Peer(
        cluster,
        namespace=NAMESPACE,
        templates={"v1": copy_template(deployment, node, suffix="v1")},
    )
    deployment.delete()
    wait_pods_gone(cluster, OURS)
    peer.update("v1", surge=False)
    other = [replace_pod(cluster, SELECTOR) for _ in range(ROUNDS)]
    peer.delete()
    clear_store(cluster, node)
    return ours, other


def overhead_seconds(steps: Steps) -> float:
    """From the successor being made to Ready, without what the server takes to load the model."""
    return steps["total"] - steps["pod created"] - steps["loaded"]


def build_rows(ours: Sequence[Steps], peer: Sequence[Steps]) -> list[Row]:
    """Medians of each step and of all, and what is over loading the model against the target."""
    load = f"one node, model and image there; median of {len(ours)}"

    def median(rounds: Sequence[Steps], step: str) -> float | None:
        values = [one[step] for one in rounds if step in one]
        return statistics.median(values) if values else None

    rows = []
    for step in (*STEPS, "total"):
        mine = median(ours, step)
        if mine is not None:
            rows.append(
                build_row(
                    f"pod deleted to successor Ready: {step}", "s", mine, median(peer, step),
                    "plain DaemonSet", load=load,
                )
            )  # fmt: skip
    over, other = (statistics.median(map(overhead_seconds, rounds)) for rounds in (ours, peer))
    rows.append(
        build_row(
            "successor made to Ready, beyond loading the model", "s", over, other, "plain DaemonSet",
            load=load, target=f"<= {TARGET_OVERHEAD_SECONDS:g} s", met=over <= TARGET_OVERHEAD_SECONDS,
        )
    )  # fmt: skip
    return rows


def main() -> int:
    """Run the rounds, print and write the result; 1 when the target is missed."""
    cluster = open_cluster()
    install_operator(cluster, images=rig_images(cluster))
    cluster.make_namespace(NAMESPACE)
    node = cluster.edge_nodes[0]
    ours, peer = measure(cluster, node)
    cluster.delete("namespace", NAMESPACE)
    rows = build_rows(ours, peer)
    show(rows)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if any(row["met"] is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
