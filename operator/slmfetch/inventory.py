# SPDX-License-Identifier: Apache-2.0
"""What a store holds, for people and tools."""

from typing import Any

from slmfetch.refs import SUFFIX, UnreadableRef, read_refs
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
            namespace, _, deployment = folder.name.partition(".")
            pins.append(
                {
                    "namespace": namespace,
                    "deployment": deployment,
                    "revision": ref.revision,
                    "digest": ref.digest,
                    "complete": ref.complete,
                    "bytes": sum(file.size for file in ref.files),
                    "servedAt": ref.served_at,
                    "inUse": is_tree_in_use(store.tree(ref.digest)),
                }
            )
    blobs = [(entry.name, entry.stat(follow_symlinks=False).st_size) for entry in scan(store.blobs)]
    partials = [
        (entry.name.partition(".")[0], entry.stat(follow_symlinks=False).st_size)
        for entry in scan(store.partial)
        if entry.name.endswith(".part")
    ]
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
