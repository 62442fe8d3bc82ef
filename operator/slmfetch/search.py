# SPDX-License-Identifier: Apache-2.0
"""Brings a file that has no source: it was trained at the site, so nodes of the site alone have it."""

from collections.abc import Callable
from typing import Final

from slmfetch.errors import IntegrityError, TransferError
from slmfetch.exchange import MARKER_SUFFIX
from slmfetch.log import log
from slmfetch.partial import Partial
from slmfetch.peers import Peers, touch_marker
from slmfetch.store import Store
from slmfetch.tactics import PROGRESS_BYTES
from slmwire.distribution import Distribution
from slmwire.manifest import ManifestFile
from slmwire.reasons import Reason

CURE: Final = (
    "bring back a node that has it; when no node of the site has it any more, the operator goes on without "
    "it, and so it does when the site is taken out of spec.adaptation.sites"
)


def search_site(
    file: ManifestFile,
    partial: Partial,
    *,
    store: Store,
    peers: Peers,
    pause: Callable[[TransferError, int], None],
) -> None:
    """Make the file a verified blob, from another node of the site or because `keep` brings it meanwhile.

    `partial` is locked and restored. `pause` is told what is wrong and how many rounds in a row got
    nowhere; it sleeps, or raises when there were enough. No source is asked, whatever happens.
    """
    marker = store.partial / f"{file.sha256}{MARKER_SUFFIX}"
    # All along: nobody is to wait for us as for a node that is at the source.
    touch_marker(marker)
    try:
        _search(file, partial, store=store, peers=peers, pause=pause)
    finally:
        marker.unlink(missing_ok=True)


def _search(
    file: ManifestFile,
    partial: Partial,
    *,
    store: Store,
    peers: Peers,
    pause: Callable[[TransferError, int], None],
) -> None:
    failures = 0
    inherited = partial.offset > 0
    while not store.check_blob(file):
        start = partial.offset
        peers.search(file, partial)
        if partial.offset < file.size:
            failures = 1 if partial.offset - start >= PROGRESS_BYTES else failures + 1
            pause(_nowhere(file, peers.distribution(), peers.node), failures)
            continue
        actual = partial.publish()
        if not actual:
            log("fetched and verified", file=file.path, bytes=file.size, sha256=file.sha256)
            return
        log(
            "bytes do not match, they are deleted",
            level="warning",
            file=file.path,
            expected=file.sha256,
            actual=actual,
        )
        partial.reset()
        # Bytes of an earlier run may be the wrong ones; nobody knows any more who gave them.
        if not inherited and not peers.blame(file):
            raise IntegrityError(
                f"{file.path}: no {file.size} bytes have sha256 {file.sha256}; correct the manifest"
            )
        inherited = False
    partial.remove()


def _nowhere(file: ManifestFile, distribution: Distribution, node: str) -> TransferError:
    others = len(distribution.neighbours(node))
    if not distribution.peer_port:
        why = (
            "this node does not have it, and nodes of a site take nothing from each other here "
            "(spec.distribution.peers is None, or no store agents serve this store)"
        )
    elif not others:
        why = "this node does not have it, and its site has no other"
    else:
        why = f"neither this node nor any of the {others} others of its site that answers has it any more"
    return TransferError(
        Reason.ADAPTER_LOST, f"{file.path} was trained at the site and has no source; {why}; {CURE}",
        retryable=True,
    )  # fmt: skip
