# SPDX-License-Identifier: Apache-2.0
"""The store agent of a node: gives blobs to the site's other nodes, tells what the store holds, tidies up.

It holds no credential and trusts nobody: whoever reaches its port may read blobs whose sha256 they know
and what /v1/store says, and may change nothing.
"""

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from slmfetch.agent_blobs import answer_blob
from slmfetch.agent_http import Limits, Reply, Request, Server
from slmfetch.agent_metrics import Counts, render_metrics
from slmfetch.errors import FetchError
from slmfetch.examples import expire_examples
from slmfetch.housekeeping import tidy
from slmfetch.inventory import observe_store
from slmfetch.log import log
from slmfetch.refs import SUFFIX
from slmfetch.store import Store, read_json, scan
from slmwire.paths import AGENT_BLOBS, AGENT_STORE, PATH_HEALTH, PATH_METRICS

OBSERVE_SECONDS: Final = 1.0
"""What the store holds is looked at once in this time, however many ask."""
MAX_PROGRESS: Final = 64
MAX_STORES: Final = 16
_LISTS: Final = ("partials", "trees", "pins", "quarantined", "problems")
NAME_DIGITS: Final = 12
"""Of a blob's hash, what is told to anybody: enough to know it by, too little to ask for it."""
_SUMS: Final = ("bytes", "reclaimableBytes", "blobs")


def find_stores(root: Path) -> list[Store]:
    """The store at `root`, and those in folders directly below: teams may keep theirs apart.

    Never its examples: by namespaces and names of their choice people could make them look like a store.
    """
    below = [
        Store(Path(entry.path))
        for entry in scan(root)
        if entry.is_dir(follow_symlinks=False)
        and not entry.name.startswith(".")
        and entry.name != Store(root).examples.name
    ]
    return [Store(root), *[store for store in below if _is_store(store)][:MAX_STORES]]


def _is_store(store: Store) -> bool:
    folders = (store.blobs.parent, store.blobs, store.partial, store.refs)
    return all(folder.is_dir() and not folder.is_symlink() for folder in folders)


class Agent:
    """Answers requests about the stores of one node, see `find_stores`."""

    def __init__(
        self, root: Path, *, node: str = "", address: str = "127.0.0.1", port: int = 0,
        limits: Limits | None = None,
    ) -> None:  # fmt: skip
        self._root, self._node = root, node
        self.server = Server(address=address, port=port, answer=self.answer, limits=limits)
        self._lock = threading.Lock()
        self._stores: tuple[float, list[Store]] | None = None
        self._observed: tuple[float, dict[str, Any]] | None = None
        self._collections = self._collection_errors = self._collected_bytes = 0

    def answer(self, request: Request) -> Reply:
        """The reply to one request. A query string is refused along with all that is not known."""
        path = request.path
        if path.startswith(AGENT_BLOBS):
            return answer_blob(self._find_stores(), request)
        if path == AGENT_STORE:
            text = json.dumps(self._observe(), separators=(",", ":"))
            return _text(text, "application/json")
        if path == PATH_METRICS:
            observed = self._observe()
            text = render_metrics(observed, observed["progress"], self._counts(), node=self._node)
            return _text(text, "text/plain; version=0.0.4; charset=utf-8")
        if path == PATH_HEALTH:
            return _text("ok\n", "text/plain; charset=utf-8")
        return Reply(status=404)

    def collect(self) -> None:
        """Clear away orphans and expired examples once; a failure is logged and counted."""
        for store in find_stores(self._root):
            expire_examples(store)
            try:
                done = tidy(store)
            except (FetchError, OSError) as error:
                log("could not collect", level="warning", store=str(store.root), why=str(error))
                self._collection_errors += 1
                continue
            self._collections += 1
            self._collected_bytes += done.bytes

    def _find_stores(self) -> list[Store]:
        with self._lock:
            now = time.monotonic()
            if self._stores is None or now - self._stores[0] >= OBSERVE_SECONDS:
                self._stores = (now, find_stores(self._root))
            return self._stores[1]

    def _observe(self) -> dict[str, Any]:
        stores = self._find_stores()
        with self._lock:
            now = time.monotonic()
            if self._observed is None or now - self._observed[0] >= OBSERVE_SECONDS:
                body = {
                    "node": self._node,
                    **_observe_stores(stores),
                    "progress": [row for store in stores for row in observe_progress(store)],
                    "sentBytes": self.server.bytes_sent,
                }
                self._observed = (now, body)
            return self._observed[1]

    def _counts(self) -> Counts:
        return Counts(
            sent_bytes=self.server.bytes_sent,
            connections=self.server.connections,
            refused=self.server.refused,
            collections=self._collections,
            collection_errors=self._collection_errors,
            collected_bytes=self._collected_bytes,
        )


def _observe_stores(stores: Sequence[Store]) -> dict[str, Any]:
    """As `observe_store` for the first, with what is in the others added to it, and no blob's whole hash: who
    knows that can read the blob."""
    first, *others = (observe_store(store) for store in stores)
    for other in others:
        for key in _SUMS:
            first[key] += other[key]
        for key in _LISTS:
            first[key] += other[key]
    first["partials"] = [{**row, "sha256": row["sha256"][:NAME_DIGITS]} for row in first["partials"]]
    first["quarantined"] = [name[:NAME_DIGITS] for name in first["quarantined"]]
    return first


def observe_progress(store: Store) -> list[dict[str, Any]]:
    """What fetches under way say of themselves, with namespace, deployment and revision."""
    found = []
    for entry in scan(store.root / "progress")[:MAX_PROGRESS]:
        # A namespace has no dot, and neither has the hash that names a revision.
        namespace, _, rest = entry.name.removesuffix(SUFFIX).partition(".")
        deployment, _, revision = rest.rpartition(".")
        if entry.name.startswith(".") or not entry.name.endswith(SUFFIX) or not deployment:
            continue
        if not entry.is_file(follow_symlinks=False):
            continue
        body = read_json(Path(entry.path))
        if body is not None:
            found.append({**body, "namespace": namespace, "deployment": deployment, "revision": revision})
    return found


def run_agent(store: Store, *, address: str, port: int, node: str, collect_seconds: float) -> None:
    """Serve until a signal arrives; collect at the start and every `collect_seconds`."""
    agent = Agent(store.root, node=node, address=address, port=port)

    def collect_forever() -> None:
        while True:
            agent.collect()
            time.sleep(collect_seconds)

    threading.Thread(target=collect_forever, daemon=True).start()
    log("store agent listens", address=address, port=agent.server.port, store=str(store.root))
    try:
        agent.server.serve()
    finally:
        agent.server.close()


def _text(text: str, content_type: str) -> Reply:
    return Reply(status=200, headers={"Content-Type": content_type}, body=text.encode())
