# SPDX-License-Identifier: Apache-2.0
"""The operator as a Helm release: installed as a user would, with the images of this checkout."""

import json
import os
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from e2e.lib.session import Body, Cluster
from e2e.rig import RigError
from e2e.rig.images import build_images
from e2e.rig.paths import CHECKOUT
from e2e.rig.shell import run
from e2e.rig.tools import tool

RELEASE: Final = "slmops"
NAMESPACE: Final = "slmops-system"
CHART: Final = CHECKOUT / "charts" / "slmops"
OPERATOR_SELECTOR: Final = "app.kubernetes.io/name=slmops,app.kubernetes.io/component=operator"
_MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
IN_CLUSTER_PROMETHEUS: Final = "http://prometheus.monitoring.svc:9090"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorImages:
    """References of the two images, `registry/repository:tag`."""

    operator: str
    runtime: str


def rig_images(cluster: Cluster) -> OperatorImages:
    """Images of this checkout in the rig's registry; for another cluster, those that
    SLMOPS_OPERATOR_IMAGE and SLMOPS_RUNTIME_IMAGE name."""
    if not cluster.is_rig:
        named = [os.environ.get(f"SLMOPS_{kind}_IMAGE", "") for kind in ("OPERATOR", "RUNTIME")]
        if not all(named):
            raise RigError(
                "set SLMOPS_OPERATOR_IMAGE and SLMOPS_RUNTIME_IMAGE to images that the nodes can pull"
            )
        return OperatorImages(operator=named[0], runtime=named[1])
    built = {image.name: image.reference for image in build_images()}
    return OperatorImages(operator=built["slmops-operator"], runtime=built["slmops-runtime"])


def retag(reference: str, tag: str) -> str:
    """Give an image of a registry on plain HTTP another tag; the new reference."""
    path, _, old = reference.rpartition(":")
    registry, _, repository = path.partition("/")
    where = f"http://{registry}/v2/{repository}/manifests"
    accept = ", ".join(_MANIFEST_TYPES)
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{where}/{old}", headers={"Accept": accept}), timeout=30
        ) as answer:
            kind, manifest = answer.headers["Content-Type"], answer.read()
        put = urllib.request.Request(
            f"{where}/{tag}", data=manifest, headers={"Content-Type": kind}, method="PUT"
        )
        urllib.request.urlopen(put, timeout=30).close()
    except OSError as error:
        raise RigError(f"{reference} cannot be given the tag {tag}: {error}") from error
    return f"{path}:{tag}"


def image_values(reference: str) -> Body:
    """Chart values of an image reference `registry/repository:tag`."""
    path, _, tag = reference.rpartition(":")
    registry, _, repository = path.partition("/")
    return {"registry": registry, "repository": repository, "tag": tag}


def operator_values(cluster: Cluster, images: OperatorImages) -> Body:
    """Chart values for the rig or for the cluster at hand."""
    values: Body = {
        "image": image_values(images.operator),
        "runtimeImage": image_values(images.runtime),
        "prometheus": {"url": os.environ.get("SLMOPS_PROMETHEUS_IN_CLUSTER_URL", IN_CLUSTER_PROMETHEUS)},
    }
    if cluster.is_rig:
        # The edge nodes are for models; faults hit them and not the operator.
        values["nodeSelector"] = {"node-role.kubernetes.io/control-plane": "true"}
    return values


def helm(cluster: Cluster, *arguments: str, timeout_seconds: float = 240) -> str:
    """Run Helm against the cluster; return its output."""
    command = [str(tool("helm")), "--kubeconfig", str(cluster.access.kubeconfig), *arguments]
    return run(command, timeout_seconds=timeout_seconds).stdout


def install_operator(
    cluster: Cluster, *, images: OperatorImages | None = None, values: Mapping[str, Any] | None = None,
    timeout_seconds: float = 420, chart: Path = CHART,
) -> None:  # fmt: skip
    """`helm upgrade --install` and wait until the operator is ready. `values` are put over the defaults."""
    chosen = operator_values(cluster, images or rig_images(cluster)) | dict(values or {})
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(chosen, file)
        file.flush()
        helm(
            cluster, "upgrade", "--install", RELEASE, str(chart), "--namespace", NAMESPACE,
            "--create-namespace", "--values", str(Path(file.name)),
        )  # fmt: skip

    def ready() -> bool:
        found = cluster.find_all("deployments", namespace=NAMESPACE, selector=OPERATOR_SELECTOR)
        return bool(found) and all(
            item["status"].get("observedGeneration") == item["metadata"]["generation"]
            and item["status"].get("readyReplicas", 0) == item["spec"]["replicas"]
            and item["status"].get("updatedReplicas", 0) == item["spec"]["replicas"]
            and not item["status"].get("unavailableReplicas")
            for item in found
        )

    cluster.wait_for(
        "the operator being ready", ready, timeout_seconds=timeout_seconds,
        describe=lambda: describe_operator(cluster),
    )  # fmt: skip


def uninstall_operator(cluster: Cluster) -> None:
    """`helm uninstall`; what is not installed is fine."""
    helm(cluster, "uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found", "--wait")


def clear_operator(cluster: Cluster) -> None:
    """Take everything of SLMOps off the cluster: SLMDeployments, release, kinds and namespace.

    An operator must run if there are SLMDeployments.
    """
    kinds = find_kinds(cluster)
    if kinds:
        delete_deployments(cluster)
    uninstall_operator(cluster)
    for kind in kinds:
        cluster.delete("customresourcedefinition", kind, wait_seconds=180)
    cluster.delete("namespace", NAMESPACE, wait_seconds=180)


def delete_deployments(cluster: Cluster) -> None:
    """Delete all SLMDeployments and wait until the operator has let them go."""
    kind = "slmdeployments.slmops.dev"
    cluster.kubectl("delete", kind, "--all", "--all-namespaces", "--timeout=120s", timeout_seconds=150)


def find_kinds(cluster: Cluster) -> list[str]:
    """Names of the CustomResourceDefinitions of slmops.dev in the cluster."""
    found = cluster.find_all("customresourcedefinitions.apiextensions.k8s.io")
    return sorted(
        item["metadata"]["name"] for item in found if item["metadata"]["name"].endswith(".slmops.dev")
    )


def operator_pod(cluster: Cluster) -> Body:
    """The operator's running pod; raises RigError when there is none."""
    pods = cluster.find_all("pods", namespace=NAMESPACE, selector=OPERATOR_SELECTOR)
    running = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    if not running:
        raise RigError("no operator pod runs")
    return running[0]


def operator_log(cluster: Cluster, *, lines: int = 60) -> str:
    """The end of the operator's log, and of its predecessor's when it was restarted."""
    pods = cluster.find_all("pods", namespace=NAMESPACE, selector=OPERATOR_SELECTOR)
    texts = []
    for pod in pods:
        name = pod["metadata"]["name"]
        for previous in (True, False):
            text = cluster.logs(
                NAMESPACE, name, container=pod["spec"]["containers"][0]["name"], previous=previous
            )
            if text:
                texts.append(
                    "\n".join([f"--- {name}{' (previous)' if previous else ''}", *text.splitlines()[-lines:]])
                )
    return "\n".join(texts)


def describe_operator(cluster: Cluster) -> str:
    """Pods of the operator with their states, and the end of its log."""
    pods = cluster.kubectl("get", "pods", "-n", NAMESPACE, "-o", "wide", check=False)
    pending = cluster.kubectl("get", "events", "-n", NAMESPACE, "--sort-by=.lastTimestamp", check=False)
    return "\n".join([pods, *pending.splitlines()[-15:], operator_log(cluster)])
