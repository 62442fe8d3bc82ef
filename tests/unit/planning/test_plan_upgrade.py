# SPDX-License-Identifier: Apache-2.0
"""What an earlier release left behind is planned as it was: an upgrade of the operator moves nothing.

`before_distribution.json` is a fleet of two nodes as the release before sources, signatures and distribution
left it: its objects, nodes and pods, the status and the spec.
"""

import json
from pathlib import Path

from slmops.api import SLMDeploymentStatus
from slmops.model.observed import OwnedKind
from slmops.model.plan import ApplyObject, DeleteObject, PatchNodeLabels
from slmwire.labels import Role
from tests.unit.planning.fleet_cluster import SimNode, SimPod
from tests.unit.planning.fleet_sim import FleetSim


def left_behind() -> FleetSim:
    body = json.loads((Path(__file__).parent / "before_distribution.json").read_text())
    sim = FleetSim(body["spec"])
    sim.now, sim.generation, sim.has_finalizer = body["now"], body["gen"], True
    sim.status = SLMDeploymentStatus.model_validate(body["status"])
    sim.cluster.objects = {(OwnedKind(kind), name): value for kind, name, value in body["objects"]}
    sim.cluster.nodes = {n["name"]: SimNode(**n | {"cache": set(n["cache"])}) for n in body["nodes"]}
    sim.cluster.pods = [SimPod(**pod | {"role": Role(pod["role"])}) for pod in body["pods"]]
    return sim


def test_an_upgrade_restarts_nothing_and_rolls_nothing_out() -> None:
    sim = left_behind()
    objects, stable = json.loads(json.dumps([*sim.cluster.objects.items()])), sim.status.stable_revision
    pods = [(pod.node, pod.workload, pod.created_at) for pod in sim.cluster.pods]
    sim.run(300)
    assert [(pod.node, pod.workload, pod.created_at) for pod in sim.cluster.pods] == pods
    assert (sim.step, sim.status.stable_revision) == ("Completed", stable)
    actions = [action for look in sim.looks for action in look.plan.actions]
    assert not any(isinstance(action, PatchNodeLabels | DeleteObject) for action in actions)
    new = [a.name for a in actions if isinstance(a, ApplyObject) and a.why in ("missing", "new revision")]
    policies = ["orders-confine", "orders-fetch"]
    assert new == ["orders-distribution", *policies]
    del sim.cluster.objects[OwnedKind.CONFIG_MAP, "orders-distribution"]
    for name in policies:
        del sim.cluster.objects[OwnedKind.NETWORK_POLICY, name]
    after = {(kind.value, name): body for (kind, name), body in sim.cluster.objects.items()}
    assert after == {(kind, name): body for (kind, name), body in objects}, "nothing is written otherwise"


def test_the_way_back_to_an_earlier_releases_revision_is_open() -> None:
    sim = left_behind()
    before = sim.revision_of("v1")
    assert sim.ask("undo", before).outcome == "Done"
    sim.settle()
    assert set(sim.versions().values()) == {"v1"} and sim.status.stable_revision == before
