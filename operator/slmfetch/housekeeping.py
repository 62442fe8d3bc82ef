# SPDX-License-Identifier: Apache-2.0
"""What an agent clears away though no fetch runs: orphans of deployments that are gone, and of crashes."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from slmfetch.collect import Collected, collect
from slmfetch.exchange import MARKER_SUFFIX
from slmfetch.refs import IMPORTER, SUFFIX, UnreadableRef, owner_of, read_refs, remove_ref
from slmfetch.store import TEMP_PREFIX, Store, discard, scan

STALE_PROGRESS_SECONDS: Final = 600.0
"""A fetch that lives writes its progress far more often, unless its source told it to wait."""
STALE_TEMP_SECONDS: Final = 3600.0
STALE_ADAPTER_SECONDS: Final = 86_400.0


def tidy(store: Store, *, clock: Callable[[], float] = time.time) -> Collected:
    """Collect under the store's lock. FetchError when somebody holds it too long, OSError by the disk."""
    if not store.refs.is_dir():
        return Collected()  # nothing was ever fetched here
    with store.locked():
        with suppress(UnreadableRef):  # collect says it
            drop_adopted(store)
        now = clock()
        drop_adapters(store, before=now - STALE_ADAPTER_SECONDS)
        done = collect(store)
        _remove_markers(store)
        _remove_old(store.root / "progress", "", before=now - STALE_PROGRESS_SECONDS)
        for folder in (store.partial, store.quarantine):
            _remove_old(folder, TEMP_PREFIX, before=now - STALE_TEMP_SECONDS)
    return done


def drop_adopted(store: Store) -> None:
    """Drop import pins whose files a deployment has pinned in whole. The caller holds the store's lock."""
    imports = read_refs(store, IMPORTER.key)
    if not imports:
        return
    owned = {
        ref.digest
        for entry in scan(store.refs)
        if entry.is_dir(follow_symlinks=False) and entry.name != IMPORTER.key
        for ref in read_refs(store, entry.name).values()
        if ref.complete
    }
    for ref in imports.values():
        if ref.complete and ref.digest in owned:
            remove_ref(store, IMPORTER, ref.revision)


def drop_adapters(store: Store, *, before: float) -> None:
    """Drop pins of adapters, not touched since `before`, of deployments that have no pin here any more: one
    was kept when its deployment had just been released. The caller holds the store's lock."""
    for entry in scan(store.refs):
        owner = owner_of(entry.name)
        folder = store.refs / owner.key
        if folder.name == entry.name or any(e.name.endswith(SUFFIX) for e in scan(folder)):
            continue
        with suppress(FileNotFoundError):
            times = [e.stat(follow_symlinks=False).st_mtime for e in scan(Path(entry.path))]
            if max(times, default=0.0) < before:
                discard(Path(entry.path))


def _remove_markers(store: Store) -> None:
    for entry in scan(store.partial):
        path = Path(entry.path)
        if path.suffix == MARKER_SUFFIX and not path.with_suffix(".part").exists():
            discard(path)


def _remove_old(folder: Path, prefix: str, *, before: float) -> None:
    for entry in scan(folder):
        try:
            old = entry.stat(follow_symlinks=False).st_mtime < before
        except FileNotFoundError:
            continue
        if old and entry.name.startswith(prefix):
            discard(Path(entry.path))
