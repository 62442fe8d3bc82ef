# SPDX-License-Identifier: Apache-2.0
"""Files that were put on the nodes by hand: nothing to ask, everything must be given."""

from pathlib import PurePosixPath
from urllib.parse import quote

from slmops.adapters.sources.listing import build_manifest
from slmops.api.source import FileSource
from slmops.model.observed import Resolved
from slmops.ports.sources import SourceError
from slmwire.manifest import ManifestFile
from slmwire.reasons import Reason


def resolve_file(source: FileSource) -> Resolved:
    """Resolve a `file` source from what the spec says; the reference is the digest."""
    folder = PurePosixPath(source.path)
    if not folder.is_absolute() or ".." in folder.parts:
        raise SourceError(Reason.UNFIT, f"path {source.path} must be absolute and without ..", permanent=True)
    unsized = [file.path for file in source.files if file.size is None]
    if unsized:
        raise SourceError(
            Reason.UNFIT,
            f"files {', '.join(unsized[:5])} need a size: the operator cannot read the node's disk",
            permanent=True,
        )
    rows = [
        ManifestFile(
            path=file.path,
            size=file.size or 0,
            sha256=file.sha256,
            url="file://" + quote(str(folder / file.path), safe="/@+"),
        )
        for file in source.files
    ]
    manifest = build_manifest(rows, where=source.path)
    return Resolved(manifest=manifest, reference=manifest.digest)
