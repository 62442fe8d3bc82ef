# SPDX-License-Identifier: Apache-2.0
"""One real control plane for all tests of this folder, with the CRD installed."""

import re
from collections.abc import AsyncIterator, Iterator

import pytest

from e2e.rig import ControlPlane
from slmops.adapters.kube import KubeClient, load_configuration
from slmops.adapters.resources import Resource
from slmops.api.crd import build_crd
from tests.apiserver.harness import Cluster, CountingClient

NAMESPACES = Resource(group="", version="v1", plural="namespaces", kind="Namespace", namespaced=False)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """Store, API server, controllers and scheduler; taken down, data and all, at the end."""
    plane = ControlPlane("apiserver-tests").up()
    try:
        plane.kubectl.apply(build_crd())
        plane.kubectl("wait", "--for=condition=Established", "crd/slmdeployments.slmops.dev", "--timeout=30s")
        yield plane
    finally:
        plane.down()


@pytest.fixture(scope="session")
def kwok(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with KWOK looking after fake nodes."""
    return control_plane.up(kwok_nodes=1)


@pytest.fixture
async def cluster(kwok: ControlPlane, request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    """A namespace named after the test, and four Ready nodes: `a` is the pilot."""
    configuration = await load_configuration(str(kwok.kubeconfig))
    kube = KubeClient(configuration)
    short = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())[:32].strip("-")
    await kube.create(NAMESPACES, body={"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": short}})
    cluster = Cluster(kube=kube, connect=lambda: CountingClient(configuration), namespace=short)
    for name in "abcd":
        await cluster.add_node(name, **({"pilot": "true"} if name == "a" else {}))
    try:
        yield cluster
    finally:
        await kube.close()
