# SPDX-License-Identifier: Apache-2.0
"""The life of a Helm release on a real API server: install, upgrade, uninstall, install again."""

import os
from collections.abc import Iterator
from typing import Final

import pytest

from e2e.checks.helm import CHART, NAMESPACE, RELEASE, helm
from e2e.rig import ControlPlane
from slmops.api import GROUP
from slmops.api import kinds as api_kinds
from tests.apiserver.specs import deployment

KINDS: Final = (
    "deployments,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,"
    "validatingadmissionpolicies,validatingadmissionpolicybindings,customresourcedefinitions"
)


@pytest.fixture(scope="module")
def empty_plane() -> Iterator[ControlPlane]:
    """A control plane of its own: the shared one has the CRD, which a release would not take over."""
    plane = ControlPlane(f"apiserver-helm-{os.getpid()}").up()
    try:
        yield plane
    finally:
        plane.down()


def release(plane: ControlPlane, *arguments: str) -> str:
    return helm("--kubeconfig", str(plane.kubeconfig), *arguments, "--namespace", NAMESPACE)


def installed_objects(plane: ControlPlane) -> list[str]:
    """Names of what carries the release's label, in all namespaces."""
    text = plane.kubectl(
        "get", KINDS, "--all-namespaces", "-l", f"app.kubernetes.io/instance={RELEASE}", "-o", "name"
    )
    return text.split()


def test_life_of_a_release(empty_plane: ControlPlane) -> None:
    kubectl = empty_plane.kubectl
    crds = {
        f"customresourcedefinition.apiextensions.k8s.io/{kind.plural}.{GROUP}" for kind in api_kinds.KINDS
    }
    install = ("upgrade", "--install", RELEASE, str(CHART), "--create-namespace")

    notes = release(empty_plane, *install)
    assert "no Prometheus is set" in notes and "(Direct)" in notes
    assert crds <= set(installed_objects(empty_plane))
    assert f"deployment.apps/{RELEASE}" in installed_objects(empty_plane)
    kubectl("wait", "--for=condition=Established", "crd/slmdeployments.slmops.dev", "--timeout=120s")
    kubectl.apply(deployment())
    generation = kubectl.get("slmd", "orders")["metadata"]["generation"]

    notes = release(empty_plane, *install, "--set", "prometheus.url=http://prometheus.monitoring:9090")
    assert "judged with the metrics of http://prometheus.monitoring:9090" in notes
    container = kubectl.get("deployment", RELEASE, "-n", NAMESPACE)["spec"]["template"]["spec"]["containers"][
        0
    ]
    assert {"name": "SLMOPS_PROMETHEUS_URL", "value": "http://prometheus.monitoring:9090"} in container["env"]
    assert kubectl.get("slmd", "orders")["metadata"]["generation"] == generation

    release(empty_plane, "uninstall", RELEASE, "--wait")
    assert set(installed_objects(empty_plane)) == crds, "the CRDs are kept, and only they"
    assert kubectl.get("slmd", "orders")["metadata"]["generation"] == generation

    release(empty_plane, *install, "--set", "crds.keep=false")
    release(empty_plane, "uninstall", RELEASE, "--wait")
    assert installed_objects(empty_plane) == []
