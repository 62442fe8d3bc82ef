# SPDX-License-Identifier: Apache-2.0
"""What each kind of source adds to the pods of a variant."""

from typing import Any

import pytest

from slmops.api import SLMDeploymentSpec
from slmops.model.config import OperatorConfig
from slmops.planning import build
from slmops.planning.names import Names
from slmwire import env, paths

REFERENCE = "registry.example.com/chat@sha256:" + "1" * 64
FILES = [{"path": "a", "size": 1, "sha256": "0" * 64}]
OCI = {"image": "registry.example.com/chat:1"}


def templates(source: dict[str, Any], **runtime: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = SLMDeploymentSpec.model_validate(
        {
            "model": {"name": "chat", "version": "1"},
            "variants": [{"name": "int4", "source": source}],
            "placement": {"nodeSelector": {}},
            "runtime": runtime,
        }
    )
    result = build.build_templates(
        Names("edge", "chat"),
        spec,
        config=OperatorConfig(runtime_image="runtime:1"),
        revision="0123456789",
        digests={"int4": "sha256:" + "0" * 64},
        references={"int4": REFERENCE},
    )
    serve, prefetch = result["int4"]
    return serve["spec"], prefetch["spec"]


def fetchers(source: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(pod, container that fetches) of the serving and of the prefetching pod."""
    serve, prefetch = templates(source)
    return [(serve, serve["initContainers"][0]), (prefetch, prefetch["containers"][0])]


def values(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


@pytest.mark.parametrize(
    ("source", "auth", "items"),
    [
        (
            {"http": {"url": "https://x/", "files": FILES, "basicAuthRef": {"name": "s"}}},
            "basic",
            {"username": "username", "password": "password"},
        ),
        (
            {"s3": {"bucket": "models", "prefix": "m/", "secretRef": {"name": "s"}}},
            "s3",
            {
                "accessKeyId": "accessKeyId",
                "secretAccessKey": "secretAccessKey",
                "sessionToken": "sessionToken",
            },
        ),
        ({"oci": OCI | {"pullSecretRef": {"name": "s"}}}, "oci", {".dockerconfigjson": "config.json"}),
        ({"hf": {"repo": "a/b", "secretRef": {"name": "s", "key": "k"}}}, "", {"k": "token"}),
    ],
)
def test_secrets_reach_the_fetcher_by_the_names_that_it_reads(
    source: dict[str, Any], auth: str, items: dict[str, str]
) -> None:
    for pod, container in fetchers(source):
        (volume,) = [v for v in pod["volumes"] if v["name"] == "source-token"]
        assert volume["secret"]["secretName"] == "s" and volume["secret"]["optional"] is True
        assert {item["key"]: item["path"] for item in volume["secret"]["items"]} == items
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "source-token"]
        assert mount == {"name": "source-token", "mountPath": paths.SOURCE_DIR, "readOnly": True}
        assert values(container).get(env.SOURCE_AUTH, "") == auth
    serve, _ = templates(source)
    assert "source-token" not in [mount["name"] for mount in serve["containers"][0]["volumeMounts"]]


def test_a_registry_wants_a_token_even_from_anybody() -> None:
    for _, container in fetchers({"oci": OCI}):
        assert values(container)[env.SOURCE_AUTH] == "oci"


def test_the_region_is_told() -> None:
    for _, container in fetchers({"s3": {"bucket": "models", "prefix": "m/", "region": "eu-1"}}):
        assert values(container)[env.S3_REGION] == "eu-1"
        assert env.SOURCE_AUTH not in values(container), "nobody signs without keys"


def test_a_claim_is_mounted_read_only_where_its_urls_lead() -> None:
    for pod, container in fetchers({"pvc": {"claimName": "models", "files": FILES}}):
        (volume,) = [v for v in pod["volumes"] if v["name"] == "source-files"]
        assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "source-files"]
        assert mount["mountPath"] == paths.SOURCE_FILES_DIR and mount["readOnly"]
        assert container["args"][-2:] == ["--file-root", paths.SOURCE_FILES_DIR]


def test_an_image_volume_is_the_model_directory_and_nothing_fetches() -> None:
    source = {"oci": OCI | {"delivery": "ImageVolume", "path": "models", "pullSecretRef": {"name": "s"}}}
    for pod in templates(source, imagePullSecrets=["other"]):
        assert "initContainers" not in pod
        assert [volume["name"] for volume in pod["volumes"]] == ["model", "manifest", "tmp"]
        assert pod["volumes"][0]["image"] == {"reference": REFERENCE, "pullPolicy": "IfNotPresent"}
        assert pod["imagePullSecrets"] == [{"name": "other"}, {"name": "s"}]
        (container,) = pod["containers"]
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "model"]
        assert mount == {
            "name": "model",
            "mountPath": paths.MODEL_DIR,
            "readOnly": True,
            "subPath": "models",
        }
    serve, prefetch = templates(source)
    assert values(serve["containers"][0])[env.MODEL_DIGEST].startswith("sha256:")
    assert "readinessProbe" not in prefetch["containers"][0]


def test_what_is_pulled_into_the_store_mounts_no_image() -> None:
    serve, _ = templates({"oci": OCI | {"pullSecretRef": {"name": "s"}}})
    assert not any("image" in volume for volume in serve["volumes"]) and "imagePullSecrets" not in serve
