# SPDX-License-Identifier: Apache-2.0
"""The reflector against a scripted API: lists, watches, 410, and our own writes."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from slmops.adapters.errors import Gone, Unavailable
from slmops.adapters.reflector import Key, Reflector
from slmops.adapters.resources import NODES

Body = dict[str, Any]


def node(name: str, version: int, value: str = "x") -> Body:
    """A Node whose trimmed value is `value`."""
    return {"metadata": {"name": name, "resourceVersion": str(version)}, "value": value}


class ScriptedApi:
    """Serves one list after the other, and one watch after the other; the last watch stays open."""

    def __init__(self, lists: list[tuple[int, list[list[Body]]]], watches: list[list[Any]]) -> None:
        self.lists, self.watches = lists, watches
        self.asked_versions: list[str] = []
        self.listed = 0

    async def list(self, *_: Any, **__: Any) -> AsyncGenerator[Body]:
        self.listed += 1
        version, pages = self.lists.pop(0)
        for page in pages:
            yield {"metadata": {"resourceVersion": str(version)}, "items": page}

    async def watch(self, *_: Any, resource_version: str, **__: Any) -> AsyncGenerator[Body]:
        self.asked_versions.append(resource_version)
        if not self.watches:
            await asyncio.Event().wait()
        for event in self.watches.pop(0):
            if isinstance(event, Exception):
                raise event
            yield {"type": event[0], "object": event[1]}


class Run:
    """A reflector that runs, and the changes that it reported."""

    def __init__(self, api: ScriptedApi) -> None:
        self.changes: list[tuple[str, str | None, str | None]] = []
        self.reflector: Reflector[str] = Reflector(
            api,  # type: ignore[arg-type]
            NODES,
            trim=lambda body: str(body["value"]),
            on_change=self._changed,
            backoff_seconds=0.01,
        )

    def _changed(self, key: Key, old: str | None, new: str | None) -> None:
        self.changes.append((key[1], old, new))

    async def until(self, test: Callable[[], bool]) -> None:
        task = asyncio.create_task(self.reflector.run())
        try:
            async with asyncio.timeout(5):
                while not test():  # noqa: ASYNC110 - what is waited for has no event of its own
                    await asyncio.sleep(0.005)
        finally:
            task.cancel()


async def test_list_in_pages_then_watch_from_its_version() -> None:
    api = ScriptedApi(
        [(10, [[node("a", 3)], [node("b", 7)]])],
        [[("ADDED", node("c", 11)), ("MODIFIED", node("a", 12, "y")), ("DELETED", node("b", 13))]],
    )
    run = Run(api)
    await run.until(lambda: len(run.changes) == 5)
    assert run.changes == [
        ("a", None, "x"), ("b", None, "x"), ("c", None, "x"), ("a", "x", "y"), ("b", "x", None),
    ]  # fmt: skip
    assert api.asked_versions[0] == "10"
    assert sorted(run.reflector.values()) == ["x", "y"]
    assert run.reflector.synced.is_set()


async def test_events_that_change_no_value_are_not_reported() -> None:
    beats = [("MODIFIED", node("a", 11 + i)) for i in range(100)]
    api = ScriptedApi([(10, [[node("a", 3)]])], [[*beats, ("MODIFIED", node("a", 200, "y"))]])
    run = Run(api)
    await run.until(lambda: run.reflector.get(("", "a")) == "y")
    assert run.changes == [("a", None, "x"), ("a", "x", "y")]


async def test_watch_goes_on_where_it_was_after_an_error() -> None:
    api = ScriptedApi(
        [(10, [[]])],
        [
            [("BOOKMARK", {"metadata": {"resourceVersion": "40"}}), Unavailable("silent")],
            [("ADDED", node("a", 41))],
        ],
    )
    run = Run(api)
    await run.until(lambda: len(run.changes) == 1)
    assert api.asked_versions[:2] == ["10", "40"]
    assert api.listed == 1


async def test_after_410_a_list_finds_what_was_deleted_meanwhile() -> None:
    api = ScriptedApi(
        [(10, [[node("a", 3), node("b", 4)]]), (50, [[node("b", 4), node("c", 45)]])],
        [[Gone("expired")]],
    )
    run = Run(api)
    await run.until(lambda: api.listed == 2 and len(run.changes) >= 4)
    assert run.changes[2:] == [("c", None, "x"), ("a", "x", None)]


async def test_own_write_is_seen_at_once_and_not_undone_by_older_events() -> None:
    api = ScriptedApi([(10, [[node("a", 3)]])], [])
    run = Run(api)
    await run.until(lambda: run.reflector.synced.is_set())
    reflector = run.reflector
    reflector.put(node("a", 20, "mine"))
    assert reflector.get(("", "a")) == "mine"
    api.watches = [
        [
            ("MODIFIED", node("a", 15, "older")),
            ("DELETED", node("a", 16)),  # deleted and made anew by our write of version 20
            ("ADDED", node("a", 20, "mine")),
            ("ADDED", node("z", 21)),
        ]
    ]
    await run.until(lambda: reflector.get(("", "z")) is not None)
    assert ("a", "mine", "older") not in run.changes
    assert reflector.get(("", "a")) == "mine"


async def test_own_write_that_the_stream_has_passed_does_not_come_back_to_life() -> None:
    api = ScriptedApi([(10, [[]])], [[("ADDED", node("a", 11)), ("DELETED", node("a", 12))]])
    run = Run(api)
    await run.until(lambda: len(run.changes) == 2)
    run.reflector.put(node("a", 11))
    assert run.reflector.get(("", "a")) is None


async def test_list_does_not_remove_what_was_written_after_it() -> None:
    api = ScriptedApi([(10, [[]]), (30, [[]])], [])
    run = Run(api)
    await run.until(lambda: run.reflector.synced.is_set())
    run.reflector.put(node("a", 25))
    run.reflector.put(node("b", 35))
    api.watches = [[Gone("expired")]]
    await run.until(lambda: api.listed == 2)
    assert run.reflector.get(("", "a")) is None
    assert run.reflector.get(("", "b")) == "x"


async def test_server_that_ends_every_watch_at_once_is_not_asked_in_a_tight_loop() -> None:
    api = ScriptedApi([(10, [[]])], [[] for _ in range(1000)])
    run = Run(api)
    task = asyncio.create_task(run.reflector.run())
    await asyncio.sleep(0.4)
    task.cancel()
    assert len(api.asked_versions) < 12
