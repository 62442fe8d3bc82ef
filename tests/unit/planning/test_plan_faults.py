# SPDX-License-Identifier: Apache-2.0
"""Where rollouts used to stand still, flap or go too far: one test for each way."""

from dataclasses import replace
from typing import Any

import pytest

from slmops.model.observed import OwnedKind, Resolved
from slmops.planning.plan import plan
from slmops.planning.revision import source_hash
from slmwire.labels import Role
from slmwire.reasons import Termination
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_sim import FleetSim
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


def resolve_at_once(sim: FleetSim) -> None:
    """As when the source is that of a stored revision: the target changes without a pause."""
    source = sim.spec.variants[0].source
    assert source.http is not None
    found = Resolved(manifest=manifest_of(source.http.url), reference=source.http.url)
    sim._memory.resolutions[source_hash(source)] = found


def test_node_in_mid_change_over_needs_no_second_place_for_a_third_version() -> None:
    sim = installed(3, memory_bytes=2 * GIB + GIB // 2, behaviours={"v2": Behaviour(start_seconds=1e6)})
    sim.set_version("v2")
    assert sim.run_until(lambda: any(len(sim.given(name)) == 2 for name in sim.cluster.nodes))
    sim.checks.clear()  # the check takes it for a make-before-break of two versions, here are three
    sim.set_version("v3")
    resolve_at_once(sim)
    sim.settle()
    assert set(sim.versions().values()) == {"v3"}


def test_node_that_an_earlier_rollout_broke_does_not_block_a_fix() -> None:
    sim = installed(4, memory_bytes=ONE_FITS, waves=[{"name": "all", "percent": 100}])
    sim.cluster.behaviours["v2"] = Behaviour(score=0.5)
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.cluster.behaviours["v1"].crashes_on = frozenset(sim.cluster.nodes)
    sim.run(300)
    (broken,) = [name for name, version in sim.versions().items() if version == "v1"]
    sim.cluster.behaviours["v1"].crashes_on = frozenset({broken})
    sim.set_version("v3")
    resolve_at_once(sim)
    sim.settle()
    assert sim.version == "v3"


def test_retry_during_the_rollback_begins_anew_when_it_is_done() -> None:
    sim = installed(4, memory_bytes=ONE_FITS, waves=[{"name": "all", "percent": 100}])
    sim.cluster.behaviours["v2"] = Behaviour(score=0.5)
    sim.set_version("v2")
    reach(sim, "RollingBack")
    sim.cluster.behaviours["v2"].score = 0.99
    sim.retry()
    sim.run(600)
    assert sim.version == "v2"
    ended = [look.plan for look in sim.looks if look.plan.status.canary.endswith("Failed")]
    assert [outcome.requeue_after_seconds for outcome in ended] == [0.1], "it waits for no event"


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
    sim = installed(6, waves=[{"name": "all", "percent": 100}], maxFailures=allowed, quorumPercent=60)
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
                {"name": "lab", "nodeSelector": {"matchLabels": {"site": "lab"}}, "emptyPolicy": "Skip"},
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
            {"name": "lab", "nodeSelector": {"matchLabels": {"site": "lab"}}, "emptyPolicy": "Skip"},
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
    sim = installed(6, behaviours={"v2": Behaviour(start_seconds=600)})
    sim.set_version("v2")
    reach(sim, "Flipping")
    stable = sim.status.stable_revision
    del sim.cluster.objects[OwnedKind.CONTROLLER_REVISION, sim.names.controller_revision(stable)]
    sim.run(300)
    assert sum(len(labels) for labels in sim.our_labels().values()) == 7, "one for each, two for the canary"
    assert all(map(sim.cluster.serving, sim.cluster.nodes))


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
    # So the nodes go from v2 to v3, and no node serves v1 any more.
    sim.set_version("v3")
    resolve_at_once(sim)
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


def test_variant_may_change_while_the_wave_soaks() -> None:
    # No stable node of the new variant is left to compare with, so it is judged by itself.
    sim = installed(3, metrics=[{"name": "quality", "preset": "EvaluationScore", "min": "0.9"}])
    gpu = {**sim.spec_body["variants"][0], "name": "gpu", "nodeSelector": {"matchLabels": {"gpu": "yes"}}}
    sim.edit(variants=[gpu, sim.spec_body["variants"][0]])
    reach(sim, "Soaking")
    (canary,) = [n for n in sim.cluster.nodes if sim.status.update_revision in sim.given(n)]
    sim.cluster.nodes[canary].labels["gpu"] = "yes"
    sim.settle()
    assert list(sim.given(canary).values()) == ["gpu"]
    assert sim.condition("RolloutSucceeded") == ("True", "Promoted")


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
