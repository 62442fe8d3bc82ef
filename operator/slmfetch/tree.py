# SPDX-License-Identifier: Apache-2.0
"""Trees of hard links: what a server mounts. The caller holds the store's lock."""

import os
import stat
from pathlib import Path

from slmfetch.errors import FetchError
from slmfetch.log import log
from slmfetch.store import NO_SPACE, TEMP_PREFIX, Store, discard, fsync_dir
from slmwire.manifest import Manifest
from slmwire.reasons import Reason


def is_tree_intact(store: Store, manifest: Manifest) -> bool:
    """Whether the published tree holds exactly the manifest's files, each the verified blob."""
    return not _differences(store, manifest)


def publish_tree(store: Store, manifest: Manifest) -> bool:
    """Make the tree appear as a whole, or repair it; True if anything had to be done.

    A tree that exists is repaired in place, file by file, because a server may have it mounted.
    """
    final = store.tree(manifest.digest)
    if final.is_symlink() or not final.is_dir():
        discard(final)  # nothing of ours: a repair through a link would write elsewhere
        temp = store.trees / f"{TEMP_PREFIX}{final.name}"
        discard(temp)
        try:
            _fill(store, manifest, temp)
            temp.rename(final)
        except OSError as error:
            discard(temp)
            raise _explain(error, final) from error
        fsync_dir(store.trees)
        return True
    wrong = _differences(store, manifest)
    if wrong:
        log("tree is repaired", level="warning", tree=final.name, paths=sorted(wrong)[:10])
        try:
            _repair(store, manifest, final, wrong)
        except OSError as error:
            raise _explain(error, final) from error
    return bool(wrong)


def _explain(error: OSError, tree: Path) -> FetchError:
    if error.errno in NO_SPACE:
        return FetchError(Reason.INSUFFICIENT_CAPACITY, f"no space left to link the files of {tree}")
    return FetchError(Reason.INTERNAL_ERROR, f"cannot link the files of {tree}: {error}")


def _fill(store: Store, manifest: Manifest, root: Path) -> None:
    root.mkdir(mode=0o755)
    folders = {root}
    for file in manifest.files:
        target = root / file.path
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        folders.add(target.parent)
        os.link(store.blob(file.sha256), target, follow_symlinks=False)
    for folder in folders:
        fsync_dir(folder)


def _repair(store: Store, manifest: Manifest, root: Path, wrong: set[str]) -> None:
    blobs = {file.path: file.sha256 for file in manifest.files}
    for path in sorted(wrong - blobs.keys(), reverse=True):
        discard(root / path)
    for path in sorted(wrong & blobs.keys()):
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        if target.is_dir() and not target.is_symlink():
            discard(target)
        temp = target.with_name(f"{TEMP_PREFIX}{target.name}")
        discard(temp)
        os.link(store.blob(blobs[path]), temp, follow_symlinks=False)
        temp.replace(target)
        fsync_dir(target.parent)


def _differences(store: Store, manifest: Manifest) -> set[str]:
    """Relative paths that are missing, extra, or not the blob they should be."""
    root = store.tree(manifest.digest)
    blobs = {file.path: file.sha256 for file in manifest.files}
    parents = {str(parent) for path in blobs for parent in Path(path).parents}
    wrong = set(blobs)
    for folder, names, files in os.walk(root):
        base = Path(folder).relative_to(root)
        for name in [*names, *files]:
            path = str(base / name)
            info = os.lstat(Path(folder) / name)
            if stat.S_ISDIR(info.st_mode):
                if path not in parents:
                    wrong.add(path)
            elif path in blobs and _is_same(store.blob(blobs[path]), info):
                wrong.discard(path)
            else:
                wrong.add(path)
    return wrong


def _is_same(blob: Path, info: os.stat_result) -> bool:
    try:
        other = blob.lstat()
    except FileNotFoundError:
        return False
    return (other.st_dev, other.st_ino) == (info.st_dev, info.st_ino)
