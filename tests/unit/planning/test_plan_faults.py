# SPDX-License-Identifier: Apache-2.0
"""Where rollouts used to stand still, flap or go too far: one test for each way."""

from dataclasses import replace
from typing import Any

import pytest

from slmops.model.observed import OwnedKind, Resolved
from slmops.model.plan import ApplyObject, DeleteObject, PatchNodeLabels
from slmops.planning.plan import plan
from slmops.planning.revision import source_hash
from slmwire.labels import Role
from slmwire.reasons import Termination
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_situations import installed, reach
from tests.unit.planning.fleet_spec import GIB, manifest_of

ONE_FITS = GIB + GIB // 4


def test_broken_node_outside_the_wave_does_not_use_up_the_budget() -> None:
    sim = installed(5, memory_bytes=ONE_FITS)
    sim.set_version("v2")
    sim.run(3)
    rest = next(
        name for name in sim.cluster.nodes if sim.status.rollout and not sim.our_labels()[name].get("x")
    )
    for pod in sim.cluster.pods:
        if pod.node == rest and pod.role == "serve":
            pod.phase, pod.restarts, pod.phase_at = "Broken", 5, sim.now + 1e6
    reach(sim, "Soaking")


def test_new_node_that_fetches_for_hours_does_not_use_up_the_budget() -> None:
    sim = installed(5, memory_bytes=ONE_FITS)
    sim.add_node("slow", memory_bytes=ONE_FITS, fetch_seconds=1e6)
    sim.set_version("v2")
    reach(sim, "Prefetching", wave=1)


def test_superseded_in_mid_change_over_does_not_wait_for_itself() -> None:
    sim = installed(3, behaviours={"v2": Behaviour(start_seconds=1e6)})
    sim.set_version("v2")
    assert sim.run_until(lambda: any(len(sim.given(name)) == 2 for name in sim.cluster.nodes))
    sim.set_version("v3")
    sim.settle()
    assert set(sim.versions().values()) == {"v3"}


def test_new_pod_that_does_not_fit_after_all_takes_the_old_ones_place() -> None:
    sim = installed(3)
    for node in sim.cluster.nodes.values():
        node.others_bytes = 4 * GIB - ONE_FITS
    sim.set_version("v2")
    sim.checks.clear()  # both fit by what the planner can see; the checks go by what is really free
    sim.settle()
    assert set(sim.versions().values()) == {"v2"}
    assert not any("moving" in key for labels in sim.our_labels().values() for key in labels)


@pytest.mark.parametrize(("allowed", "version"), [(0, "v1"), (1, "v2")])
def test_max_failures_tolerates_that_many(allowed: int, version: str) -> None:
    sim = installed(
        6, waves=[{"name": "all", "percent": 100}], maxFailures=allowed, maxUnavailable=3, quorumPercent=60
    )
    sim.cluster.behaviours["v2"] = Behaviour(crashes_on=frozenset({"n2"}))
    sim.set_version("v2")
    sim.settle()
    assert sim.version == version
    assert sim.status.rollout and sim.status.rollout.waves[0].failed <= 1


def test_nodes_that_join_a_wave_after_its_flip_are_taken_along() -> None:
    sim = installed(5)
    sim.set_version("v2")
    reach(sim, "Soaking")
    for index in range(25):
        sim.add_node(f"late{index}")
    sim.settle()
    assert sim.version == "v2" and sim.status.rollout
    assert sim.status.rollout.waves[0].nodes == 3, "10 % of 30"


def test_edited_waves_begin_with_a_fetch() -> None:
    sim = installed(6)
    sim.set_version("v2")
    reach(sim, "Soaking")
    lab = next(name for name, version in sim.versions().items() if version == "v1")
    sim.cluster.nodes[lab].labels["site"] = "lab"
    sim.edit(
        rollout={
            "waves": [
                {"name": "lab", "nodeSelector": {"matchLabels": {"site": "lab"}}},
                {"name": "canary", "percent": 40},
                {"name": "rest", "percent": 100},
            ]
        }
    )
    sim.run(1)
    assert (sim.step, sim.wave) == ("Prefetching", 0)
    sim.settle()
    assert sim.version == "v2"


def test_no_node_at_all_promotes_nothing_and_deletes_nothing() -> None:
    sim = installed(4)
    sim.set_version("v2")
    reach(sim, "Soaking")
    nodes, sim.cluster.nodes = sim.cluster.nodes, {}
    objects = set(sim.cluster.objects)
    sim.run(3600)
    assert sim.version == "v1" and set(sim.cluster.objects) == objects
    assert sim.condition("Progressing") == ("False", "NoMatchingNodes")
    sim.cluster.nodes = nodes
    sim.settle()
    assert sim.version == "v2"


def test_empty_waves_are_no_evidence() -> None:
    sim = installed(
        2,
        waves=[
            {"name": "lab", "nodeSelector": {"matchLabels": {"site": "lab"}}},
            {"name": "rest", "percent": 100},
        ],
    )
    sim.set_version("v2")
    reach(sim, "Soaking", wave=1)
    assert sim.status.rollout and sim.status.rollout.waves[0].verdict == "Skipped"
    for node in sim.cluster.nodes.values():
        node.labels["site"] = "lab"  # the judged wave loses its nodes before the verdict
    sim.run(1)
    assert sim.version == "v1"
    sim.settle()
    assert sim.version == "v2" and sim.status.rollout.waves[0].verdict == "Pass"


def test_lost_record_of_stable_moves_no_other_node() -> None:
    sim = installed(6)
    sim.set_version("v2")
    reach(sim, "Soaking")
    stable = sim.status.stable_revision
    del sim.cluster.objects[OwnedKind.CONTROLLER_REVISION, sim.names.controller_revision(stable)]
    sim.run(5)
    assert list(sim.versions().values()).count("v2") == 1, "the wave's own node"
    assert sum(bool(sim.cluster.serving(name)) for name in sim.cluster.nodes) == 6


def test_failed_nodes_go_back_before_they_take_a_fix() -> None:
    sim = installed(4, memory_bytes=ONE_FITS, waves=[{"name": "all", "percent": 100}])
    sim.cluster.behaviours["v2"] = Behaviour(score=0.5)
    sim.set_version("v2")
    reach(sim, "RollingBack")
    assert "v2" in sim.versions().values(), "the limit makes it take a while"
    for node in sim.cluster.nodes.values():
        node.fetch_seconds = 3600
    sim.set_version("v3")
    sim.run(60)
    assert set(sim.versions().values()) == {"v1"}, "a bad revision does not serve on while a fix is fetched"
    sim.settle(limit_seconds=9 * 3600)
    assert sim.version == "v3"


def test_baseline_outlives_the_rollout_that_measured_it() -> None:
    sim = installed(3, waves=[{"name": "all", "percent": 100}], behaviours={"v2": Behaviour(score=None)})
    sim.set_version("v2")
    reach(sim, "Analysing")
    # Resolved at once, so that the nodes go from v2 to v3 and no node serves v1 any more.
    sim.set_version("v3")
    source = sim.spec.variants[0].source
    assert source.http is not None
    found = Resolved(manifest=manifest_of(source.http.url), reference=source.http.url)
    sim._memory.resolutions[source_hash(source)] = found
    sim.settle()
    assert sim.version == "v3"


def test_new_node_serves_stable_first_even_in_the_wave_under_way() -> None:
    sim = installed(3, waves=[{"name": "all", "percent": 100}])
    for node in sim.cluster.nodes.values():
        node.fetch_seconds = 600
    sim.set_version("v2")
    reach(sim, "Prefetching")
    sim.add_node("new")
    sim.run(30)
    assert sim.versions()["new"] == "v1" and sim.cluster.serving("new")
    sim.settle()
    assert sim.versions()["new"] == "v2"


@pytest.mark.parametrize(
    ("seen", "failed"),
    [
        ({"waiting_reason": "ImagePullBackOff"}, False),
        ({"unschedulable": True}, False),
        ({"termination": Termination(reason="SourceUnavailable", message="no route")}, False),
        ({"waiting_reason": "InvalidImageName"}, True),
        ({"termination": Termination(reason="made up by a thief", message="x" * 4000)}, True),
        ({"restarts": 1}, False),
        ({"restarts": 2}, True),
        ({"restarts": 1, "last_exit_reason": "OOMKilled", "ready": True}, True),
    ],
)
def test_what_counts_as_the_revisions_own_failure(seen: dict[str, Any], failed: bool) -> None:
    sim = installed(5)
    sim.set_version("v2")
    assert sim.run_until(lambda: any("v2" in version for version in sim.versions().values()))
    sim.run(0.5)
    observed, revision = sim.observed(), sim.status.update_revision
    pods = tuple(
        replace(p, **{"ready": False, **seen}) if p.revision == revision and p.role is Role.SERVE else p
        for p in observed.pods
    )
    outcome = plan(replace(observed, pods=pods), sim.now)
    assert bool(outcome.status.failed_revisions) == failed
    assert all(entry.reason.isalnum() for entry in outcome.status.worst_nodes)


def test_variant_changes_with_the_nodes_labels() -> None:
    sim = installed(3, memory_bytes=2 * GIB + GIB // 2)
    variants = [
        {**sim.spec_body["variants"][0], "name": "gpu", "nodeSelector": {"matchLabels": {"gpu": "yes"}}},
        sim.spec_body["variants"][0],
    ]
    sim.edit(variants=variants)
    sim.settle()
    sim.cluster.nodes["n1"].labels["gpu"] = "yes"
    sim.run(60)
    assert list(sim.given("n1").values()) == ["gpu"] and sim.cluster.serving("n1")
    assert list(sim.our_labels()["n1"].values()) == ["gpu"]
    del sim.cluster.nodes["n1"].labels["gpu"]
    sim.run(60)
    assert list(sim.given("n1").values()) == ["int4"]


def test_node_without_a_variant_keeps_what_it_has_and_is_reported() -> None:
    sim = installed(3)
    sim.cluster.nodes["n1"].memory_bytes = GIB + GIB // 4
    sim.edit(
        variants=[{**sim.spec_body["variants"][0], "resources": {"requests": {"memory": "2Gi", "cpu": "1"}}}]
    )
    sim.settle()
    assert sim.status.nodes.unfit == 1 and sim.cluster.serving("n1")
    revisions = {name: set(sim.given(name)) for name in sim.cluster.nodes}
    assert revisions["n0"] == revisions["n2"] == {sim.status.stable_revision} != revisions["n1"]


def test_relabelled_node_is_let_go_and_taken_back() -> None:
    sim = installed(3)
    sim.cluster.nodes["n1"].labels["slm"] = "no"
    sim.run(30)
    assert "n1" not in sim.our_labels() and not [p for p in sim.cluster.pods if p.node == "n1"]
    assert sim.status.nodes.total == 2
    sim.cluster.nodes["n1"].labels["slm"] = "yes"
    sim.run(30)
    assert sim.cluster.serving("n1")


def test_paused_moves_nothing_and_stops_the_clocks() -> None:
    sim = installed(5, progressDeadline="5m", onDeadline="Rollback")
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.edit(rollout={"paused": True})
    versions = sim.versions()
    sim.run(3600)
    assert sim.versions() == versions and sim.condition("Progressing") == ("False", "Paused")
    sim.edit(rollout={"paused": False})
    sim.settle()
    assert sim.version == "v2"


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
    sim.edit(rollout={"waves": [{"name": "half", "percent": 50}]})
    sim.run(60)
    assert sim.writes == writes + 1 and sim.condition("Accepted") == ("False", "InvalidWaves")
    assert sim.condition("Ready") == ("True", "AllNodesReady")


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
    assert kinds == set(OwnedKind)


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
