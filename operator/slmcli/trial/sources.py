# SPDX-License-Identifier: Apache-2.0
"""What a source stands for, found out from here: the sources http and file."""

import hashlib
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

import urllib3

from slmcli.errors import RefusedError
from slmcli.fitting import fetch_url
from slmcli.safe import clean
from slmops.api.source import SOURCE_KINDS, FileSource, HttpSource, Source, SourceFile
from slmops.model.geometry import GEOMETRY_FILES, MAX_GEOMETRY_BYTES, Geometry, parse_geometry
from slmops.model.observed import Resolved
from slmwire.manifest import Manifest, ManifestError, ManifestFile, parse_manifest

MAX_MANIFEST_BYTES: Final = 1 << 20
_TIMEOUT: Final = urllib3.Timeout(connect=5.0, read=15.0)


def resolve_source(source: Source) -> Resolved:
    """The files with their URLs. RefusedError for a kind that only the operator can ask, UsageError when a
    server or a file does not give what it should."""
    if source.http is not None:
        manifest = _of_http(source.http)
    elif source.file is not None:
        manifest = _of_file(source.file)
    else:
        kind = next((kind for kind in SOURCE_KINDS if getattr(source, kind) is not None), "none")
        raise RefusedError(
            f"its source is of the kind {kind}, which only the operator can ask; try takes http and file: "
            "put the model's files into a folder, and name them in a file source (path, sha256, size)"
        )
    return Resolved(manifest=manifest, reference=manifest.digest, geometry=_geometry(manifest))


def _of_http(source: HttpSource) -> Manifest:
    if source.secret_ref is not None or source.basic_auth_ref is not None:
        raise RefusedError(
            "its source wants a credential out of a Secret, which is not read here; fetch the files by hand "
            "and name them in a file source"
        )
    if source.files:
        rows = [_complete(source.url, file) for file in source.files]
        return Manifest(files=tuple(sorted(rows, key=lambda row: row.path)))
    body = fetch_url(source.url, MAX_MANIFEST_BYTES)
    actual = hashlib.sha256(body).hexdigest()
    if source.sha256 and actual != source.sha256:
        raise RefusedError(
            f"{source.url}: sha256 of the manifest is {actual}, the spec pins {source.sha256}; pin the new "
            "one if the change is wanted"
        )
    try:
        listed = parse_manifest(body).files
    except ManifestError as error:
        raise RefusedError(f"{source.url}: {clean(str(error))}") from None
    # The files lie beside the manifest, as for the operator: a URL in it could point anywhere.
    return Manifest(
        files=tuple(
            ManifestFile(path=f.path, size=f.size, sha256=f.sha256, url=_beside(source.url, f.path))
            for f in listed
        )
    )


def _complete(base: str, file: SourceFile) -> ManifestFile:
    url = _beside(base, file.path)
    size = file.size if file.size is not None else _measure(url)
    return ManifestFile(path=file.path, size=size, sha256=file.sha256, url=url)


def _beside(base: str, path: str) -> str:
    parts = urlsplit(base)
    folder = urlunsplit((parts.scheme, parts.netloc, parts.path or "/", "", ""))
    return urljoin(folder, "./" + quote(path, safe="/@+"))


def _measure(url: str) -> int:
    with urllib3.PoolManager(retries=urllib3.Retry(total=3, redirect=3), timeout=_TIMEOUT) as pool:
        try:
            answer = pool.request("HEAD", url, headers={"Accept-Encoding": "identity"})
        except urllib3.exceptions.HTTPError as error:
            cause = clean(str(getattr(error, "reason", None) or error))
            raise RefusedError(f"{url} cannot be read: {cause}") from None
    length = answer.headers.get("Content-Length", "")
    if answer.status != 200 or not length.isdecimal():
        raise RefusedError(f"{url} answers {answer.status} and no size; give files[].size in the spec")
    return int(length)


def _of_file(source: FileSource) -> Manifest:
    folder = Path(source.path)
    rows = [
        ManifestFile(path=f.path, size=f.size or 0, sha256=f.sha256, url=(folder / f.path).as_uri())
        for f in source.files
    ]
    return Manifest(files=tuple(sorted(rows, key=lambda row: row.path)))


def _geometry(manifest: Manifest) -> Geometry | None:
    for name in GEOMETRY_FILES:
        for file in manifest.files:
            if file.path == name and file.size <= MAX_GEOMETRY_BYTES:
                return parse_geometry(_read(file.url))
    return None


def _read(url: str) -> bytes:
    if not url.startswith("file:"):
        return fetch_url(url, MAX_GEOMETRY_BYTES)
    try:
        return Path(unquote(urlsplit(url).path)).read_bytes()[:MAX_GEOMETRY_BYTES]
    except OSError as error:
        raise RefusedError(f"{url} cannot be read: {error.strerror}") from None
