# SPDX-License-Identifier: Apache-2.0
"""Writes: their order, what follows a failure, and what is never done."""

from dataclasses import replace
from typing import Any

import pytest

from slmops.adapters.errors import Conflict, Forbidden, KubeError, Unavailable
from slmops.adapters.resources import DEPLOYMENTS, NODES, SERVICES
from slmops.api import SLMDeploymentStatus
from slmops.api.privacy import Privacy
from slmops.model.observed import OwnedKind
from slmops.model.plan import (
    Action,
    AddFinalizer,
    ApplyObject,
    DeleteObject,
    PatchNodeLabels,
    RemoveFinalizer,
)
from slmops.runtime.execute import Executor
from slmops.runtime.metrics import OperatorMetrics
from slmops.runtime.refusals import ForeignObject, WritesForbidden
from slmops.runtime.resource import DeploymentKey, StoredDeployment
from slmops.runtime.world import World
from slmwire.labels import DEPLOYMENT, MANAGED_BY, MANAGED_BY_VALUE, REVISION
from tests.unit.runtime.fakes import NAME, NAMESPACE, FakeKube, store_deployment

KEY = DeploymentKey(NAMESPACE, NAME)
PREFIX = f"{NAME}.{NAMESPACE}.slmops.dev/"


class Bench:
    """An executor over a fake API that holds one SLMDeployment and two nodes."""

    def __init__(self, **metadata: Any) -> None:
        self.kube = FakeKube()
        self.world = World(self.kube, namespaces=(), on_wake=lambda _: None)  # type: ignore[arg-type]
        self.world.take_in_deployment(store_deployment(self.kube, **metadata))
        for node in ("a", "b"):
            self.kube.add(NODES, {"metadata": {"name": node, "labels": {"edge": "true"}}})
        self.allowed = True
        self.executor = Executor(
            self.kube,  # type: ignore[arg-type]
            self.world,
            OperatorMetrics(),
            may_write=lambda: self.allowed,
        )

    @property
    def stored(self) -> StoredDeployment:
        found = self.world.stored(KEY)
        assert found is not None
        return found

    async def act(self, *actions: Action) -> list[type[KubeError]]:
        failures = await self.executor.apply_actions(self.stored.deployment, actions)
        return [type(failure.error) for failure in failures]


def apply(kind: OwnedKind = OwnedKind.DAEMON_SET, *, revision: str = "r1", name: str = "w") -> ApplyObject:
    labels = {MANAGED_BY: MANAGED_BY_VALUE, DEPLOYMENT: NAME, REVISION: revision}
    return ApplyObject(kind=kind, name=name, body={"metadata": {"name": name, "labels": labels}}, why="test")


def patch(node: str, **labels: str | None) -> PatchNodeLabels:
    return PatchNodeLabels(node=node, labels={PREFIX + k: v for k, v in labels.items()}, why="test")


async def test_status_is_replaced_under_the_version_that_was_planned_from() -> None:
    bench = Bench()
    before = bench.stored
    await bench.executor.apply_status(before, SLMDeploymentStatus(stable_revision="r1"))
    assert bench.stored.deployment.status.stable_revision == "r1", "read back at once"
    with pytest.raises(Conflict):
        await bench.executor.apply_status(before, SLMDeploymentStatus(stable_revision="r2"))
    assert bench.stored.deployment.status.stable_revision == "r1"


async def test_actions_in_order_and_owned_objects_have_their_owner() -> None:
    bench = Bench()
    assert await bench.act(apply(), patch("a", r1="int4"), DeleteObject(
        kind=OwnedKind.SERVICE, name="gone", why="test")) == []  # fmt: skip
    assert [line for line in bench.kube.log if not line.startswith("get")] == [
        "apply daemonsets/w", "patch nodes/a", "delete services/gone",
    ]  # fmt: skip
    stored = bench.kube.objects[("daemonsets", NAMESPACE, "w")]
    (owner,) = stored["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("SLMDeployment", "uid", True)


async def test_node_that_is_gone_is_no_failure() -> None:
    assert await Bench().act(patch("missing", r1="int4")) == []


async def test_failure_stops_only_what_depends_on_it() -> None:
    bench = Bench()
    bench.kube.fails = lambda line: Unavailable("no", status=503) if line == "apply daemonsets/w" else None
    failures = await bench.act(
        apply(),
        apply(name="w2", revision="r2"),
        patch("a", r1="int4"),
        patch("b", r2="int4", r1=None),
        RemoveFinalizer(),
    )
    assert failures == [Unavailable]
    labels = {name: bench.kube.objects[("nodes", "", name)]["metadata"]["labels"] for name in "ab"}
    assert labels["a"] == {"edge": "true"}, "its DaemonSet is not there: it keeps what it has"
    assert labels["b"] == {"edge": "true", PREFIX + "r2": "int4"}
    assert not any(line.startswith("patch slmdeployments") for line in bench.kube.log)


@pytest.mark.parametrize(
    ("egress", "why", "given"),
    [
        ("Denied", "missing", ["b"]),
        ("Denied", "nodes changed", ["a", "b"]),
        ("Sources", "missing", ["a", "b"]),
    ],
)
async def test_no_pod_is_let_run_open_that_is_to_reach_nothing(
    egress: str, why: str, given: list[str]
) -> None:
    bench = Bench()
    deployment = bench.stored.deployment
    assert deployment.spec is not None
    spec = deployment.spec.model_copy(update={"privacy": Privacy.model_validate({"egress": egress})})
    bench.kube.fails = lambda line: Forbidden("no", status=403) if "networkpolicies" in line else None
    policy = replace(apply(OwnedKind.NETWORK_POLICY, revision="", name=f"{NAME}-confine"), why=why)
    move = PatchNodeLabels(node="a", labels={f"{PREFIX}0123456789": "int4"}, why="test")
    fetch = PatchNodeLabels(node="b", labels={f"{PREFIX}0123456789.prefetch": "int4"}, why="test")
    failures = await bench.executor.apply_actions(replace(deployment, spec=spec), [policy, move, fetch])
    assert [type(failure.error) for failure in failures] == [Forbidden]
    patched = [
        name
        for (plural, _, name), body in bench.kube.objects.items()
        if plural == "nodes" and any(k.startswith(PREFIX) for k in body["metadata"]["labels"])
    ]
    assert patched == given


async def test_node_that_cannot_be_patched_does_not_stop_the_others() -> None:
    bench = Bench()
    bench.kube.fails = lambda line: Unavailable("no", status=500) if line == "patch nodes/a" else None
    assert await bench.act(patch("a", r1="int4"), patch("b", r1="int4")) == [Unavailable]
    assert PREFIX + "r1" in bench.kube.objects[("nodes", "", "b")]["metadata"]["labels"]


async def test_foreign_object_is_never_taken_over() -> None:
    bench = Bench()
    theirs = {"metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"app": "theirs"}}}
    bench.kube.add(SERVICES, theirs)
    assert await bench.act(apply(OwnedKind.SERVICE, name=NAME)) == [ForeignObject]
    assert "apply services/orders" not in bench.kube.log


async def test_own_object_that_lost_its_labels_is_taken_back() -> None:
    bench = Bench()
    stripped = {"metadata": {"name": NAME, "namespace": NAMESPACE, "ownerReferences": [{"uid": "uid"}]}}
    bench.kube.add(SERVICES, stripped)
    assert await bench.act(apply(OwnedKind.SERVICE, name=NAME)) == []


async def test_finalizer_is_added_once_and_keeps_others() -> None:
    bench = Bench(finalizers=["theirs"])
    assert await bench.act(AddFinalizer()) == []
    stored = bench.kube.objects[("slmdeployments", NAMESPACE, NAME)]
    assert stored["metadata"]["finalizers"] == ["theirs", "slmops.dev/cleanup"]
    assert bench.stored.deployment.has_finalizer


async def test_finalizer_is_removed_only_from_an_object_that_is_being_deleted() -> None:
    bench = Bench()
    # What the caches believed is wrong: the live object is not being deleted.
    assert await bench.act(RemoveFinalizer()) == []
    stored = bench.kube.objects[("slmdeployments", NAMESPACE, NAME)]
    assert stored["metadata"]["finalizers"] == ["slmops.dev/cleanup"]

    stored["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    bench.kube.add(DEPLOYMENTS, stored)
    assert await bench.act(RemoveFinalizer()) == []
    assert bench.kube.objects[("slmdeployments", NAMESPACE, NAME)]["metadata"]["finalizers"] == []


async def test_finalizer_of_another_object_of_that_name_is_left_alone() -> None:
    bench = Bench()
    deployment = bench.stored.deployment
    store_deployment(bench.kube, uid="made anew", deletionTimestamp="2026-01-01T00:00:00Z")
    assert await bench.executor.apply_actions(deployment, [RemoveFinalizer()]) == []
    stored = bench.kube.objects[("slmdeployments", NAMESPACE, NAME)]
    assert stored["metadata"]["finalizers"] == ["slmops.dev/cleanup"]


async def test_nothing_is_written_without_the_lease() -> None:
    bench = Bench()
    bench.allowed = False
    before = list(bench.kube.log)
    failures = await bench.act(apply(), patch("a", r1="int4"), AddFinalizer())
    assert set(failures) == {WritesForbidden}
    with pytest.raises(WritesForbidden):
        await bench.executor.apply_status(bench.stored, SLMDeploymentStatus())
    assert bench.kube.log == before
