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


def sandboxes(rig: Rig, node: str, *, namespace: str, pod: str) -> set[str]:
    """Container ids of a pod's sandboxes whose first process runs, asked of the node's containerd."""
    ctr = (str(tool("ctr")), "-a", "/run/containerd/containerd.sock", "-n", "k8s.io")
    wanted = f'labels."io.kubernetes.pod.name"=={pod}', f'labels."io.kubernetes.pod.namespace"=={namespace}'
    kind = 'labels."io.cri-containerd.kind"==sandbox'
    listed = set(rig.exec_on_node(node, *ctr, "containers", "ls", "-q", ",".join((*wanted, kind))).split())
    tasks = (line.split() for line in rig.exec_on_node(node, *ctr, "tasks", "ls").splitlines())
    return listed & {task[0] for task in tasks if task[-1] == "RUNNING"}


def kill_sandbox(cluster: Cluster, node: str, *, namespace: str, pod: str) -> str:
    """SIGKILL a pod's sandbox and wait until the kubelet has made another one; return the pod's new address.

    The kubelet then runs the whole pod anew, init containers included.
    """
    rig = cluster.rig
    before = sandboxes(rig, node, namespace=namespace, pod=pod)
    assert len(before) == 1, f"{len(before)} sandboxes of {pod} on {node}"
    rig.nodes[node].kill_container(*before)
    new = cluster.wait_for(
        f"a new sandbox of {pod}",
        lambda: sandboxes(rig, node, namespace=namespace, pod=pod) - before,
        timeout_seconds=60,
    )
    # host-local keeps a file for each address, with the id of the sandbox that has it; beside a lock.
    leases = [f for f in rig.node_path(node, "/var/lib/cni/networks/pods").iterdir() if f.is_file()]
    (address,) = (file.name for file in leases if new & set(file.read_text().split()))
    return address
