# SPDX-License-Identifier: Apache-2.0
"""Fixtures: one cluster and one operator for the session; each module brings its own deployment.

Tests that take the `rig` fixture inject faults; they are skipped on a cluster that SLMOPS_KUBECONFIG
names, and nowhere else.
"""

import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from e2e.lib import (
    Cluster,
    Deployment,
    NodeClient,
    OperatorImages,
    install_operator,
    open_cluster,
    rig_images,
)
from e2e.lib.chat import CLIENT_NAMESPACE
from e2e.lib.deployment import KIND
from e2e.rig import Rig, RigError

STORE = "/var/lib/slmops"
FILES = f"{STORE}/files-of-e2e"
"""Folder on the nodes below which file sources may lie."""
NAMESPACE_PREFIX = "e2e-"
OPERATOR_VALUES = {"allowedFilePaths": [FILES]}
"""Chart values of every installation in this suite."""
TIMEOUT_SECONDS = 900
Make = Callable[..., Deployment]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test may take longer here: it is its waits that say what did not come."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS))


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster, up; it stays up afterwards."""
    found = open_cluster()
    if found.is_rig:
        heal(found.rig)
    return found


@pytest.fixture(scope="session")
def images(cluster: Cluster) -> OperatorImages:
    """Images of this checkout where the nodes can pull them."""
    return rig_images(cluster)


@pytest.fixture(scope="session")
def operator(cluster: Cluster, images: OperatorImages) -> OperatorImages:
    """The operator, installed by Helm; deployments that an earlier run left behind are gone.

    On the rig all are, the demo's too; on somebody's cluster only those of this suite.
    """
    install_operator(cluster, images=images, values=OPERATOR_VALUES)
    for left in cluster.find_all(KIND):
        metadata = left["metadata"]
        if cluster.is_rig or metadata["namespace"].startswith(NAMESPACE_PREFIX):
            Deployment(cluster, metadata["name"], metadata["namespace"]).delete()
    return images


@pytest.fixture(scope="session")
def clients(cluster: Cluster, images: OperatorImages) -> Iterator[dict[str, NodeClient]]:
    """A client on each edge node."""
    yield {node: NodeClient(cluster, node, image=images.runtime) for node in cluster.edge_nodes}
    if not cluster.is_rig:
        cluster.delete("namespace", CLIENT_NAMESPACE)


def need_rig(cluster: Cluster) -> None:
    """Skip the test on a cluster of somebody's: it injects faults or uses the rig's own services."""
    if not cluster.is_rig:
        pytest.skip("needs the rig: unset SLMOPS_KUBECONFIG")


@pytest.fixture
def rig(cluster: Cluster) -> Iterator[Rig]:
    """The rig with its faults, healed afterwards."""
    need_rig(cluster)
    yield cluster.rig
    heal(cluster.rig)


def heal(rig: Rig) -> None:
    """Undo every fault."""
    rig.set_model_faults({})
    rig.set_registry_faults({})
    for node in rig.edge_nodes:
        rig.node_link_up(node)
        rig.limit_bandwidth(node, None)
    for part in ("models", "prometheus", "registry", "s3"):
        rig.start_service(part)


@pytest.fixture(scope="module")
def make_deployment(
    request: pytest.FixtureRequest, cluster: Cluster, operator: OperatorImages
) -> Iterator[Make]:
    """Makes handles of deployments in a namespace and a store folder of the module's own.

    What was made is deleted after the module. The deployments retain their stores, which are removed
    by hand: having nodes drop them takes time, and is what the deletion test is about.
    """
    module = request.module.__name__.rpartition(".")[2].removeprefix("test_").replace("_", "-")
    namespace, store = f"{NAMESPACE_PREFIX}{module}", f"{STORE}/{NAMESPACE_PREFIX}{module}"
    cluster.make_namespace(namespace)
    made: list[Deployment] = []

    def make(name: str = "orders", **options: Any) -> Deployment:
        options["cache"] = {"hostPath": store, "deletionPolicy": "Retain"} | options.get("cache", {})
        deployment = Deployment(cluster, name, namespace, options)
        made.append(deployment)
        return deployment

    yield make
    for deployment in made:
        deployment.delete()
    if cluster.is_rig:
        cluster.wait_for(
            f"the pods of {namespace} being gone",
            lambda: not cluster.find_all("pods", namespace=namespace),
            timeout_seconds=180,
        )
        for node in cluster.edge_nodes:
            shutil.rmtree(cluster.rig.node_path(node, store), ignore_errors=True)
    cluster.delete("namespace", namespace)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what the deployments of a failed test say into its report."""
    report = yield
    if report.when == "call" and report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, Deployment):
                with suppress(RigError, LookupError):
                    report.sections.append((f"deployment {name}", value.describe()))
    return report
