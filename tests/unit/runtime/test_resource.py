# SPDX-License-Identifier: Apache-2.0
"""Parsing of SLMDeployments, and what the world does with their versions."""

from typing import Any

from slmops.runtime.resource import is_newer, parse_deployment
from slmops.runtime.world import World
from tests.unit.runtime.fakes import FakeKube, deployment_body


def _at(version: int, **metadata: Any) -> dict[str, Any]:
    return deployment_body(resourceVersion=str(version), **metadata)


def test_spec_that_does_not_parse_names_the_field() -> None:
    body = _at(1)
    body["spec"]["variants"][0]["name"] = "Not A Name"
    stored = parse_deployment(body)
    assert stored.deployment.spec is None
    assert stored.deployment.spec_error.startswith("spec.variants[0].name: ")
    body = _at(1)
    del body["spec"]["model"]
    assert parse_deployment(body).deployment.spec_error.startswith("spec.model: ")


def test_spec_is_parsed_once_per_generation() -> None:
    first = parse_deployment(_at(1))
    again = parse_deployment(_at(2), first)
    assert again.deployment.spec is first.deployment.spec
    assert parse_deployment(_at(3, generation=2), again).deployment.spec is not first.deployment.spec
    assert parse_deployment(_at(3, uid="other"), again).deployment.spec is not first.deployment.spec


def test_status_that_does_not_parse_is_no_empty_status() -> None:
    body = _at(1)
    body["status"] = {"nodes": "many"}
    assert parse_deployment(body).status_error.startswith("status does not parse: status.nodes: ")


def test_deletion_and_finalizer() -> None:
    stored = parse_deployment(_at(1, deletionTimestamp="2026-01-01T00:00:00Z", finalizers=["x"]))
    assert stored.deployment.deleting_since == 1767225600
    assert not stored.deployment.has_finalizer
    assert parse_deployment(_at(1)).deployment.has_finalizer


def test_only_later_versions_are_news() -> None:
    known = parse_deployment(_at(10))
    assert is_newer(_at(9), None)
    assert not is_newer(_at(9), known)
    assert not is_newer(_at(10), known)
    assert is_newer(_at(11), known)
    assert is_newer(_at(9, uid="made anew"), known)


def test_late_event_does_not_replace_the_answer_to_our_own_write() -> None:
    world = World(FakeKube(), namespaces=(), on_wake=lambda _: None)  # type: ignore[arg-type]
    assert world.take_in_deployment(_at(20))
    assert not world.take_in_deployment(_at(15))
    assert not world.take_in_deployment(_at(20))
    (key,) = world.keys
    stored = world.stored(key)
    assert stored is not None and stored.resource_version == "20"
