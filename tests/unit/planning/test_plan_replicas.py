# SPDX-License-Identifier: Apache-2.0
"""`placement.mode: Replicas` on a virtual cluster: shares, rollback, scaling, sites."""

from typing import Any

import pytest

from slmops.model.observed import OwnedKind
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_sim import FleetSim, Look
from tests.unit.planning.fleet_spec import GIB
from tests.unit.planning.replica_sim import ReplicaSim, installed

PER_SITE = {"replicaScope": "PerSite"}
THIRDS: list[dict[str, Any]] = [
    {"name": "canary", "count": 1},
    {"name": "half", "percent": 50},
    {"name": "rest", "percent": 100},
]


def workload(sim: ReplicaSim, site: int = 0) -> str:
    """The only Deployment, or the n-th by name."""
    return sorted(sim.cluster.replicas())[site]


def reach(sim: ReplicaSim, step: str, *, wave: int = 0) -> None:
    assert sim.run_until(lambda: sim.step == step and sim.wave == wave), sim.explain()


# Rollouts


def test_a_new_revision_goes_out_by_shares_of_the_replicas() -> None:
    sim = installed(4, waves=THIRDS)
    assert sim.ready() == {"v1": 4} and sim.condition("Ready") == ("True", "AllNodesReady")
    sim.set_version("v2")
    shares = []
    for wave in range(3):
        reach(sim, "Soaking", wave=wave)
        sim.run(5)
        shares.append((sim.ready()["v2"], sim.ready()["v1"]))
    sim.settle()
    assert shares == [(1, 3), (2, 2), (4, 1)], "one stable replica stays until the last wave is judged"
    assert sim.ready() == {"v2": 4} and sim.asked() == {"v2": 4} and sim.version == "v2"
    assert [w.verdict for w in sim.status.rollout.waves] == ["Pass"] * 3  # type: ignore[union-attr]


@pytest.mark.parametrize("percent", [50, 90, 99])
def test_of_two_replicas_one_stays_stable_until_the_last_wave(percent: int) -> None:
    sim = installed(2, waves=[{"name": "most", "percent": percent}, {"name": "rest", "percent": 100}])
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.run(5)
    assert sim.ready() == {"v1": 1, "v2": 1}
    sim.settle()
    assert sim.ready() == {"v2": 2}


def test_a_single_replica_keeps_the_stable_one_beside_it_until_it_is_judged() -> None:
    sim = installed(1)
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.run(25)
    assert sim.step == "Soaking" and sim.ready() == {"v1": 1, "v2": 1}
    sim.settle()
    assert sim.ready() == {"v2": 1} and sim.asked() == {"v2": 1}


@pytest.mark.parametrize("replicas", [1, 2, 5])
@pytest.mark.parametrize("bad", [Behaviour(score=0.5), Behaviour(crashes=True), Behaviour(oom=True)])
def test_a_bad_revision_is_taken_back(replicas: int, bad: Behaviour) -> None:
    sim = installed(replicas, behaviours={"v2": bad})
    sim.set_version("v2")
    sim.settle()
    assert sim.step == "Failed" and sim.version == "v1"
    assert sim.ready() == {"v1": replicas} and sim.asked() == {"v1": replicas}
    assert [entry.revision for entry in sim.status.failed_revisions] == [sim.status.update_revision]


def test_a_revision_that_turns_bad_in_the_last_wave_is_taken_back() -> None:
    sim = installed(3)
    sim.set_version("v2")
    reach(sim, "Soaking", wave=1)
    sim.cluster.behaviours["v2"].score = 0.1
    sim.settle()
    assert sim.step == "Failed" and sim.ready() == {"v1": 3}


def test_a_spec_that_changes_meanwhile_leaves_nothing_behind() -> None:
    sim = installed(4)
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.set_version("v3")
    sim.settle()
    assert sim.version == "v3" and sim.ready() == {"v3": 4} and sim.asked() == {"v3": 4}


def test_recreate_changes_all_at_once() -> None:
    sim = installed(3, strategy="Recreate")
    sim.set_version("v2")
    sim.settle()
    assert sim.ready() == {"v2": 3}


def test_without_room_for_one_more_the_old_pods_go_first_one_at_a_time() -> None:
    sim = installed(3, nodes=3, memory_bytes=GIB + GIB // 2)
    least = 3

    def count(sim: FleetSim, look: Look) -> None:
        nonlocal least
        assert isinstance(sim, ReplicaSim)
        least = min(least, sum(sim.ready().values()))

    sim.checks.append(count)
    sim.set_version("v2")
    sim.settle()
    assert sim.ready() == {"v2": 3} and least == 2


def test_without_room_a_single_replica_is_not_taken_away() -> None:
    sim = installed(1, nodes=1, memory_bytes=GIB + GIB // 2)
    sim.set_version("v2")
    sim.run(4000)
    assert sim.ready() == {"v1": 1}
    assert sim.condition("Progressing") == ("False", "DeadlineExceeded")
    assert sim.condition("Ready") == ("True", "AllNodesReady"), "what serves is still counted"
    assert [problem.reason for problem in sim.status.worst_nodes] == ["Unschedulable"]


def test_undo_by_reverting_the_spec_returns_at_once() -> None:
    sim = installed(4)
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.set_version("v1")
    sim.settle()
    assert sim.step == "Cancelled" and sim.ready() == {"v1": 4} and sim.asked() == {"v1": 4}


# Scaling


@pytest.mark.parametrize("replicas", [1, 3, 9])
def test_a_scaled_deployment_of_ours_is_put_right(replicas: int) -> None:
    sim = installed(4)
    for number in (0, 1, 20):
        sim.scale_by_hand(workload(sim), number)
        sim.run(60)
        assert sim.asked() == {"v1": 4} and sim.ready() == {"v1": 4}


def test_scaled_deployments_do_not_change_the_shares_of_a_rollout() -> None:
    sim = installed(4)
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.run(5)
    for name in list(sim.cluster.replicas()):
        sim.scale_by_hand(name, 4)
        sim.run(2)
    assert sim.asked() == {"v1": 3, "v2": 1}
    sim.settle()
    assert sim.version == "v2" and sim.ready() == {"v2": 4}


@pytest.mark.parametrize("replicas", [0, 1, 2, 7])
def test_the_object_is_scaled(replicas: int) -> None:
    sim = installed(4)
    sim.scale(replicas)
    sim.run(60)
    assert sum(sim.ready().values()) == replicas and sum(sim.asked().values()) == replicas
    assert sim.status.replicas == replicas
    assert sim.condition("Ready")[0] == "True"
    sim.scale(4)
    sim.run(60)
    assert sim.ready() == {"v1": 4} and sim.condition("Ready") == ("True", "AllNodesReady")


@pytest.mark.parametrize("step", ["Flipping", "Soaking", "Analysing"])
@pytest.mark.parametrize("wave", [0, 1, 2])
@pytest.mark.parametrize("replicas", [1, 2, 3, 10])
def test_scaling_during_a_rollout_keeps_both_shares(step: str, wave: int, replicas: int) -> None:
    sim = installed(6, waves=THIRDS, soak="10s")
    sim.set_version("v2")
    reach(sim, step, wave=wave)
    sim.scale(replicas)
    sim.run(2)
    assert sum(sim.ready().values()) >= min(replicas, 6)
    if sim.step != "Completed":  # with one replica there is nobody left for the other waves
        assert sim.ready()["v1"] >= 1
    sim.settle()
    assert sim.step == "Completed" and sim.version == "v2"
    assert sim.ready() == {"v2": replicas} and sim.asked() == {"v2": replicas}


def test_scaling_to_nothing_during_a_rollout_and_back_begins_with_the_stable_revision() -> None:
    sim = installed(4)
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.scale(0)
    sim.run(60)
    assert not sim.cluster.replicas() and sim.condition("Ready") == ("True", "ScaledToZero")
    sim.scale(4)
    sim.run(4)
    assert sim.asked()["v1"] >= 3
    sim.settle()
    assert sim.ready() == {"v2": 4}


def test_while_paused_replicas_are_added_and_none_is_moved() -> None:
    sim = installed(3)
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.run(5)
    sim.annotations["slmops.dev/paused"] = "true"
    sim.scale(8)
    sim.run(300)
    assert sim.ready() == {"v1": 7, "v2": 1}
    del sim.annotations["slmops.dev/paused"]
    sim.settle()
    assert sim.ready() == {"v2": 8}


def test_a_pause_in_the_middle_of_a_wave_moves_nothing_on() -> None:
    sim = installed(6)
    sim.set_version("v2")
    reach(sim, "Flipping", wave=1)
    sim.annotations["slmops.dev/paused"] = "true"
    sim.run(1)
    before = sim.asked()
    sim.run(300)
    assert sim.asked() == before and before["v1"] >= 4


def test_status_serves_the_scale_subresource() -> None:
    sim = installed(3)
    assert sim.status.replicas == 3
    assert sim.status.selector == (
        "app.kubernetes.io/managed-by=slmops,slmops.dev/deployment=orders,slmops.dev/role=serve"
    )
    (count,) = sim.status.replica_counts
    assert (count.replicas, count.revision, count.beside) == (3, sim.status.stable_revision, [])


# Sites and nodes


def test_each_site_has_its_own_replicas() -> None:
    sim = installed(2, nodes=4, placement=PER_SITE)
    assert sim.ready("s0") == {"v1": 2} and sim.ready("s1") == {"v1": 2}
    assert {pod.site for pod in sim.cluster.pod_views()} == {"s0", "s1"}
    for pod in sim.cluster.pod_views():
        assert sim.cluster.nodes[pod.node].labels["site"] == pod.site
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.run(5)
    assert sim.ready("s0")["v2"] + sim.ready("s1")["v2"] == 1
    sim.settle()
    assert sim.ready("s0") == {"v2": 2} and sim.ready("s1") == {"v2": 2}


def test_a_site_that_comes_during_a_rollout_begins_with_the_stable_revision() -> None:
    sim = installed(2, nodes=2, placement=PER_SITE)
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.add_node("late", memory_bytes=8 * GIB, labels={"site": "late"})
    sim.run(20)
    assert sim.ready("late")["v1"] == 2
    sim.settle()
    assert sim.ready("late") == {"v2": 2}


def test_a_site_that_goes_takes_its_replicas_along() -> None:
    sim = installed(2, nodes=3, placement=PER_SITE)
    for node in [n for n in sim.cluster.nodes.values() if n.labels["site"] == "s1"]:
        node.labels["slm"] = "no"
    sim.run(60)
    assert sim.ready("s0") == {"v1": 2} and not sim.ready("s1")
    assert sum(sim.cluster.replicas().values()) == 2


def test_nodes_without_a_site_are_reported() -> None:
    sim = installed(1, nodes=2, placement=PER_SITE)
    sim.add_node("stray", labels={})
    sim.run(10)
    (problem,) = sim.status.worst_nodes
    assert (problem.node, problem.reason) == ("stray", "NoSite") and "site" in problem.message
    assert sim.status.nodes.total == 2 and sim.status.nodes.unfit == 1


def test_no_node_at_all_takes_nothing_down() -> None:
    sim = installed(2, nodes=2, placement=PER_SITE)
    nodes = dict(sim.cluster.nodes)
    before = sim.cluster.replicas()
    sim.cluster.nodes.clear()
    sim.run(60)
    assert sim.cluster.replicas() == before
    sim.cluster.nodes.update(nodes)
    sim.run(60)
    assert sim.ready("s0") == {"v1": 2} and sim.ready("s1") == {"v1": 2}


def test_a_replica_keeps_its_variant_when_a_better_node_joins() -> None:
    sim = installed(2)
    variants = [
        {**sim.spec_body["variants"][0], "name": "gpu", "nodeSelector": {"matchLabels": {"gpu": "yes"}}},
        sim.spec_body["variants"][0],
    ]
    sim.spec_body["variants"] = variants
    sim.generation += 1
    sim.settle()
    assert {count.variant for count in sim.status.replica_counts} == {"int4"}
    sim.add_node("fast", memory_bytes=8 * GIB, labels={"gpu": "yes"})
    sim.run(60)
    assert {count.variant for count in sim.status.replica_counts} == {"int4"}
    # No stable replica of that variant is there to compare with.
    metrics = [{"name": "quality", "preset": "EvaluationScore", "min": "0.9"}]
    sim.edit(rollout={"analysis": {"metrics": metrics}})
    sim.set_version("v2")
    sim.settle()
    assert {count.variant for count in sim.status.replica_counts} == {"gpu"}
    assert {pod.node for pod in sim.cluster.pod_views()} == {"fast"}


def test_no_suitable_node_is_said() -> None:
    sim = ReplicaSim(installed(2).spec_body)
    sim.add_node("small", memory_bytes=GIB // 2)
    sim.run(60)
    assert sim.condition("Ready") == ("False", "NoMatchingNodes")
    assert [problem.reason for problem in sim.status.worst_nodes] == ["Unfit", "Unfit"]


def test_another_node_selector_is_another_revision() -> None:
    sim = installed(3)
    for name in ("n0", "n1"):
        sim.cluster.nodes[name].labels["rack"] = "a"
    before = sim.status.stable_revision
    sim.edit(placement={"nodeSelector": {"matchLabels": {"rack": "a"}}})
    reach(sim, "Soaking")
    sim.settle()
    assert sim.status.stable_revision != before
    assert {pod.node for pod in sim.cluster.pod_views()} <= {"n0", "n1"}


def test_waves_by_node_are_refused_with_the_cure() -> None:
    waves = [
        {"name": "lab", "nodeSelector": {"matchLabels": {"site": "lab"}}},
        {"name": "rest", "percent": 100},
    ]
    sim = installed(2)
    sim.edit(rollout={"waves": waves})
    sim.set_version("v2")
    sim.run(60)
    condition = next(c for c in sim.status.conditions if c.type == "Accepted")
    assert condition.reason == "InvalidWaves" and "use count, percent or exponential" in condition.message
    assert sim.ready() == {"v1": 2}


# Objects


def test_what_the_deployments_look_like() -> None:
    sim = installed(
        1, nodes=1, placement={**PER_SITE, "tolerations": [{"key": "edge", "operator": "Exists"}]}
    )
    body = sim.cluster.objects[OwnedKind.DEPLOYMENT, workload(sim)]
    template = body["spec"]["template"]
    assert body["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    assert template["metadata"]["labels"]["slmops.dev/site"] == "s0"
    pod = template["spec"]
    assert pod["tolerations"] == [{"key": "edge", "operator": "Exists"}], (
        "Kubernetes moves it from a lost node"
    )
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term["matchExpressions"] == [
        {"key": "slm", "operator": "In", "values": ["yes"]},
        {"key": "site", "operator": "In", "values": ["s0"]},
    ]
    (spread,) = pod["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == (
        "kubernetes.io/hostname",
        "ScheduleAnyway",
    )
    assert body["spec"]["revisionHistoryLimit"] == 0
    service = sim.cluster.objects[OwnedKind.SERVICE, "orders"]
    assert service["spec"]["internalTrafficPolicy"] == "Cluster"
    kinds = {kind for kind, _ in sim.cluster.objects}
    assert OwnedKind.DAEMON_SET not in kinds


def test_an_empty_selector_asks_nothing_of_the_node() -> None:
    sim = ReplicaSim(installed(1).spec_body)
    sim.spec_body["placement"]["nodeSelector"] = {}
    sim.add_node("any")
    sim.run_until(lambda: bool(sim.cluster.replicas()), limit_seconds=30)
    body = sim.cluster.objects[OwnedKind.DEPLOYMENT, workload(sim)]
    assert "affinity" not in body["spec"]["template"]["spec"], "an empty term would match no node"


# Deletion


@pytest.mark.parametrize("policy", ["Delete", "Retain"])
def test_deletion_drops_the_models_where_replicas_ran(policy: str) -> None:
    sim = installed(2, nodes=3)
    sim.edit(cache={"deletionPolicy": policy})
    sim.run(5)
    hosts = {pod.node for pod in sim.cluster.pod_views()}
    sim.delete()
    labelled: set[str] = set()

    def note(sim: FleetSim, look: Look) -> None:
        labelled.update(sim.our_labels())

    sim.checks.append(note)
    sim.run(700)
    assert sim.gone and not sim.our_labels() and not sim.cluster.replicas()
    assert labelled == (hosts if policy == "Delete" else set())
