# SPDX-License-Identifier: Apache-2.0
"""What the fuzz tests found, each kept as a test of its own."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from slmops.adapters.reflector import Key, Reflector
from slmops.adapters.resources import PODS
from slmops.adapters.trim import seconds_of, trim_node, trim_owned
from slmops.model.observed import OwnedKind
from slmops.planning.times import to_seconds, to_text
from slmops.runtime.models.resource import parse_model
from slmops.runtime.resource import parse_deployment
from slmwire.distribution import FILE_KEY, parse_distribution
from tests.unit.fuzz.bodies import specs_of
from tests.unit.fuzz.robot import Robot
from tests.unit.fuzz.test_fuzz_spec import run, sound_nodes


def test_a_node_with_memory_beyond_all_numbers_has_unknown_memory() -> None:
    node = trim_node({"metadata": {"name": "n"}, "status": {"allocatable": {"memory": "9" * 400}}})
    assert node.allocatable_memory_bytes == 0


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00", "9999-12-31T23:59:59", "0001-01-01", "x"])
def test_times_beyond_all_clocks_are_no_overflow(text: str) -> None:
    assert isinstance(seconds_of(text), float)
    with contextlib.suppress(ValueError):
        to_seconds(text)
    assert to_text(1e300) == "9999-12-31T23:59:59Z"
    assert to_text(-5) == "1970-01-01T00:00:00Z"


@pytest.mark.parametrize("text", ["yesterday", "2025-06-15", "0001-01-01T00:00:00Z", "9999-99-99T00:00:00Z"])
def test_a_time_in_status_that_is_none_is_refused_by_name(text: str) -> None:
    """A plan that met it failed at each look, and no condition said why."""
    condition = {"type": "Ready", "status": "True", "reason": "R", "message": "", "lastTransitionTime": text}
    metadata = {"name": "a", "namespace": "n", "uid": "u"}
    stored = parse_deployment({"metadata": metadata, "spec": {}, "status": {"conditions": [condition]}})
    assert stored.status_error.startswith("status does not parse: status.conditions[0].lastTransitionTime: ")
    status = {"source": {"reference": "r", "digest": "d", "checkedAt": text}}
    assert "status.source" in parse_model({"metadata": metadata, "status": status}).status_error


def test_a_config_map_that_is_nested_without_end_is_no_distribution() -> None:
    """Whoever may write a ConfigMap with our label ended the operator with it."""
    deep = "[" * 100_000
    with pytest.raises(ValueError, match="nested"):
        parse_distribution(deep)
    body = {"metadata": {"name": "orders-distribution"}, "data": {FILE_KEY: deep}}
    assert trim_owned(OwnedKind.CONFIG_MAP, body).content is None


@pytest.mark.parametrize(
    "spoilt",
    [
        {"name": "../x"},
        {"name": {"a": 1}},
        {"name": "a" * 64},
        {"serve": None},
        {"serve": {"spec": {}}},
        {"prefetch": {"spec": {"containers": []}, "metadata": {"labels": {}}}},
        {"nodeSelector": 5},
        {"memory": "9" * 400},
    ],
)
def test_a_revision_that_somebody_changed_is_not_carried_out(spoilt: dict[str, Any]) -> None:
    robot = Robot(specs_of("SLMDeployment")[-1], nodes=sound_nodes())
    run(robot, 4)
    [revision] = [o for (kind, _), o in robot.objects.items() if kind is OwnedKind.CONTROLLER_REVISION]
    sound = json.loads(json.dumps(revision["data"]))
    revision["data"]["variants"][0] |= spoilt
    run(robot, 3)
    assert revision["data"] != sound
    [stored] = [o for (kind, _), o in robot.objects.items() if kind is OwnedKind.CONTROLLER_REVISION]
    assert stored["data"] == sound, "it is made anew from spec"


class _OneOdd:
    """A list with an object between two others that nobody can read."""

    async def list(self, *_: Any, **__: Any) -> AsyncGenerator[dict[str, Any]]:
        items = [{"metadata": {"name": name, "resourceVersion": "5"}} for name in ("a", "odd", "z")]
        yield {"metadata": {"resourceVersion": "9"}, "items": items}

    async def watch(self, *_: Any, **__: Any) -> AsyncGenerator[dict[str, Any]]:
        body = {"metadata": {"name": "z", "resourceVersion": "10", "odd": True}}
        yield {"type": "MODIFIED", "object": body}
        await asyncio.Event().wait()


async def test_one_object_that_cannot_be_read_does_not_end_the_operator() -> None:
    def trim(body: Any) -> str:
        if body["metadata"]["name"] == "odd" or "odd" in body["metadata"]:
            raise RuntimeError("unforeseen")
        return str(body["metadata"]["name"])

    seen: list[tuple[Key, str | None, str | None]] = []
    done = asyncio.Event()

    def changed(key: Key, old: str | None, new: str | None) -> None:
        seen.append((key, old, new))
        if new is None:
            done.set()

    api: Any = _OneOdd()
    reflector: Reflector[str] = Reflector(api, PODS, trim=trim, on_change=changed)
    task = asyncio.create_task(reflector.run())
    await asyncio.wait_for(done.wait(), 10)
    assert reflector.values() == ["a"]
    assert seen[-1] == (("", "z"), "z", None), "what can no longer be read is as good as gone"
    task.cancel()
