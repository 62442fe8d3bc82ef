# SPDX-License-Identifier: Apache-2.0
"""Reads the small configuration file of a model that tells how large its key-value cache becomes."""

import hashlib
from dataclasses import replace

from slmops.adapters.sources.web import WebClient
from slmops.model.geometry import GEOMETRY_FILES, MAX_GEOMETRY_BYTES, parse_geometry
from slmops.model.observed import Resolved
from slmops.ports.sources import SourceError
from slmwire.manifest import Manifest, ManifestFile


async def with_geometry(resolved: Resolved, client: WebClient) -> Resolved:
    """What was resolved, with its geometry where a file tells it. That it cannot be read fails nothing: the
    nodes will say so if the file matters."""
    file = find_geometry_file(resolved.manifest)
    if file is None:
        return resolved
    try:
        body = await client.get(file.url, limit_bytes=file.size)
    except SourceError:
        return resolved
    if hashlib.sha256(body).hexdigest() != file.sha256:
        return resolved
    return replace(resolved, geometry=parse_geometry(body))


def find_geometry_file(manifest: Manifest) -> ManifestFile | None:
    """The file in the model's directory itself, if it is small and on a web server."""
    by_path = {file.path: file for file in manifest.files}
    for name in GEOMETRY_FILES:
        file = by_path.get(name)
        if file is not None and file.size <= MAX_GEOMETRY_BYTES and file.url.startswith("http"):
            return file
    return None
