# SPDX-License-Identifier: Apache-2.0
"""What fetchers are told: who shares with whom, how fast, and when it is written again."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.api import SLMDeploymentSpec
from slmops.model.observed import NodeView, OwnedKind
from slmops.model.plan import ApplyObject
from slmops.planning.distribution import find_sites, fit_sites, rate_limit, share
from slmwire.distribution import FILE_KEY, Distribution, parse_distribution
from tests.unit.planning.fleet_sim import FleetSim
from tests.unit.planning.fleet_situations import installed
from tests.unit.planning.fleet_spec import merged, spec_body
from tests.unit.planning.replica_sim import installed as replicas_installed

PATH = "/var/lib/slmops"


def spec_of(**distribution: Any) -> SLMDeploymentSpec:
    return SLMDeploymentSpec.model_validate(merged(spec_body(), {"distribution": distribution}))


def node(name: str, site: str = "", **fields: Any) -> NodeView:
    labels = {"site": site} if site else {}
    return NodeView(**{"name": name, "labels": labels, "ready": True, "address": f"10.0.0.{name}", **fields})


def told(sim: FleetSim) -> Distribution:
    body = sim.cluster.objects[OwnedKind.CONFIG_MAP, "orders-distribution"]
    assert "immutable" not in body
    return parse_distribution(body["data"][FILE_KEY])


def test_only_nodes_of_one_site_are_neighbours() -> None:
    nodes = [node("1", "b"), node("2", "a"), node("3", "b"), node("4"), node("5"), node("6", "c"),
             node("7", "c", address=""), node("8", "b", ready=False)]  # fmt: skip
    found = share(spec_of(), nodes, peer_port=8491, agent_path=PATH).file
    assert found.sites == {"b": {"1": "10.0.0.1", "3": "10.0.0.3", "8": "10.0.0.8"}}
    assert (found.peer_port, found.rate_limit_bytes_per_second) == (8491, 0)
    alone = Distribution()
    assert share(spec_of(), nodes[1:2], peer_port=8491, agent_path=PATH).file == alone
    assert share(spec_of(peers="None"), nodes, peer_port=8491, agent_path=PATH).file == alone
    assert share(spec_of(), nodes, peer_port=0, agent_path=PATH).file == alone, "no store agents run"


@pytest.mark.parametrize(
    ("host_path", "agent_path", "expected"),
    [
        ("/var/lib/slmops", "/var/lib/slmops", True),
        ("/var/lib/slmops", "/var/lib/slmops/", True),
        ("/var/lib//slmops", "/var/lib/slmops", True),
        ("/var/lib/slmops/team-a", "/var/lib/slmops", True),
        ("/var/lib/slmops/.team-a", "/var/lib/slmops", False),
        ("/var/lib/slmops/team-a/chat", "/var/lib/slmops", False),
        ("/var/lib/slmops", "/var/lib/slmops/team-a", False),
        ("/var/lib/slmops-b", "/var/lib/slmops", False),
        ("/data", "/var/lib/slmops", False),
    ],
)
def test_only_stores_that_agents_serve_are_shared(host_path: str, agent_path: str, expected: bool) -> None:
    spec = SLMDeploymentSpec.model_validate(merged(spec_body(), {"cache": {"hostPath": host_path}}))
    nodes = [node("1", "a"), node("2", "a")]
    found = share(spec, nodes, peer_port=8491, agent_path=agent_path)
    assert bool(found.file.sites) is expected and bool(found.file.peer_port) is expected
    assert found.note == "" if expected else host_path in found.note and agent_path in found.note
    assert share(spec, nodes[:1], peer_port=8491, agent_path=agent_path).note == "", "nobody to ask"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 0),
        ({"rateLimit": "2M"}, 2_000_000),
        ({"siteRateLimit": "1Mi", "maxConcurrentPerSite": 4}, 262_144),
        ({"siteRateLimit": "1Mi", "maxConcurrentPerSite": 4, "rateLimit": "100k"}, 100_000),
        ({"siteRateLimit": "100k", "maxConcurrentPerSite": 3, "rateLimit": "1M"}, 33_333),
        ({"maxConcurrentPerSite": 3}, 0),
    ],
)
def test_the_lower_limit_counts(limits: dict[str, Any], expected: int) -> None:
    assert rate_limit(spec_of(**limits)) == expected


@given(
    st.dictionaries(st.text("ab-9", min_size=1, max_size=9), st.integers(2, 6), max_size=12),
    st.integers(0, 900),
)
def test_the_list_of_peers_never_grows_beyond_its_limit(sizes: dict[str, int], limit: int) -> None:
    nodes = [node(f"{site}.{index}", f"s{site}") for site, size in sizes.items() for index in range(size)]
    sites = find_sites(nodes, "site")
    kept = fit_sites(sites, limit)
    empty = len(Distribution().to_json())
    assert len(Distribution(sites=kept).to_json()) <= limit + empty
    assert all(kept[site] == sites[site] for site in kept), "a site is there whole or not at all"
    assert fit_sites(sites) == sites and list(kept) == sorted(kept)


def test_what_does_not_fit_is_told() -> None:
    sim = installed(1)
    for index in range(3000):
        sim.add_node(f"node-{index:04}-{'x' * 200}", labels={"site": f"s{index % 2}"}, online=False)
    sim.run(5)
    (site,) = told(sim).sites
    assert site == "s0"
    condition = next(c for c in sim.status.conditions if c.type == "Accepted")
    assert condition.status == "True" and "1 site(s) share no models" in condition.message


def _written(sim: FleetSim, since: int) -> list[str]:
    return [
        action.why
        for look in sim.looks[since:]
        for action in look.plan.actions
        if isinstance(action, ApplyObject) and action.name == "orders-distribution"
    ]


def test_it_is_written_when_it_says_something_else_and_only_then() -> None:
    sim = installed(5)
    assert told(sim) == Distribution() and _written(sim, 0) == ["missing"]
    looks = len(sim.looks)
    sim.set_online("n1", online=False)
    sim.set_version("v2")
    sim.settle()
    sim.restart_operator()
    sim.run(10)
    assert _written(sim, looks) == []
    for name in ("n0", "n1"):
        sim.cluster.nodes[name].labels["site"] = "berlin"
    sim.run(10)
    assert told(sim).neighbours("n0") == {"n1": "address-of-n1"} and len(_written(sim, looks)) == 1
    pods = [pod.created_at for pod in sim.cluster.pods]
    sim.edit(distribution={"rateLimit": "2M"})
    sim.run(10)
    assert told(sim).rate_limit_bytes_per_second == 2_000_000
    assert [pod.created_at for pod in sim.cluster.pods] == pods and sim.step == "Completed"
    sim.cluster.objects[OwnedKind.CONFIG_MAP, "orders-distribution"]["data"][FILE_KEY] = "{}"
    sim.run(10)
    assert told(sim).rate_limit_bytes_per_second == 2_000_000, "put right although the spec is the same"


def test_a_large_fleet_hears_of_new_nodes_in_batches_and_of_limits_at_once() -> None:
    sim = installed(1)
    for index in range(600):
        sim.add_node(f"x{index:03}", labels={"site": "berlin"}, online=False)
    sim.run(5)
    assert len(told(sim).sites["berlin"]) == 600
    sim.run(70)
    looks = len(sim.looks)
    for index in range(20):
        sim.add_node(f"y{index:02}", labels={"site": "berlin"}, online=False)
        sim.run(1)
    assert _written(sim, looks) == ["neighbours changed"], "the first at once, the others wait"
    sim.run(45)
    assert len(told(sim).sites["berlin"]) == 620 and len(_written(sim, looks)) == 2
    sim.add_node("z0", labels={"site": "berlin"}, online=False)
    sim.run(1)
    sim.edit(distribution={"rateLimit": "2M"})
    sim.run(2)
    assert told(sim).rate_limit_bytes_per_second == 2_000_000
    assert len(told(sim).sites["berlin"]) == 621


def test_replicas_share_among_all_nodes_that_they_may_come_to() -> None:
    sim = replicas_installed()
    assert told(sim).sites == {"s0": {"n0": "address-of-n0", "n2": "address-of-n2"}}
    sim.cluster.nodes["n1"].labels["site"] = "s0"
    sim.run(10)
    assert set(told(sim).sites["s0"]) == {"n0", "n1", "n2"}


def test_every_fetching_pod_can_read_it_while_it_changes() -> None:
    sim = installed(1, behaviours={})
    sim.edit(cache={"highWatermarkPercent": 80})
    sim.set_version("v2")
    sim.settle()
    revision = sim.cluster.revision_views()[-1].data["variants"][0]
    for template, group in (("serve", "initContainers"), ("prefetch", "containers")):
        pod = revision[template]["spec"]
        (container,) = pod[group]
        volume = next(v for v in pod["volumes"] if v["name"] == "distribution")
        assert volume["configMap"] == {"name": "orders-distribution", "optional": True}
        mount = next(m for m in container["volumeMounts"] if m["name"] == "distribution")
        assert mount["mountPath"] == "/etc/slmops-distribution" and "subPath" not in mount
        variables = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert variables["SLM_DISTRIBUTION_FILE"] == "/etc/slmops-distribution/distribution.json"
        assert variables["SLM_HIGH_WATERMARK_PERCENT"] == "80" and "SLM_NODE" in variables
