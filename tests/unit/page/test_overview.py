# SPDX-License-Identifier: Apache-2.0
"""The overview's document: counters, order, and no more of an object than is meant."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from slmops.page.documents import MAX_TEXT, Health
from slmops.runtime.resource import DeploymentKey
from tests.unit.page.kit import KitFleet, condition, rolling_status, settled_status

KEY = DeploymentKey("ns", "orders")


def overview(fleet: KitFleet) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(fleet.source.take_overview()())
    return document


def health(status: dict[str, Any]) -> str:
    fleet = KitFleet()
    fleet.deployment(KEY, status)
    (row,) = overview(fleet)["deployments"]
    return str(row["health"])


def with_condition(status: dict[str, Any], *changed: dict[str, Any]) -> dict[str, Any]:
    kept = [entry for entry in status["conditions"] if entry["type"] not in {c["type"] for c in changed}]
    return status | {"conditions": [*kept, *changed]}


def test_an_empty_fleet_is_a_document() -> None:
    document = overview(KitFleet())
    assert document["deployments"] == []
    assert set(document["counters"].values()) == {0}


def test_counters_and_order() -> None:
    fleet = KitFleet()
    for number in range(4):
        fleet.node(f"n{number}", site=f"s{number % 2}" if number < 3 else "", ready=number > 0)
    fleet.deployment(DeploymentKey("a", "settled"), settled_status())
    fleet.deployment(DeploymentKey("b", "rolling"), rolling_status())
    held = with_condition(
        rolling_status(), condition("Progressing", "False", "AwaitingApproval", "approve it")
    )
    fleet.deployment(DeploymentKey("c", "held"), held)
    failed = with_condition(settled_status(), condition("Accepted", "False", "InvalidSpec", "spec.x: wrong"))
    fleet.deployment(DeploymentKey("d", "failing"), failed)
    document = overview(fleet)
    assert [row["name"] for row in document["deployments"]] == ["failing", "held", "rolling", "settled"]
    assert document["counters"] == {
        "deployments": 4, "nodes": 4, "nodesReady": 3, "sites": 2, "rolling": 2, "held": 1, "failing": 1,
    }  # fmt: skip
    assert document["sites"] == [
        {"name": "s0", "nodes": 2, "ready": 1},
        {"name": "s1", "nodes": 1, "ready": 1},
    ]
    rolling = next(row for row in document["deployments"] if row["name"] == "rolling")
    assert (rolling["step"], rolling["wave"], rolling["waveNumber"], rolling["waves"]) == (
        "Analysing",
        "pilot",
        1,
        2,
    )


def test_health_is_said_by_what_matters_most() -> None:
    offline = settled_status() | {"nodes": {"total": 3, "ready": 2, "offline": 1}}
    offline = with_condition(offline, condition("Ready", "False", "NodesOffline"))
    rolled_back = with_condition(settled_status(), condition("RolloutSucceeded", "False", "AnalysisFailed"))
    pinned = with_condition(settled_status(), condition("RolloutSucceeded", "False", "Pinned"))
    going_back = rolling_status(step="RollingBack")
    going_back = with_condition(going_back, condition("Progressing", "True", "RollingBack"))
    assert health({}) == Health.UNKNOWN
    assert health(settled_status()) == Health.OK
    assert health(rolling_status()) == Health.ROLLING
    assert health(offline) == Health.OFFLINE
    assert health(rolled_back) == Health.FAILING
    assert health(pinned) == Health.OK
    assert health(going_back) == Health.FAILING


def test_a_spec_that_does_not_parse_is_a_row() -> None:
    fleet = KitFleet()
    fleet.deployment(KEY, {}, spec={"variants": "none"})
    (row,) = overview(fleet)["deployments"]
    assert (row["health"], row["reason"]) == ("failing", "InvalidSpec")
    assert "spec.variants" in row["message"]


def test_nothing_of_a_spec_or_source_is_told() -> None:
    fleet = KitFleet()
    source = {
        "http": {"url": "https://models.example/PLANTED/m.json", "secretRef": {"name": "planted-secret"}}
    }
    fleet.deployment(KEY, rolling_status(), spec={"variants": [{"name": "int4", "source": source}]})
    take = fleet.source.take_deployment(KEY)
    assert take is not None
    told = fleet.source.take_overview()() + take()
    assert b"PLANTED" not in told
    assert b"planted-secret" not in told


@given(st.text(max_size=3 * MAX_TEXT))
def test_any_message_is_told_as_it_is_in_ascii(message: str) -> None:
    fleet = KitFleet()
    status = with_condition(settled_status(), condition("Ready", "False", "NodesNotReady", message[:2000]))
    fleet.deployment(KEY, status)
    body = fleet.source.take_overview()()
    (row,) = json.loads(body)["deployments"]
    assert body.isascii()
    assert row["message"] == message or row["message"] == f"{message[: MAX_TEXT - 1]}…"
