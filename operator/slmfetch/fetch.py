# SPDX-License-Identifier: Apache-2.0
"""Brings a whole manifest into the store, pins it and publishes its tree."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from urllib.parse import urlsplit

from slmfetch.collect import collect, prune_refs
from slmfetch.config import Owner, Settings
from slmfetch.download import Downloader
from slmfetch.errors import FetchError
from slmfetch.examples import remove_examples
from slmfetch.log import log
from slmfetch.progress import Reporter, Tally, clear_progress, progress_path
from slmfetch.refs import (
    Ref,
    UnreadableRef,
    adapters_of,
    explain_pin,
    new_ref,
    next_stamp,
    read_refs,
    write_ref,
)
from slmfetch.room import find_shortage
from slmfetch.store import Store, discard, is_tree_in_use
from slmfetch.tree import is_tree_intact, publish_tree
from slmwire.manifest import STORE_URL, Manifest, ManifestFile
from slmwire.reasons import Reason

RELEASE_WAIT_SECONDS = 60.0


class Purpose(StrEnum):
    """What a fetch is for."""

    SERVE = "serve"
    """A server starts on it next."""
    AHEAD = "ahead"
    """A coming wave may need it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to fetch and for whom."""

    owner: Owner
    revision: str
    manifest: Manifest
    purpose: Purpose
    deep: bool = False
    """Hash every cached file again instead of trusting size and mode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a successful fetch moved."""

    bytes_downloaded: int
    bytes_reused: int
    bytes_from_peers: int = 0
    """Of the bytes downloaded."""
    bytes_per_second: int = 0
    """Mean while files were missing, waits and verification included."""


def fetch(store: Store, job: Job, settings: Settings, *, tally: Tally | None = None) -> Outcome:
    """Make the tree of the manifest available and pinned; FetchError says why that failed.

    Whatever happens, what is published already stays as it is. With everything cached no network
    is used, and a full or read-only disk is no obstacle. `tally` says what was moved even then.
    """
    tally = tally or Tally()
    deadline = time.monotonic() + settings.timeout_seconds
    store.prepare()
    with store.locked():
        _begin_pin(store, job)
    # Of two entries with the same bytes, the one that has a source.
    by_source = sorted(job.manifest.files, key=lambda file: file.url != STORE_URL)
    unique = {file.sha256: file for file in by_source}
    missing = [file for file in unique.values() if not store.check_blob(file, deep=job.deep)]
    # Last what another node of the site must still have: whatever has a source is here by then.
    missing.sort(key=lambda file: file.url == STORE_URL)
    began = time.monotonic()
    if missing:
        for file in missing:
            _check_url(file)
        _preflight(store, job, settings, missing)
        log(
            "fetching model",
            revision=job.revision,
            digest=job.manifest.digest,
            files=len(missing),
            bytes=sum(file.size for file in missing),
        )
        _obtain(store, job, settings, missing, tally=tally, deadline=deadline)
    else:
        clear_progress(progress_path(store, job.owner, job.revision))
    seconds = time.monotonic() - began
    with store.locked():
        _finish(store, job, settings, missing)
    needed = sum(file.size for file in unique.values())
    fetched = sum(file.size for file in missing)
    return Outcome(
        bytes_downloaded=tally.downloaded,
        bytes_reused=needed - fetched,
        bytes_from_peers=tally.from_peers,
        bytes_per_second=round(tally.downloaded / seconds) if seconds > 0 else 0,
    )


def _obtain(
    store: Store,
    job: Job,
    settings: Settings,
    missing: Sequence[ManifestFile],
    *,
    tally: Tally,
    deadline: float,
) -> None:
    total = sum(file.size for file in missing)
    path = progress_path(store, job.owner, job.revision)
    reporter = Reporter(path=path, total_bytes=total, tally=tally)
    downloader = Downloader(store=store, settings=settings, deadline=deadline, tally=tally, reporter=reporter)
    try:
        for file in missing:
            downloader.obtain(file)
    finally:
        downloader.close()
        clear_progress(path)


def release(store: Store, owner: Owner, *, wait_seconds: float = RELEASE_WAIT_SECONDS) -> None:
    """Drop every pin of a deployment, its adapters' and its examples, and remove what nobody else needs.

    Servers that hold a tree get `wait_seconds` to end; after that it goes under them.
    """
    remove_examples(store, owner)
    if not store.refs.is_dir():
        log("there is no store here, nothing to release", store=str(store.root))
        return
    try:
        digests = [ref.digest for ref in read_refs(store, owner.key).values()]
    except UnreadableRef as error:
        log("a pin is unreadable, it goes all the same", level="warning", pin=str(error))
        digests = []
    deadline = time.monotonic() + wait_seconds
    while time.monotonic() < deadline and any(is_tree_in_use(store.tree(d)) for d in digests):
        time.sleep(0.2)
    with store.locked():
        discard(store.refs / owner.key)
        discard(store.refs / adapters_of(owner).key)
        done = collect(store, force_trees=digests)
    log("released", deployment=owner.key, pins=len(digests), bytes=done.bytes)


def _begin_pin(store: Store, job: Job) -> None:
    """Protect the files against collection from now on, the ones that are here already included."""
    refs = _own_refs(store, job.owner)
    old = refs.get(job.revision)
    if old is not None and old.digest == job.manifest.digest:
        return
    ref = replace(new_ref(job.revision, job.manifest), fetched_at=next_stamp(refs.values()))
    try:
        write_ref(store, job.owner, ref)
    except OSError as error:
        raise explain_pin(store, error) from error


def _finish(store: Store, job: Job, settings: Settings, missing: Sequence[ManifestFile]) -> None:
    """Publish the tree, record the pin, drop what is not needed any more."""
    publish_tree(store, job.manifest)
    refs = _own_refs(store, job.owner)
    stamp = next_stamp(refs.values())
    old = refs.get(job.revision) or new_ref(job.revision, job.manifest)
    ref = replace(old, complete=True, fetched_at=stamp)
    if job.purpose is Purpose.SERVE:
        ref = replace(ref, served_at=stamp)
    try:
        write_ref(store, job.owner, ref)
    except OSError as error:
        if not old.complete or missing or not is_tree_intact(store, job.manifest):
            raise explain_pin(store, error) from error
        # A cached model must start on a full or read-only disk: only its time stamp is out of date.
        log("the pin could not be refreshed", level="warning", why=error.strerror or str(error))
    _clean(store, job, settings)


def _clean(store: Store, job: Job, settings: Settings) -> None:
    try:
        prune_refs(store, job.owner, fetching=job.revision, keep_previous=settings.keep_previous)
        collect(store)
    except UnreadableRef as error:
        log("nothing is collected: a pin is unreadable; remove it by hand", level="error", pin=str(error))
    except OSError as error:
        log("could not collect", level="warning", why=str(error))


def _own_refs(store: Store, owner: Owner) -> dict[str, Ref]:
    try:
        return read_refs(store, owner.key)
    except UnreadableRef as error:
        log("a pin is unreadable", level="error", pin=str(error))
        return {}


def _check_url(file: ManifestFile) -> None:
    if file.url == STORE_URL and not file.offset:
        return
    try:
        parts = urlsplit(file.url)
        valid = (parts.scheme in ("http", "https") and bool(parts.hostname)) or parts.scheme == "file"
        _ = parts.port
    except ValueError:
        valid = False
    if not valid:
        raise FetchError(
            Reason.UNFIT,
            f"{file.path}: its URL in the manifest is not http://, https:// or file://, nor "
            f"{STORE_URL!r} alone",
        )


def _preflight(store: Store, job: Job, settings: Settings, missing: Sequence[ManifestFile]) -> None:
    """Refuse before the first byte what cannot fit; old versions nobody pins make room first."""
    if not find_shortage(store, settings, missing):
        return
    with store.locked():
        _clean(store, job, settings)
    shortage = find_shortage(store, settings, missing)
    if shortage:
        raise FetchError(
            Reason.INSUFFICIENT_CAPACITY,
            f"revision {job.revision} ({job.manifest.size_bytes} bytes) does not fit this node: {shortage}",
        )
