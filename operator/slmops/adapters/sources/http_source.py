# SPDX-License-Identifier: Apache-2.0
"""Files on an HTTP(S) server: a manifest, or a list with sizes asked for."""

import asyncio
import hashlib
from typing import Final
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from slmops.adapters.sources.failures import plain_url
from slmops.adapters.sources.listing import build_manifest
from slmops.adapters.sources.web import WebClient
from slmops.api.source import HttpSource, SourceFile
from slmops.model.observed import Resolved
from slmops.ports.sources import SourceError
from slmwire.manifest import ManifestError, ManifestFile, parse_manifest
from slmwire.reasons import Reason

MAX_MANIFEST_BYTES: Final = 1 << 20


async def resolve_http(source: HttpSource, client: WebClient) -> Resolved:
    """Resolve an `http` source; the reference is the hash of the manifest that was read, if one was."""
    if source.files:
        return await _resolve_list(source, client)
    body = await client.get(source.url, limit_bytes=MAX_MANIFEST_BYTES)
    actual = hashlib.sha256(body).hexdigest()
    where = plain_url(source.url)
    if source.sha256 and actual != source.sha256:
        raise SourceError(
            Reason.INTEGRITY_MISMATCH,
            f"{where}: sha256 of the manifest is {actual}, the spec pins {source.sha256}; "
            "pin the new one if the change is wanted",
            permanent=True,
        )
    try:
        listed = parse_manifest(body).files
    except ManifestError as error:
        raise SourceError(Reason.UNFIT, f"{where}: {error}", permanent=True) from error
    # The files lie beside the manifest; a URL inside it would let its author point nodes anywhere.
    rows = [
        ManifestFile(path=f.path, size=f.size, sha256=f.sha256, url=file_url(source.url, f.path))
        for f in listed
    ]
    return Resolved(manifest=build_manifest(rows, where=where), reference=f"sha256:{actual}")


async def _resolve_list(source: HttpSource, client: WebClient) -> Resolved:
    async def complete(file: SourceFile) -> ManifestFile:
        url = file_url(source.url, file.path)
        size = file.size if file.size is not None else await client.measure(url)
        return ManifestFile(path=file.path, size=size, sha256=file.sha256, url=url)

    # One failure must end the others: a TaskGroup cancels them, but wraps it.
    tasks = [asyncio.ensure_future(complete(file)) for file in source.files]
    try:
        rows = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    manifest = build_manifest(rows, where=plain_url(source.url))
    return Resolved(manifest=manifest, reference=manifest.digest)


def file_url(base: str, path: str) -> str:
    """URL of a file beside (or below) `base`; the base's query does not carry over."""
    parts = urlsplit(base)
    folder = urlunsplit((parts.scheme, parts.netloc, parts.path or "/", "", ""))
    # "./" keeps a path such as `a:b` from being read as a scheme.
    return urljoin(folder, "./" + quote(path, safe="/@+"))
