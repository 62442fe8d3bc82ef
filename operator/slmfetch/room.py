# SPDX-License-Identifier: Apache-2.0
"""Whether what is to come fits: the store's limit, the disk's watermark, other fetches under way."""

import fcntl
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from slmfetch.config import Settings
from slmfetch.errors import FetchError
from slmfetch.partial import list_ahead
from slmfetch.refs import UnreadableRef, read_all_refs
from slmfetch.store import Store, default_reserve_bytes, try_lock
from slmwire.manifest import ManifestFile
from slmwire.reasons import Reason

SLACK_BYTES: Final = 64 << 20
"""What a fetch may be over: pieces that are moved lie on disk twice, and file systems round up."""
WATCH_BYTES: Final = 32 << 20
"""After so much, it is looked whether the disk still has room."""


class NoRoom(FetchError):
    """The disk has become too full under the fetch."""


@dataclass(slots=True)
class RoomWatch:
    """Looks now and then whether the disk is as empty as it was: a fetch may take days."""

    store: Store
    settings: Settings
    _unwatched: int = 0

    def count(self, count: int) -> None:
        """Note bytes that came; NoRoom when it is time to stop. Several threads may call it."""
        self._unwatched += count
        if self._unwatched < WATCH_BYTES:
            return
        self._unwatched = 0
        if overrun := find_overrun(self.store, self.settings):
            raise NoRoom(
                Reason.INSUFFICIENT_CAPACITY,
                f"the fetch ends before the disk is full: {overrun}; what serves is not touched",
            )


def find_shortage(store: Store, settings: Settings, missing: Sequence[ManifestFile]) -> str:
    """What is lacking, with the numbers and the cure; empty if all fits."""
    others = promised_bytes(store, except_for={file.sha256 for file in missing})
    needed = others + sum(max(file.size - _partial_bytes(store, file.sha256), 0) for file in missing)
    also = f" ({others} of them for other fetches under way)" if others else ""
    held = store.held_bytes()
    limit = settings.size_limit_bytes
    if limit and held + needed > limit:
        return (
            f"{needed} bytes are missing{also}, the store holds {held} of at most {limit}; "
            "raise cache.sizeLimit or lower cache.keepPrevious"
        )
    free, total = store.free_bytes()
    percent = settings.high_watermark_percent
    if percent and needed > free - (total - total * percent // 100):
        return (
            f"{needed} bytes are missing{also}, {total - free} of {total} are in use on the file system of "
            f"{store.root}, which may be filled to {percent} %; free space there, lower "
            "cache.keepPrevious or raise cache.highWatermarkPercent"
        )
    reserve = _reserve_bytes(settings, total)
    if needed > free - reserve:
        return (
            f"{needed} bytes are missing{also}, {free} of {total} are free on the file system of "
            f"{store.root}, and {reserve} of them are left for the node; free space there or lower "
            "cache.keepPrevious"
        )
    return ""


def _reserve_bytes(settings: Settings, total_bytes: int) -> int:
    if settings.reserve_bytes is not None:
        return settings.reserve_bytes
    # A watermark takes the place of the rule of thumb.
    return 0 if settings.high_watermark_percent else default_reserve_bytes(total_bytes)


def _partial_bytes(store: Store, sha256: str) -> int:
    paths = [store.partial / f"{sha256}.part", *list_ahead(store, sha256).values()]
    sizes = 0
    for path in paths:
        with suppress(FileNotFoundError):  # another fetch on this node is at it
            sizes += path.stat().st_size
    return sizes


def find_overrun(store: Store, settings: Settings) -> str:
    """What is over its limit now, though it fitted when the fetch began; empty if nothing is."""
    limit = settings.size_limit_bytes
    if limit and (held := store.held_bytes()) > limit + min(SLACK_BYTES, limit // 4):
        return f"the store holds {held} of at most {limit} bytes; raise cache.sizeLimit"
    free, total = store.free_bytes()
    percent = settings.high_watermark_percent
    left = max(_reserve_bytes(settings, total), total - total * percent // 100 if percent else 0)
    if free < left - min(SLACK_BYTES, left // 4):
        return (
            f"{free} of {total} bytes are free on the file system of {store.root}, and {left} of them are "
            "left for the node; free space there"
        )
    return ""


def promised_bytes(store: Store, *, except_for: Collection[str]) -> int:
    """Bytes that other fetches under way still lack, without the files in `except_for`.

    Under way is a pinned revision of which somebody holds a .part: pins of fetches that died promise
    nothing.
    """
    try:
        refs = [ref for ref in read_all_refs(store) if not ref.complete]
    except UnreadableRef:
        return 0
    lacking = [
        {
            f.sha256: f.size
            for f in ref.files
            if f.sha256 not in except_for and not store.blob(f.sha256).exists()
        }
        for ref in refs
    ]
    promised: dict[str, int] = {}
    for files in lacking:
        if any(_is_locked(store, sha256) for sha256 in files):
            promised |= files
    return sum(max(size - _partial_bytes(store, sha256), 0) for sha256, size in promised.items())


def _is_locked(store: Store, sha256: str) -> bool:
    try:
        fd = os.open(store.partial / f"{sha256}.part", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not try_lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)
