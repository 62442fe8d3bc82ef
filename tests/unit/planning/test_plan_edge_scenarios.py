# SPDX-License-Identifier: Apache-2.0
"""Scenarios 15 to 29: slow links, nodes that come and go, and models that do not fit."""

from slmwire.reasons import Reason
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_situations import ERRORS, canary_node, installed, reach
from tests.unit.planning.fleet_spec import GIB


def test_scenario_15_offline_after_its_flip_is_a_failure() -> None:
    sim = installed()
    sim.set_version("v2")
    reach(sim, "Soaking")
    node = canary_node(sim)
    sim.set_online(node, online=False)
    sim.run(120)
    assert sim.step == "Failed" and "NodeNotReady" in sim.status.failed_revisions[0].message
    others = {version for name, version in sim.versions().items() if name != node}
    assert others == {"v1"}, "the next wave is blocked"
    sim.set_online(node, online=True)
    sim.run(120)
    assert sim.versions()[node] == "v1"


def test_going_on_to_a_revision_that_failed_before_ends_the_rollout_under_way() -> None:
    sim = installed(behaviours={"v2": Behaviour(score=0.4)})
    sim.set_version("v2")
    sim.settle()
    assert sim.step == "Failed"
    sim.set_version("v3")
    reach(sim, "Soaking")
    sim.set_version("v2")
    sim.settle()
    assert sim.step == "Cancelled" and sim.condition("Progressing") == ("False", "Complete")
    assert set(sim.versions().values()) == {"v1"}


def test_scenario_16_slow_fetch_leaves_the_healthy_copy_serving() -> None:
    sim = installed(memory_bytes=GIB + GIB // 2)
    for node in sim.cluster.nodes.values():
        node.fetch_seconds = 3 * 3600
    sim.set_version("v2")
    sim.run(2 * 3600)
    assert sim.step == "Prefetching" and sim.condition("Progressing") == ("True", "Prefetching")
    assert set(sim.versions().values()) == {"v1"}
    assert all(sim.cluster.serving(name) for name in sim.cluster.nodes)
    sim.settle(limit_seconds=30 * 3600)
    assert sim.version == "v2"


def test_scenario_16_fetch_error_moves_nothing_and_says_why() -> None:
    sim = installed(behaviours={"v2": Behaviour(fetch_error=Reason.INSUFFICIENT_CAPACITY)})
    sim.set_version("v2")
    sim.run(3600)
    assert set(sim.versions().values()) == {"v1"} and not sim.status.failed_revisions
    assert sim.status.worst_nodes[0].reason == "InsufficientCapacity"


def test_scenario_17_unhealthy_stable_is_not_rolled_back_to() -> None:
    sim = installed(metrics=[ERRORS], behaviours={"v2": Behaviour(error_rate=0.5)})
    sim.set_version("v2")
    reach(sim, "Flipping")
    for pod in sim.cluster.pods:
        if pod.version == "v1":
            pod.phase, pod.restarts, pod.reason, pod.phase_at = "Broken", 5, "Error", sim.now + 1e6
    sim.run(300)
    node = canary_node(sim)
    assert sim.cluster.serving(node), "the only healthy copy stays"
    assert sim.condition("Progressing") == ("False", "StableUnhealthy")
    assert not sim.status.failed_revisions


def test_scenario_17_rollback_halts_when_stable_does_not_come_up() -> None:
    sim = installed(4, memory_bytes=GIB + GIB // 4, waves=[{"name": "all", "percent": 100}])
    sim.cluster.behaviours["v2"] = Behaviour(score=0.5)
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.cluster.behaviours["v1"].crashes = True
    sim.run(600)
    assert list(sim.versions().values()).count("v2") == 3, "no more than maxUnavailable are lost"
    assert sim.step == "RollingBack" and sim.condition("Progressing") == ("False", "StableUnhealthy")
    sim.cluster.behaviours["v1"].crashes = False
    sim.settle()
    assert set(sim.versions().values()) == {"v1"} and sim.step == "Failed"


def test_scenario_17_new_node_that_starts_does_not_forbid_a_rollback() -> None:
    sim = installed(waves=[{"name": "all", "percent": 100}], behaviours={"v2": Behaviour(score=0.5)})
    sim.set_version("v2")
    reach(sim, "Flipping")
    sim.run(20)
    sim.add_node("late", fetch_seconds=1e5)
    sim.settle(limit_seconds=3 * 3600)
    assert sim.step == "Failed"


def test_scenario_18_offline_before_its_wave_is_deferred() -> None:
    sim = installed(10)
    sim.set_version("v2")
    reach(sim, "Soaking")
    away = next(name for name, version in sim.versions().items() if version == "v1")
    sim.set_online(away, online=False)
    sim.settle()
    assert sim.version == "v2" and sim.versions()[away] == "v1"
    assert sim.status.rollout and sim.status.rollout.waves[1].deferred == 1
    sim.set_online(away, online=True)
    sim.run(120)
    assert sim.versions()[away] == "v2"


def test_scenario_18_returned_node_keeps_its_pod_until_its_proxy_follows() -> None:
    sim = installed(10)
    away = "n3"
    sim.set_online(away, online=False)
    sim.set_version("v2")
    sim.settle()
    sim.set_online(away, online=True)
    back = sim.now
    sim.run(25)
    assert sim.versions()[away] == "v1" and "v2" in {
        sim.cluster.version_of(p.revision) for p in sim.cluster.pods if p.node == away and p.phase == "Ready"
    }, "it fetches ahead meanwhile"
    assert sim.run_until(lambda: sim.versions()[away] == "v2", limit_seconds=60)
    assert sim.now - back >= 30


def test_a_clock_that_is_far_off_delays_no_move() -> None:
    sim = installed(3)
    for node in sim.cluster.nodes.values():
        node.ready_since = sim.now + 86_400
    sim.set_version("v2")
    began = sim.now
    reach(sim, "Soaking")
    assert sim.now - began < 30


def test_scenario_18_retry_defers_a_node_that_kept_the_label_while_offline() -> None:
    sim = installed(10, waves=[{"name": "half", "percent": 50}, {"name": "rest", "percent": 100}])
    sim.set_version("v2")
    reach(sim, "Soaking")
    away = next(name for name, version in sim.versions().items() if version == "v2")
    sim.set_online(away, online=False)
    sim.settle()
    assert sim.step == "Failed" and sim.versions()[away] == "v2"
    sim.retry()
    sim.settle()
    assert sim.version == "v2", "its absence was known before the wave began"


def test_scenario_19_no_quorum_no_promotion() -> None:
    sim = installed(10)
    sim.set_version("v2")
    reach(sim, "Soaking")
    away = [name for name, version in sim.versions().items() if version == "v1"][:4]
    for name in away:
        sim.set_online(name, online=False)
    sim.run(6000)
    assert sim.version == "v1" and sim.wave == 1
    assert sim.condition("Progressing") == ("False", "QuorumMissing")
    for name in away[:3]:
        sim.set_online(name, online=True)
    sim.settle()
    assert sim.version == "v2"


def test_scenario_20_late_return_goes_straight_to_the_present_stable() -> None:
    sim = installed(10, memory_bytes=GIB + GIB // 2, behaviours={"v3": Behaviour(score=0.5)})
    sim.set_version("v2")
    reach(sim, "Soaking")
    away = next(name for name, version in sim.versions().items() if version == "v1")
    sim.set_online(away, online=False)
    sim.settle()
    sim.set_version("v3")
    sim.settle()
    assert sim.step == "Failed"
    sim.set_version("v4")
    sim.settle()
    assert sim.version == "v4" and sim.versions()[away] == "v1"
    sim.set_online(away, online=True)
    sim.run(300)
    versions = [sim.cluster.version_of(revision) for revision in sim.history[away]]
    assert sim.versions()[away] == "v4" and len(versions) == 2, versions


def test_scenario_20_return_with_a_rolled_back_revision_fetches_a_newer_stable_first() -> None:
    waves = [{"name": "third", "percent": 30}, {"name": "rest", "percent": 100}]
    sim = installed(10, memory_bytes=GIB + GIB // 2, waves=waves, quorumPercent=60)
    sim.set_version("v2")
    reach(sim, "Soaking")
    away = next(name for name, version in sim.versions().items() if version == "v2")
    sim.set_online(away, online=False)
    sim.settle()
    assert sim.step == "Failed" and sim.versions()[away] == "v2"
    sim.set_version("v3")
    sim.settle()
    assert sim.version == "v3"
    sim.cluster.nodes[away].fetch_seconds = 600
    sim.set_online(away, online=True)
    sim.run(300)
    assert sim.cluster.serving(away), "it serves what it has while it fetches"
    sim.run(600)
    assert sim.versions()[away] == "v3"


def test_scenario_29_model_too_large_is_rejected_before_any_download() -> None:
    sim = installed(3)
    sim.add_node("tiny", memory_bytes=GIB // 2)
    sim.run(60)
    assert sim.given("tiny") == {} and not [p for p in sim.cluster.pods if p.node == "tiny"]
    worst = sim.status.worst_nodes[0]
    assert (worst.node, worst.reason) == ("tiny", "Unfit")
    assert "needs 1024 MiB" in worst.message and "512 MiB" in worst.message
    assert sim.status.nodes.unfit == 1 and sim.condition("Ready") == ("True", "AllNodesReady")


def test_scenario_29_oom_kill_fails_the_wave() -> None:
    sim = installed(behaviours={"v2": Behaviour(oom=True)})
    sim.set_version("v2")
    sim.settle()
    assert sim.step == "Failed" and "OOMKilled" in sim.status.failed_revisions[0].message
    assert set(sim.versions().values()) == {"v1"}


def test_a_rollback_does_not_wait_for_a_node_that_stable_has_no_variant_for() -> None:
    metrics = [{"name": "quality", "preset": "EvaluationScore", "min": "0.9"}]
    waves = [{"name": "all", "percent": 100}]
    sim = installed(waves=waves, metrics=metrics, behaviours={"v2": Behaviour(score=0.1)})
    plain = sim.spec_body["variants"][0]
    old = {**plain, "nodeSelector": {"matchExpressions": [{"key": "class", "operator": "DoesNotExist"}]}}
    new = {**plain, "name": "b", "nodeSelector": {"matchLabels": {"class": "b"}}}
    sim.edit(variants=[old])
    sim.settle()
    sim.add_node("other", labels={"class": "b"})
    sim.edit(variants=[old, new])
    sim.set_version("v2")
    sim.settle()
    assert sim.step == "Failed" and sim.condition("Progressing") == ("False", "Complete")
    assert {version for name, version in sim.versions().items() if name != "other"} == {"v1"}
    sim.cluster.behaviours["v2"].score = 0.99
    sim.retry()
    sim.settle()
    assert sim.version == "v2"


def test_a_rollout_that_spec_blocks_takes_no_measurement_of_its_pods() -> None:
    sim = installed(metrics=[{"name": "restarts", "preset": "Restarts", "max": "0"}])
    sim.set_version("v2")
    reach(sim, "Soaking")
    nowhere = [{"startTime": "03:00", "endTime": "04:00", "timeZone": "No/Where"}]
    sim.edit(rollout={"windows": nowhere})
    sim.run(2)
    assert sim.condition("Accepted") == ("False", "InvalidWindow")
    status = sim.status
    sim.run(3600)
    sim.add_node("new")
    sim.run(1)
    assert sim.status.rollout == status.rollout
    sim.edit(rollout={"windows": []})
    sim.settle()
    assert sim.version == "v2"
