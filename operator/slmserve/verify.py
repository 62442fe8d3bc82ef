# SPDX-License-Identifier: Apache-2.0
"""Is the mounted directory the model that the operator meant?"""

import hashlib
from pathlib import Path
from typing import Final

from slmserve.errors import StartError
from slmwire.manifest import Manifest, ManifestError, ManifestFile, parse_manifest
from slmwire.paths import MODEL_MANIFEST_FILE
from slmwire.reasons import Reason

_BLOCK_BYTES: Final = 1 << 20


def _mismatch(message: str) -> StartError:
    return StartError(Reason.INTEGRITY_MISMATCH, message)


def _read(path: Path) -> Manifest:
    try:
        return parse_manifest(path.read_bytes())
    except (OSError, ManifestError) as error:
        raise _mismatch(f"{path.name} cannot be used: {error}") from error


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _check_file(model_dir: Path, entry: ManifestFile, *, hashed: bool) -> None:
    path = model_dir / entry.path
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _mismatch(f"{entry.path} is in the manifest and not in the model directory") from error
    if size != entry.size:
        raise _mismatch(f"{entry.path} has {size} bytes; the manifest says {entry.size}")
    if hashed and _hash(path) != entry.sha256:
        raise _mismatch(f"{entry.path} does not have the sha256 that the manifest says")


def verify_model(model_dir: Path, *, expected_digest: str, manifest_file: Path) -> str:
    """Check the directory and return its digest, empty when nothing says what it should be.

    With the operator's manifest at hand, paths and sizes are compared: the fetcher has hashed the
    bytes before it published the tree. Without it (a directory given by hand) the model's own
    manifest is used, and the bytes are hashed here. Raises StartError (IntegrityMismatch).
    """
    mounted = manifest_file.is_file()
    own = model_dir / MODEL_MANIFEST_FILE
    if not mounted and not own.is_file():
        if expected_digest:
            raise _mismatch(f"digest {expected_digest} is expected, and there is no manifest to compare with")
        return ""
    manifest = _read(manifest_file if mounted else own)
    if expected_digest and manifest.digest != expected_digest:
        raise _mismatch(f"the model directory is {manifest.digest}; expected is {expected_digest}")
    for entry in manifest.files:
        _check_file(model_dir, entry, hashed=not mounted and bool(expected_digest))
    return manifest.digest
