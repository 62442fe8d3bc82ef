# SPDX-License-Identifier: Apache-2.0
"""What a variant's source adds to its pods: credentials, volumes, and the image as a model directory."""

from typing import Any, Final

from slmops.api.source import Source
from slmops.api.spec import Variant
from slmops.model.source_secret import auth_of, secret_of
from slmwire import env, paths

Body = dict[str, Any]
CHOICE_VOLUME: Final = "choice"
CHOOSE: Final = "choose"
"""Init container that finds out the fastest engine."""
_SHARED: Final = ("manifest", "tmp", CHOICE_VOLUME)
"""Volumes that a pod has whichever way the model comes to it."""
_WAIT: Final = "import signal; signal.pthread_sigmask(0, {15}); signal.sigwait({15})"
"""Python that does nothing until SIGTERM; as process 1 it would not end by itself."""


def source_env(source: Source) -> list[Body]:
    """How the fetcher says who asks; nothing for a bearer token, which is its default."""
    auth = auth_of(source)
    result: list[Body] = [] if auth == "bearer" else [{"name": env.SOURCE_AUTH, "value": auth}]
    if source.s3 is not None:
        result.append({"name": env.S3_REGION, "value": source.s3.region})
    return result


def file_root(source: Source) -> list[str]:
    """Arguments that let the fetcher read a `file` or `pvc` source; it refuses file:// otherwise."""
    folder = _files_folder(source)
    return ["--file-root", folder] if folder else []


def source_mounts(source: Source) -> list[Body]:
    """Mounts of the container that fetches, by the names in `source_volumes`."""
    mounts: list[Body] = []
    if secret_of(source) is not None:
        mounts.append({"name": "source-token", "mountPath": paths.SOURCE_DIR, "readOnly": True})
    folder = _files_folder(source)
    if folder:
        mounts.append({"name": "source-files", "mountPath": folder, "readOnly": True})
    return mounts


def source_volumes(source: Source) -> list[Body]:
    """The Secret with the names of paths.SOURCE_DIR, and the files where a volume holds them."""
    volumes: list[Body] = []
    secret = secret_of(source)
    if secret is not None:
        items = [{"key": key, "path": path} for key, path in secret.items.items()]
        # Optional: a Secret that was deleted or rotated must not keep a cached model from starting.
        volumes.append(
            {"name": "source-token", "secret": {"secretName": secret.name, "optional": True, "items": items}}
        )
    if source.file is not None:
        volumes.append({"name": "source-files", "hostPath": {"path": source.file.path, "type": "Directory"}})
    if source.pvc is not None:
        claim = {"claimName": source.pvc.claim_name, "readOnly": True}
        volumes.append({"name": "source-files", "persistentVolumeClaim": claim})
    return volumes


def as_image_volume(variant: Variant, template: Body, *, reference: str) -> Body:
    """The pod template with the image `reference` as the model's directory and no fetcher; unchanged for
    a variant that is not delivered so.

    The kubelet pulls the image before any container starts, so a prefetching pod that runs means that
    the node has it; the container runtime has checked every layer against its digest.
    """
    oci = variant.source.oci
    if oci is None or oci.delivery != "ImageVolume":
        return template
    pod = template["spec"]
    image = {"name": "model", "image": {"reference": reference, "pullPolicy": "IfNotPresent"}}
    kept = [volume for volume in pod["volumes"] if volume["name"] in _SHARED]
    initial = [
        _with_image(container, path=oci.path)
        for container in pod.get("initContainers", ())
        if container["name"] == CHOOSE
    ]
    changed = {
        **{key: value for key, value in pod.items() if key != "initContainers"},
        **({"initContainers": initial} if initial else {}),
        "containers": [_with_image(container, path=oci.path) for container in pod["containers"]],
        "volumes": [image, *kept],
    }
    secret = secret_of(variant.source)
    named = [entry["name"] for entry in pod.get("imagePullSecrets", [])]
    if secret is not None and secret.name not in named:
        changed["imagePullSecrets"] = [{"name": name} for name in [*named, secret.name]]
    return {**template, "spec": changed}


def _with_image(container: Body, *, path: str | None) -> Body:
    kept = [mount for mount in container["volumeMounts"] if mount["name"] in _SHARED]
    mount = {"name": "model", "mountPath": paths.MODEL_DIR, "readOnly": True}
    body = {**container, "volumeMounts": [mount | ({"subPath": path} if path else {}), *kept]}
    if container["name"] != "fetch":
        return body
    without = ("args", "readinessProbe", "env")
    return {key: value for key, value in body.items() if key not in without} | {
        "command": ["python3", "-c", _WAIT]
    }


def _files_folder(source: Source) -> str:
    if source.pvc is not None:
        return paths.SOURCE_FILES_DIR
    return source.file.path if source.file is not None else ""
