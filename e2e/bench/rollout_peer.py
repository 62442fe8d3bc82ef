# SPDX-License-Identifier: Apache-2.0
"""The peer of the rollout benchmark: a hand-written DaemonSet of the same pods, updated by Kubernetes."""

import copy
from collections.abc import Mapping
from typing import Any, Final

from e2e.lib import Cluster, Deployment, NodeClient, Traffic
from e2e.lib.traffic import TrafficReport

NAME: Final = "peer"
LABELS: Final = {"app": NAME}
SELECTOR: Final = f"app={NAME}"

Json = dict[str, Any]


def copy_template(deployment: Deployment, node: str, *, suffix: str) -> tuple[Json, Json]:
    """Pod template and ConfigMap of what a deployment serves now, as the peer's own."""
    revision = deployment.status()["stableRevision"]
    selector = f"slmops.dev/revision={revision},slmops.dev/role=serve"
    (workload,) = deployment.cluster.find_all("daemonsets", namespace=deployment.namespace, selector=selector)
    template = copy.deepcopy(workload["spec"]["template"])
    template["metadata"] = {"labels": LABELS}
    template["spec"].pop("affinity", None)
    template["spec"]["nodeSelector"] = {"kubernetes.io/hostname": node}
    name = f"{NAME}-{suffix}"
    (volume,) = (v for v in template["spec"]["volumes"] if v["name"] == "manifest")
    source = volume["configMap"]["name"]
    volume["configMap"]["name"] = name
    data = deployment.cluster.need("configmap", source, namespace=deployment.namespace)["data"]
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": deployment.namespace},
        "data": data,
    }
    return template, manifest


class Peer:
    """The DaemonSet and its Service in the benchmark's namespace, on one node."""

    def __init__(
        self, cluster: Cluster, *, namespace: str, templates: Mapping[str, tuple[Json, Json]]
    ) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self._templates = templates

    def objects(self, version: str, *, surge: bool) -> list[Json]:
        """Everything that one version needs; `surge` starts the new pod before the old one ends."""
        template, manifest = self._templates[version]
        limits = {"maxSurge": 1, "maxUnavailable": 0} if surge else {"maxSurge": 0, "maxUnavailable": 1}
        where = {"name": NAME, "namespace": self.namespace}
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": where,
            "spec": {
                "selector": LABELS,
                "internalTrafficPolicy": "Local",
                "ports": [{"port": 80, "targetPort": 8080}],
            },
        }
        workload = {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": where,
            "spec": {
                "selector": {"matchLabels": LABELS},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": limits},
                "template": template,
            },
        }
        return [manifest, service, workload]

    def update(self, version: str, *, surge: bool) -> None:
        """Apply a version and wait until its pod is the only one."""
        self.cluster.apply(*self.objects(version, surge=surge))

        def done() -> bool:
            found = self.cluster.need("daemonset", NAME, namespace=self.namespace)
            status = found["status"]
            pods = self.cluster.find_all("pods", namespace=self.namespace, selector=SELECTOR)
            return bool(
                status.get("observedGeneration") == found["metadata"]["generation"]
                and status.get("updatedNumberScheduled") == status.get("numberReady") == 1
                and len(pods) == 1
            )

        self.cluster.wait_for(f"the peer serving {version}", done, timeout_seconds=120)

    def measure_flip(
        self, client: NodeClient, version: str, *, surge: bool, traffic: Mapping[str, Any]
    ) -> TrafficReport:
        """What requests on the node saw while the version was exchanged."""
        service = self.cluster.need("service", NAME, namespace=self.namespace)["spec"]["clusterIP"]
        with Traffic([client], f"http://{service}:80", **traffic) as requests:
            self.update(version, surge=surge)
            return requests.stop()

    def delete(self) -> None:
        """Remove it and wait until its pod is gone."""
        for kind in ("daemonset", "service"):
            self.cluster.delete(kind, NAME, namespace=self.namespace)
        self.cluster.wait_for(
            "the peer being gone",
            lambda: not self.cluster.find_all("pods", namespace=self.namespace, selector=SELECTOR),
            timeout_seconds=60,
        )
