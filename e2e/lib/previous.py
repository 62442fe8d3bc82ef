# SPDX-License-Identifier: Apache-2.0
"""An earlier release: its chart and its images, made from the history of this repository."""

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from e2e.lib.release import OperatorImages
from e2e.rig import RigError
from e2e.rig.images import build_images
from e2e.rig.paths import CHECKOUT, cache_dir

PREVIOUS: Final = "7a69de942274bba529c88609d87d8a20b0bb996a"
"""Stands for the previous release until there is a tag: one kind, no device profiles, requests of memory
with a default, and `provider: Prometheus` written into every object."""
_PARTS: Final = ("charts", "crds", "operator", "locks", "e2e/rig", ".containerignore")


def extract_source(commit: str = PREVIOUS) -> Path:
    """Folder with what a chart and its images are made of at that commit; RigError without the history."""
    folder = cache_dir() / "sources" / commit
    if folder.is_dir():
        return folder
    command = ["git", "-C", str(CHECKOUT), "archive", "--format=tar", commit, "--", *_PARTS]
    containerfiles = ["Containerfile.operator", "Containerfile.runtime"]
    done = subprocess.run([*command, *containerfiles], check=False, capture_output=True, timeout=60)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise RigError(
            f"the previous release {commit[:10]} cannot be read: {said}; this needs a clone with its history "
            "(git fetch --unshallow)"
        )
    partial = folder.with_suffix(".new")
    partial.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(partial, filter="data")
    partial.replace(folder)
    return folder


def previous_chart() -> Path:
    """The chart of the previous release."""
    return extract_source() / "charts" / "slmops"


def previous_images() -> OperatorImages:
    """The images of the previous release, in the rig's registry."""
    built = {image.name: image.reference for image in build_images(source=extract_source())}
    return OperatorImages(operator=built["slmops-operator"], runtime=built["slmops-runtime"])
