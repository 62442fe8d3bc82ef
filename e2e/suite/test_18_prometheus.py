# SPDX-License-Identifier: Apache-2.0
"""The Prometheus that the chart brings: it finds and scrapes everything of SLMOps, and judges a rollout."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import pytest
import yaml

from e2e.lib import Cluster, Deployment, OperatorImages, install_operator
from e2e.lib.artifacts import Repository
from e2e.lib.observe import describe_pods, rollout_of
from e2e.lib.release import CHART, NAMESPACE, OPERATOR_SELECTOR, RELEASE, image_values
from e2e.rig import RigError
from e2e.rig.oci import write_binary_image
from e2e.rig.tools import FAMILY_OF, family_hash, tool
from e2e.rig.topology import CONTROL_PLANE_LABEL, REGISTRY
from e2e.suite.conftest import OPERATOR_VALUES, Make, need_rig
from slmwire import metrics

NAME: Final = f"{RELEASE}-prometheus"
URL: Final = f"http://{NAME}.{NAMESPACE}.svc:9090"
SELECTOR: Final = "app.kubernetes.io/component=prometheus"
AGENT_SELECTOR: Final = "app.kubernetes.io/component=store-agent"
SITE_LABEL: Final = "slmops.dev/site"
REPOSITORY: Final = "e2e/prometheus"
WAIT_SECONDS: Final = 240
"""Bounds a failure; a busy machine takes its time."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prometheus:
    """The HTTP API of the chart's Prometheus, through the API server."""

    cluster: Cluster

    def ask(self, path: str, **parameters: str) -> Any:
        """`data` of the answer to GET /api/v1/`path`; RigError when it does not answer."""
        service = f"/api/v1/namespaces/{NAMESPACE}/services/{NAME}:http/proxy"
        query = f"?{urlencode(parameters)}" if parameters else ""
        return json.loads(self.cluster.kubectl.raw(f"{service}/api/v1/{path}{query}"))["data"]

    def query(self, promql: str) -> list[Json]:
        """An instant vector: [{"metric": {...}, "value": [seconds, "text"]}, ...]."""
        return list(self.ask("query", query=promql)["result"])

    def targets(self) -> list[Json]:
        """All that it scrapes now."""
        return list(self.ask("targets", state="active")["activeTargets"])

    def pods_up(self) -> dict[str, set[str]]:
        """Names of the pods that it reads, by job."""
        found: dict[str, set[str]] = {}
        for target in self.targets():
            if target["health"] == "up":
                found.setdefault(target["labels"]["job"], set()).add(target["labels"]["pod"])
        return found

    def describe_targets(self) -> str:
        """One line for each target, with what is wrong with it; the pod's state and the end of its log."""
        pods = self.cluster.find_all("pods", namespace=NAMESPACE, selector=SELECTOR)
        lines = [describe_pods(pods)]
        lines += [self.cluster.logs(NAMESPACE, pod["metadata"]["name"])[-3000:] for pod in pods]
        try:
            lines += [
                f"{target['scrapePool']} {target['scrapeUrl']} {target['health']} {target['lastError']}"
                for target in self.targets()
            ]
        except RigError as error:
            lines.append(str(error))
        return "\n".join(lines)


def push_prometheus(folder: Path) -> str:
    """The rig's Prometheus as an image in the rig's registry; its reference."""
    tag = family_hash(FAMILY_OF["prometheus"])
    reference = f"{REGISTRY}/{REPOSITORY}:{tag}"
    archive = folder / "prometheus.oci.tar"
    # As in the public image: the folder of the data is called /prometheus.
    entrypoint = ["/bin/prometheus"]
    write_binary_image(
        archive, reference=reference, binary=tool("prometheus"), entrypoint=entrypoint, user="65534"
    )
    Repository(REGISTRY, REPOSITORY).push_archive(archive, tag)
    archive.unlink()
    return reference


def with_prometheus(image: str) -> Json:
    """Chart values: no URL is named, so the one that is brought judges."""
    install = {
        "enabled": True,
        "image": image_values(image),
        "scrapeInterval": "2s",
        "siteLabel": SITE_LABEL,
        "nodeSelector": {CONTROL_PLANE_LABEL: "true"},
    }
    return OPERATOR_VALUES | {"prometheus": {"install": install}}


def is_whole(deployment: Mapping[str, Any] | None) -> bool:
    """Whether a Kubernetes Deployment is ready as it was asked for last."""
    if deployment is None:
        return False
    status = deployment.get("status", {})
    return bool(
        status.get("observedGeneration") == deployment["metadata"]["generation"]
        and status.get("updatedReplicas") == status.get("readyReplicas") == 1
        and not status.get("unavailableReplicas")
    )


@pytest.fixture(scope="module")
def prometheus(
    cluster: Cluster, operator: OperatorImages, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """The release with its own Prometheus, ready; the usual one is back afterwards."""
    need_rig(cluster)
    image = push_prometheus(tmp_path_factory.mktemp("image"))
    found = Prometheus(cluster)
    try:
        install_operator(cluster, images=operator, values=with_prometheus(image))
        cluster.wait_for(
            "the chart's Prometheus being ready",
            lambda: is_whole(cluster.get("deployment", NAME, namespace=NAMESPACE)),
            timeout_seconds=WAIT_SECONDS,
            describe=found.describe_targets,
        )
        yield found
    finally:
        install_operator(cluster, images=operator, values=OPERATOR_VALUES)


@pytest.fixture(scope="module")
def orders(prometheus: Prometheus, make_deployment: Make) -> Deployment:
    """v1 on all edge nodes."""
    deployment = make_deployment()
    deployment.apply("v1")
    deployment.wait_installed()
    return deployment


def names(pods: list[Json]) -> set[str]:
    """Of the pods that run and are not about to go."""
    return {
        pod["metadata"]["name"]
        for pod in pods
        if pod["status"].get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")
    }


def test_the_operator_is_told_of_it(prometheus: Prometheus) -> None:
    deployment = prometheus.cluster.need("deployment", RELEASE, namespace=NAMESPACE)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"name": "SLMOPS_PROMETHEUS_URL", "value": URL} in container["env"]


def test_it_reads_every_server_every_store_agent_and_the_operator(
    prometheus: Prometheus, orders: Deployment, cluster: Cluster
) -> None:
    def expected() -> dict[str, set[str]]:
        serving = cluster.find_all(
            "pods", selector="app.kubernetes.io/managed-by=slmops,slmops.dev/role=serve"
        )
        return {
            "slmops-operator": names(
                cluster.find_all("pods", namespace=NAMESPACE, selector=OPERATOR_SELECTOR)
            ),
            "slmops-models": names(serving),
            "slmops-store-agents": names(
                cluster.find_all("pods", namespace=NAMESPACE, selector=AGENT_SELECTOR)
            ),
        }

    cluster.wait_for(
        "every pod being up in Prometheus",
        lambda: prometheus.pods_up() == expected(),
        timeout_seconds=WAIT_SECONDS,
        describe=lambda: f"{expected()}\n{prometheus.describe_targets()}",
    )
    assert names(orders.pods()) <= expected()["slmops-models"]
    assert len(names(orders.pods())) == len(cluster.edge_nodes)


def test_series_name_the_site_of_their_node(
    prometheus: Prometheus, orders: Deployment, cluster: Cluster
) -> None:
    nodes = {node["metadata"]["name"]: node for node in cluster.find_all("nodes")}
    sites = {name: nodes[name]["metadata"]["labels"][SITE_LABEL] for name in cluster.edge_nodes}
    query = (
        f'{metrics.MODEL_INFO}{{{metrics.LABEL_DEPLOYMENT}="{orders.name}",'
        f'{metrics.LABEL_NAMESPACE}="{orders.namespace}"}}'
    )

    def told() -> dict[str, str]:
        found = [one["metric"] for one in prometheus.query(query)]
        return {labels[metrics.LABEL_NODE]: labels.get("slm_site", "") for labels in found}

    cluster.wait_for(
        "the site of every server",
        lambda: told() == sites,
        timeout_seconds=WAIT_SECONDS,
        describe=lambda: f"{sites}\n{told()}\n{prometheus.describe_targets()}",
    )
    at_sites = {
        one["metric"].get("slm_site", "") for one in prometheus.query('up{job="slmops-store-agents"}')
    }
    assert set(sites.values()) <= at_sites


def test_the_operators_series_keep_the_deployments_namespace(
    prometheus: Prometheus, orders: Deployment
) -> None:
    query = f'slmops_nodes{{namespace="{orders.namespace}",deployment="{orders.name}",state="ready"}}'
    prometheus.cluster.wait_for(
        "the operator's count of nodes",
        lambda: prometheus.query(query),
        timeout_seconds=WAIT_SECONDS,
        describe=prometheus.describe_targets,
    )


def test_the_rules_are_loaded_and_hold(prometheus: Prometheus, orders: Deployment) -> None:
    read = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    wanted = {rule.get("alert") or rule["record"] for group in read["groups"] for rule in group["rules"]}

    def rules() -> list[Json]:
        return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]

    def all_hold() -> bool:
        found = rules()
        return {rule["name"] for rule in found} == wanted and all(rule["health"] == "ok" for rule in found)

    prometheus.cluster.wait_for(
        "every rule having been evaluated",
        all_hold,
        timeout_seconds=WAIT_SECONDS,
        describe=lambda: "\n".join(
            f"{rule['name']} {rule['health']} {rule.get('lastError', '')}" for rule in rules()
        ),
    )


def test_it_judges_the_next_version(orders: Deployment) -> None:
    stable = orders.status()["stableRevision"]
    orders.apply("v2")
    found = orders.wait_promoted("v2")
    rollout = rollout_of(found)
    assert found["status"]["stableRevision"] != stable
    assert rollout["judgedBy"] == "Prometheus"
    assert all(wave["verdict"] == "Pass" for wave in rollout["waves"]), rollout["waves"]
    measured = [m for m in rollout["measurements"] if m["metric"] == "quality" and m["verdict"] == "Pass"]
    assert measured and all(m["canarySamples"] >= 10 for m in measured), rollout["measurements"]
