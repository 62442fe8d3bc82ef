# SPDX-License-Identifier: Apache-2.0
"""Thousands of fake nodes by KWOK beside the real ones: they count as a fleet, they run nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from e2e.rig.kubectl import Kubectl
from e2e.rig.process import Daemon
from e2e.rig.progress import wait_until
from e2e.rig.render import render_yaml
from e2e.rig.tools import tool

FLEET_LABEL: Final = "slmops.dev/fleet"
FLEET_VALUE: Final = "kwok"
_MANAGE_ANNOTATION: Final = "kwok.x-k8s.io/node"


def fleet_daemon(directory: Path, *, name: str) -> Daemon:
    """The KWOK controller of an instance, running or not."""
    return Daemon(
        name=f"{name}/kwok", record=directory / "run" / "kwok.pid", log=directory / "log" / "kwok.log"
    )


def render_fleet_node(index: int) -> dict[str, Any]:
    """A fake edge node; two sites in turn, and a taint that keeps pods away which do not ask for it."""
    name = f"kwok-{index:05d}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {_MANAGE_ANNOTATION: "fake", "node.alpha.kubernetes.io/ttl": "0"},
            "labels": {
                FLEET_LABEL: FLEET_VALUE,
                "slmops.dev/edge": "true",
                "slmops.dev/site": f"site-{'ab'[index % 2]}",
                "kubernetes.io/hostname": name,
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/os": "linux",
                "type": "kwok",
            },
        },
        "status": {
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110", "ephemeral-storage": "64Gi"},
            "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110", "ephemeral-storage": "64Gi"},
        },
    }


def start_fleet(directory: Path, *, name: str, kubeconfig: Path) -> None:
    """Start the KWOK controller unless it runs."""
    daemon = fleet_daemon(directory, name=name)
    if daemon.alive:
        return
    config = directory / "kwok.yaml"
    config.write_text(render_yaml(*render_fleet_config()))
    daemon.start(
        [
            tool("kwok"), "--kubeconfig", kubeconfig, "--config", config,
            "--manage-all-nodes=false", f"--manage-nodes-with-annotation-selector={_MANAGE_ANNOTATION}=fake",
            # 0 is rejected; and with leases of 200 s the nodes flap NotReady.
            "--node-lease-parallelism=64", "--node-lease-duration-seconds=40",
            "--node-ip=10.99.255.1", "--cidr=10.98.0.0/16", "--server-address=",
        ]
    )  # fmt: skip
    daemon.check()


def render_fleet_config() -> tuple[Mapping[str, Any], ...]:
    """KWOK's stages: initialise and keep nodes Ready, run pods at once, delete them when asked."""
    return ()


def apply_fleet(kubectl: Kubectl, *, count: int) -> None:
    """Make the nodes and wait until all are Ready: pods that land earlier would stay NotReady for good."""
    for begin in range(0, count, 500):
        kubectl(
            "apply", "--server-side", "--force-conflicts", "--field-manager=slmops-rig", "-f", "-",
            stdin=render_yaml(*(render_fleet_node(i) for i in range(begin, min(begin + 500, count)))),
            timeout_seconds=300,
        )  # fmt: skip

    def ready() -> bool:
        path = f"{{range .items[*]}}{{.status.conditions[?(@.type=='Ready')].status}} {{end}}"
        statuses = kubectl("get", "nodes", "-l", f"{FLEET_LABEL}={FLEET_VALUE}", "-o", f"jsonpath={path}")
        return statuses.split().count("True") >= count

    wait_until("all fake nodes being Ready", ready, timeout_seconds=60 + count / 20, interval_seconds=0.5)
