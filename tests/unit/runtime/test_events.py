# SPDX-License-Identifier: Apache-2.0
"""Events: one per transition, bounded, and never a reason to stop."""

import asyncio
from typing import Any

from slmops.adapters.errors import Forbidden, KubeError, Unavailable
from slmops.model.observed import Deployment
from slmops.model.plan import Transition
from slmops.runtime import events as events_module
from slmops.runtime.events import EventPoster, build_event
from slmops.runtime.resource import parse_deployment
from tests.unit.runtime.fakes import FakeClock, FakeKube, deployment_body


def _deployment() -> Deployment:
    return parse_deployment(deployment_body(resourceVersion="1")).deployment


def _transition(message: str = "revision abc is rolled out") -> Transition:
    return Transition(kind="Normal", reason="RolloutStarted", message=message)


class Bench:
    """A poster that runs against a fake API."""

    def __init__(self) -> None:
        self.kube, self.clock, self.dropped = FakeKube(), FakeClock(), 0
        client: Any = self.kube
        self.poster = EventPoster(
            client, clock=self.clock, instance="me", may_write=lambda: True, on_drop=self._drop
        )

    def _drop(self) -> None:
        self.dropped += 1

    async def drain(self, seconds: float = 0.05) -> list[dict[str, Any]]:
        task = asyncio.create_task(self.poster.run())
        await asyncio.sleep(seconds)
        task.cancel()
        return [body for (plural, _, _), body in self.kube.objects.items() if plural == "events"]


def test_event_is_about_the_deployment_and_within_limits() -> None:
    body = build_event(_deployment(), _transition("x" * 3000), at=1_700_000_000.5, instance="i" * 200)
    assert body["regarding"]["uid"] == "uid"
    assert body["metadata"]["namespace"] == body["regarding"]["namespace"] == "ns"
    assert len(body["note"]) == 1024
    assert len(body["reportingInstance"]) == 128
    assert body["eventTime"] == "2023-11-14T22:13:20.500000Z"
    assert body["action"] and body["reason"] == "RolloutStarted"


async def test_repeated_event_is_posted_once_until_some_time_has_passed() -> None:
    bench = Bench()
    for _ in range(5):
        bench.poster.post(_deployment(), _transition())
    bench.poster.post(_deployment(), _transition("another"))
    assert len(await bench.drain()) == 2
    bench.clock.seconds += events_module.REPEAT_SECONDS + 1
    bench.poster.post(_deployment(), _transition())
    assert len(await bench.drain()) == 3


async def test_full_queue_drops_and_counts() -> None:
    bench = Bench()
    for index in range(events_module.QUEUE_LIMIT + 3):
        bench.poster.post(_deployment(), _transition(str(index)))
    assert bench.dropped == 3


async def test_refusal_is_dropped_and_an_outage_tried_again() -> None:
    bench = Bench()
    answers: list[KubeError | None] = [Forbidden("no", status=403), Unavailable("away"), None]
    bench.kube.fails = lambda line: answers.pop(0)
    bench.poster.post(_deployment(), _transition("refused"))
    bench.poster.post(_deployment(), _transition("second try"))
    found = await bench.drain(1.3)
    assert [body["note"] for body in found] == ["second try"]
