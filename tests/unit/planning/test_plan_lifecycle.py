# SPDX-License-Identifier: Apache-2.0
"""Bad input, drift, history and deletion: what surrounds the rollouts."""

from dataclasses import replace

from slmops.model.observed import OwnedKind
from slmops.model.plan import ApplyObject, DeleteObject, PatchNodeLabels
from slmops.planning.plan import plan
from tests.unit.planning.fleet_situations import installed, reach
from tests.unit.planning.fleet_spec import GIB

ONE_FITS = GIB + GIB // 4


def test_unreachable_source_leaves_what_serves_alone() -> None:
    sim = installed(3)
    sim.unresolvable.add("v2")
    sim.set_version("v2")
    sim.run(600)
    assert set(sim.versions().values()) == {"v1"} and all(map(sim.cluster.serving, sim.cluster.nodes))
    assert sim.condition("ModelResolved") == ("False", "SourceUnavailable")
    assert sim.condition("Progressing") == ("False", "ModelNotResolved")
    assert sim.condition("Ready") == ("True", "AllNodesReady")
    assert len([look for look in sim.looks if look.at > sim.now - 300]) < 40, "looks only when a try is due"
    sim.unresolvable.clear()
    sim.run(40)
    sim.settle()
    assert sim.version == "v2"


def test_a_new_spec_is_never_complete_before_its_files_are_known() -> None:
    sim = installed(2)
    before = len(sim.looks)
    sim.set_version("v2")
    sim.settle()
    told = [
        next((c.status, c.reason) for c in look.plan.status.conditions if c.type == "Progressing")
        for look in sim.looks[before:]
    ]
    assert told[0] == ("True", "Resolving")
    assert told.index(("False", "Complete")) > told.index(("True", "Flipping"))


def test_a_pod_that_admission_refuses_is_hinted_at() -> None:
    sim = installed(2)
    observed = sim.observed()
    refused = replace(observed, pods=tuple(pod for pod in observed.pods if pod.node != "n1"))
    ready = next(c for c in plan(refused, sim.now).status.conditions if c.type == "Ready")
    assert (ready.status, ready.reason) == ("False", "NodesNotReady")
    assert "n1: no pod yet" in ready.message and "kubectl describe daemonset" in ready.message


def test_source_that_cannot_be_found_at_first_is_not_ready() -> None:
    sim = installed(3)
    sim.status = sim.status.model_copy(update={"stable_revision": "", "rollout": None})
    sim.unresolvable.add("v2")
    sim.set_version("v2")
    sim.cluster.nodes["n0"].online = False
    for pod in sim.cluster.pods:
        if pod.node == "n1":
            pod.phase, pod.phase_at = "Broken", sim.now + 1e6
    sim.run(20)
    assert sim.condition("Ready") == ("False", "ModelNotResolved")


def test_invalid_spec_touches_nothing() -> None:
    sim = installed(3)
    writes = sim.writes
    sim.edit(cache={"hostPath": "/etc"})
    sim.run(60)
    assert sim.writes == writes + 1 and sim.condition("Accepted") == ("False", "HostPathNotAllowed")
    assert sim.condition("Ready") == ("True", "AllNodesReady")


def test_waves_that_make_no_sense_stop_the_rollout_and_nothing_else() -> None:
    sim = installed(3)
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.edit(rollout={"waves": [{"name": "half", "percent": 50}]})
    sim.add_node("late")
    sim.run(7200)
    assert sim.condition("Accepted") == ("False", "InvalidWaves")
    assert sim.condition("Progressing") == ("False", "NotAccepted")
    assert sorted(sim.versions().values()) == ["v1", "v1", "v1", "v2"], "a new node gets what is stable"
    sim.edit(rollout={"waves": [{"name": "canary", "percent": 10}, {"name": "rest", "percent": 100}]})
    sim.settle()
    assert set(sim.versions().values()) == {"v2"} and sim.condition("Accepted") == ("True", "Accepted")


def test_deleted_workload_and_label_come_back() -> None:
    sim = installed(3)
    for key in [k for k in sim.cluster.objects if k[0] is not OwnedKind.CONTROLLER_REVISION]:
        del sim.cluster.objects[key]
    sim.run(30)
    for label in sim.our_labels()["n0"]:
        del sim.cluster.nodes["n0"].labels[label]
    sim.run(60)
    assert all(map(sim.cluster.serving, sim.cluster.nodes))
    kinds = {kind for kind, _ in sim.cluster.objects}
    assert kinds == set(OwnedKind) - {OwnedKind.DEPLOYMENT}


def test_history_is_limited_and_never_loses_what_is_in_use() -> None:
    sim = installed(4, maxUnavailable="100%")
    sim.set_online("n3", online=False)
    sim.edit(revisionHistoryLimit=2, rollout={"quorumPercent": 50})
    for version in ("v2", "v3", "v4", "v5", "v6"):
        sim.set_version(version)
        sim.settle()
    kept = {
        body["data"]["modelVersion"]
        for (kind, _), body in sim.cluster.objects.items()
        if kind is OwnedKind.CONTROLLER_REVISION
    }
    assert sim.version == "v6" and kept == {"v1", "v4", "v5", "v6"}, "v1 is on the node that is away"


def test_plan_without_finalizer_writes_only_that() -> None:
    sim = installed(2)
    sim.has_finalizer = False
    outcome = plan(sim.observed(), sim.now)
    assert [type(action).__name__ for action in outcome.actions] == ["AddFinalizer"]


def test_deletion_cleans_nodes_and_caches_before_the_finalizer_goes() -> None:
    sim = installed(4)
    sim.set_online("n3", online=False)
    sim.delete()
    assert sim.run_until(lambda: sim.gone, limit_seconds=200)
    assert sim.our_labels() == {} and not sim.has_finalizer
    assert [bool(node.cache) for node in sim.cluster.nodes.values()] == [False, False, False, True]


def test_deletion_may_keep_caches() -> None:
    sim = installed(3)
    sim.edit(cache={"deletionPolicy": "Retain"})
    sim.run(5)
    sim.delete()
    assert sim.run_until(lambda: sim.gone, limit_seconds=60)
    assert sim.our_labels() == {} and all(node.cache for node in sim.cluster.nodes.values())


def test_deletion_mounts_no_folder_that_the_administrator_refuses() -> None:
    sim = installed(3)
    sim.edit(cache={"hostPath": "/etc"})
    sim.run(5)
    assert sim.condition("Accepted") == ("False", "HostPathNotAllowed")
    sim.delete()
    assert sim.run_until(lambda: sim.gone, limit_seconds=60)
    written = [a.name for look in sim.looks for a in look.plan.actions if isinstance(a, ApplyObject)]
    assert sim.our_labels() == {} and "orders-release" not in written


def test_deletion_in_mid_change_over_leaves_no_label() -> None:
    sim = installed(4, memory_bytes=ONE_FITS)
    sim.set_version("v2")
    assert sim.run_until(lambda: any("moving" in k for ls in sim.our_labels().values() for k in ls))
    sim.delete()
    assert sim.run_until(lambda: sim.gone, limit_seconds=200)
    assert sim.our_labels() == {}


def test_deletion_does_not_wait_for_ever_for_a_node_that_cannot_clean_up() -> None:
    sim = installed(2)
    sim.cluster.nodes["n0"].fetch_seconds = 1e6
    sim.delete()
    assert not sim.run_until(lambda: sim.gone, limit_seconds=250)
    assert sim.run_until(lambda: sim.gone, limit_seconds=100)
    assert sim.our_labels() == {}


def test_three_writes_move_a_node() -> None:
    for memory_bytes in (4 * GIB, ONE_FITS):
        sim = installed(6, memory_bytes=memory_bytes)
        before = len(sim.looks)
        sim.set_version("v2")
        sim.settle()
        patches = [
            a for look in sim.looks[before:] for a in look.plan.actions if isinstance(a, PatchNodeLabels)
        ]
        assert len(patches) <= 3 * 6
        deletes = [a for look in sim.looks[before:] for a in look.plan.actions if isinstance(a, DeleteObject)]
        assert {a.kind for a in deletes} == {OwnedKind.DAEMON_SET, OwnedKind.CONFIG_MAP}
