# SPDX-License-Identifier: Apache-2.0
"""GitOps: real Argo CD takes the operator and its deployments over, agrees with them, and shows what became
of a bad version; Git alone says what happens next. The Applications are those of manifests/argocd."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.lib import Cluster, Deployment, OperatorImages
from e2e.lib.deployment import KIND
from e2e.lib.gitops import (
    TRACKING,
    Application,
    ApplicationHistory,
    GitRepository,
    let_go,
    read_all,
    sync_and_health,
)
from e2e.lib.manifests import EDGE, PILOT_WAVE
from e2e.lib.observe import rollout_of
from e2e.lib.release import CHART, NAMESPACE, RELEASE, helm, operator_pod
from e2e.rig.argocd import NAMESPACE as ARGOCD_NAMESPACE
from e2e.rig.argocd import ArgoCD
from e2e.rig.paths import CHECKOUT
from e2e.suite.conftest import Make, need_rig

MANIFESTS = CHECKOUT / "manifests" / "argocd"
ROLLOUT = {"waves": [PILOT_WAVE, {"name": "all", "percent": 100}]}
ORDERS, SIZED = "models/base/orders.yaml", "models/base/sized.yaml"
SITE = "site-a"
QUIET_SECONDS = 10.0
"""For so long Git and the cluster are compared again and again."""


@pytest.fixture(scope="module")
def argocd(cluster: Cluster) -> Iterator[ArgoCD]:
    """Argo CD core, gone again afterwards with all that it knows."""
    need_rig(cluster)
    found = cluster.rig.argocd.up()
    cluster.kubectl(
        "apply", "--server-side", "--field-manager=slmops", "-f", str(MANIFESTS / "argocd-cm.yaml")
    )
    yield found
    found.down()
    cluster.delete("namespace", ARGOCD_NAMESPACE, wait_seconds=180)
    for kind in ("applications", "applicationsets", "appprojects"):
        cluster.delete("crd", f"{kind}.argoproj.io")


@pytest.fixture(scope="module")
def git() -> Iterator[GitRepository]:
    """A repository with the chart."""
    with tempfile.TemporaryDirectory() as folder:
        repository = GitRepository(Path(folder) / "edge")
        shutil.copytree(CHART, repository.folder / "charts" / "slmops")
        repository.commit("The chart")
        yield repository


@pytest.fixture(scope="module")
def orders(make_deployment: Make, git: GitRepository) -> Deployment:
    """What the Application manages: v2 in Git, not applied by anybody else."""
    deployment = make_deployment(rollout=ROLLOUT)
    push(deployment, git, "v2")
    return deployment


@pytest.fixture(scope="module")
def sized(make_deployment: Make, git: GitRepository) -> Deployment:
    """One in replicas, whose number Git leaves to others."""
    deployment = make_deployment("sized", rollout={"waves": [{"name": "all", "percent": 100}]})
    body = deployment.manifest("v2")
    body["spec"]["placement"]["mode"] = "Replicas"
    git.write(SIZED, body)
    git.commit("sized v2")
    return deployment


@pytest.fixture(scope="module")
def models(
    cluster: Cluster, argocd: ArgoCD, git: GitRepository, orders: Deployment, sized: Deployment
) -> Iterator[Application]:
    """The Application of manifests/argocd/models.yaml."""
    apply_manifest(cluster, "models.yaml", git, namespace=orders.namespace)
    application = Application(cluster, "models")
    yield application
    application.delete()  # or what is deleted next would come back


def push(orders: Deployment, git: GitRepository, version: str, **changes: Any) -> str:
    """Commit a version of the deployment."""
    git.write(ORDERS, orders.manifest(version, **changes))
    return git.commit(f"orders {version}")


def apply_manifest(cluster: Cluster, name: str, git: GitRepository, *, namespace: str) -> dict[str, Any]:
    """Apply a manifest as it is shipped, with this repository and namespace in place of its examples."""
    body: dict[str, Any] = yaml.safe_load((MANIFESTS / name).read_text())
    spec = body["spec"]["template"]["spec"] if body["kind"] == "ApplicationSet" else body["spec"]
    spec["source"] |= {"repoURL": git.url, "targetRevision": "main"}
    spec["destination"]["namespace"] = namespace
    cluster.apply(body)
    return body


def test_it_takes_over_the_operator_that_helm_installed_and_restarts_nothing(
    cluster: Cluster, operator: OperatorImages, argocd: ArgoCD, git: GitRepository
) -> None:
    body = yaml.safe_load((MANIFESTS / "operator.yaml").read_text())
    values = json.loads(helm(cluster, "get", "values", RELEASE, "--namespace", NAMESPACE, "--output", "json"))
    body["spec"]["source"] |= {"repoURL": git.url, "targetRevision": "main"}
    body["spec"]["source"]["helm"]["valuesObject"] = values
    before = operator_pod(cluster)["metadata"]["uid"]
    application = Application(cluster, body["metadata"]["name"])
    with ApplicationHistory(application) as history:
        cluster.apply(body)
        status = application.wait(commit=git.head(), health="Healthy", timeout_seconds=240)
        kinds = {entry["kind"] for entry in status["resources"]}
        assert {"CustomResourceDefinition", "Deployment", "DaemonSet", "ClusterRole"} <= kinds
        begin, contents = len(history.frames), contents_of(cluster, status["resources"])
        # Nothing differs, so nothing is synced by itself; a sync by hand writes everything once.
        application.sync()
        cluster.hold_for(
            "nothing differing from the chart",
            lambda: application.compare()["sync"]["status"] == "Synced",
            seconds=QUIET_SECONDS,
        )
        assert {frame.sync for frame in history.frames[begin:]} == {"Synced"}
    assert application.syncs() == [git.head()]
    assert contents_of(cluster, status["resources"]) == contents
    assert operator_pod(cluster)["metadata"]["uid"] == before
    application.delete()
    let_go(cluster, status["resources"])


def contents_of(cluster: Cluster, resources: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What the resources of an Application hold beside metadata and status."""
    return {
        f"{body['kind']}/{body['metadata']['name']}": {
            key: value for key, value in body.items() if key not in ("metadata", "status")
        }
        for body in read_all(cluster, resources)
    }


def test_what_git_says_is_installed_and_nobody_fights(
    cluster: Cluster, models: Application, orders: Deployment, sized: Deployment, git: GitRepository
) -> None:
    with ApplicationHistory(models) as history:
        models.wait(commit=git.head(), health="Healthy", timeout_seconds=300)
        assert history.all(lambda frame: frame.health)[-2:] == ["Progressing", "Healthy"]
        before = orders.read()
        assert before["metadata"]["finalizers"]
        begin = len(history.frames)
        # What people and the operator's own tools write is not Git's business.
        orders.annotate(retry="by hand")
        cluster.kubectl("scale", "-n", sized.namespace, f"{KIND}/{sized.name}", "--replicas=2")
        cluster.hold_for(
            "nothing differing from Git",
            lambda: models.compare()["sync"]["status"] == "Synced",
            seconds=QUIET_SECONDS,
        )
        assert {frame.sync for frame in history.frames[begin:]} <= {"Synced"}
    assert models.syncs() == [git.head()]
    after = orders.read()
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert after["spec"] == before["spec"]
    assert after["metadata"]["annotations"].keys() == {"slmops.dev/retry", TRACKING}
    assert not after["metadata"].get("labels")
    assert sized.read()["spec"]["placement"]["replicas"] == 2
    sized.wait("two replicas", lambda: len(sized.pods()) == 2, timeout_seconds=120)


def test_what_was_changed_by_hand_against_git_is_put_right_and_nothing_else(
    cluster: Cluster, models: Application, orders: Deployment, sized: Deployment
) -> None:
    cluster.patch(KIND, orders.name, {"spec": {"rollout": {"soak": "4s"}}}, namespace=orders.namespace)
    orders.wait(
        "Git's value being back",
        lambda: orders.read()["spec"]["rollout"]["soak"] == "3s",
        timeout_seconds=120,
    )
    assert sized.read()["spec"]["placement"]["replicas"] == 2


def test_a_bad_version_is_rolled_back_shown_degraded_and_not_tried_again(
    cluster: Cluster, models: Application, orders: Deployment, git: GitRepository
) -> None:
    good, syncs = orders.status()["stableRevision"], len(models.syncs())
    with ApplicationHistory(models) as history:
        commit = push(orders, git, "v3")
        models.refresh()
        orders.wait_rolled_back()
        status = models.wait(commit=commit, health="Degraded", timeout_seconds=120)
        begin, found = len(history.frames), orders.read()
        assert "Progressing" in history.all(lambda frame: frame.health)
        resource = next(r for r in status["resources"] if r["name"] == orders.name)
        message = resource["health"]["message"]
        assert message.startswith("AnalysisFailed: ")
        assert "quality" in message
        cluster.hold_for(
            "Synced and Degraded",
            lambda: sync_and_health(models.compare()) == ("Synced", "Degraded"),
            seconds=QUIET_SECONDS,
        )
        assert {frame.sync for frame in history.frames[begin:]} <= {"Synced"}
        assert len({frame.started for frame in history.frames[begin:]}) <= 1, "it was synced again"
    assert len(models.syncs()) == syncs + 1
    after = orders.read()
    assert after["metadata"]["generation"] == found["metadata"]["generation"]
    assert rollout_of(after)["startedAt"] == rollout_of(found)["startedAt"]
    assert len(after["status"]["failedRevisions"]) == 1
    assert after["status"]["stableRevision"] == good
    assert orders.assigned() == {node: {good} for node in cluster.edge_nodes}


def test_a_revert_in_git_heals_it_without_moving_a_pod(
    models: Application, orders: Deployment, git: GitRepository
) -> None:
    pods = {pod["metadata"]["uid"] for pod in orders.pods()}
    commit = git.revert()
    models.refresh()
    models.wait(commit=commit, health="Healthy", timeout_seconds=180)
    assert {pod["metadata"]["uid"] for pod in orders.pods()} == pods
    assert models.syncs()[-1] == commit


def test_a_pause_in_git_is_shown_suspended(
    models: Application, orders: Deployment, git: GitRepository
) -> None:
    commit = push(orders, git, "v2", rollout=ROLLOUT | {"paused": True})
    models.refresh()
    models.wait(commit=commit, health="Suspended", timeout_seconds=120)


def test_an_application_set_gives_each_cluster_the_overlay_of_its_site(
    cluster: Cluster,
    argocd: ArgoCD,
    orders: Deployment,
    sized: Deployment,
    make_deployment: Make,
    git: GitRepository,
) -> None:
    # The overlay of a site that takes the model on its own nodes, under a name of its own: there is but one
    # cluster here.
    local = make_deployment(f"orders-{SITE}")
    kustomization = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    patch = [
        {"op": "add", "path": "/spec/placement/nodeSelector/matchLabels/slmops.dev~1site", "value": SITE}
    ]
    # The base names its files now, and one is no longer among them.
    git.write("models/base/kustomization.yaml", kustomization | {"resources": ["orders.yaml"]})
    git.write(
        f"models/sites/{SITE}/kustomization.yaml",
        kustomization
        | {
            "resources": ["../../base"],
            "nameSuffix": f"-{SITE}",
            "patches": [{"target": {"kind": "SLMDeployment"}, "patch": json.dumps(patch)}],
        },
    )
    commit = push(orders, git, "v2")
    apply_manifest(cluster, "fleet.yaml", git, namespace=orders.namespace)
    argocd.add_cluster("store", labels={"site": SITE})
    application = Application(cluster, f"models-{SITE}")
    application.wait(commit=commit, health="Healthy", timeout_seconds=300)
    selector = local.read()["spec"]["placement"]["nodeSelector"]["matchLabels"]
    assert selector == EDGE["matchLabels"] | {"slmops.dev/site": SITE}
    assert set(local.assigned()) < set(cluster.edge_nodes)
    sized.wait("what Git no longer has being gone", lambda: sized.find() is None, timeout_seconds=180)
    # Who takes a cluster out of Argo CD takes no model away.
    cluster.delete("applicationsets.argoproj.io", "models", namespace=ARGOCD_NAMESPACE, wait_seconds=120)
    cluster.wait_for("the site's Application being gone", lambda: not application.read(), timeout_seconds=120)
    assert not local.read()["metadata"].get("deletionTimestamp")
