# SPDX-License-Identifier: Apache-2.0
"""Thousands of fake nodes by KWOK beside the real ones: they count as a fleet, they run nothing."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from e2e.rig.kubectl import Kubectl
from e2e.rig.paths import RIG_SOURCE
from e2e.rig.process import Daemon
from e2e.rig.progress import wait_until
from e2e.rig.tools import tool

FLEET_LABEL: Final = "slmops.dev/fleet"
FLEET_VALUE: Final = "kwok"
_MANAGE_ANNOTATION: Final = "kwok.x-k8s.io/node"
_CHUNK_NODES: Final = 500
KWOK_CONFIG: Final = RIG_SOURCE / "kwok.yaml"


def fleet_daemon(directory: Path, *, name: str) -> Daemon:
    """The KWOK controller of an instance, running or not."""
    return Daemon(
        name=f"{name}/kwok", record=directory / "run" / "kwok.pid", log=directory / "log" / "kwok.log"
    )


def render_fleet_node(index: int) -> dict[str, Any]:
    """A fake edge node called `kwok-<5 digits>`; two sites in turn."""
    name = f"kwok-{index:05d}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {_MANAGE_ANNOTATION: "fake"},
            "labels": {
                FLEET_LABEL: FLEET_VALUE,
                "slmops.dev/edge": "true",
                "slmops.dev/site": f"site-{'ab'[index % 2]}",
                "kubernetes.io/hostname": name,
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/os": "linux",
            },
        },
    }


def start_fleet(directory: Path, *, name: str, kubeconfig: Path, config: Path = KWOK_CONFIG) -> None:
    """Start the KWOK controller unless it runs; `config` says how its nodes and pods behave."""
    daemon = fleet_daemon(directory, name=name)
    if daemon.alive:
        return
    daemon.start(
        [
            tool("kwok"),
            "--kubeconfig",
            kubeconfig,
            "--config",
            config,
            "--manage-all-nodes=false",
            f"--manage-nodes-with-annotation-selector={_MANAGE_ANNOTATION}=fake",
            "--node-ip=10.99.255.1",
            "--cidr=10.98.0.0/16",
            "--server-address=",
        ]
    )
    daemon.check()


def apply_fleet(
    kubectl: Kubectl, *, count: int, labels: Callable[[int], Mapping[str, str]] = lambda index: {}
) -> None:
    """Make the nodes and wait until all are Ready: the pods of a node that is not yet would flap.

    `labels` gives each node, by its index, labels beside those that all have.
    """

    def render(index: int) -> dict[str, Any]:
        node = render_fleet_node(index)
        node["metadata"]["labels"] |= labels(index)
        return node

    for begin in range(0, count, _CHUNK_NODES):
        nodes = (render(index) for index in range(begin, min(begin + _CHUNK_NODES, count)))
        kubectl.apply(*nodes, timeout_seconds=300)

    def ready() -> bool:
        path = "{range .items[*]}{.status.conditions[?(@.type=='Ready')].status} {end}"
        statuses = kubectl("get", "nodes", "-l", f"{FLEET_LABEL}={FLEET_VALUE}", "-o", f"jsonpath={path}")
        return statuses.split().count("True") >= count

    wait_until("all fake nodes being Ready", ready, timeout_seconds=180 + count / 20, interval_seconds=0.5)
