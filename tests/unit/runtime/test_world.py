# SPDX-License-Identifier: Apache-2.0
"""Who is woken by what, and what counts as drift."""

import asyncio
from typing import Any

import pytest

from slmops.adapters.resources import APPS_DEPLOYMENTS, CONFIG_MAPS, DAEMON_SETS, NODES, PODS, SERVICES
from slmops.model.observed import OwnedKind
from slmops.runtime.resource import DeploymentKey
from slmops.runtime.world import World
from slmwire.labels import DEPLOYMENT
from tests.unit.runtime.fakes import NAME, NAMESPACE, FakeKube, store_deployment

KEY = DeploymentKey(NAMESPACE, NAME)


class Rig:
    """A world over a fake API, listed once."""

    def __init__(self) -> None:
        self.kube = FakeKube()
        self.woken: list[DeploymentKey] = []
        self.world = World(self.kube, namespaces=(), on_wake=self.woken.append)  # type: ignore[arg-type]
        self.world.take_in_deployment(store_deployment(self.kube))

    async def sync(self) -> None:
        tasks = [asyncio.create_task(r.run()) for r in self.world.reflectors]
        await self.world.wait_synced()
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        self.woken.clear()

    def owned(self, resource: Any, **metadata: Any) -> dict[str, Any]:
        return self.kube.add(
            resource,
            {
                "metadata": {
                    "name": NAME,
                    "namespace": NAMESPACE,
                    "labels": {DEPLOYMENT: NAME},
                    "ownerReferences": [{"uid": "uid"}],
                }
                | metadata
            },
        )


def _node(name: str, version: int, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version), "labels": labels}}


async def test_nodes_wake_only_the_deployments_they_concern() -> None:
    rig = Rig()
    await rig.sync()
    rig.world.take_in_node(_node("other", 1000, zone="a"))
    assert rig.woken == []
    rig.world.take_in_node(_node("edge", 1001, edge="true"))
    assert rig.woken == [KEY]
    rig.woken.clear()
    rig.world.take_in_node(_node("edge", 1002, edge="true"))
    assert rig.woken == [], "a heartbeat"
    rig.world.take_in_node(_node("edge", 1003))
    assert rig.woken == [KEY], "it leaves the placement"
    rig.woken.clear()
    rig.world.take_in_node(_node("other", 1004, **{f"{NAME}.{NAMESPACE}.slmops.dev/abc": "int4"}))
    assert rig.woken == [KEY], "it carries a label of the deployment"
    rig.woken.clear()
    rig.world.take_in_node(_node("far", 1005, **{f"x{NAME}.{NAMESPACE}.slmops.dev/abc": "int4"}))
    assert rig.woken == [], "a label of another deployment whose name ends alike"


async def test_pods_and_objects_wake_their_own() -> None:
    rig = Rig()
    labels = {DEPLOYMENT: NAME}
    rig.kube.add(PODS, {"metadata": {"name": "p", "namespace": NAMESPACE, "labels": labels}, "spec": {}})
    await rig.sync()
    assert [pod.view.name for pod in rig.world.pods_of(KEY)] == ["p"]
    rig.world.take_in_owned(OwnedKind.SERVICE, rig.owned(SERVICES))
    assert rig.woken == [KEY]
    assert list(rig.world.pods_of(DeploymentKey("elsewhere", NAME))) == []


async def test_objects_of_an_earlier_deployment_of_that_name_are_not_ours() -> None:
    rig = Rig()
    rig.owned(SERVICES, ownerReferences=[{"uid": "earlier"}])
    await rig.sync()
    assert list(rig.world.owned_by(KEY, "uid")) == []
    assert rig.world.is_known(OwnedKind.SERVICE, KEY, NAME)


@pytest.mark.parametrize(
    ("kind", "resource", "drifted"),
    [
        (OwnedKind.SERVICE, SERVICES, True),
        (OwnedKind.DAEMON_SET, DAEMON_SETS, True),
        (OwnedKind.DEPLOYMENT, APPS_DEPLOYMENTS, True),
        (OwnedKind.CONFIG_MAP, CONFIG_MAPS, False),
    ],
)
async def test_after_a_restart_what_can_be_changed_is_written_once(
    kind: OwnedKind, resource: Any, *, drifted: bool
) -> None:
    rig = Rig()
    rig.owned(resource)
    await rig.sync()
    (meta,) = rig.world.owned_by(KEY, "uid")
    assert rig.world.has_drifted(meta) is drifted
    answer = await rig.kube.get(resource, namespace=NAMESPACE, name=NAME)
    rig.world.take_in_owned(kind, answer)
    (meta,) = rig.world.owned_by(KEY, "uid")
    assert not rig.world.has_drifted(meta)


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 2},
        {"labels": {DEPLOYMENT: NAME, "added": "by somebody"}},
        {"uid": "made anew by somebody"},
    ],
)
async def test_change_by_somebody_else_is_drift(change: dict[str, Any]) -> None:
    rig = Rig()
    body = rig.owned(DAEMON_SETS)
    await rig.sync()
    rig.world.take_in_owned(OwnedKind.DAEMON_SET, body)
    (meta,) = rig.world.owned_by(KEY, "uid")
    assert not rig.world.has_drifted(meta)
    rig.owned(DAEMON_SETS, **({"uid": body["metadata"]["uid"]} | change))
    await rig.sync()
    (meta,) = rig.world.owned_by(KEY, "uid")
    assert rig.world.has_drifted(meta)


async def test_status_of_a_daemon_set_is_no_drift() -> None:
    rig = Rig()
    body = rig.owned(DAEMON_SETS)
    await rig.sync()
    rig.world.take_in_owned(OwnedKind.DAEMON_SET, body)
    rig.owned(DAEMON_SETS, uid=body["metadata"]["uid"])  # a new resourceVersion, the same generation
    await rig.sync()
    (meta,) = rig.world.owned_by(KEY, "uid")
    assert not rig.world.has_drifted(meta)


async def test_node_is_read_back_at_once_after_our_own_patch() -> None:
    rig = Rig()
    body = rig.kube.add(NODES, {"metadata": {"name": "edge", "labels": {"edge": "true"}}})
    await rig.sync()
    answer = await rig.kube.merge_patch(NODES, name="edge", body={"metadata": {"labels": {"new": "1"}}})
    rig.world.take_in_node(answer)
    node = rig.world.node("edge")
    assert node is not None and node.labels["new"] == "1"
    assert body["metadata"]["labels"] == {"edge": "true"}


async def test_a_deployment_sees_the_nodes_that_concern_it_and_no_others() -> None:
    rig = Rig()
    await rig.sync()
    ours = f"{NAME}.{NAMESPACE}.slmops.dev/abc"
    rig.world.take_in_node(_node("edge", 1000, edge="true"))
    rig.world.take_in_node(_node("left", 1001, **{ours: "int4"}))
    rig.world.take_in_node(_node("other", 1002, zone="a"))
    assert {view.name for view in rig.world.nodes_of(KEY)} == {"edge", "left"}
    rig.world.take_in_node(_node("edge", 1003))
    rig.world.take_in_node(_node("other", 1004, edge="true"))
    assert {view.name for view in rig.world.nodes_of(KEY)} == {"left", "other"}
    assert rig.world.node_count == 3
    body = store_deployment(rig.kube)
    body["spec"]["placement"]["nodeSelector"] = {}
    body["metadata"] |= {"resourceVersion": "2000", "generation": 2}
    rig.world.take_in_deployment(body)
    assert {view.name for view in rig.world.nodes_of(KEY)} == {"edge", "left", "other"}, "another placement"
