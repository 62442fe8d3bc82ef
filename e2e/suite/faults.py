# SPDX-License-Identifier: Apache-2.0
"""Waiting for what faults bring about, and counting what a node fetched."""

import re

from e2e.lib import Cluster
from e2e.rig import Rig
from e2e.rig.tools import tool

_REQUEST = re.compile(r'^(?P<at>[0-9.]+) (?P<client>\S+) "(?P<verb>[A-Z]+) (?P<path>\S+)', re.MULTILINE)


def wait_offline(cluster: Cluster, node: str) -> None:
    """Wait until the control plane has noticed that the node is away."""
    cluster.wait_for(
        f"{node} being NotReady", lambda: node not in cluster.access.ready_nodes(), timeout_seconds=60
    )


def wait_online(cluster: Cluster, node: str) -> None:
    """Wait until the node is Ready again."""
    cluster.wait_for(f"{node} being Ready", lambda: node in cluster.access.ready_nodes(), timeout_seconds=60)


def model_requests(rig: Rig, *, since: float, path: str = "") -> list[str]:
    """Paths that were asked of the model server since then (seconds since the epoch)."""
    text = rig.control_plane.daemon("models").log.read_text(errors="replace")
    return [
        found["path"]
        for found in _REQUEST.finditer(text)
        if float(found["at"]) >= since and path in found["path"]
    ]


def kill_sandbox(rig: Rig, node: str, *, namespace: str, pod: str) -> None:
    """SIGKILL a pod's sandbox: the kubelet makes the whole pod anew, init containers included."""
    wanted = f'labels."io.kubernetes.pod.name"=={pod}', f'labels."io.kubernetes.pod.namespace"=={namespace}'
    kind = 'labels."io.cri-containerd.kind"==sandbox'
    ctr = (str(tool("ctr")), "-a", "/run/containerd/containerd.sock", "-n", "k8s.io")
    listed = rig.exec_on_node(node, *ctr, "containers", "ls", "-q", ",".join((*wanted, kind))).split()
    assert len(listed) == 1, f"{len(listed)} sandboxes of {pod} on {node}"
    rig.exec_on_node(node, *ctr, "tasks", "kill", "--signal", "SIGKILL", listed[0])
