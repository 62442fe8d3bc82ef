# SPDX-License-Identifier: Apache-2.0
"""The life of an installation: the quickstart as it is written, uninstalled, installed again, upgraded.

It takes the suite's installation away for as long as it runs and puts the same back at its end.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.lib import Cluster, Deployment, NodeClient, OperatorImages, install_operator, uninstall_operator
from e2e.lib.observe import condition
from e2e.lib.previous import previous_chart, previous_images
from e2e.lib.release import (
    NAMESPACE,
    clear_operator,
    delete_deployments,
    find_kinds,
    image_values,
    operator_pod,
)
from e2e.quickstart import END, SHIP, START, Workplace
from e2e.rig import Rig
from e2e.suite.conftest import NAMESPACE_PREFIX, OPERATOR_VALUES, need_rig

CLUSTER_KINDS = (
    "clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings,"
    "validatingwebhookconfigurations,mutatingwebhookconfigurations"
)
WITHOUT_PROMETHEUS: dict[str, Any] = {"prometheus": {"url": ""}, "crds": {"keep": False}}


@pytest.fixture(scope="module")
def bare(cluster: Cluster, operator: OperatorImages) -> Iterator[Cluster]:
    """The cluster without any trace of SLMOps; the suite's installation is back afterwards."""
    need_rig(cluster)
    clear_operator(cluster)
    try:
        yield cluster
    finally:
        # What a test that failed has left behind needs an operator to go.
        install_operator(cluster, images=operator, values=OPERATOR_VALUES)
        delete_deployments(cluster)


@pytest.fixture(scope="module")
def work(
    bare: Cluster, images: OperatorImages, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workplace]:
    """Somebody who does what the quickstart says."""
    work = Workplace(cluster=bare, images=images, folder=tmp_path_factory.mktemp("quickstart"))
    work.prepare()
    work.link_plugin()
    yield work


@pytest.fixture(scope="module")
def quick(bare: Cluster) -> Deployment:
    """The quickstart's deployment."""
    return Deployment(bare, "orders", "slm")


def observe_lives(deployment: Deployment) -> dict[str, tuple[str, int, str]]:
    """Per serving pod its identity, the restarts of its containers, and when its server began."""
    return {
        pod["metadata"]["name"]: (
            pod["metadata"]["uid"],
            sum(status["restartCount"] for status in pod["status"]["containerStatuses"]),
            str(pod["status"]["containerStatuses"][0]["state"].get("running", {}).get("startedAt")),
        )
        for pod in deployment.pods()
    }


def observe_objects(deployment: Deployment) -> dict[str, tuple[str, int]]:
    """Uid and generation of what the operator has made for it."""
    found = deployment.cluster.find_all(
        "daemonsets,configmaps,services,controllerrevisions.apps",
        namespace=deployment.namespace,
        selector=f"slmops.dev/deployment={deployment.name}",
    )
    return {
        f"{item['kind']}/{item['metadata']['name']}": (
            item["metadata"]["uid"],
            # That of a ControllerRevision, and of a ConfigMap, is not counted.
            item["metadata"].get("generation", 0),
        )
        for item in found
    }


def node_labels(cluster: Cluster) -> list[str]:
    """Our labels on nodes."""
    return [
        f"{node['metadata']['name']}: {key}"
        for node in cluster.find_all("nodes")
        for key in node["metadata"]["labels"]
        if key.partition("/")[0].endswith(".slmops.dev")
    ]


def cluster_objects(cluster: Cluster) -> list[str]:
    """What has no namespace and is of a release of SLMOps."""
    found = cluster.find_all(CLUSTER_KINDS)
    return sorted(
        f"{item['kind']}/{item['metadata']['name']}"
        for item in found
        if "slmops" in item["metadata"]["name"] or "slmops" in json.dumps(item["metadata"].get("labels", {}))
    )


def check_bare(cluster: Cluster) -> None:
    """Nothing of slmops.dev is left in the API server."""
    assert find_kinds(cluster) == []
    assert node_labels(cluster) == []
    assert cluster_objects(cluster) == []
    assert "slmops.dev" not in cluster.kubectl("api-resources", "--cached=false", "-o", "name")
    assert cluster.get("namespace", NAMESPACE) is None


def wait_settled(deployment: Deployment, *, nodes: int) -> None:
    """Wait until the operator that runs now has looked, and all nodes count as ready."""
    deployment.wait_status(
        "all nodes being ready",
        lambda found: (
            condition(found, "Ready").get("status") == "True"
            and found["status"]["nodes"]["ready"] == nodes
            and condition(found, "Progressing").get("reason") == "Complete"
        ),
        timeout_seconds=180,
    )


def hold_lives(deployment: Deployment, lives: dict[str, tuple[str, int, str]]) -> None:
    deployment.cluster.hold_for(
        "the pods being the same", lambda: observe_lives(deployment) == lives, seconds=5
    )


def test_three_commands_lead_to_the_first_token(work: Workplace, quick: Deployment, rig: Rig) -> None:
    *_, said = work.run(START)
    answer = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert answer["intent"] == "order" and answer["table"] == 4, said
    assert "waiting for the first ready pod" in said, "it was asked right after apply"
    assert "SLMOPS_PROMETHEUS_URL" not in json.dumps(operator_pod(quick.cluster)["spec"])
    quick.wait_installed()
    assert {pod["spec"]["nodeName"] for pod in quick.pods()} == set(rig.nodes)


def test_a_new_version_is_judged_without_a_prometheus(work: Workplace, quick: Deployment) -> None:
    *_, told = work.run(SHIP)
    assert "judged by the operator itself (Direct), for no Prometheus is named" in told
    rollout = quick.status()["rollout"]
    assert rollout["judgedBy"] == "Direct"
    assert [wave["verdict"] for wave in rollout["waves"]] == ["Pass", "Pass"]
    measured = [m for m in rollout["measurements"] if m["metric"] == "quality" and m["verdict"] == "Pass"]
    assert measured and all(int(m["canarySamples"]) >= 10 for m in measured)


def test_what_is_uninstalled_goes_on_serving_and_is_taken_up_again(
    work: Workplace, quick: Deployment, clients: dict[str, NodeClient]
) -> None:
    cluster = quick.cluster
    wait_settled(quick, nodes=len(work.cluster.rig.nodes))
    lives, made, labels = observe_lives(quick), observe_objects(quick), node_labels(cluster)
    before = quick.read()
    uninstall_operator(cluster)
    assert cluster_objects(cluster) == []
    kinds = "pods,daemonsets,deployments,services,serviceaccounts,roles,rolebindings"
    cluster.wait_for(
        "the release being gone",
        lambda: not cluster.find_all(kinds, namespace=NAMESPACE, selector="app.kubernetes.io/name=slmops"),
        timeout_seconds=180,
    )
    assert len(find_kinds(cluster)) == 3, "crds.keep is the default"
    after = quick.read()
    assert (after["spec"], after["status"]) == (before["spec"], before["status"])
    assert (observe_lives(quick), observe_objects(quick), node_labels(cluster)) == (lives, made, labels)
    service = quick.service_address()
    assert all(client.ask(service, "two espressos to table four").ok for client in clients.values())

    work.run(START, program="helm install")
    wait_settled(quick, nodes=len(work.cluster.rig.nodes))
    hold_lives(quick, lives)
    assert (observe_objects(quick), node_labels(cluster)) == (made, labels)
    assert quick.status()["stableRevision"] == before["status"]["stableRevision"]


def test_taken_away_as_written_nothing_is_left(work: Workplace, quick: Deployment, rig: Rig) -> None:
    work.run(END)
    check_bare(quick.cluster)
    assert quick.cluster.get("namespace", quick.namespace) is None
    for node in rig.nodes:
        store = Path(rig.node_path(node, "/var/lib/slmops"))
        assert not [path for path in store.rglob("*.onnx*") if path.is_file()], node


def test_an_upgrade_from_the_previous_release_loses_nothing(
    bare: Cluster, images: OperatorImages, clients: dict[str, NodeClient]
) -> None:
    old = previous_images()
    values = {"image": image_values(old.operator), "runtimeImage": image_values(old.runtime)}
    install_operator(bare, images=old, values=WITHOUT_PROMETHEUS | values, chart=previous_chart())
    assert find_kinds(bare) == ["slmdeployments.slmops.dev"]
    bare.make_namespace(f"{NAMESPACE_PREFIX}lifecycle")
    orders = Deployment(
        bare, "orders", f"{NAMESPACE_PREFIX}lifecycle", {"cache": {"deletionPolicy": "Delete"}}
    )
    orders.apply("v1")
    orders.wait_installed()
    wait_settled(orders, nodes=len(bare.edge_nodes))
    lives, made, labels = observe_lives(orders), observe_objects(orders), node_labels(bare)
    stored = orders.read()
    assert stored["spec"]["rollout"]["analysis"]["provider"] == "Prometheus", "as the old default wrote it"
    (server,) = orders.pods()[0]["spec"]["containers"]
    assert server["image"] == old.runtime

    install_operator(bare, images=images, values=WITHOUT_PROMETHEUS)
    assert len(find_kinds(bare)) == 3
    assert operator_pod(bare)["spec"]["containers"][0]["image"] == images.operator
    wait_settled(orders, nodes=len(bare.edge_nodes))
    hold_lives(orders, lives)
    now = orders.read()
    # Fields that the new CRD has defaults for are added; all that was said before is said still.
    assert now["spec"] | stored["spec"] == now["spec"]
    assert now["status"]["stableRevision"] == stored["status"]["stableRevision"]
    assert {c["type"]: c["status"] for c in now["status"]["conditions"]} == {
        c["type"]: c["status"] for c in stored["status"]["conditions"]
    }
    assert (observe_objects(orders), node_labels(bare)) == (made, labels)
    service = orders.service_address()
    assert all(client.ask(service, "two espressos to table four").ok for client in clients.values())

    # What the old default wrote means no more than nothing: the new version is judged all the same.
    orders.apply("v2")
    orders.wait_promoted("v2")
    assert orders.read()["spec"]["rollout"]["analysis"]["provider"] == "Prometheus"
    assert orders.status()["rollout"]["judgedBy"] == "Direct"
    orders.delete(wait_seconds=240)


def test_uninstalled_without_keep_nothing_is_left(bare: Cluster) -> None:
    namespace = f"{NAMESPACE_PREFIX}lifecycle"
    assert bare.get("customresourcedefinition", "slmdeployments.slmops.dev") is not None
    uninstall_operator(bare)
    bare.delete("namespace", namespace, wait_seconds=180)
    bare.delete("namespace", NAMESPACE, wait_seconds=180)
    check_bare(bare)
