# SPDX-License-Identifier: Apache-2.0
"""Pins: which revision of which deployment needs which bytes, and which of them stay."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from slmfetch.config import Owner
from slmfetch.errors import FetchError
from slmfetch.store import NO_SPACE, Store, read_json, scan, write_json
from slmwire.manifest import Manifest, ManifestFile, digest_of
from slmwire.reasons import Reason

SUFFIX = ".json"
IMPORTER = Owner(namespace="_import", deployment="bundles")
"""Whose pins keep imported files until a deployment pins them; no namespace begins with `_`."""
_ADAPTERS: Final = "_adapters"


def adapters_of(owner: Owner) -> Owner:
    """Whose pins keep adapters that were trained here for a deployment.

    Apart from its revisions: those come and go by what serves, an adapter is there before any names it.
    """
    return Owner(namespace=_ADAPTERS, deployment=owner.key)


def owner_of(key: str) -> Owner:
    """Whom the pins in a folder below refs/ are for, be they of revisions or of adapters."""
    namespace, _, deployment = key.removeprefix(f"{_ADAPTERS}.").partition(".")
    return Owner(namespace=namespace, deployment=deployment)


class UnreadableRef(Exception):
    """A pin is there but cannot be understood, so nobody knows what it protects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """One pin. Times are seconds since the epoch, 0 for never, and only their order matters."""

    revision: str
    files: tuple[ManifestFile, ...]
    """Without URLs."""
    complete: bool = False
    """Every file was verified and the tree published; False while a fetch is under way."""
    fetched_at: float = 0.0
    """Latest fetch ahead of need, or its beginning."""
    served_at: float = 0.0
    """Latest start of a serving pod."""
    used_at: float = 0.0
    """Latest time that a server was seen holding the tree."""

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the manifest."""
        return digest_of(self.files)

    @property
    def last_used(self) -> float:
        """When it was last known to serve."""
        return max(self.served_at, self.used_at)

    def to_body(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "digest": self.digest,
            "complete": self.complete,
            "fetchedAt": self.fetched_at,
            "servedAt": self.served_at,
            "usedAt": self.used_at,
            "files": [[f.path, f.size, f.sha256] for f in self.files],
        }


def new_ref(revision: str, manifest: Manifest) -> Ref:
    """A pin for a fetch that begins."""
    files = tuple(ManifestFile(path=f.path, size=f.size, sha256=f.sha256) for f in manifest.files)
    return Ref(revision=revision, files=files)


def read_refs(store: Store, owner_key: str) -> dict[str, Ref]:
    """All pins of a deployment by revision; UnreadableRef if one is damaged."""
    return {
        entry.name.removesuffix(SUFFIX): _read(Path(entry.path))
        for entry in scan(store.refs / owner_key)
        if entry.name.endswith(SUFFIX) and not entry.name.startswith(".")
    }


def read_all_refs(store: Store) -> list[Ref]:
    """The pins of every deployment; UnreadableRef if one is damaged."""
    return [
        ref
        for entry in scan(store.refs)
        if entry.is_dir(follow_symlinks=False)
        for ref in read_refs(store, entry.name).values()
    ]


def write_ref(store: Store, owner: Owner, ref: Ref) -> None:
    """Store a pin durably."""
    folder = store.refs / owner.key
    folder.mkdir(mode=0o755, exist_ok=True)
    write_json(folder / f"{ref.revision}{SUFFIX}", ref.to_body())


def remove_ref(store: Store, owner: Owner, revision: str) -> None:
    """Drop a pin; one that is gone is fine."""
    (store.refs / owner.key / f"{revision}{SUFFIX}").unlink(missing_ok=True)


def explain_pin(store: Store, error: OSError) -> FetchError:
    """Why a pin cannot be written."""
    if error.errno in NO_SPACE:
        return FetchError(
            Reason.INSUFFICIENT_CAPACITY,
            f"the file system of {store.root} is full, not even a pin can be written; free space on the node",
        )
    return FetchError(Reason.INTERNAL_ERROR, f"cannot write a pin in {store.refs}: {error}")


def next_stamp(refs: Iterable[Ref]) -> float:
    """A time later than every one in `refs`.

    Edge devices without a battery-backed clock come up in the past, and order must survive that.
    """
    latest = max((max(r.fetched_at, r.last_used) for r in refs), default=0.0)
    return max(time.time(), latest + 0.001)


def mark_used(refs: Mapping[str, Ref], revisions: Iterable[str], stamp: float) -> dict[str, Ref]:
    """The pins whose tree a server holds right now, with `used_at` brought up to date."""
    return {r: replace(refs[r], used_at=stamp) for r in revisions if r in refs}


def select_kept(
    refs: Mapping[str, Ref], *, fetching: str, in_use: Iterable[str], keep_previous: int
) -> frozenset[str]:
    """Revisions of one deployment whose pins stay.

    Kept are: the revision being fetched; whatever a server holds; the last served one and
    `keep_previous` before it (all of a tie at the cut: one of them is the current one); and the
    newest revision fetched ahead but not served since, which a coming wave counts on.
    """
    kept = {fetching, *in_use}
    served = sorted((r for r in refs.values() if r.last_used > 0), key=lambda r: r.last_used, reverse=True)
    if served:
        cut = served[min(keep_previous, len(served) - 1)].last_used
        kept |= {r.revision for r in served if r.last_used >= cut}
    ahead = [r for r in refs.values() if r.fetched_at > r.last_used]
    if ahead:
        kept.add(max(ahead, key=lambda r: (r.fetched_at, r.revision)).revision)
    return frozenset(kept & refs.keys())


def _read(path: Path) -> Ref:
    body = read_json(path)
    try:
        if body is None:
            raise ValueError("not a JSON object")
        files = tuple(
            ManifestFile(path=str(name), size=int(size), sha256=str(sha256))
            for name, size, sha256 in body["files"]
        )
        ref = Ref(
            revision=path.name.removesuffix(SUFFIX),
            files=files,
            complete=bool(body["complete"]),
            fetched_at=float(body["fetchedAt"]),
            served_at=float(body["servedAt"]),
            used_at=float(body["usedAt"]),
        )
        if ref.digest != body["digest"]:
            raise ValueError("its digest does not match its files")
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UnreadableRef(f"{path}: {error}") from error
    return ref
