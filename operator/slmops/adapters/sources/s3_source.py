# SPDX-License-Identifier: Apache-2.0
"""Objects in S3-compatible stores: a manifest, a list, or what lies below a prefix."""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

from slmops.adapters.sources.failures import plain_url
from slmops.adapters.sources.listing import build_manifest
from slmops.adapters.sources.web import WebClient
from slmops.api.source import S3Source, SourceFile
from slmops.model.observed import Resolved
from slmops.ports.sources import SourceError
from slmwire.manifest import MAX_FILES, ManifestError, ManifestFile, parse_manifest
from slmwire.reasons import Reason

MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_LISTING_BYTES: Final = 4 << 20
MAX_SMALL_FILE_BYTES: Final = 16 << 20
MAX_SMALL_TOTAL_BYTES: Final = 64 << 20
PARALLEL_REQUESTS: Final = 8
Entry = TypeVar("Entry")
_CURE: Final = (
    "upload it with a full-object SHA-256 checksum (aws s3api put-object --checksum-algorithm SHA256), or "
    "name the hashes in source.s3.files or in a manifest"
)


async def resolve_s3(source: S3Source, client: WebClient) -> Resolved:
    """Resolve an `s3` source; the reference is the hash of the manifest, or the digest of the files.

    URLs are path-style: they name endpoint, bucket and key, so they hold for every store.
    """
    root = bucket_url(source)
    if not {".", ".."}.isdisjoint(source.prefix.split("/")):
        # HTTP clients resolve these, perhaps into another bucket.
        raise SourceError(
            Reason.UNFIT, f"prefix {source.prefix} must be without . and .. segments", permanent=True
        )
    where = f"s3 {plain_url(root)}/{source.prefix}"
    if source.manifest is not None:
        return await _resolve_manifest(source, client, root=root)
    rows = await (
        _complete_list(source, client, root=root)
        if source.files
        else _resolve_listing(source, client, root=root, where=where)
    )
    manifest = build_manifest(rows, where=where)
    return Resolved(manifest=manifest, reference=manifest.digest)


def bucket_url(source: S3Source) -> str:
    """URL of the bucket, without a slash at its end."""
    endpoint = source.endpoint or f"https://s3.{source.region}.amazonaws.com"
    return f"{endpoint.partition('?')[0].rstrip('/')}/{source.bucket}"


def object_url(root: str, key: str) -> str:
    """URL of an object; everything but unreserved characters and slashes is escaped, as it is signed."""
    return f"{root}/{quote(key, safe='/-_.~')}"


async def _resolve_manifest(source: S3Source, client: WebClient, *, root: str) -> Resolved:
    key = f"{source.prefix}{source.manifest}"
    url = object_url(root, key)
    body = await client.get(url, limit_bytes=MAX_MANIFEST_BYTES)
    actual = hashlib.sha256(body).hexdigest()
    if source.sha256 and actual != source.sha256:
        raise SourceError(
            Reason.INTEGRITY_MISMATCH,
            f"{plain_url(url)}: sha256 of the manifest is {actual}, the spec pins {source.sha256}; "
            "pin the new one if the change is wanted",
            permanent=True,
        )
    try:
        listed = parse_manifest(body).files
    except ManifestError as error:
        raise SourceError(Reason.UNFIT, f"{plain_url(url)}: {error}", permanent=True) from error
    folder = key[: key.rfind("/") + 1]
    # The files lie beside the manifest; a URL inside it would let its author point nodes anywhere.
    rows = [
        ManifestFile(path=f.path, size=f.size, sha256=f.sha256, url=object_url(root, folder + f.path))
        for f in listed
    ]
    return Resolved(manifest=build_manifest(rows, where=plain_url(url)), reference=f"sha256:{actual}")


async def _complete_list(source: S3Source, client: WebClient, *, root: str) -> list[ManifestFile]:
    async def complete(file: SourceFile) -> ManifestFile:
        url = object_url(root, source.prefix + file.path)
        size = file.size if file.size is not None else await client.measure(url)
        return ManifestFile(path=file.path, size=size, sha256=file.sha256, url=url)

    return await _for_each(source.files, complete)


async def _resolve_listing(
    source: S3Source, client: WebClient, *, root: str, where: str
) -> list[ManifestFile]:
    objects = await _list_objects(source, client, root=root, where=where)
    # Refuse bad paths before anything is asked about.
    build_manifest([ManifestFile(path=p, size=s, sha256="0" * 64) for p, s in objects], where=where)
    budget = MAX_SMALL_TOTAL_BYTES

    async def complete(entry: tuple[str, int]) -> ManifestFile:
        nonlocal budget
        path, size = entry
        url = object_url(root, source.prefix + path)
        sha256 = await _read_checksum(client, url)
        if sha256 is None:
            budget -= size
            if size > MAX_SMALL_FILE_BYTES or budget < 0:
                raise SourceError(
                    Reason.UNFIT, f"{plain_url(url)} ({size} bytes) has no checksum of its own: {_CURE}",
                    permanent=True,
                )  # fmt: skip
            body = await client.get(url, limit_bytes=MAX_SMALL_FILE_BYTES)
            size, sha256 = len(body), hashlib.sha256(body).hexdigest()
        return ManifestFile(path=path, size=size, sha256=sha256, url=url)

    return await _for_each(objects, complete)


async def _read_checksum(client: WebClient, url: str) -> str | None:
    """Hexadecimal SHA-256 of the whole object where the store keeps it."""
    async with client.open("HEAD", url, headers={"x-amz-checksum-mode": "ENABLED"}) as response:
        if response.status != 200:
            raise client.status_error(url, response)
        kind = response.headers.get("x-amz-checksum-type", "FULL_OBJECT")
        text = response.headers.get("x-amz-checksum-sha256", "")
    # A checksum of checksums, of an upload in parts, ends in the number of parts.
    if kind != "FULL_OBJECT" or "-" in text:
        return None
    try:
        digest = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    return digest.hex() if len(digest) == 32 else None


async def _list_objects(
    source: S3Source, client: WebClient, *, root: str, where: str
) -> list[tuple[str, int]]:
    """(path relative to the prefix, size) of every object below it."""
    found: list[tuple[str, int]] = []
    token = ""
    while True:
        query = {"list-type": "2", "prefix": source.prefix, "max-keys": "1000"}
        query |= {"continuation-token": token} if token else {}
        body = await client.get(
            f"{root}?{urlencode(query, quote_via=quote, safe='')}", limit_bytes=MAX_LISTING_BYTES
        )
        page, token = _parse_listing(body, where=where)
        for key, size in page:
            # Some tools make an empty object in the place of a folder.
            if key.startswith(source.prefix) and not key.endswith("/"):
                found.append((key.removeprefix(source.prefix), size))
        if len(found) > MAX_FILES:
            raise SourceError(
                Reason.UNFIT,
                f"{where} holds more than {MAX_FILES} objects; name a deeper prefix, or the files",
                permanent=True,
            )
        if not token:
            break
    if not found:
        raise SourceError(Reason.UNFIT, f"{where} holds no object; check bucket and prefix", permanent=True)
    return found


def _parse_listing(body: bytes, *, where: str) -> tuple[list[tuple[str, int]], str]:
    """(keys and sizes, token of the next page) of an answer to ListObjectsV2."""
    try:
        # As text, which is UTF-8 whatever the declaration says: in another encoding it would not be seen.
        text = body.decode("utf-8-sig")
        if "<!DOCTYPE" in text:  # entities could unfold to any size
            raise ValueError("it has a document type")
        tree = ElementTree.fromstring(text)  # noqa: S314
        for element in tree.iter():
            element.tag = element.tag.rpartition("}")[2]
        rows = [
            (entry.findtext("Key") or "", int(entry.findtext("Size") or ""))
            for entry in tree.iter("Contents")
        ]
        more = (tree.findtext("IsTruncated") or "").strip().lower() == "true"
        return rows, (tree.findtext("NextContinuationToken") or "") if more else ""
    except (ElementTree.ParseError, ValueError) as error:
        raise SourceError(
            Reason.SOURCE_UNAVAILABLE, f"{where} gave no listing ({error}); is the endpoint an S3 store?"
        ) from error


async def _for_each(
    entries: Sequence[Entry], complete: Callable[[Entry], Awaitable[ManifestFile]]
) -> list[ManifestFile]:
    limit = asyncio.Semaphore(PARALLEL_REQUESTS)

    async def limited(entry: Entry) -> ManifestFile:
        async with limit:
            return await complete(entry)

    # One failure must end the others: a TaskGroup cancels them, but wraps it.
    tasks = [asyncio.ensure_future(limited(entry)) for entry in entries]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
