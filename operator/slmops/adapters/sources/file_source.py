# SPDX-License-Identifier: Apache-2.0
"""Files on the nodes' disks or on a volume: nothing to ask, everything must be given."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import quote

from slmops.adapters.sources.listing import build_manifest
from slmops.api.source import FileSource, PvcSource, SourceFile
from slmops.model.observed import Resolved
from slmops.ports.sources import SourceError
from slmwire.manifest import ManifestFile
from slmwire.paths import SOURCE_FILES_DIR
from slmwire.reasons import Reason


def resolve_file(source: FileSource) -> Resolved:
    """Resolve a `file` source from what the spec says; the reference is the digest."""
    folder = PurePosixPath(source.path)
    if not folder.is_absolute() or ".." in folder.parts:
        raise SourceError(Reason.UNFIT, f"path {source.path} must be absolute and without ..", permanent=True)
    return _from_list(source.files, folder)


def resolve_pvc(source: PvcSource) -> Resolved:
    """Resolve a `pvc` source from what the spec says; pods have the volume at paths.SOURCE_FILES_DIR."""
    folder = PurePosixPath(SOURCE_FILES_DIR, source.path or "")
    if ".." in folder.parts:
        raise SourceError(Reason.UNFIT, f"path {source.path} must be without ..", permanent=True)
    return _from_list(source.files, folder)


def _from_list(files: Sequence[SourceFile], folder: PurePosixPath) -> Resolved:
    unsized = [file.path for file in files if file.size is None]
    if unsized:
        raise SourceError(
            Reason.UNFIT,
            f"files {', '.join(unsized[:5])} need a size: the operator cannot read the disk to find out",
            permanent=True,
        )
    rows = [
        ManifestFile(
            path=file.path,
            size=file.size or 0,
            sha256=file.sha256,
            url="file://" + quote(str(folder / file.path), safe="/@+"),
        )
        for file in files
    ]
    manifest = build_manifest(rows, where=str(folder))
    return Resolved(manifest=manifest, reference=manifest.digest)
