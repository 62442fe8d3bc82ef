# SPDX-License-Identifier: Apache-2.0
"""Waves by count, growth and site; budgets; strategy Recreate; what is refused before anything moves."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.api.spec import Rollout, Wave
from slmops.model.observed import NodeView
from slmops.model.plan import PatchNodeLabels
from slmops.planning.wave_steps import failures_allowed
from slmops.planning.waves import assign_waves, effective_rollout, expand
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_sim import FleetSim, Look
from tests.unit.planning.fleet_situations import installed, reach
from tests.unit.planning.fleet_spec import GIB

REST = {"name": "rest", "percent": 100}
ALL: list[dict[str, Any]] = [{"name": "all", "percent": 100}]


def waves_of(*bodies: dict[str, Any]) -> list[Wave]:
    return expand([Wave.model_validate(body) for body in bodies])


def fleet(sizes: dict[str, int]) -> list[NodeView]:
    return [
        NodeView(name=f"{site}-{i}", labels={"site": site}, ready=True)
        for site, size in sizes.items()
        for i in range(size)
    ]


def test_exponential_growth_is_a_series_of_percentages() -> None:
    found = waves_of({"name": "one", "count": 1}, {"name": "grow", "exponential": {}})
    assert [(w.name, w.percent) for w in found[1:]] == [
        ("grow-1", 1), ("grow-2", 2), ("grow-3", 4), ("grow-4", 8), ("grow-5", 16), ("grow-6", 32),
        ("grow-7", 64), ("grow-8", 100),
    ]  # fmt: skip
    found = waves_of({"name": "a", "percent": 20}, {"name": "g", "exponential": {"factor": 5}})
    assert [w.percent for w in found] == [20, 25, 100], "what was reached before is not done again"


@given(st.integers(1, 50), st.integers(2, 10), st.integers(0, 60), st.integers(0, 5))
def test_growing_waves_end_with_everything(start: int, factor: int, nodes: int, count: int) -> None:
    first = [{"name": "first", "count": count}] if count else []
    growth = {"startPercent": start, "factor": factor}
    waves = waves_of(*first, {"name": "grow", "exponential": growth})
    assert waves[-1].percent == 100 and len(waves) <= 10
    found = assign_waves(waves, fleet({"s": nodes}), key="k")
    assert len(found) == nodes
    if count:
        assert sum(1 for index in found.values() if index == 0) == min(count, nodes)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c", ""]), st.integers(0, 9), min_size=1),
    st.integers(1, 4),
    st.integers(10, 90),
)
def test_a_wave_takes_only_so_many_nodes_of_a_site(sizes: dict[str, int], cap: int, percent: int) -> None:
    nodes = fleet(sizes)
    waves = waves_of({"name": "first", "percent": percent, "maxPerSite": cap}, REST)
    found = assign_waves(waves, nodes, key="k", site_label="site")
    assert set(found) == {node.name for node in nodes}
    per_site = Counter(node.labels["site"] for node in nodes if found[node.name] == 0)
    per_site.pop("", None)  # nodes without a site are one each
    assert max(per_site.values(), default=0) <= cap


def test_nodes_that_a_capped_selector_passes_on_come_in_a_later_wave() -> None:
    lab = {"name": "lab", "nodeSelector": {"matchLabels": {"site": "a"}}, "maxPerSite": 2}
    found = assign_waves(waves_of(lab, REST), fleet({"a": 5, "b": 2}), key="k", site_label="site")
    assert Counter(found.values()) == {0: 2, 1: 5}


def test_a_node_that_a_later_selector_names_is_not_taken_before_by_chance() -> None:
    late = {"name": "late", "nodeSelector": {"matchLabels": {"site": "b"}}}
    for key in "klmnop":
        found = assign_waves(
            waves_of({"name": "two", "count": 2}, late, REST), fleet({"a": 3, "b": 3}), key=key
        )
        assert {name for name, index in found.items() if index == 1} == {"b-0", "b-1", "b-2"}


@pytest.mark.parametrize(
    ("bound", "nodes", "allowed"), [(0, 9, 0), (2, 9, 2), ("2", 9, 2), ("10%", 9, 0), ("10%", 25, 2)]
)
def test_failure_budget(bound: str | int, nodes: int, allowed: int) -> None:
    assert failures_allowed(bound, nodes) == allowed


def test_failures_within_the_budget_do_not_stop_the_wave() -> None:
    sim = installed(10, waves=ALL, maxFailures="20%", quorumPercent=80)
    sim.cluster.behaviours["v2"] = Behaviour(crashes_on=frozenset({"n3", "n7"}))
    sim.set_version("v2")
    sim.settle()
    assert sim.version == "v2"


def test_one_failure_too_many_rolls_back() -> None:
    sim = installed(10, waves=ALL, maxFailures="20%", quorumPercent=70, maxUnavailable=5)
    sim.cluster.behaviours["v2"] = Behaviour(crashes_on=frozenset({"n1", "n3", "n7"}))
    sim.set_version("v2")
    sim.settle()
    assert sim.step == "Failed" and set(sim.versions().values()) == {"v1"}


def most_at_once(sim: FleetSim, *, site: str | None = None) -> list[int]:
    """From now on the number of nodes that do not serve, at every look."""
    seen: list[int] = []

    def count(sim: FleetSim, look: Look) -> None:
        nodes = [n for n in sim.cluster.nodes.values() if site in (None, n.labels.get("site"))]
        seen.append(sum(1 for node in nodes if not sim.cluster.serving(node.name)))

    sim.checks.append(count)
    return seen


def test_no_site_is_without_more_nodes_than_allowed() -> None:
    sim = two_sites()
    seen = {site: most_at_once(sim, site=site) for site in ("a", "b")}
    everywhere = most_at_once(sim)
    sim.set_version("v2")
    sim.settle()
    assert sim.version == "v2"
    assert all(max(numbers) == 1 for numbers in seen.values())
    assert max(everywhere) == 2, "sites do not wait for each other"


def two_sites() -> FleetSim:
    """Two sites of nodes that hold one version only."""
    tight = GIB + GIB // 4
    sim = installed(1, waves=ALL, maxUnavailable="100%", maxUnavailablePerSite=1, memory_bytes=tight)
    del sim.cluster.nodes["n0"]
    for site in ("a", "b"):
        for index in range(4):
            sim.add_node(f"{site}{index}", memory_bytes=tight, labels={"site": site})
    sim.run(120)
    assert all(map(sim.cluster.serving, sim.cluster.nodes))
    return sim


def test_a_rollback_has_a_limit_of_its_own_and_ends_when_nodes_serve_again() -> None:
    sim = installed(
        12,
        waves=ALL,
        maxUnavailable="100%",
        rollback={"maxUnavailable": 2},
        memory_bytes=GIB + GIB // 4,
        behaviours={"v2": Behaviour(score=0.1)},
    )
    sim.set_version("v2")
    reach(sim, "RollingBack")
    seen = most_at_once(sim)
    assert sim.run_until(lambda: sim.step == "Failed"), sim.explain()
    assert all(map(sim.cluster.serving, sim.cluster.nodes)), "it ends when they serve"
    assert max(seen) == 2


def test_recreate_takes_all_nodes_at_once_and_judges_nothing() -> None:
    sim = installed(6, behaviours={"v2": Behaviour(score=0.1)})
    sim.edit(rollout={"strategy": "Recreate"})
    sim.set_version("v2")
    seen = most_at_once(sim)
    sim.settle()
    assert set(sim.versions().values()) == {"v2"} and sim.version == "v2"
    assert max(seen) == 6, "old pods go first though both would fit"
    assert sim.status.rollout and [w.verdict for w in sim.status.rollout.waves] == ["Pass"]
    assert not sim.status.rollout.measurements


def test_recreate_waits_for_no_quorum() -> None:
    sim = installed(6)
    for name in ("n0", "n1", "n2", "n3"):
        sim.set_online(name, online=False)
    sim.edit(rollout={"strategy": "Recreate"})
    sim.set_version("v2")
    sim.settle()
    assert sim.version == "v2"
    for name in ("n0", "n1", "n2", "n3"):
        sim.set_online(name, online=True)
    sim.run(300)
    assert set(sim.versions().values()) == {"v2"}


def test_recreate_takes_nothing_back() -> None:
    sim = installed(3, behaviours={"v2": Behaviour(crashes=True)})
    sim.edit(rollout={"strategy": "Recreate"})
    sim.set_version("v2")
    sim.run(7200)
    assert set(sim.versions().values()) == {"v2"} and not sim.status.failed_revisions
    assert sim.condition("Ready")[0] == "False"


def test_waves_as_written_stay_the_same_object() -> None:
    rollout = Rollout()
    assert effective_rollout(rollout) is rollout


@pytest.mark.parametrize(
    ("limit", "score", "expected"),
    [("noDataLimit", None, "v1"), ("noDataLimit", 0.99, "v2"), ("inconclusiveLimit", None, "waits")],
)
def test_a_limit_of_a_metric_calls_the_deadline_at_once(
    limit: str, score: float | None, expected: str
) -> None:
    metric = {"name": "quality", "preset": "EvaluationScore", "maxDegradation": "0.03", limit: 3}
    sim = installed(
        metrics=[metric],
        progressDeadline="10h",
        onDeadline="Rollback",
        behaviours={"v2": Behaviour(score=score)},
    )
    sim.set_version("v2")
    sim.run(3600)
    if expected == "waits":
        assert sim.condition("Progressing") == ("False", "NoData")
        return
    assert set(sim.versions().values()) == {expected}
    if expected == "v1":
        message = sim.status.failed_revisions[0].message
        assert "noDataLimit is 3" in message and "deadline passed" not in message


def test_waves_that_overlap_or_are_empty_are_refused_before_anything_moves() -> None:
    lab = {"name": "lab", "nodeSelector": {"matchLabels": {"site": "lab"}}}
    twice = {"name": "yes", "nodeSelector": {"matchLabels": {"slm": "yes"}}}
    for waves, text in [
        ([lab, REST], "the nodeSelector of lab selects no node"),
        ([twice, {**twice, "name": "again"}, REST], "selected by both yes and again"),
    ]:
        sim = installed(3)
        sim.edit(rollout={"waves": waves})
        sim.set_version("v2")
        sim.run(300)
        accepted = next(c for c in sim.status.conditions if c.type == "Accepted")
        assert (accepted.status, accepted.reason) == ("False", "InvalidWaves") and text in accepted.message
        assert set(sim.versions().values()) == {"v1"}
        patches = [a for look in sim.looks[-5:] for a in look.plan.actions if isinstance(a, PatchNodeLabels)]
        assert not patches
        sim.cluster.nodes["n1"].labels["site"] = "lab"
        if waves[0] is lab:
            sim.settle()
            assert sim.version == "v2", "a node was labelled for it"


@pytest.mark.parametrize("outage", ["provider", "traffic"])
def test_passes_from_before_an_outage_do_not_promote_during_it(outage: str) -> None:
    sim = installed(waves=[{"name": "all", "percent": 100}], soak="20m")
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.run(60)
    if outage == "provider":
        sim.provider_error = "503"
    else:
        sim.cluster.behaviours["v2"].score = None
    sim.run(7200)
    assert sim.version == "v1" and sim.step == "Analysing"
    sim.provider_error = ""
    sim.cluster.behaviours["v2"].score = 0.99
    sim.run(60)
    assert sim.version == "v2"


def test_passes_of_a_bound_that_was_edited_since_do_not_promote() -> None:
    metric = {"name": "quality", "preset": "EvaluationScore", "min": "0.5"}
    waves = [{"name": "all", "percent": 100}]
    sim = installed(metrics=[metric], waves=waves, soak="2m", behaviours={"v2": Behaviour(score=0.8)})
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.run(115)
    sim.edit(rollout={"analysis": {"metrics": [{**metric, "min": "0.9"}]}})
    sim.settle()
    assert sim.version == "v1" and sim.step == "Failed"


def test_a_limit_of_a_metric_does_not_count_while_nodes_change_over() -> None:
    metric = {"name": "quality", "preset": "EvaluationScore", "min": "0.9", "noDataLimit": 3}
    sim = installed(metrics=[metric], onDeadline="Rollback", behaviours={"v2": Behaviour(start_seconds=90)})
    sim.set_version("v2")
    sim.settle()
    assert sim.version == "v2", "a model that takes long to load has no data until it serves"
