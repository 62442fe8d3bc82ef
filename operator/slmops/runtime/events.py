# SPDX-License-Identifier: Apache-2.0
"""Posts Kubernetes Events: one per transition, in the background, never more than the API server bears."""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from slmops.adapters.errors import Conflict, Forbidden, Invalid, KubeError, NotFound
from slmops.adapters.kube import KubeClient
from slmops.adapters.resources import EVENTS
from slmops.api import API_VERSION
from slmops.model.plan import Transition
from slmops.ports.clock import Clock

QUEUE_LIMIT: Final = 1000
REPEAT_SECONDS: Final = 300.0
"""The same event about the same object is not posted again within this time."""
NOTE_LIMIT: Final = 1024
CONTROLLER: Final = "slmops.dev/operator"
_REMEMBERED: Final = 2000
_ATTEMPTS: Final = 3
_log = logging.getLogger(__name__)


class Subject(Protocol):
    """The object that an event is about."""

    @property
    def kind(self) -> str: ...

    @property
    def namespace(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def uid(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Post:
    subject: Subject
    transition: Transition
    at: float


class EventPoster:
    """Queues events and posts them one after another while `run` runs."""

    def __init__(
        self,
        kube: KubeClient,
        *,
        clock: Clock,
        instance: str,
        may_write: Callable[[], bool],
        on_drop: Callable[[], None] = lambda: None,
        on_post: Callable[[Subject, Transition, float], None] = lambda *post: None,
    ) -> None:
        """`on_post` is called with each event that is queued and the time, in seconds since the epoch."""
        self._kube = kube
        self._clock = clock
        self._instance = instance
        self._may_write = may_write
        self._on_drop = on_drop
        self._on_post = on_post
        self._queue: asyncio.Queue[_Post] = asyncio.Queue(QUEUE_LIMIT)
        self._posted: dict[tuple[str, str, str], float] = {}

    def post(self, subject: Subject, transition: Transition) -> None:
        """Queue an event; dropped when it was posted lately or the queue is full."""
        now = self._clock.now()
        identity = (subject.uid, transition.reason, transition.message)
        if now - self._posted.get(identity, float("-inf")) < REPEAT_SECONDS:
            return
        self._posted.pop(identity, None)
        self._posted[identity] = now
        self._on_post(subject, transition, now)
        while len(self._posted) > _REMEMBERED:
            del self._posted[next(iter(self._posted))]
        try:
            self._queue.put_nowait(_Post(subject=subject, transition=transition, at=now))
        except asyncio.QueueFull:
            self._on_drop()

    async def run(self) -> None:
        """Post until cancelled."""
        while True:
            post = await self._queue.get()
            await self._send(post)

    async def _send(self, post: _Post) -> None:
        body = build_event(post.subject, post.transition, at=post.at, instance=self._instance)
        for attempt in range(_ATTEMPTS):
            if not self._may_write():
                return
            try:
                await self._kube.create(EVENTS, namespace=post.subject.namespace, body=body)
                return
            except Conflict:
                return  # an attempt before did arrive
            except (Forbidden, Invalid, NotFound) as error:
                _log.warning("event not posted: %s", error)
                return
            except KubeError as error:
                _log.debug("event not posted yet: %s", error)
                await asyncio.sleep(2.0**attempt)
        self._on_drop()


def build_event(subject: Subject, transition: Transition, *, at: float, instance: str) -> dict[str, Any]:
    """An events.k8s.io/v1 Event about a subject.

    The name follows from the content, so a repeated attempt is refused as existing.
    """
    text = f"{subject.uid}/{transition.reason}/{transition.message}/{at:.3f}"
    name = f"{subject.name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        "metadata": {"name": name, "namespace": subject.namespace},
        "eventTime": datetime.fromtimestamp(at, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": CONTROLLER,
        "reportingInstance": instance[:128],
        "action": "Rollout",
        "type": transition.kind,
        "reason": transition.reason[:128],
        "note": transition.message[:NOTE_LIMIT],
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": subject.kind,
            "namespace": subject.namespace,
            "name": subject.name,
            "uid": subject.uid,
        },
    }
