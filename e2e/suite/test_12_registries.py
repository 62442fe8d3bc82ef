# SPDX-License-Identifier: Apache-2.0
"""Models from OCI registries and S3, with the credentials that each wants and the faults that each has."""

import base64
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.lib import Cluster, Deployment, NodeClient
from e2e.lib.artifacts import GZIP_TYPE, Repository
from e2e.lib.manifests import model_dir
from e2e.lib.observe import condition
from e2e.rig import Rig
from e2e.rig.services import S3_BUCKET, S3_REGION
from e2e.rig.topology import PASSWORD, REGISTRY, USER
from e2e.suite.conftest import STORE, Make, need_rig
from e2e.suite.faults import fetch_report, put_secret, wait_answer

REPOSITORY = "e2e-models/orders"
INSIDE = "models/orders"
"""Folder of the model in the image."""
CLAIMED = f"{STORE}/e2e-claimed"
ARTIFACT_TAG = "v1-files"
IMAGE_TAG = "v1-image"
PACKED_TAG = "v1-packed"

Json = dict[str, Any]


@pytest.fixture(scope="module")
def digests(cluster: Cluster) -> dict[str, str]:
    """The model in the registry, both ways; the manifests' digests by tag."""
    need_rig(cluster)
    repository = Repository(REGISTRY, REPOSITORY)
    return {
        ARTIFACT_TAG: repository.push_files(model_dir("v1"), ARTIFACT_TAG),
        IMAGE_TAG: repository.push_image(model_dir("v1"), IMAGE_TAG, inside=INSIDE),
        PACKED_TAG: repository.push_image(model_dir("v1"), PACKED_TAG, inside=INSIDE, kind=GZIP_TYPE),
    }


@pytest.fixture
def make_from(make_deployment: Make, cluster: Cluster) -> Iterator[Any]:
    """Makes deployments of a source on one node, each with a store of its own, so that each downloads."""
    stores: list[tuple[str, str]] = []

    def make(name: str, node: str, source: Json) -> Deployment:
        store = f"{STORE}/e2e-12-{name}"
        stores.append((node, store))
        nodes = {"matchLabels": {"kubernetes.io/hostname": node}}
        deployment = make_deployment(name, nodes=nodes, cache={"hostPath": store})
        body = deployment.manifest("v1")
        body["spec"]["variants"][0]["source"] = source
        cluster.apply(body)
        return deployment

    yield make
    for node, store in stores:
        shutil.rmtree(cluster.rig.node_path(node, store), ignore_errors=True)


def put_pull_secret(
    deployment_namespace: str, cluster: Cluster, name: str, *, registry: str, password: str
) -> None:
    """A Secret as `kubectl create secret docker-registry` makes it."""
    login = base64.b64encode(f"{USER}:{password}".encode()).decode()
    text = json.dumps({"auths": {registry: {"auth": login}}})
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": deployment_namespace},
            "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": base64.b64encode(text.encode()).decode()},
        }
    )


def oci(registry: str, tag: str, **more: Any) -> Json:
    """An OCI source on plain HTTP."""
    return {"oci": {"image": f"{registry}/{REPOSITORY}:{tag}", "plainHttp": True, **more}}


def check_serving(deployment: Deployment, node: str, client: NodeClient) -> None:
    """It has downloaded the model and answers right."""
    wait_answer(deployment, client)
    size = sum(entry["size"] for entry in manifest_files())
    assert fetch_report(deployment, node).bytes_downloaded == size


def manifest_files() -> list[Json]:
    """The files that the model's manifest lists."""
    return list(json.loads((model_dir("v1") / "slm-manifest.json").read_text())["files"])


def model_files() -> list[str]:
    """Globs that take what the manifest lists, and no more."""
    return [entry["path"] for entry in manifest_files()]


def check_secret_free(deployment: Deployment) -> None:
    """The password is in nothing that the operator has written."""
    kinds = "daemonsets,configmaps,controllerrevisions.apps,pods,events,slmdeployments.slmops.dev"
    shown = json.dumps(deployment.cluster.find_all(kinds, namespace=deployment.namespace))
    assert PASSWORD not in shown + deployment.describe()
    assert base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode() not in shown


def test_guarded_registries_and_a_bucket_give_models_to_who_may_have_them(
    digests: dict[str, str], make_from: Any, make_deployment: Make, cluster: Cluster, rig: Rig,
    clients: dict[str, NodeClient],
) -> None:  # fmt: skip
    first, second, third = cluster.edge_nodes[:3]
    namespace = make_deployment("nothing").namespace
    put_pull_secret(namespace, cluster, "token-login", registry=rig.token_registry, password=PASSWORD)
    put_pull_secret(namespace, cluster, "basic-login", registry=rig.basic_registry, password=PASSWORD)
    artifact = make_from(
        "artifact", first,
        oci(
            rig.token_registry, ARTIFACT_TAG, files=model_files(), pullSecretRef={"name": "token-login"}
        ),
    )  # fmt: skip
    put_secret(artifact, "s3-keys", accessKeyId=USER, secretAccessKey=PASSWORD)
    image = make_from(
        "image", second,
        oci(
            rig.basic_registry, IMAGE_TAG, path=INSIDE, files=model_files(),
            pullSecretRef={"name": "basic-login"},
        ),
    )  # fmt: skip
    bucket = make_from(
        "bucket", third,
        {
            "s3": {
                "endpoint": rig.s3_url,
                "region": S3_REGION,
                "bucket": S3_BUCKET,
                "prefix": "v1-int4/",
                "manifest": "slm-manifest.json",
                "secretRef": {"name": "s3-keys"},
            }
        },
    )  # fmt: skip
    for deployment, node in ((artifact, first), (image, second), (bucket, third)):
        deployment.wait_installed()
        check_serving(deployment, node, clients[node])
        check_secret_free(deployment)


def test_a_wrong_login_is_denied_and_a_right_one_opens(
    digests: dict[str, str], make_from: Any, make_deployment: Make, cluster: Cluster, rig: Rig
) -> None:
    namespace = make_deployment("nothing").namespace
    node = cluster.edge_nodes[0]
    put_pull_secret(namespace, cluster, "login", registry=rig.token_registry, password="wrong-one")
    source = oci(rig.token_registry, ARTIFACT_TAG, files=model_files(), pullSecretRef={"name": "login"})
    orders = make_from("denied", node, source)
    found = orders.wait_status(
        "being denied",
        lambda found: condition(found, "ModelResolved").get("reason") == "AccessDenied",
        timeout_seconds=120,
    )
    assert "wrong-one" not in json.dumps(found["status"])
    put_pull_secret(namespace, cluster, "login", registry=rig.token_registry, password=PASSWORD)
    orders.annotate(retry="login-put-right")
    orders.wait_installed()


def test_a_registry_that_refuses_and_cuts_off_only_takes_longer(
    digests: dict[str, str], make_from: Any, cluster: Cluster, rig: Rig, clients: dict[str, NodeClient]
) -> None:
    node = cluster.edge_nodes[1]
    blobs = f"/v2/{REPOSITORY}/blobs"
    # First it is too busy to say what it has, then no answer of it is longer than half of a file.
    rig.set_registry_faults({f"/v2/{REPOSITORY}": {"status": 429, "retry_after_seconds": 1}})
    orders = make_from("cut", node, oci(rig.faulty_registry, ARTIFACT_TAG, files=model_files()))
    orders.wait_status(
        "the registry being called unavailable",
        lambda found: condition(found, "ModelResolved").get("reason") in ("SourceUnavailable", "RateLimited"),
        timeout_seconds=120,
    )
    half = (model_dir("v1") / "model.onnx.data").stat().st_size // 2
    rig.set_registry_faults({blobs: {"cut_after_bytes": half}})
    orders.wait_installed(timeout_seconds=420)
    check_serving(orders, node, clients[node])


def test_a_packed_image_is_mounted_as_the_models_folder(
    digests: dict[str, str], make_from: Any, cluster: Cluster, rig: Rig, clients: dict[str, NodeClient]
) -> None:
    node = cluster.edge_nodes[0]
    packed = oci(REGISTRY, PACKED_TAG, path=INSIDE, delivery="ImageVolume")
    orders = make_from("mounted", node, packed)
    orders.wait_installed()
    wait_answer(orders, clients[node])
    pod = orders.pod_on(node)["spec"]
    images = [volume["image"]["reference"] for volume in pod["volumes"] if "image" in volume]
    assert images == [f"{REGISTRY}/{REPOSITORY}@{digests[PACKED_TAG]}"], "by digest, whatever the tag becomes"
    assert "initContainers" not in pod, "nothing is fetched"
    assert not rig.node_path(node, f"{STORE}/e2e-12-mounted").exists(), "nothing is stored"

    # The same model as files is another revision: it is fetched ahead, judged by nothing, and taken over.
    cluster.apply(with_source(orders, oci(REGISTRY, ARTIFACT_TAG, files=model_files()), version="v1-files"))
    orders.wait_promoted("v1-files")
    wait_answer(orders, clients[node])


def test_a_claim_gives_its_files_to_the_store(
    make_from: Any, make_deployment: Make, cluster: Cluster, rig: Rig, clients: dict[str, NodeClient]
) -> None:
    node = cluster.edge_nodes[1]
    namespace = make_deployment("nothing").namespace
    there = rig.node_path(node, CLAIMED)
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(model_dir("v1"), there / "orders")
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "",
        "volumeName": "e2e-12-models",
        "resources": {"requests": {"storage": "1Gi"}},
    }
    volume = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": "",
        "hostPath": {"path": CLAIMED},
    }
    named = {"name": "e2e-12-models"}
    cluster.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": named, "spec": volume})
    claim = {"name": "models", "namespace": namespace}
    cluster.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": claim, "spec": spec})
    try:
        source = {"pvc": {"claimName": "models", "path": "orders", "files": manifest_files()}}
        orders = make_from("claimed", node, source)
        orders.wait_installed()
        check_serving(orders, node, clients[node])
        orders.delete()
    finally:
        cluster.delete("persistentvolumeclaim", "models", namespace=namespace)
        cluster.delete("persistentvolume", "e2e-12-models")
        shutil.rmtree(there, ignore_errors=True)


def with_source(deployment: Deployment, source: Json, *, version: str) -> Json:
    """The deployment's manifest with another source and version, and nothing to judge it by."""
    body = deployment.manifest("v1")
    body["spec"]["variants"][0]["source"] = source
    body["spec"]["model"]["version"] = version
    body["spec"]["rollout"] = {}
    return body
