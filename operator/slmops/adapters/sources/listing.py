# SPDX-License-Identifier: Apache-2.0
"""Turns a list of files into a checked manifest."""

import json
from collections.abc import Sequence
from typing import Final

from slmops.ports.sources import SourceError
from slmwire.manifest import Manifest, ManifestError, ManifestFile, parse_manifest
from slmwire.reasons import Reason

MAX_STORED_BYTES: Final = 256 << 10
"""The manifest is stored in a ConfigMap and, for all variants, in a ControllerRevision (1 MiB)."""


def build_manifest(rows: Sequence[ManifestFile], *, where: str) -> Manifest:
    """The manifest of these files; SourceError if a path, a size or a hash is not acceptable."""
    body = [
        {"path": r.path, "size": r.size, "sha256": r.sha256, "url": r.url, "offset": r.offset} for r in rows
    ]
    try:
        manifest = parse_manifest(json.dumps({"files": body}))
    except ManifestError as error:
        raise SourceError(Reason.UNFIT, f"{where}: {error}", permanent=True) from error
    stored = len(manifest.to_json())
    if stored > MAX_STORED_BYTES:
        raise SourceError(
            Reason.UNFIT,
            f"{where}: the list of {len(rows)} files takes {stored} bytes, at most {MAX_STORED_BYTES} can be "
            "stored in the cluster; take fewer files",
            permanent=True,
        )
    return manifest
