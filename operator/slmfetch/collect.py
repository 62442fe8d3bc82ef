# SPDX-License-Identifier: Apache-2.0
"""Garbage collection. The caller holds the store's lock."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from slmfetch.config import Owner
from slmfetch.log import log
from slmfetch.partial import AHEAD, list_ahead
from slmfetch.refs import (
    UnreadableRef,
    mark_used,
    next_stamp,
    read_all_refs,
    read_refs,
    remove_ref,
    select_kept,
    write_ref,
)
from slmfetch.store import TEMP_PREFIX, Store, discard, is_tree_in_use, scan, try_lock


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What went."""

    trees: int = 0
    blobs: int = 0
    partials: int = 0
    bytes: int = 0


def prune_refs(store: Store, owner: Owner, *, fetching: str, keep_previous: int) -> tuple[str, ...]:
    """Drop the pins of `owner` that nothing needs any more; returns their revisions."""
    refs = read_refs(store, owner.key)
    in_use = [name for name, ref in refs.items() if is_tree_in_use(store.tree(ref.digest))]
    marked = mark_used(refs, in_use, max(next_stamp(refs.values()) - 0.001, 0.0))
    refs |= marked
    kept = select_kept(refs, fetching=fetching, in_use=in_use, keep_previous=keep_previous)
    for name, ref in marked.items():
        # Seen in use: this outlives the server's crashes, when it holds no lock for a while.
        if name != fetching:
            write_ref(store, owner, ref)
    dropped = tuple(sorted(refs.keys() - kept))
    for name in dropped:
        remove_ref(store, owner, name)
    return dropped


def collect(store: Store, *, force_trees: Iterable[str] = ()) -> Collected:
    """Remove every tree, blob and partial that no pin names, and what crashes left behind.

    Trees that a server holds stay, except those with a digest in `force_trees`. An unreadable pin
    stops the collection: nobody knows what it protects.
    """
    try:
        refs = read_all_refs(store)
    except UnreadableRef as error:
        log("nothing is collected: a pin is unreadable; remove it by hand", level="error", pin=str(error))
        return Collected()
    digests = {ref.digest.removeprefix("sha256:") for ref in refs}
    hashes = {file.sha256 for ref in refs for file in ref.files}
    forced = {digest.removeprefix("sha256:") for digest in force_trees}
    trees = _collect_trees(store, keep=digests, forced=forced)
    blobs, blob_bytes = _collect_blobs(store, keep=hashes)
    partials, partial_bytes = _collect_partials(store, keep=hashes)
    _remove_temps(store)
    result = Collected(trees=trees, blobs=blobs, partials=partials, bytes=blob_bytes + partial_bytes)
    if result != Collected():
        log("collected", trees=trees, blobs=blobs, partials=partials, bytes=result.bytes)
    return result


def _collect_trees(store: Store, *, keep: set[str], forced: set[str]) -> int:
    count = 0
    for entry in scan(store.trees):
        path = Path(entry.path)
        if entry.name in keep:
            continue
        if entry.name.startswith(TEMP_PREFIX):
            discard(path)
            continue
        if entry.name not in forced and is_tree_in_use(path):
            continue
        # Renamed first: a tree by its final name is complete at every instant.
        doomed = path.with_name(f"{TEMP_PREFIX}{entry.name}")
        discard(doomed)
        path.rename(doomed)
        discard(doomed)
        count += 1
    return count


def _collect_blobs(store: Store, *, keep: set[str]) -> tuple[int, int]:
    count = size = 0
    for entry in scan(store.blobs):
        if entry.name not in keep:
            size += entry.stat(follow_symlinks=False).st_size
            discard(Path(entry.path))
            count += 1
    return count, size


def _collect_partials(store: Store, *, keep: set[str]) -> tuple[int, int]:
    count = size = 0
    for entry in scan(store.partial):
        path = Path(entry.path)
        stem, _, suffix = entry.name.partition(".")
        if suffix == "part":
            wanted = stem in keep and not store.blob(stem).exists()
            if wanted:
                continue
            freed = _remove_idle_partial(store, stem)
            if freed is not None:
                count += 1
                size += freed
            continue
        beside = suffix == "json" or entry.name.startswith(f"{stem}{AHEAD}")
        # Looked for after the listing: a fetch makes its .part first.
        if beside and not (store.partial / f"{stem}.part").exists():
            discard(path)
    return count, size


def _remove_idle_partial(store: Store, sha256: str) -> int | None:
    """Bytes freed, None if a fetch is working on it."""
    path = store.partial / f"{sha256}.part"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if not try_lock(fd):
            return None
        ahead = list_ahead(store, sha256).values()
        size = os.fstat(fd).st_size + sum(other.lstat().st_size for other in ahead)
        for other in ahead:
            other.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
        return size
    finally:
        os.close(fd)


def _remove_temps(store: Store) -> None:
    folders = [store.refs, *(Path(e.path) for e in scan(store.refs) if e.is_dir(follow_symlinks=False))]
    for folder in folders:
        for entry in scan(folder):
            if entry.name.startswith(TEMP_PREFIX):
                discard(Path(entry.path))
