# SPDX-License-Identifier: Apache-2.0
"""Waiting for what faults bring about, and counting what a node fetched."""

import base64
import re
import signal
from typing import Any

from e2e.lib import Cluster, Deployment, NodeClient
from e2e.lib.chat import is_expected
from e2e.lib.manifests import golden_cases
from e2e.rig import Rig
from e2e.rig.tools import tool
from slmwire.reasons import Termination, parse_termination

_REQUEST = re.compile(r'^(?P<at>[0-9.]+) (?P<client>\S+) "(?P<verb>[A-Z]+) (?P<path>\S+)', re.MULTILINE)
_SENT = re.compile(r"^(?P<at>[0-9.]+) \S+ sent (?P<bytes>\d+) (?P<path>\S+)$", re.MULTILINE)


def wait_offline(cluster: Cluster, node: str) -> None:
    """Wait until the control plane has noticed that the node is away."""
    cluster.wait_for(
        f"{node} being NotReady", lambda: node not in cluster.access.ready_nodes(), timeout_seconds=180
    )


def wait_online(cluster: Cluster, node: str) -> None:
    """Wait until the node is Ready again."""
    cluster.wait_for(f"{node} being Ready", lambda: node in cluster.access.ready_nodes(), timeout_seconds=180)


def wait_answer(
    deployment: Deployment,
    client: NodeClient,
    *,
    case: dict[str, Any] | None = None,
    service: str = "",
    timeout_seconds: float = 180,
) -> None:
    """Wait until the Service (or what is at `service`) answers the golden case right on the client's node.

    A node's kube-proxy hears of a pod a moment after the pod is ready.
    """
    url, asked = service or deployment.service_address(), case or golden_cases()[0]

    def answers() -> bool:
        answer = client.chat(url, asked["messages"], timeout_seconds=20)
        return answer.ok and is_expected(asked, answer.text)

    deployment.wait(f"an answer on {client.node}", answers, timeout_seconds=timeout_seconds)


def model_requests(rig: Rig, *, since: float, path: str = "") -> list[str]:
    """Paths that were asked of the model server since then (seconds since the epoch)."""
    text = rig.control_plane.daemon("models").log.read_text(errors="replace")
    return [
        found["path"]
        for found in _REQUEST.finditer(text)
        if float(found["at"]) >= since and path in found["path"]
    ]


def model_bytes(rig: Rig, *, since: float, path: str) -> int:
    """Bytes of bodies that the model server has sent below a path since then, to whomever."""
    text = rig.control_plane.daemon("models").log.read_text(errors="replace")
    return sum(
        int(found["bytes"])
        for found in _SENT.finditer(text)
        if float(found["at"]) >= since and found["path"].startswith(path)
    )


def fetch_state(deployment: Deployment, node: str) -> dict[str, str]:
    """How the fetcher of the node's pod ended."""
    (fetch,) = deployment.pod_on(node)["status"]["initContainerStatuses"]
    return dict(fetch["state"].get("terminated", {"finishedAt": "", "message": ""}))


def fetch_report(deployment: Deployment, node: str) -> Termination:
    """What the fetcher of the node's pod said as it ended."""
    said = parse_termination(fetch_state(deployment, node)["message"])
    assert said is not None
    return said


def put_secret(deployment: Deployment, name: str, **data: str) -> None:
    """A Secret beside the deployment."""
    deployment.cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": deployment.namespace},
            "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
        }
    )


def put_token(deployment: Deployment, name: str, token: str) -> None:
    """The Secret with a source's bearer token."""
    put_secret(deployment, name, token=token)


def sandboxes(rig: Rig, node: str, *, namespace: str, pod: str) -> set[str]:
    """Container ids of a pod's sandboxes whose first process runs, asked of the node's containerd."""
    ctr = (str(tool("ctr")), "-a", "/run/containerd/containerd.sock", "-n", "k8s.io")
    wanted = f'labels."io.kubernetes.pod.name"=={pod}', f'labels."io.kubernetes.pod.namespace"=={namespace}'
    kind = 'labels."io.cri-containerd.kind"==sandbox'
    listed = set(rig.exec_on_node(node, *ctr, "containers", "ls", "-q", ",".join((*wanted, kind))).split())
    return listed & rig.nodes[node].running_containers()


def kill_sandbox(cluster: Cluster, node: str, *, namespace: str, pod: str) -> str:
    """SIGKILL a pod's sandbox and wait until the kubelet has made another one; return the pod's new address.

    The kubelet then runs the whole pod anew, init containers included.
    """
    rig = cluster.rig
    before = sandboxes(rig, node, namespace=namespace, pod=pod)
    assert len(before) == 1, f"{len(before)} sandboxes of {pod} on {node}"
    (sandbox,) = before
    rig.nodes[node].signal_container(sandbox, signal.SIGKILL)
    new = cluster.wait_for(
        f"a new sandbox of {pod}",
        lambda: sandboxes(rig, node, namespace=namespace, pod=pod) - before,
        timeout_seconds=180,
    )
    # host-local keeps a file for each address, with the id of the sandbox that has it; beside a lock.
    leases = [f for f in rig.node_path(node, "/var/lib/cni/networks/pods").iterdir() if f.is_file()]
    (address,) = (file.name for file in leases if new & set(file.read_text().split()))
    return address
