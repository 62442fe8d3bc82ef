# SPDX-License-Identifier: Apache-2.0
"""What has changed since somebody looked: a number that grows, and who waits for it to grow."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from slmops.api import KIND
from slmops.model.observed import Deployment
from slmops.model.plan import Transition
from slmops.page.documents import EventRow, shorten
from slmops.page.history import History
from slmops.planning import times
from slmops.runtime.events import Subject
from slmops.runtime.onlooker import Onlooker
from slmops.runtime.resource import DeploymentKey


class Feed(Onlooker):
    """Counts changes and keeps histories. While nobody waits a change costs two dictionary accesses."""

    def __init__(self) -> None:
        self.version = 1
        self._versions: dict[DeploymentKey, int] = {}
        self._histories: dict[DeploymentKey, History] = {}
        self._waiters: set[asyncio.Event] = set()

    # What the operator tells

    def changed(self, key: DeploymentKey | None) -> None:
        """Implements Onlooker."""
        self.version += 1
        if key in self._versions:
            self._versions[key] = self.version
        for waiter in self._waiters:
            waiter.set()

    def status_seen(self, deployment: Deployment) -> None:
        """Implements Onlooker."""
        key = DeploymentKey(deployment.namespace, deployment.name)
        history = self._histories.get(key)
        if history is None or history.uid != deployment.uid:
            # Another one of that name: a stream that was cut off tells of no deletion.
            history = self._histories[key] = History(uid=deployment.uid)
        history.take_in(deployment.status)
        self._versions.setdefault(key, 0)
        self.changed(key)

    def all_changed(self) -> None:
        """Implements Onlooker."""
        self.changed(None)
        self._versions = dict.fromkeys(self._versions, self.version)

    def gone(self, key: DeploymentKey) -> None:
        """Implements Onlooker."""
        self._versions.pop(key, None)
        self._histories.pop(key, None)
        self.changed(None)

    def event_posted(self, subject: Subject, transition: Transition, at: float) -> None:
        """Implements Onlooker."""
        history = self._histories.get(DeploymentKey(subject.namespace, subject.name))
        if subject.kind != KIND or history is None:
            return
        history.events.append(
            EventRow(
                at=times.to_text(at),
                warning=transition.kind == "Warning",
                reason=transition.reason,
                message=shorten(transition.message),
            )
        )
        self.changed(DeploymentKey(subject.namespace, subject.name))

    # What the page asks

    def history(self, key: DeploymentKey) -> History:
        """History of a deployment; an empty one for a deployment that is not known."""
        return self._histories.get(key) or History()

    def version_of(self, key: DeploymentKey) -> int:
        """Version of the latest change that concerns a deployment; else of any change."""
        return self._versions.get(key, self.version)

    def changed_since(self, version: int) -> tuple[DeploymentKey, ...]:
        """Deployments that have changed after a version."""
        return tuple(key for key, at in self._versions.items() if at > version)

    @contextmanager
    def waiting(self) -> Iterator[asyncio.Event]:
        """An event that is set at each change, while the block runs."""
        event = asyncio.Event()
        self._waiters.add(event)
        try:
            yield event
        finally:
            self._waiters.discard(event)
