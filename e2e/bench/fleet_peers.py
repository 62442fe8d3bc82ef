# SPDX-License-Identifier: Apache-2.0
"""The peers of the fleet benchmark: Argo Rollouts, and nobody but the DaemonSet controller.

They have the pods that our operator makes, one Service each and the same bound on unavailable pods.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import yaml

from e2e.bench.fleet_numbers import Page
from e2e.bench.fleet_rows import ARGO, DAEMON_SETS, OURS
from e2e.bench.fleet_sides import (
    CANARY_PERCENT,
    IMAGE,
    MAX_UNAVAILABLE,
    MODELS,
    Ours,
    Requests,
    Side,
    build_deployment,
    read_url,
    wait_established,
    wait_page,
)
from e2e.bench.fleet_site import GROUP_LABEL, NAMESPACE, Body, Site, group_name
from e2e.rig.control_plane import free_ports
from e2e.rig.shell import run
from e2e.rig.tools import FAMILY_OF, source_dir, tool
from slmops.api import SLMDeploymentSpec
from slmops.model.config import OperatorConfig
from slmops.planning.build import build_templates
from slmops.planning.names import Names

VERSION_LABEL: Final = "bench.slmops.dev/version"
SERVICES: Final = f"/api/v1/namespaces/{NAMESPACE}/services"
ARGO_REQUESTS: Final = Requests(metric="controller_clientset_k8s_request_total", resource_label="kind")
ROLLOUTS: Final = f"/apis/argoproj.io/v1alpha1/namespaces/{NAMESPACE}/rollouts"
DAEMON_SET_PATH: Final = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets"
_ARGO_NAMESPACE: Final = "argo-rollouts"
_TEMPLATE: Final = "error-share"


def build_pod_template(name: str, version: str) -> Body:
    """The very pod that our operator makes, with labels of the peer's and held to its group of nodes."""
    spec = SLMDeploymentSpec.model_validate(build_deployment(name, version)["spec"])
    templates = build_templates(
        Names(NAMESPACE, name),
        spec,
        config=OperatorConfig(runtime_image=IMAGE, allowed_file_paths=(MODELS,)),
        revision=version,
        digests={"int4": "0" * 64},
        references={"int4": ""},
    )
    serve, _ = templates["int4"]
    return {
        "metadata": {"labels": {GROUP_LABEL: name, VERSION_LABEL: version}},
        "spec": {**serve["spec"], "nodeSelector": {GROUP_LABEL: name}},
    }


def build_service(name: str) -> Body:
    """What our operator makes for its deployments."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "selector": {GROUP_LABEL: name},
            "internalTrafficPolicy": "Local",
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        },
    }


class _Peer:
    """What both peers have in common."""

    def __init__(self, site: Site, *, pods: int) -> None:
        self._site = site
        self._pods = pods

    def mark_of(self, pod: Body) -> tuple[str, str]:
        """See Side."""
        labels = pod["metadata"]["labels"]
        return labels[GROUP_LABEL], labels[VERSION_LABEL]

    def _apply(self, path: str, index: int, body: Body) -> None:
        name = group_name(index)
        self._site.api.apply(f"{SERVICES}/{name}", build_service(name))
        self._site.api.apply(f"{path}/{name}", body)


class Argo(_Peer):
    """Argo Rollouts' controller with the settings that it comes with."""

    key: str = ARGO
    requests: Requests | None = Requests(
        metric="controller_clientset_k8s_request_total", resource_label="kind"
    )

    def start(self) -> None:
        """Apply its own manifests without the Deployment, and start the controller here."""
        kubectl = self._site.plane.kubectl
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _ARGO_NAMESPACE}}
        bodies = [
            _in_namespace(body)
            for body in yaml.safe_load_all((argo_module() / "manifests" / "install.yaml").read_text())
            if body and body["kind"] != "Deployment"
        ]
        kubectl.apply(namespace, *bodies, timeout_seconds=180)
        wait_established(self._site, "rollouts.argoproj.io")
        wait_established(self._site, "analysistemplates.argoproj.io")
        kubectl.apply(build_analysis_template(self._site.evidence.url))
        health, self._metrics_port = free_ports(2)
        self._site.controller.start(
            [
                tool("rollouts-controller"),
                f"--kubeconfig={self._site.plane.kubeconfig}",
                f"--metricsPort={self._metrics_port}",
                f"--healthzPort={health}",
            ],
            env={"NO_PROXY": "127.0.0.1"},
        )
        wait_page(self._site, self)

    def page(self) -> Page:
        """See Side."""
        return read_url(f"http://127.0.0.1:{self._metrics_port}/metrics")

    def apply(self, index: int, version: str) -> None:
        """See Side."""
        self._apply(ROLLOUTS, index, build_rollout(group_name(index), version, pods=self._pods))

    def promoted(self, version: str) -> dict[str, str]:
        """See Side."""
        return promoted_rollouts(self._site.api.items(ROLLOUTS), version)


def build_rollout(name: str, version: str, *, pods: int) -> Body:
    """A Rollout: a fifth of the pods, one measurement, the rest."""
    template = {"templateName": _TEMPLATE}
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Rollout",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "replicas": pods,
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": {GROUP_LABEL: name}},
            "template": build_pod_template(name, version),
            "strategy": {
                "canary": {
                    "maxSurge": 0,
                    "maxUnavailable": MAX_UNAVAILABLE,
                    "steps": [
                        {"setWeight": CANARY_PERCENT},
                        {"analysis": {"templates": [template]}},
                        {"setWeight": 100},
                    ],
                }
            },
        },
    }


def build_analysis_template(url: str) -> Body:
    """One measurement of the share of errors."""
    query = "sum(increase(errors_total[1m])) / sum(increase(requests_total[1m]))"
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "AnalysisTemplate",
        "metadata": {"name": _TEMPLATE, "namespace": NAMESPACE},
        "spec": {
            "metrics": [
                {
                    "name": "errors",
                    "count": 1,
                    "successCondition": "result[0] <= 0.05",
                    "provider": {"prometheus": {"address": url, "query": query}},
                }
            ]
        },
    }


def promoted_rollouts(items: Iterable[Body], version: str) -> dict[str, str]:
    """Rollouts that are healthy with the template of `version` -> `version`."""
    found = {}
    for item in items:
        status = item.get("status") or {}
        labels = item["spec"]["template"]["metadata"]["labels"]
        if (
            labels[VERSION_LABEL] == version
            and status.get("phase") == "Healthy"
            and status.get("observedGeneration") == str(item["metadata"]["generation"])
            and status.get("stableRS")
            and status["stableRS"] == status.get("currentPodHash")
        ):
            found[item["metadata"]["name"]] = version
    return found


class DaemonSets(_Peer):
    """A DaemonSet for each group: no canary, no measurement; as fast as Kubernetes goes."""

    key: str = DAEMON_SETS
    requests: Requests | None = None

    def start(self) -> None:
        """Nothing but the controller-manager works here."""

    def page(self) -> Page:
        """See Side."""
        return ()

    def apply(self, index: int, version: str) -> None:
        """See Side."""
        self._apply(DAEMON_SET_PATH, index, build_daemon_set(group_name(index), version))

    def promoted(self, version: str) -> dict[str, str]:
        """See Side."""
        return promoted_daemon_sets(self._site.api.items(DAEMON_SET_PATH), version)


def build_daemon_set(name: str, version: str) -> Body:
    """The same pods as a DaemonSet with a rolling update."""
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "selector": {"matchLabels": {GROUP_LABEL: name}},
            "revisionHistoryLimit": 1,
            "updateStrategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": MAX_UNAVAILABLE, "maxSurge": 0},
            },
            "template": build_pod_template(name, version),
        },
    }


def promoted_daemon_sets(items: Iterable[Body], version: str) -> dict[str, str]:
    """DaemonSets whose pods are all new and available -> `version`."""
    found = {}
    for item in items:
        status = item.get("status") or {}
        wanted = status.get("desiredNumberScheduled", 0)
        labels = item["spec"]["template"]["metadata"]["labels"]
        if (
            labels[VERSION_LABEL] == version
            and status.get("observedGeneration") == item["metadata"]["generation"]
            and wanted > 0
            and status.get("updatedNumberScheduled") == wanted == status.get("numberAvailable")
        ):
            found[item["metadata"]["name"]] = version
    return found


def argo_module() -> Path:
    """Argo Rollouts' source as Go has it in its cache; its manifests fit the built controller."""
    family = FAMILY_OF["rollouts-controller"]
    listed = run(
        ["go", "list", "-m", "-f", "{{.Dir}}", family.module],
        cwd=source_dir(family),
        env={"GOFLAGS": "-mod=readonly", "GOWORK": "off"},
    )
    directory = listed.stdout.strip()
    if not directory:
        run(["go", "mod", "download", family.module], cwd=source_dir(family), env={"GOWORK": "off"})
        return argo_module()
    return Path(directory)


def _in_namespace(body: Body) -> Body:
    namespaced = body["kind"] in ("ServiceAccount", "ConfigMap", "Secret", "Service")
    if namespaced:
        body["metadata"]["namespace"] = _ARGO_NAMESPACE
    return body


def build_side(key: str, site: Site, *, pods: int) -> Side:
    """A side by its name; `pods` for each deployment."""
    if key == OURS:
        return Ours(site)
    return Argo(site, pods=pods) if key == ARGO else DaemonSets(site, pods=pods)
