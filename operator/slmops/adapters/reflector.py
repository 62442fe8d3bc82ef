# SPDX-License-Identifier: Apache-2.0
"""List+watch of one resource type that keeps a trimmed value per object and nothing else.

Rules that it keeps: pages of a list and a watch from its version; a list again after 410, with
deletions found by comparison; an event that changes no trimmed value is not reported, so a fleet's
heartbeats cost nothing; a value read from an answer to a write of ours is taken in at once and never
replaced by an older one from the stream.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any, Final, Generic, TypeVar

from slmops.adapters.errors import Gone, KubeError
from slmops.adapters.kube import KubeClient
from slmops.adapters.resources import Resource

T = TypeVar("T")
Key = tuple[str, str]
"""(namespace, name); the namespace of a cluster-scoped object is empty."""

_log = logging.getLogger(__name__)
BACKOFF_SECONDS: Final = 0.5
BACKOFF_LIMIT_SECONDS: Final = 10.0


class Reflector(Generic[T]):
    """Keeps `trim` of every object of a resource type up to date while `run` runs.

    `on_change(key, old, new)` is called in the event loop for each change; old is None for a new
    object and new is None for one that is gone. It must not block.
    """

    def __init__(
        self,
        kube: KubeClient,
        resource: Resource,
        *,
        trim: Callable[[Mapping[str, Any]], T],
        on_change: Callable[[Key, T | None, T | None], None],
        namespace: str = "",
        label_selector: str = "",
        backoff_seconds: float = BACKOFF_SECONDS,
    ) -> None:
        self.resource = resource
        self.namespace = namespace
        self.synced = asyncio.Event()
        """Set once the first list is complete."""
        self.tried = asyncio.Event()
        """Set once the first list is complete or has failed."""
        self._kube = kube
        self._trim = trim
        self._on_change = on_change
        self._selector = label_selector
        self._backoff_seconds = backoff_seconds
        self._items: dict[Key, tuple[int, T]] = {}
        self._version = ""
        """Where the stream stands; empty asks for a list."""

    def values(self) -> list[T]:
        """All trimmed values."""
        return [value for _, value in self._items.values()]

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: Key) -> T | None:
        """The trimmed value of an object."""
        item = self._items.get(key)
        return item[1] if item else None

    def put(self, body: Mapping[str, Any]) -> None:
        """Take in the answer to a write of ours; ignored when the stream is further already.

        What the stream has passed it has reported, a deletion after the write included.
        """
        if version_of(body) > _number(self._version):
            self._store(body)

    async def run(self) -> None:
        """List and watch until cancelled; errors are logged and tried again with back-off."""
        failures = 0
        while True:
            started = asyncio.get_running_loop().time()
            try:
                if not self._version:
                    await self._list()
                await self._watch()
                error: KubeError | None = None
            except Gone as gone:
                self._version = ""
                error = gone
                _log.info("%s: the watch expired, listing again", self.resource.plural)
            except KubeError as failed:
                error = failed
                if failures in (0, 3) or failures % 20 == 0:
                    _log.warning("%s: %s; trying again", self.resource.plural, failed)
            self.tried.set()
            lasted = asyncio.get_running_loop().time() - started
            if error is None and lasted > 1:
                failures = 0
                continue
            # A server that ends each watch at once must not be asked in a tight loop either.
            failures = 0 if lasted > 30 else failures + 1
            limit = min(BACKOFF_LIMIT_SECONDS, self._backoff_seconds * 2 ** min(failures - 1, 10))
            await asyncio.sleep(limit * random.uniform(0.5, 1.0))

    async def _list(self) -> None:
        seen: set[Key] = set()
        version = ""
        async with aclosing(
            self._kube.list(self.resource, namespace=self.namespace, label_selector=self._selector)
        ) as pages:
            async for page in pages:
                version = version or str(page["metadata"]["resourceVersion"])
                for body in page.get("items") or ():
                    seen.add(self._store(body))
        listed = _number(version)
        for key in [k for k in self._items if k not in seen]:
            self._remove(key, until=listed)
        self._version = version
        self.synced.set()
        self.tried.set()

    async def _watch(self) -> None:
        async with aclosing(
            self._kube.watch(
                self.resource,
                namespace=self.namespace,
                label_selector=self._selector,
                resource_version=self._version,
            )
        ) as events:
            async for event in events:
                body = event["object"]
                match event["type"]:
                    case "ADDED" | "MODIFIED":
                        self._store(body)
                    case "DELETED":
                        # A write of ours may have made the object anew before this was read.
                        self._remove(key_of(body), until=version_of(body))
                    case _:
                        pass
                self._version = str(body["metadata"]["resourceVersion"])

    def _store(self, body: Mapping[str, Any]) -> Key:
        key, version = key_of(body), version_of(body)
        known = self._items.get(key)
        if known is not None and known[0] >= version:
            return key
        try:
            value = self._trim(body)
        except Exception:
            # One object that somebody made unreadable must not end the operator for all others.
            _log.exception("%s %s cannot be read and is left out", self.resource.plural, "/".join(key))
            if known is not None:
                self._remove(key, until=version)
            return key
        self._items[key] = (version, value)
        old = known[1] if known else None
        if old != value:
            self._on_change(key, old, value)
        return key

    def _remove(self, key: Key, *, until: int) -> None:
        known = self._items.get(key)
        if known is not None and known[0] <= until:
            del self._items[key]
            self._on_change(key, known[1], None)


def key_of(body: Mapping[str, Any]) -> Key:
    """(namespace, name) of an object."""
    metadata = body["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def version_of(body: Mapping[str, Any]) -> int:
    """resourceVersion as a number: the Kubernetes API has promised since 1.35 that they compare so."""
    return _number(str(body["metadata"].get("resourceVersion", "")))


def _number(version: str) -> int:
    return int(version) if version.isdigit() else 0
