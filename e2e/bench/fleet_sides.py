# SPDX-License-Identifier: Apache-2.0
"""Who does the work of the fleet benchmark, as the measurement sees it; and our operator as the first."""

import sys
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from e2e.bench.fleet_numbers import WRITE_VERBS, Labels, Page, read_page
from e2e.bench.fleet_rows import OURS
from e2e.bench.fleet_site import GROUP_LABEL, NAMESPACE, Body, Site, group_name
from e2e.rig import RigError
from e2e.rig.control_plane import free_ports
from e2e.rig.paths import CHECKOUT
from e2e.rig.progress import wait_until
from slmops.api import API_VERSION, KIND
from slmops.api.crd import build_crd
from slmwire.labels import DEPLOYMENT, REVISION, ROLE, Role

IMAGE: Final = "registry.example/runtime:1"
MODELS: Final = "/srv/models"
MAX_UNAVAILABLE: Final = 2
CANARY_PERCENT: Final = 20
SLM_DEPLOYMENTS: Final = f"/apis/{API_VERSION}/namespaces/{NAMESPACE}/slmdeployments"
_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """How a controller counts its requests to the API server."""

    metric: str
    resource_label: str

    def is_write(self, labels: Labels) -> bool:
        """Whether a series counts writes; renewing a Lease is no work."""
        verb, resource = labels.get("verb", "").lower(), labels.get(self.resource_label, "").lower()
        return verb in WRITE_VERBS and not resource.startswith("lease")


OUR_REQUESTS: Final = Requests(metric="slmops_kubernetes_requests_total", resource_label="resource")


class Side(Protocol):
    """Does the work on one site."""

    key: str
    requests: Requests | None
    """None: nobody but Kubernetes works here."""

    def start(self) -> None:
        """Install what the objects need and start the controller."""

    def page(self) -> Page:
        """The controller's metrics; empty without a controller."""

    def apply(self, index: int, version: str) -> None:
        """Apply one deployment; the first time with all that belongs to it."""

    def promoted(self, version: str) -> dict[str, str]:
        """Deployments that are through with `version` -> the mark that their pods carry."""

    def mark_of(self, pod: Body) -> tuple[str, str]:
        """Deployment and mark of a pod; the mark is empty for one that is not there to serve."""


def build_deployment(name: str, version: str) -> Body:
    """An SLMDeployment on its group of nodes: two waves, one passing measurement each, no soak."""
    file = {"path": "model.onnx", "size": 4096, "sha256": "0" * 64}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {"name": "orders", "version": version},
            "variants": [
                {
                    "name": "int4",
                    "source": {"file": {"path": f"{MODELS}/{version}", "files": [file]}},
                    "resources": {"requests": {"memory": "64Mi"}},
                }
            ],
            "placement": {"nodeSelector": {"matchLabels": {GROUP_LABEL: name}}},
            "rollout": {
                "waves": [
                    {"name": "canary", "percent": CANARY_PERCENT},
                    {"name": "rest", "percent": 100},
                ],
                "maxUnavailable": MAX_UNAVAILABLE,
                "soak": "0s",
                "analysis": {
                    "interval": "10s",
                    "passes": 1,
                    "metrics": [
                        {"name": "errors", "preset": "ErrorRate", "max": "0.05", "test": "Threshold"}
                    ],
                },
            },
        },
    }


class Ours:
    """The operator as a process of its own."""

    key: str = OURS
    requests: Requests | None = OUR_REQUESTS

    def __init__(self, site: Site) -> None:
        self._site = site
        self._metrics_port = 0

    def start(self) -> None:
        """Install the CRD, start `python -m slmops`, wait until it holds its Lease."""
        plane = self._site.plane
        plane.kubectl.apply(build_crd())
        wait_established(self._site, "slmdeployments.slmops.dev")
        health, self._metrics_port = free_ports(2)
        self._site.controller.start(
            [sys.executable, "-m", "slmops"],
            env={
                "PYTHONPATH": str(CHECKOUT / "operator"),
                "KUBECONFIG": str(plane.kubeconfig),
                "NO_PROXY": "127.0.0.1",
                "SLMOPS_RUNTIME_IMAGE": IMAGE,
                "SLMOPS_NAMESPACE": NAMESPACE,
                "SLMOPS_HEALTH_PORT": str(health),
                "SLMOPS_METRICS_PORT": str(self._metrics_port),
                "SLMOPS_ALLOWED_FILE_PATHS": MODELS,
                "SLMOPS_PROMETHEUS_URL": self._site.evidence.url,
            },
        )
        wait_page(self._site, self)

    def page(self) -> Page:
        """See Side."""
        return read_url(f"http://127.0.0.1:{self._metrics_port}/metrics")

    def apply(self, index: int, version: str) -> None:
        """See Side."""
        name = group_name(index)
        self._site.api.apply(f"{SLM_DEPLOYMENTS}/{name}", build_deployment(name, version))

    def promoted(self, version: str) -> dict[str, str]:
        """See Side."""
        return promoted_deployments(self._site.api.items(SLM_DEPLOYMENTS), version)

    def mark_of(self, pod: Body) -> tuple[str, str]:
        """See Side."""
        labels = pod["metadata"]["labels"]
        return labels[DEPLOYMENT], labels[REVISION] if labels[ROLE] == Role.SERVE else ""


def promoted_deployments(items: Iterable[Body], version: str) -> dict[str, str]:
    """SLMDeployments that completed `version` -> their stable revision."""
    found = {}
    for item in items:
        status = item.get("status") or {}
        rollout = status.get("rollout") or {}
        stable = status.get("stableRevision")
        if (
            status.get("modelVersion") == version
            and stable
            and stable == status.get("updateRevision")
            and rollout.get("step") == "Completed"
        ):
            found[item["metadata"]["name"]] = stable
    return found


def read_url(url: str) -> Page:
    try:
        with _DIRECT.open(url, timeout=10) as answer:
            return read_page(answer.read().decode())
    except OSError as error:
        raise RigError(f"{url}: {error}") from error


def wait_page(site: Site, side: Side) -> None:
    def answers() -> bool:
        site.check()
        try:
            return bool(side.page())
        except RigError:
            return False

    wait_until("the controller's metrics", answers, timeout_seconds=90, interval_seconds=0.3)


def wait_established(site: Site, crd: str) -> None:
    def established() -> bool:
        status: Mapping[str, Any] = site.plane.kubectl.get("crd", crd).get("status") or {}
        conditions = status.get("conditions") or ()
        return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)

    wait_until(f"the CRD {crd} being established", established, timeout_seconds=60)
