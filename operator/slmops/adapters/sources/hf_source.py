# SPDX-License-Identifier: Apache-2.0
"""Repositories on the Hugging Face Hub or a mirror of it, through huggingface_hub."""

import asyncio
import fnmatch
import hashlib
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

from slmops.adapters.sources.addresses import AddressPolicy
from slmops.adapters.sources.failures import plain_url
from slmops.adapters.sources.hf_client import read_model_info
from slmops.adapters.sources.listing import build_manifest
from slmops.adapters.sources.web import WebClient
from slmops.api.source import HuggingFaceSource
from slmops.model.observed import Resolved
from slmops.ports.sources import SourceError
from slmwire.manifest import ManifestFile
from slmwire.reasons import Reason

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

PUBLIC_ENDPOINT: Final = "https://huggingface.co"
MAX_SMALL_FILE_BYTES: Final = 16 << 20
MAX_SMALL_TOTAL_BYTES: Final = 64 << 20
_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


async def resolve_hugging_face(
    source: HuggingFaceSource, client: WebClient, *, policy: AddressPolicy, token: str | None
) -> Resolved:
    """Resolve an `hf` source; the reference is the commit that the revision stood for.

    Files in LFS come with their hash. The others, small by the Hub's own rules, are read here and
    hashed, and checked against their git object where the Hub names it.
    """
    endpoint = (source.endpoint or os.environ.get("HF_ENDPOINT") or PUBLIC_ENDPOINT).rstrip("/")
    where = f"{source.repo}@{source.revision} at {plain_url(endpoint)}"
    host = urlsplit(endpoint).hostname or ""
    info = await asyncio.to_thread(
        read_model_info,
        source.repo,
        source.revision,
        endpoint=endpoint,
        host=host,
        token=token,
        policy=policy,
        where=where,
    )
    commit = info.sha or ""
    if not _COMMIT.fullmatch(commit):
        raise SourceError(
            Reason.SOURCE_UNAVAILABLE, f"{where}: the endpoint names no commit for the revision"
        )
    siblings = select_files(info.siblings or [], source.files)
    if not siblings:
        wanted = ", ".join(source.files) or "all"
        raise SourceError(
            Reason.UNFIT,
            f"{where}: no file matches ({wanted}); it has "
            + (", ".join(s.rfilename for s in (info.siblings or [])[:10]) or "none"),
            permanent=True,
        )
    _check_small_files(siblings, where=where)
    base = f"{endpoint}/{source.repo}/resolve/{commit}/"
    limit = asyncio.Semaphore(4)

    async def complete(sibling: "RepoSibling") -> ManifestFile:
        url = base + quote(sibling.rfilename, safe="/@+")
        if sibling.lfs is not None:
            return ManifestFile(
                path=sibling.rfilename, size=sibling.lfs.size, sha256=sibling.lfs.sha256, url=url
            )
        async with limit:
            body = await client.get(url, limit_bytes=MAX_SMALL_FILE_BYTES)
        _check_git_object(sibling, body, where=where)
        return ManifestFile(
            path=sibling.rfilename, size=len(body), sha256=hashlib.sha256(body).hexdigest(), url=url
        )

    # Refuse bad paths before anything is read.
    build_manifest([_placeholder(s) for s in siblings], where=where)
    tasks = [asyncio.ensure_future(complete(sibling)) for sibling in siblings]
    try:
        rows = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return Resolved(manifest=build_manifest(rows, where=where), reference=commit)


def select_files(siblings: Sequence["RepoSibling"], patterns: Sequence[str]) -> list["RepoSibling"]:
    """Files that match any of the glob patterns, all of them without patterns.

    `*` crosses folders, as in huggingface_hub. Hidden files (.gitattributes and the like) are left
    out unless a pattern names a hidden one itself, which then is refused for its path.
    """

    def taken(path: str) -> bool:
        hidden = any(part.startswith(".") and part.strip(".") for part in path.split("/"))
        if not patterns:
            return not hidden
        return any(
            fnmatch.fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern)
            and (not hidden or pattern.startswith(".") or "/." in pattern)
            for pattern in patterns
        )

    return [sibling for sibling in siblings if taken(sibling.rfilename)]


def _placeholder(sibling: "RepoSibling") -> ManifestFile:
    return ManifestFile(path=sibling.rfilename, size=0, sha256="0" * 64)


def _check_small_files(siblings: Sequence["RepoSibling"], *, where: str) -> None:
    small = [(s.rfilename, s.size or 0) for s in siblings if s.lfs is None]
    total = sum(size for _, size in small)
    for path, size in small:
        if size > MAX_SMALL_FILE_BYTES:
            raise SourceError(
                Reason.UNFIT,
                f"{where}: {path} has {size} bytes outside LFS, so the endpoint tells no hash; at most "
                f"{MAX_SMALL_FILE_BYTES} are read to find it out",
                permanent=True,
            )
    if total > MAX_SMALL_TOTAL_BYTES:
        raise SourceError(
            Reason.UNFIT,
            f"{where}: {len(small)} files outside LFS hold {total} bytes; at most {MAX_SMALL_TOTAL_BYTES} "
            "are read to find out their hashes; take fewer with files[]",
            permanent=True,
        )


def _check_git_object(sibling: "RepoSibling", body: bytes, *, where: str) -> None:
    if not sibling.blob_id or len(sibling.blob_id) != 40:
        return
    header = b"blob %d\0" % len(body)
    if hashlib.sha1(header + body, usedforsecurity=False).hexdigest() != sibling.blob_id:
        raise SourceError(
            Reason.INTEGRITY_MISMATCH,
            f"{where}: {sibling.rfilename} is not what the commit holds (git object {sibling.blob_id}); "
            "something between alters it",
        )
