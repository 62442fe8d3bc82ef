# SPDX-License-Identifier: Apache-2.0
"""Sites that are allowed, and serving pods that reach nothing, on a virtual fleet whose network plugin
enforces policies."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from slmops.api import SLMDeploymentSpec
from slmops.model.config import OperatorConfig
from slmops.model.observed import NodeView, OwnedKind
from slmops.model.plan import ApplyObject, DeleteObject
from slmops.planning.revision import revision_of
from slmops.planning.slots import sites_of
from slmops.planning.validate_privacy import find_privacy_problem
from tests.unit.planning.fleet_checks import watch
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_sim import FleetSim
from tests.unit.planning.fleet_situations import reach
from tests.unit.planning.fleet_spec import merged, spec_body
from tests.unit.planning.test_plan_stateful import FleetMachine, indices

SITES = ("paris", "lyon", "berlin")


def fleet(**privacy: Any) -> FleetSim:
    """A checked fleet of two nodes at each of three sites, and one without a site, that has settled."""
    sim = watch(FleetSim(spec_body() | {"privacy": privacy}))
    for index in range(6):
        sim.add_node(f"n{index}", memory_bytes=4 << 30, labels={"site": SITES[index % 3]})
    sim.add_node("lost", memory_bytes=4 << 30)
    sim.settle()
    return sim


def at(sim: FleetSim, *sites: str) -> set[str]:
    return {node.name for node in sim.cluster.nodes.values() if node.labels.get("site") in sites}


def served(sim: FleetSim) -> set[str]:
    return {name for name in sim.cluster.nodes if sim.cluster.serving(name)}


def problems(sim: FleetSim) -> dict[str, int]:
    return {entry.reason: entry.nodes for entry in sim.status.reasons}


# Sites


def test_only_nodes_at_allowed_sites_are_ever_given_anything() -> None:
    sim = fleet(allowedSites=["paris", "lyon"])
    assert served(sim) == at(sim, "paris", "lyon") == set(sim.our_labels())
    assert sim.history.keys() == at(sim, "paris", "lyon")
    assert problems(sim) == {"SiteNotAllowed": 3}
    counts = sim.status.nodes
    assert (counts.total, counts.ready, counts.unfit, counts.failed) == (4, 4, 0, 0), (
        "as spec wants it: no alert"
    )
    told = {entry.node: entry.message for entry in sim.status.worst_nodes}
    assert "is berlin" in told["n2"] and "2 site(s): lyon, paris" in told["n2"]
    assert "has no label site" in told["lost"]
    assert sim.condition("Ready") == ("True", "AllNodesReady"), "what may not run is not waited for"


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("online", [False, True])
def test_a_node_that_comes_to_a_forbidden_site_is_emptied(paused: bool, online: bool) -> None:
    sim = fleet(allowedSites=["paris", "lyon"])
    sim.edit(rollout={"paused": paused})
    sim.run(60)
    sim.set_online("n0", online=online)
    sim.cluster.nodes["n0"].labels["site"] = "berlin"
    sim.run(10)
    assert "n0" not in sim.our_labels(), "at once, also while it is offline: its pod ends when it is back"
    sim.set_online("n0", online=True)
    sim.run(10)
    assert "n0" not in served(sim) and problems(sim) == {"SiteNotAllowed": 4}
    sim.cluster.nodes["n0"].labels["site"] = "lyon"
    sim.edit(rollout={"paused": False})
    sim.settle()
    assert "n0" in served(sim)


def test_naming_sites_later_moves_the_model_away_and_rolls_nothing_out() -> None:
    sim = fleet()
    before = sim.status.stable_revision
    assert served(sim) == set(sim.cluster.nodes)
    sim.edit(privacy={"allowedSites": ["paris"]})
    sim.run(120)
    assert served(sim) == at(sim, "paris") and sim.status.stable_revision == before
    sim.set_version("v2")
    sim.settle()
    assert {v for n, v in sim.versions().items() if v} == {"v2"} and served(sim) == at(sim, "paris")


def test_no_site_at_all_is_said() -> None:
    sim = watch(FleetSim(spec_body() | {"privacy": {"allowedSites": ["madrid"]}}))
    sim.add_node("n0", memory_bytes=4 << 30, labels={"site": "paris"})
    sim.run(60)
    assert not sim.our_labels()
    (message,) = [c.message for c in sim.status.conditions if c.type == "Ready"]
    assert "spec.privacy.allowedSites" in message


def test_sites_of_replicas_are_the_allowed_ones() -> None:
    body = merged(spec_body(), {"placement": {"mode": "Replicas", "replicaScope": "PerSite"}})
    spec = SLMDeploymentSpec.model_validate(body | {"privacy": {"allowedSites": ["paris", "madrid"]}})
    nodes = [NodeView(name=site, labels={"slm": "yes", "site": site}, ready=True) for site in SITES]
    sites, left_out = sites_of(spec, [*nodes, NodeView(name="lost", labels={"slm": "yes"}, ready=True)])
    assert (sorted(sites), left_out) == (["paris"], ())


def test_privacy_is_no_part_of_a_revision() -> None:
    spec = SLMDeploymentSpec.model_validate(spec_body())
    privacy = {"allowedSites": ["paris"], "egress": "Denied", "clients": [{}], "networkPolicy": "Managed"}
    other = SLMDeploymentSpec.model_validate(spec_body() | {"privacy": privacy})
    assert revision_of(spec, {"int4": "d"}) == revision_of(other, {"int4": "d"})


# Policies


def policies(sim: FleetSim) -> set[str]:
    return {name for kind, name in sim.cluster.objects if kind is OwnedKind.NETWORK_POLICY}


def test_policies_are_there_before_the_pods_and_written_once() -> None:
    sim = fleet()
    assert policies(sim) == {"orders-confine", "orders-fetch"}
    writes = [
        (action.kind, action.name, action.why)
        for look in sim.looks
        for action in look.plan.actions
        if isinstance(action, ApplyObject)
    ]
    kinds = [kind for kind, _, _ in writes]
    assert kinds.index(OwnedKind.NETWORK_POLICY) < kinds.index(OwnedKind.DAEMON_SET)
    assert [why for kind, _, why in writes if kind is OwnedKind.NETWORK_POLICY] == [
        "missing",
        "missing",
        "clients, sources or nodes changed",  # now the revision's source is known
    ]


def test_policies_go_when_nobody_wants_them_and_come_back() -> None:
    sim = fleet()
    sim.edit(privacy={"networkPolicy": "None"})
    sim.run(10)
    assert not policies(sim)
    assert any(isinstance(action, DeleteObject) for look in sim.looks for action in look.plan.actions)
    sim.edit(privacy={"networkPolicy": None})
    sim.run(10)
    assert policies(sim) == {"orders-confine", "orders-fetch"}


def test_a_new_versions_source_is_opened_and_an_old_ones_closed() -> None:
    sim = watch(FleetSim(spec_body()))
    sim.add_node("n0", memory_bytes=4 << 30)

    def sourced(address: str) -> bool:
        text = str(sim.cluster.objects[OwnedKind.NETWORK_POLICY, "orders-fetch"]["spec"]["egress"])
        return f"{address}/32" in text

    def use(version: str, address: str) -> None:
        url = {"http": {"url": f"http://{address}/{version}.json"}}
        variants = [{**v, "source": url} for v in sim.spec_body["variants"]]
        sim.edit(model={"name": "orders", "version": version}, variants=variants)

    use("v1", "192.0.2.1")
    sim.settle()
    use("v2", "192.0.2.2")
    reach(sim, "Soaking")
    assert sourced("192.0.2.1") and sourced("192.0.2.2"), "stable ones may have to be fetched, too"
    sim.settle()
    sim.run(600)
    assert sourced("192.0.2.2") and not sourced("192.0.2.1")


@pytest.mark.parametrize(
    ("privacy", "kept"),
    [
        ({}, False),
        ({"egress": "Denied"}, True),
        ({"clients": []}, True),
        ({"allowedSites": ["paris"]}, False),
    ],
)
def test_what_spec_asks_of_policies_is_kept_whatever_the_administrators_default(
    privacy: dict[str, Any], kept: bool
) -> None:
    sim = FleetSim(spec_body() | {"privacy": privacy})
    sim.config = replace(sim.config, network=replace(sim.config.network, default_mode="None"))
    sim.add_node("n0", memory_bytes=4 << 30, labels={"site": "paris"})
    sim.settle()
    assert bool(policies(sim)) is kept


# Serving pods that reach nothing


def test_with_denied_every_node_fetches_ahead() -> None:
    sim = fleet(egress="Denied")
    assert served(sim) == set(sim.cluster.nodes), "the first installation, too"
    assert sim.add_node("new", memory_bytes=4 << 30)
    sim.settle()
    assert "new" in served(sim)
    sim.set_version("v2")
    sim.settle()
    assert set(sim.versions().values()) == {"v2"}


def test_with_denied_a_bad_version_is_taken_back_without_a_fetch_by_serving_pods() -> None:
    sim = fleet(egress="Denied")
    sim.cluster.behaviours["v2"] = Behaviour(score=0.5)
    sim.set_version("v2")
    sim.settle()
    assert sim.step == "Failed" and set(sim.versions().values()) == {"v1"}
    assert served(sim) == set(sim.cluster.nodes)


def test_with_denied_a_way_back_waits_for_no_window() -> None:
    sim = fleet(egress="Denied")
    sim.cluster.behaviours["v2"] = Behaviour(score=0.5)
    sim.set_version("v2")
    reach(sim, "Soaking")
    never = [{"startTime": "03:00", "endTime": "03:01", "days": ["Sat"]}]  # the simulation begins on a Sunday
    sim.edit(distribution={"windows": never})
    assert sim.run_until(lambda: sim.step == "Failed")
    sim.run(60)
    assert set(sim.versions().values()) == {"v1"} and served(sim) == set(sim.cluster.nodes)


def test_with_denied_a_node_that_lost_its_disk_fetches_anew() -> None:
    sim = fleet(egress="Denied")
    lose_disk(sim, "n0")
    sim.run(2)
    assert "n0" not in served(sim)
    sim.run(120)
    assert "n0" in served(sim), sim.explain()
    assert sim.our_labels()["n0"].keys() == {sim.names.serve_label(sim.status.stable_revision)}


def test_when_denied_is_set_nodes_that_serve_go_on() -> None:
    sim = fleet()
    made = {(pod.node, pod.created_at) for pod in sim.cluster.pods}
    sim.edit(privacy={"egress": "Denied"})
    sim.run(300)
    assert {(pod.node, pod.created_at) for pod in sim.cluster.pods} == made


def lose_disk(sim: FleetSim, name: str) -> None:
    """The node comes back with an empty store, and its pods begin anew."""
    sim.cluster.nodes[name].cache.clear()
    for pod in sim.cluster.pods:
        if pod.node == name and pod.scheduled and pod.gone_at is None:
            pod.phase, pod.phase_at = "Fetching", sim.now + 1


@pytest.mark.parametrize(
    ("placement", "privacy", "words"),
    [
        ({"mode": "Replicas"}, {"allowedSites": ["a"]}, "spec.privacy.allowedSites: replicas in total"),
        ({"mode": "Replicas"}, {"egress": "Denied"}, "spec.privacy.egress"),
        ({}, {"networkPolicy": "None", "egress": "Denied"}, "spec.privacy.networkPolicy"),
        ({}, {"networkPolicy": "None", "clients": []}, "spec.privacy.networkPolicy"),
        ({"mode": "Replicas", "replicaScope": "PerSite"}, {"allowedSites": ["a"]}, ""),
        ({}, {"allowedSites": ["a"], "egress": "Denied", "clients": [{}]}, ""),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    placement: dict[str, Any], privacy: dict[str, Any], words: str
) -> None:
    body = merged(spec_body(), {"placement": placement, "privacy": privacy})
    finding = find_privacy_problem(SLMDeploymentSpec.model_validate(body))
    assert (finding.message if finding else "").startswith(words) and bool(finding) is bool(words)


class PrivacyMachine(FleetMachine):
    """The same fleet, with what privacy adds to its life."""

    @rule(
        sites=st.sampled_from([None, ["lab"], ["shop"], ["lab", "shop"], ["nowhere"]]),
        egress=st.sampled_from(["Sources", "Denied", "Denied"]),
    )
    def edit_privacy(self, sites: list[str] | None, egress: str) -> None:
        self.sim.edit(privacy={"allowedSites": sites, "egress": egress}, distribution={"peers": "None"})
        # Whoever forbids a site takes its nodes down.
        self.watch.taken_down.clear()

    @rule(index=indices, site=st.sampled_from(["lab", "shop", "", "abroad"]))
    def move(self, index: int, site: str) -> None:
        if (node := self.some_node(index)) is not None:
            node.labels["site"] = site
            self.sim.edit(distribution={"peers": "None"})  # what neighbours are told is another test's

    @rule(index=indices)
    def lose_disk(self, index: int) -> None:
        if (node := self.some_node(index)) is not None:
            lose_disk(self.sim, node.name)
            self.watch.taken_down.discard(node.name)

    def teardown(self) -> None:
        if not hasattr(self, "sim") or self.watch.broken:
            return
        sim = self.sim
        sim.edit(privacy={"egress": "Denied"}, distribution={"peers": "None"})
        super().teardown()
        before = served(sim)
        for name in before:
            lose_disk(sim, name)
        self.watch.taken_down.clear()
        sim.run(3600)
        assert served(sim) == before, sim.explain()


PrivacyMachine.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # a long life shrinks slowly
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestPrivacy = PrivacyMachine.TestCase


def test_the_default_of_a_deployment_is_the_administrators() -> None:
    config = OperatorConfig(runtime_image="r")
    assert (config.network.default_mode, config.network.default_clients) == ("Managed", "Any")
