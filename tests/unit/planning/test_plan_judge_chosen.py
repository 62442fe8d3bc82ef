# SPDX-License-Identifier: Apache-2.0
"""Who judges a rollout where no Prometheus is named, and what an operator that learns of one changes."""

from dataclasses import replace

from slmops.model.observed import ProviderSettings
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_sim import CONFIG, FleetSim
from tests.unit.planning.fleet_situations import installed, reach

WITHOUT = replace(CONFIG, prometheus_url="")
DIRECT = ProviderSettings(kind="Direct", namespace="shop")


def asked(sim: FleetSim) -> set[ProviderSettings]:
    """Whom all requests so far went to."""
    return {request.provider for look in sim.looks for request in look.plan.measure}


def judged_by(sim: FleetSim) -> str | None:
    assert sim.status.rollout is not None
    return sim.status.rollout.judged_by


def test_without_a_prometheus_the_operator_judges_and_status_says_so() -> None:
    sim = installed(behaviours={"v3": Behaviour(score=0.5)})
    sim.config = WITHOUT
    sim.set_version("v2")
    sim.settle()
    assert (sim.version, judged_by(sim)) == ("v2", "Direct")
    sim.set_version("v3")
    sim.settle()
    assert (sim.version, judged_by(sim)) == ("v2", "Direct")
    assert sim.status.failed_revisions and asked(sim) == {DIRECT}


def test_an_operator_that_is_given_a_prometheus_asks_it_from_then_on() -> None:
    sim = installed(behaviours={"v2": Behaviour(score=None)})
    sim.config = WITHOUT
    sim.set_version("v2")
    reach(sim, "Analysing")
    assert judged_by(sim) == "Direct"
    revision = sim.status.update_revision
    sim.config = CONFIG
    sim.run(60)
    assert judged_by(sim) == "Prometheus"
    assert sim.status.update_revision == revision, "who judges is no part of a revision"
    assert {settings.kind for settings in asked(sim)} == {"Direct", "Prometheus"}


def test_a_query_waits_with_a_message_until_somebody_can_be_asked_it() -> None:
    sim = installed()
    sim.config = WITHOUT
    metrics = [{"name": "own", "query": "sum(foo{$selector})", "max": "1"}]
    sim.edit(rollout={"analysis": {"metrics": metrics}})
    sim.set_version("v2")
    sim.run(60)
    accepted = next(c for c in sim.status.conditions if c.type == "Accepted")
    assert (accepted.status, accepted.reason) == ("False", "InvalidQuery")
    assert "no Prometheus is named" in accepted.message and "metrics[0].query" in accepted.message
    assert sim.version == "v1" and set(sim.versions().values()) == {"v1"}


def test_an_installation_and_what_is_read_off_the_pods_have_no_judge() -> None:
    sim = installed()
    assert judged_by(sim) is None
    metrics = [{"name": "restarts", "preset": "Restarts", "max": "0"}]
    sim.edit(rollout={"analysis": {"metrics": metrics}})
    sim.set_version("v2")
    sim.settle()
    assert (sim.version, judged_by(sim)) == ("v2", None)
