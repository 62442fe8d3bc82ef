# SPDX-License-Identifier: Apache-2.0
"""What counts as a change, for whom, and that a world tells of it."""

from slmops.runtime.onlooker import Onlooker
from slmops.runtime.resource import DeploymentKey
from tests.unit.page.kit import KitFleet, rolling_status, settled_status

KEY = DeploymentKey("ns", "orders")
OTHER = DeploymentKey("ns", "other")


def fleet_of_two() -> KitFleet:
    fleet = KitFleet()
    for key in (KEY, OTHER):
        fleet.deployment(key, settled_status())
    return fleet


def test_a_new_status_concerns_its_deployment() -> None:
    fleet = fleet_of_two()
    before = fleet.feed.version
    fleet.deployment(KEY, rolling_status())
    assert fleet.feed.changed_since(before) == (KEY,)
    assert fleet.feed.version_of(KEY) == fleet.feed.version
    assert [metric for metric, _ in fleet.feed.history(KEY).series] == ["errors"]


def test_a_pod_concerns_its_deployment() -> None:
    fleet = fleet_of_two()
    fleet.node("n0")
    before = fleet.feed.version
    fleet.pod(OTHER, "n0", "one")
    assert OTHER in fleet.feed.changed_since(before)


def test_a_node_of_no_deployment_concerns_the_fleet_alone() -> None:
    fleet = fleet_of_two()
    before = fleet.feed.version
    fleet.node("n0", edge="false")
    assert fleet.feed.version > before
    assert fleet.feed.changed_since(before) == ()


def test_the_lease_concerns_all() -> None:
    fleet = fleet_of_two()
    before = fleet.feed.version
    fleet.feed.all_changed()
    assert set(fleet.feed.changed_since(before)) == {KEY, OTHER}


def test_who_is_gone_is_forgotten_and_stays_so() -> None:
    fleet = fleet_of_two()
    fleet.deployment(KEY, rolling_status())
    fleet.world.forget_deployment(KEY)
    before = fleet.feed.version
    fleet.feed.changed(KEY)
    assert fleet.feed.changed_since(0) == (OTHER,)
    assert fleet.feed.version > before
    assert fleet.feed.history(KEY).series == {}


def test_another_deployment_of_the_same_name_begins_anew() -> None:
    fleet = KitFleet()
    fleet.deployment(KEY, rolling_status())
    fleet.deployment(KEY, {}, uid="another")
    assert fleet.feed.history(KEY).series == {}


def test_waiters_are_told_until_they_leave() -> None:
    fleet = fleet_of_two()
    with fleet.feed.waiting() as event:
        fleet.deployment(KEY, rolling_status())
        assert event.is_set()
    event.clear()
    fleet.deployment(KEY, settled_status())
    assert not event.is_set()


def test_without_a_page_nobody_looks_on() -> None:
    nobody = Onlooker()
    nobody.changed(KEY)
    nobody.all_changed()
    nobody.gone(KEY)
