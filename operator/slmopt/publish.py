# SPDX-License-Identifier: Apache-2.0
"""Publishes a finished model directory to a registry, a bucket or a volume."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

from slmopt.errors import NO_SPACE, OptimizeError, unfit
from slmopt.job import OciTarget, PvcTarget, S3Target, Target
from slmopt.log import log
from slmopt.model_dir import (
    SIGNATURE_FILE,
    carry_files,
    check_complete,
    new_directory,
    remove_scratch,
    sync_folder,
    write_manifest,
)
from slmopt.push_oci import push_oci
from slmopt.push_s3 import S3Login, push_s3
from slmopt.signing import sign_model
from slmopt.web import Web
from slmwire.jobs import PublishReport, to_message
from slmwire.manifest import Manifest, ManifestError, parse_manifest
from slmwire.paths import MODEL_MANIFEST_FILE, TERMINATION_LIMIT_BYTES
from slmwire.reasons import Reason

_FOLDER: Final = "model"
"""Its name is part of what is signed."""


def publish_model(
    source: Path, target: Target, *, scratch: Path, secrets: Path, web: Web, key: Path | None = None
) -> PublishReport:
    """Publish the model in `source`; raises OptimizeError. Doing it again with the same bytes sends nothing.

    The files are gathered in a folder of `scratch` first, where the signature by `key` (if any) joins
    them: `source` may be read-only, and what comes with it (hidden files, an old signature) stays behind.
    """
    check_complete(source)
    ready = scratch / _FOLDER
    ready.mkdir()
    carry_files(source, ready, without=())
    if key is not None:
        sign_model(ready, key)
    manifest = write_manifest(ready)
    signed = any(entry.path == SIGNATURE_FILE for entry in manifest.files)
    log("publishing", digest=manifest.digest, bytes=manifest.size_bytes, files=len(manifest.files))
    report = PublishReport(
        digest=manifest.digest,
        reference=_send(ready, manifest, target, secrets=secrets, web=web),
        size_bytes=manifest.size_bytes,
        files=len(manifest.files),
        signed=signed,
    )
    if isinstance(target, OciTarget):
        return report  # its manifest lists them
    listed = replace(
        report, entries=[{"path": f.path, "size": f.size, "sha256": f.sha256} for f in manifest.files]
    )
    return listed if len(to_message(listed).encode()) <= TERMINATION_LIMIT_BYTES else report


def _send(directory: Path, manifest: Manifest, target: Target, *, secrets: Path, web: Web) -> str:
    if isinstance(target, OciTarget):
        config = secrets / "config.json"
        digest = push_oci(
            directory, manifest, target, web, config=config.read_bytes() if config.is_file() else b""
        )
        return f"oci://{target.host}/{target.repository}@{digest}"
    if isinstance(target, S3Target):
        login = S3Login(
            access_key=_secret(secrets, "accessKeyId"),
            secret_key=_secret(secrets, "secretAccessKey"),
            session_token=_secret(secrets, "sessionToken"),
        )
        return push_s3(directory, manifest, target, web, login=login)
    return _copy_to_volume(directory, manifest, target)


def _secret(folder: Path, name: str) -> str:
    path = folder / name
    return path.read_text().strip() if path.is_file() else ""


def _copy_to_volume(directory: Path, manifest: Manifest, target: PvcTarget) -> str:
    """Copy beside the place, sync, rename. Other files there are not overwritten: they may serve."""
    place = Path(target.mount_path) / target.path
    reference = f"pvc://{target.claim}/{target.path}"
    if place.exists():
        if _digest_of(place) == manifest.digest:
            log("folder is there", path=place)
            return reference
        raise unfit(
            f"publish.pvc.path: {target.path} exists with other files, which may be in use; name a new "
            "folder for each version"
        )
    try:
        remove_scratch(place)
        with new_directory(place) as folder:
            shutil.copytree(directory, folder, dirs_exist_ok=True)
        sync_folder(place.parent)
    except OSError as error:
        raise OptimizeError(
            Reason.INSUFFICIENT_CAPACITY if error.errno in NO_SPACE else Reason.INTERNAL_ERROR,
            f"publish.pvc: {target.path} cannot be written ({error.strerror}); check its size and mode",
        ) from error
    log("folder written", path=place)
    return reference


def _digest_of(place: Path) -> str:
    try:
        return parse_manifest((place / MODEL_MANIFEST_FILE).read_bytes()).digest
    except (OSError, ManifestError):
        return ""
