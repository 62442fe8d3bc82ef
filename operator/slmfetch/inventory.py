# SPDX-License-Identifier: Apache-2.0
"""What a store holds, for people and tools."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from slmfetch.refs import SUFFIX, UnreadableRef, owner_of, read_refs
from slmfetch.store import Store, is_tree_in_use, scan


def observe_store(store: Store) -> dict[str, Any]:
    """JSON-able description: bytes held, free and reclaimable, pins, trees, what failed verification."""
    pins: list[dict[str, Any]] = []
    problems: list[str] = []
    pinned: set[str] = set()
    for folder in scan(store.refs):
        try:
            refs = read_refs(store, folder.name)
        except UnreadableRef as error:
            problems.append(str(error))
            continue
        for ref in refs.values():
            pinned |= {file.sha256 for file in ref.files}
            owner = owner_of(folder.name)
            pins.append(
                {
                    "namespace": owner.namespace,
                    "deployment": owner.deployment,
                    "revision": ref.revision,
                    "digest": ref.digest,
                    "complete": ref.complete,
                    "bytes": sum(file.size for file in ref.files),
                    "servedAt": ref.served_at,
                    "inUse": is_tree_in_use(store.tree(ref.digest)),
                }
            )
    blobs = _sizes(store.blobs, "")
    partials = _sizes(store.partial, ".part")
    free, total = store.free_bytes()
    return {
        "store": str(store.root),
        "bytes": sum(size for _, size in [*blobs, *partials]),
        "reclaimableBytes": sum(size for name, size in [*blobs, *partials] if name not in pinned),
        "freeBytes": free,
        "fileSystemBytes": total,
        "blobs": len(blobs),
        "partials": [{"sha256": name, "bytes": size} for name, size in partials],
        "trees": [entry.name for entry in scan(store.trees) if not entry.name.startswith(".")],
        "pins": pins,
        "quarantined": [entry.name.removesuffix(SUFFIX) for entry in scan(store.quarantine)],
        "problems": problems,
    }


def _sizes(folder: Path, suffix: str) -> list[tuple[str, int]]:
    """(name without suffix, bytes) of the files; what a fetch finishes or removes meanwhile is left out."""
    rows = []
    for entry in scan(folder):
        if entry.name.endswith(suffix):
            with suppress(FileNotFoundError):
                rows.append((entry.name.removesuffix(suffix), entry.stat(follow_symlinks=False).st_size))
    return rows
