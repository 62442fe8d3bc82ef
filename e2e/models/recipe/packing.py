# SPDX-License-Identifier: Apache-2.0
"""slm-manifest.json: what a model directory holds, with sizes and hashes."""

import hashlib
from pathlib import Path

from slmwire.manifest import Manifest, ManifestFile
from slmwire.paths import MODEL_MANIFEST_FILE


def observe_manifest(directory: Path) -> Manifest:
    """The manifest of the files now in `directory`, itself excluded, sorted by path."""
    files = []
    for path in sorted(directory.iterdir()):
        if path.name != MODEL_MANIFEST_FILE:
            content = path.read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            files.append(ManifestFile(path=path.name, size=len(content), sha256=sha256))
    return Manifest(files=tuple(files))


def apply_manifest(directory: Path) -> None:
    """Write slm-manifest.json into `directory`."""
    (directory / MODEL_MANIFEST_FILE).write_text(observe_manifest(directory).to_json() + "\n")
