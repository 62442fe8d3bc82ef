# SPDX-License-Identifier: Apache-2.0
"""The operator is killed at random moments of a rollout: no wave is skipped or repeated."""

import random
import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from e2e.lib import Cluster, Deployment, Frame, History, NodeClient, Traffic
from e2e.lib.observe import rollout_of
from e2e.lib.release import NAMESPACE, operator_pod
from e2e.rig import Rig, RigError
from e2e.suite.conftest import Make

KILLS = 4
SEED = 20261
SOAK_SECONDS = 3


@pytest.fixture(scope="module")
def orders(make_deployment: Make) -> Iterator[Deployment]:
    """v1 on all edge nodes."""
    deployment = make_deployment(rollout={"soak": f"{SOAK_SECONDS}s"})
    deployment.apply("v1")
    deployment.wait_installed()
    yield deployment


def kill_operator(cluster: Cluster, rig: Rig, *, with_pod: bool) -> bool:
    """SIGKILL the operator; False when it has not even come back from the last time.

    The kubelet restarts it, later each time. `with_pod` also deletes the pod, as a lost node would,
    and then another pod has to wait until the dead one's Lease has run out.
    """
    try:
        name = str(operator_pod(cluster)["metadata"]["name"])
        rig.kill_container(NAMESPACE, name)
    except RigError:
        return False
    if with_pod:
        cluster.kubectl("delete", "pod", "-n", NAMESPACE, name, "--grace-period=0", "--force", "--wait=false")
    return True


def test_a_rollout_survives_kills_at_random_moments(
    orders: Deployment, cluster: Cluster, rig: Rig, clients: dict[str, NodeClient]
) -> None:
    generator = random.Random(SEED)
    stable = orders.status()["stableRevision"]
    before = {pod["metadata"]["name"]: restarts(pod) for pod in orders.pods()}
    killed_at: list[float] = []
    with (
        Traffic(clients.values(), orders.service_address(), interval_seconds=0.5) as traffic,
        History(orders) as history,
    ):
        orders.apply("v2")
        limit = time.monotonic() + 120
        while len(killed_at) < KILLS and time.monotonic() < limit:
            time.sleep(generator.uniform(0.5, 6.0))
            if kill_operator(cluster, rig, with_pod=len(killed_at) % 2 == 1):
                killed_at.append(time.time())
        found = orders.wait_promoted("v2", timeout_seconds=480)
        report = traffic.stop()
    assert len(killed_at) == KILLS
    revision, said = found["status"]["stableRevision"], history.describe()
    check_waves(history.of(revision), revision=revision, said=said)
    rollout = rollout_of(found)
    finished = datetime.fromisoformat(rollout["finishedAt"]).timestamp()
    assert sum(at < finished for at in killed_at) >= KILLS - 1, "the kills came after the rollout"
    assert [wave["verdict"] for wave in rollout["waves"]] == ["Pass"] * 3, said
    assert not found["status"]["failedRevisions"]
    assert orders.assigned() == {node: {revision} for node in cluster.edge_nodes}
    assert revision != stable
    assert not report.failures, report.describe()
    # Killing the operator touches no model: pods that were there before were never restarted.
    again = {p["metadata"]["name"]: restarts(p) for p in orders.pods() if p["metadata"]["name"] in before}
    assert all(again[name] == before[name] for name in again)


def restarts(pod: dict[str, object]) -> int:
    """Restarts of a pod's containers."""
    status = pod["status"]
    assert isinstance(status, dict)
    return sum(c["restartCount"] for c in status.get("containerStatuses", []))


def check_waves(frames: tuple[Frame, ...], *, revision: str, said: str) -> None:
    """No wave is skipped or repeated, no node loses the revision, no soak is cut short."""
    assert frames
    wave, given = 0, set[str]()
    started: dict[str, str] = {}
    passed: set[str] = set()
    for frame in frames:
        assert wave <= frame.wave <= wave + 1, f"from wave {wave} to {frame.wave}\n{said}"
        wave = frame.wave
        assert given <= frame.nodes_given(revision), said
        given = frame.nodes_given(revision)
        waves = rollout_of(frame.resource)["waves"]
        for summary in waves:
            name, begun = summary["name"], summary.get("startedAt")
            if begun:
                assert started.setdefault(name, begun) == begun, f"wave {name} began twice\n{said}"
            if summary.get("verdict") == "Pass":
                passed.add(name)
            else:
                assert name not in passed, f"wave {name} passed, and then not\n{said}"
    soaks: dict[int, list[float]] = {}
    for frame in frames:
        soaks.setdefault(frame.wave, [])
        if frame.step == "Soaking":
            soaks[frame.wave].append(frame.at)
    assert set(soaks) == {0, 1, 2}, said
    assert all(soaks.values()), f"a wave was not seen to soak\n{said}"
