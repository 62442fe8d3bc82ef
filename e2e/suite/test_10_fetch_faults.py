# SPDX-License-Identifier: Apache-2.0
"""A fetch ahead that is killed, cut off, and starved of disk: it resumes, and what serves never notices."""

import random
import re
import time
from collections.abc import Iterator

import pytest

from e2e.lib import Cluster, Deployment, NodeClient
from e2e.lib.chat import need_ok
from e2e.lib.manifests import FOLDER, golden_cases, model_dir
from e2e.lib.observe import rollout_of
from e2e.rig import Rig, RigError
from e2e.suite.conftest import STORE, Make, need_rig
from e2e.suite.faults import model_bytes, model_requests

DISK = f"{STORE}/e2e-10-small-disk"
DISK_MEBIBYTES = 24
FILE = "model.onnx.data"
ROLLOUT = {
    "waves": [{"name": "all", "percent": 100}],
    # One node has nobody to be compared with.
    "analysis": {
        "interval": "2s",
        "passes": 1,
        "metrics": [{"name": "quality", "preset": "EvaluationScore", "min": "0.8"}],
    },
}
KILLS = 2
"""More would only wait for the kubelet, which restarts a container later each time."""
SEED = 20263
RESENT_SHARE = 0.05
"""The file is small here, and a kill costs what lies in the sockets."""


@pytest.fixture(scope="module")
def node(cluster: Cluster) -> Iterator[str]:
    """A node with a small disk for its models."""
    need_rig(cluster)
    chosen = cluster.edge_nodes[0]
    cluster.rig.mount_disk(chosen, DISK, mebibytes=DISK_MEBIBYTES)
    yield chosen
    cluster.rig.unmount_disk(chosen, DISK)


@pytest.fixture(scope="module")
def orders(node: str, make_deployment: Make) -> Iterator[Deployment]:
    """v1 on that node."""
    deployment = make_deployment(
        nodes={"matchLabels": {"kubernetes.io/hostname": node}},
        cache={"hostPath": DISK},
        rollout=ROLLOUT,
    )
    deployment.apply("v1")
    deployment.wait_installed()
    yield deployment


def partial_bytes(rig: Rig, node: str) -> int:
    """Bytes on the node's disk of files that are being fetched."""
    listed = rig.exec_on_node(node, "find", f"{DISK}/partial", "-name", "*.part", "-printf", "%b\n")
    return 512 * sum(int(line) for line in listed.split())


def wait_partial(orders: Deployment, rig: Rig, node: str, count: float) -> None:
    """Wait until that many bytes of what is being fetched are on the node's disk."""
    orders.wait(
        f"{count:.0f} bytes having come",
        lambda: partial_bytes(rig, node) >= count,
        timeout_seconds=240,
        interval_seconds=0.1,
    )


def kill_fetch(orders: Deployment, rig: Rig, node: str) -> bool:
    """SIGKILL the fetch ahead; False when it does not run just now."""
    try:
        rig.kill_container(orders.namespace, orders.pod_on(node, role="prefetch")["metadata"]["name"])
    except (LookupError, RigError):
        return False
    return True


def test_a_fetch_that_is_killed_and_cut_off_resumes_where_it_was(
    orders: Deployment, cluster: Cluster, rig: Rig, node: str
) -> None:
    path = f"/{FOLDER}/v2-int4/{FILE}"
    size = (model_dir("v2") / FILE).stat().st_size
    generator = random.Random(SEED)
    marks = sorted(generator.uniform(0.1, 0.6) * size for _ in range(KILLS))
    rig.set_model_faults({path: {"bytes_per_second": 100_000}})
    begin = time.time()
    orders.apply("v2")

    def wait_requests(count: int) -> None:
        orders.wait(
            f"{count} requests for the file",
            lambda: len(model_requests(rig, since=begin, path=path)) >= count,
            timeout_seconds=180,
        )

    for number, mark in enumerate(marks, start=1):
        wait_partial(orders, rig, node, mark)
        before = len(model_requests(rig, since=begin, path=path))
        orders.wait(f"kill {number}", lambda: kill_fetch(orders, rig, node), timeout_seconds=60)
        if number == KILLS:
            # The run to come, which the kubelet puts off for seconds, is cut off at 95 % of the file.
            left = round(0.95 * size) - partial_bytes(rig, node)
            rig.set_model_faults({path: {"bytes_per_second": 100_000, "cut_after_bytes": left}})
        wait_requests(before + 1)
    wait_requests(KILLS + 2)
    orders.wait_promoted("v2")
    sent = model_bytes(rig, since=begin, path=path)
    assert size <= sent <= (1 + RESENT_SHARE) * size, f"{sent} bytes were sent of a file of {size}"


def test_a_disk_that_fills_up_midway_leaves_what_serves_alone(
    orders: Deployment, cluster: Cluster, rig: Rig, node: str, clients: dict[str, NodeClient]
) -> None:
    serving = orders.pod_on(node)["metadata"]["uid"]
    case = golden_cases()[0]
    rig.set_model_faults({f"/{FOLDER}/v2-fp32/{FILE}": {"bytes_per_second": 100_000}})
    orders.apply("v2", variant="fp32")
    wait_partial(orders, rig, node, 100_000)
    filler = f"{DISK}/somebody-elses"
    rig.exec_on_node(node, "dd", "if=/dev/zero", f"of={filler}", "bs=64k", check=False)

    def reported() -> str:
        reasons = {entry["reason"]: entry["message"] for entry in orders.status().get("worstNodes", [])}
        return str(reasons.get("InsufficientCapacity", ""))

    message = orders.wait("the node reporting it", reported, timeout_seconds=180)
    assert len(re.findall(r"\d+", message)) >= 2, f"no numbers in {message!r}"
    assert "free" in message, message
    assert rollout_of(orders.read())["step"] == "Prefetching", "no wave begins before the model is there"
    assert orders.pod_on(node)["metadata"]["uid"] == serving
    need_ok(clients[node].chat(orders.service_address(), case["messages"]), "chat beside a full disk")

    # With room again the fetch is tried by itself, and the rollout goes on.
    rig.exec_on_node(node, "rm", filler)
    rig.set_model_faults({})
    orders.wait_promoted("v2", timeout_seconds=480)
    orders.wait(
        "the new pod alone being there",
        lambda: len(orders.pods()) == 1 and orders.pod_on(node)["metadata"]["uid"] != serving,
        timeout_seconds=180,
    )
    orders.wait(
        "an answer of the new variant",
        lambda: clients[node].chat(orders.service_address(), case["messages"]).ok,
        timeout_seconds=120,
    )
