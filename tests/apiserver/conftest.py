# SPDX-License-Identifier: Apache-2.0
"""One real control plane for all tests of this folder, with the CRD installed."""

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from e2e.rig import ControlPlane
from e2e.rig.paths import instance_dir, instances
from e2e.rig.progress import wait_until
from slmops.adapters.kube import load_configuration
from slmops.api import GROUP
from slmops.api.crd import build_crd
from slmops.api.kinds import KINDS, Kind
from tests.apiserver.account import install_account, lease_permission
from tests.apiserver.doubles import CountingClient, PatientClient
from tests.apiserver.harness import NAMESPACES, Cluster

# One instance per test run, so that two runs on one machine do not meet.
_INSTANCE = "apiserver-"
# KWOK on a machine that has other things to do may be late with its nodes' leases.
_NODE_GRACE_SECONDS = 120
_TIMEOUT_SECONDS = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test may take longer here: it is its waits that say what did not come."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_TIMEOUT_SECONDS))


def _take_down_leftovers() -> None:
    """Instances of runs that were killed before they could clean up."""
    for name in instances():
        owner = name.rpartition("-")[2]
        if name.startswith(_INSTANCE) and owner.isdigit() and not Path(f"/proc/{owner}").exists():
            ControlPlane(name).down()


def _established(plane: ControlPlane, kind: Kind) -> bool:
    # `kubectl wait` fails on a CRD that has no conditions yet.
    status = plane.kubectl.get("crd", f"{kind.plural}.{GROUP}").get("status") or {}
    return any(c["type"] == "Established" and c["status"] == "True" for c in status.get("conditions") or ())


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """Store, API server, controllers and scheduler; taken down, data and all, at the end."""
    _take_down_leftovers()
    plane = ControlPlane(f"{_INSTANCE}{os.getpid()}", node_grace_seconds=_NODE_GRACE_SECONDS).up()
    try:
        for kind in KINDS:
            plane.kubectl.apply(build_crd(kind))
        wait_until(
            "the CRDs being established",
            lambda: all(_established(plane, kind) for kind in KINDS),
            timeout_seconds=120,
            interval_seconds=0.2,
        )
        yield plane
    finally:
        plane.down()
        # The name is never used again, and a lock per test run would pile up.
        instance_dir(plane.name).with_suffix(".lock").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def kwok(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with KWOK looking after fake nodes."""
    return control_plane.up(kwok_nodes=1)


@pytest.fixture(scope="session")
def operator_kubeconfig(control_plane: ControlPlane) -> Path:
    """Kubeconfig of the operator's account, with the chart's permissions and node policy in force."""
    return install_account(control_plane)


MakeCluster = Callable[..., AbstractAsyncContextManager[Cluster]]


@pytest.fixture
def make_cluster(
    kwok: ControlPlane, operator_kubeconfig: Path, request: pytest.FixtureRequest
) -> MakeCluster:
    """Makes namespaces named after the test and a tail, each with nodes of its own; see `cluster`."""

    @asynccontextmanager
    async def make(tail: str, *, nodes: str = "abcd") -> AsyncIterator[Cluster]:
        operator = await load_configuration(str(operator_kubeconfig))
        configuration = await load_configuration(str(kwok.kubeconfig))
        kube = PatientClient(configuration)
        name = request.node.name + tail
        words = re.sub(r"[^a-z0-9]+", "-", name.removeprefix("test_").lower())[:24].strip("-")
        # Two files may have a test of the same name, and one that is run again finds the namespace
        # of its first run still on its way out.
        run = f"{request.node.nodeid}{tail}{getattr(request.node, 'execution_count', 1)}"
        short = f"{words}-{hashlib.sha256(run.encode()).hexdigest()[:4]}"
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": short}}
        await kube.create(NAMESPACES, body=body)
        await asyncio.to_thread(kwok.kubectl.apply, *lease_permission(short))
        cluster = Cluster(kube=kube, connect=lambda: CountingClient(operator), namespace=short)
        for node in nodes:
            await cluster.add_node(node, **({"pilot": "true"} if node == "a" else {}))
        try:
            yield cluster
        finally:
            await cluster.remove()
            await kube.close()

    return make


@pytest.fixture
async def cluster(make_cluster: MakeCluster) -> AsyncIterator[Cluster]:
    """A namespace named after the test, and four Ready nodes: `a` is the pilot.

    The operator acts by its own account: what the chart does not permit fails here.
    """
    async with make_cluster("") as cluster:
        yield cluster
