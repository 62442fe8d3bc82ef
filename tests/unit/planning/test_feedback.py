# SPDX-License-Identifier: Apache-2.0
"""spec.feedback on a virtual fleet: what fires, what follows from it, and that it ends."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmops.model.observed import OwnedKind
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_sim import FleetSim
from tests.unit.planning.fleet_situations import installed, reach
from tests.unit.planning.profile_kit import ProfileSim, body_of, profile, variant

SCORE: dict[str, Any] = {
    "name": "score",
    "metric": {"preset": "FeedbackScore"},
    "min": "0.6",
    "window": "10m",
    "for": "5m",
}


def policy(action: str, **changes: Any) -> dict[str, Any]:
    return {"interval": "1m", "rules": [SCORE | {"action": action} | changes]}


def upgraded(action: str, *, nodes: int = 4, **spec: Any) -> FleetSim:
    """A fleet on which v2 has taken the place of v1, with one rule."""
    sim = installed(nodes, **spec)
    sim.edit(feedback=policy(action))
    sim.set_version("v2")
    sim.settle()
    assert sim.version == "v2" and sim.condition("FeedbackHealthy") == ("True", "Healthy")
    return sim


def judge(sim: FleetSim, version: str, score: float | None) -> None:
    sim.cluster.behaviour(version).judged = score


def failed(sim: FleetSim) -> list[tuple[str, str]]:
    return [(sim.cluster.version_of(f.revision), f.reason) for f in sim.status.failed_revisions]


def test_a_score_that_falls_takes_the_fleet_back_once_and_for_all() -> None:
    sim = upgraded("RollBack")
    second, first = sim.revision_of("v2"), sim.revision_of("v1")
    assert sim.status.previous_stable == first
    judge(sim, "v2", 0.3)
    sim.run(200)
    assert sim.condition("FeedbackHealthy") == ("Unknown", "Pending") and sim.version == "v2"
    assert sim.run_until(lambda: sim.condition("FeedbackHealthy")[1] == "RollingBack"), sim.explain()
    sim.settle()
    assert set(sim.versions().values()) == {"v1"} and sim.version == "v1"
    assert failed(sim) == [("v2", "FeedbackFailed")]
    assert sim.status.pinned is None
    assert sim.condition("RolloutSucceeded") == ("False", "FeedbackFailed")
    assert sim.condition("FeedbackHealthy") == ("True", "Healthy")
    assert sim.status.feedback is not None and sim.status.feedback.rolled_back == [second]
    assert sim.events().count("RollingBack") == 1 and "AnalysisFailed" not in sim.events()
    # v1 is no better in the end: there is nothing left to go back to.
    judge(sim, "v1", 0.2)
    sim.run(3600)
    assert sim.version == "v1" and sim.condition("FeedbackHealthy") == ("False", "RollbackBlocked")
    assert len(sim.history["n0"]) == 3, "v1, v2, v1"


def test_a_revision_that_is_tried_again_is_not_taken_back_twice() -> None:
    sim = upgraded("RollBack")
    judge(sim, "v2", 0.3)
    assert sim.run_until(lambda: sim.version == "v1")
    sim.settle()
    sim.retry()
    sim.settle()
    assert sim.version == "v2"
    sim.run(7200)
    assert sim.version == "v2" and sim.condition("FeedbackHealthy") == ("False", "RollbackBlocked")
    message = next(c.message for c in sim.status.conditions if c.type == "FeedbackHealthy")
    assert "once already" in message


@pytest.mark.parametrize("silence", ["no data", "outage", "too few"])
def test_silence_fires_nothing_and_its_time_does_not_count(silence: str) -> None:
    sim = upgraded("RollBack")
    behaviour = sim.cluster.behaviour("v2")
    judge(sim, "v2", 0.3)
    sim.run(150)
    assert sim.condition("FeedbackHealthy") == ("Unknown", "Pending")
    if silence == "no data":
        behaviour.judged = None
    elif silence == "outage":
        sim.provider_error = "Prometheus: HTTP 503"
    else:
        behaviour.samples = 3
    sim.run(6 * 3600)
    assert sim.version == "v2" and sim.step == "Completed" and not sim.status.failed_revisions
    behaviour.judged, behaviour.samples, sim.provider_error = 0.3, 1000, ""
    sim.run(60)
    assert sim.version == "v2" and sim.condition("FeedbackHealthy") == ("Unknown", "Pending")
    assert sim.run_until(lambda: sim.version == "v1", limit_seconds=600), sim.explain()


def test_what_was_never_measured_is_unknown() -> None:
    sim = installed(behaviours={"v1": Behaviour(judged=None)})
    sim.edit(feedback=policy("RollBack"))
    sim.run(3600)
    assert sim.condition("FeedbackHealthy") == ("Unknown", "NoData")
    sim.edit(feedback={"interval": "1m", "rules": []})
    sim.run(10)
    assert all(c.type != "FeedbackHealthy" for c in sim.status.conditions)
    assert sim.status.feedback is None


def test_a_pass_in_between_begins_the_time_anew() -> None:
    sim = upgraded("Notify")
    for _ in range(10):
        judge(sim, "v2", 0.3)
        sim.run(200)
        judge(sim, "v2", 0.8)
        sim.run(100)
    assert "RuleViolated" not in sim.events()
    judge(sim, "v2", 0.3)
    sim.run(600)
    assert sim.condition("FeedbackHealthy") == ("False", "RuleViolated")
    assert sim.version == "v2" and sim.events().count("RuleViolated") == 1
    judge(sim, "v2", 0.8)
    sim.run(120)
    assert sim.condition("FeedbackHealthy") == ("True", "Healthy")
    assert sim.events().count("FeedbackHealthy") == 1


def test_a_hold_freezes_rollouts_and_nothing_else() -> None:
    sim = upgraded("Hold")
    judge(sim, "v2", 0.3)
    sim.run(600)
    assert sim.condition("FeedbackHealthy") == ("False", "FeedbackHold")
    sim.set_version("v3")
    sim.add_node("late")
    sim.run(3600)
    assert set(sim.versions().values()) == {"v2"}, "the node that came late has the stable revision"
    assert sim.condition("Progressing") == ("False", "FeedbackHold")
    assert sim.condition("RolloutSucceeded") == ("Unknown", "InProgress")
    assert not sim.spec.rollout.paused
    sim.restart_operator()
    sim.run(600)
    assert set(sim.versions().values()) == {"v2"}
    judge(sim, "v2", 0.9)
    assert sim.run_until(lambda: sim.version == "v3"), sim.explain()


def held_in_the_middle() -> FleetSim:
    """v3 on one node of four, and a rule of v2 that holds it there."""
    sim = upgraded("Hold")
    judge(sim, "v2", 0.3)
    sim.run(120)
    sim.edit(rollout={"soak": "10m"})
    sim.set_version("v3")
    reach(sim, "Soaking")
    assert sim.run_until(lambda: sim.condition("Progressing")[1] == "FeedbackHold"), sim.explain()
    return sim


def test_a_hold_stops_a_rollout_in_the_middle_and_lets_it_go_on() -> None:
    sim = held_in_the_middle()
    sim.run(3 * 3600)
    assert sorted(sim.versions().values()) == ["v2", "v2", "v2", "v3"]
    assert not sim.status.failed_revisions, "its timers stand"
    sim.edit(feedback=policy("Notify"))
    sim.settle()
    assert sim.version == "v3"


def test_a_rollout_that_breaks_while_it_is_held_is_taken_back() -> None:
    """Nobody knows how long a rule stays broken; the nodes serve nothing meanwhile."""
    sim = held_in_the_middle()
    sim.cluster.behaviour("v3").crashes = True
    for pod in sim.cluster.pods:
        if pod.version == "v3":
            pod.phase, pod.phase_at = "Starting", sim.now
    sim.run(600)
    assert set(sim.versions().values()) == {"v2"} and failed(sim) == [("v3", "NodesFailed")]
    assert sim.condition("FeedbackHealthy") == ("False", "FeedbackHold")
    sim.set_version("v4")
    sim.run(600)
    assert set(sim.versions().values()) == {"v2"} and sim.condition("Progressing") == (
        "False",
        "FeedbackHold",
    )


def classed() -> ProfileSim:
    """A fleet of one class of devices on which v2 took the place of v1, and users turn away from it."""
    spec = body_of(variant("int4", "800Mi"), feedback=policy("RollBack"))
    sim = ProfileSim(spec)
    sim.profiles = (profile("pi"),)
    for index in range(4):
        sim.add_node(f"n{index}", labels={"device": "pi"})
    sim.settle()
    changed = [variant("int4", "800Mi", version="v2")]
    sim.edit(model={"name": "orders", "version": "v2"}, variants=changed)
    sim.settle()
    judge(sim, "v2", 0.3)
    assert sim.run_until(lambda: sim.condition("FeedbackHealthy")[1] == "RollingBack")
    return sim


@pytest.mark.parametrize("seconds", [3, 3600])
def test_a_changed_profile_is_no_change_of_mind(seconds: float) -> None:
    """The same files become another revision while the fleet goes back, or afterwards."""
    sim = classed()
    sim.run(seconds)
    sim.profiles = (profile("pi", runtime={"slots": 2}),)
    sim.run(3600)
    assert sim.version == "v1" and set(sim.versions().values()) == {"v1"}, sim.explain()
    assert all(len(given) <= 3 for given in sim.history.values()), "v1, v2, v1"
    assert sim.status.pinned is None and sim.condition("RolloutSucceeded") == ("False", "FeedbackFailed")
    sim.retry()
    sim.settle()
    assert sim.version == "v2", "who wants it again, gets it"


def test_a_changed_spec_is_tried_with_the_same_files() -> None:
    sim = classed()
    sim.run(3600)
    judge(sim, "v2", 0.9)
    sim.edit(runtime={"slots": 3})
    sim.settle()
    assert sim.version == "v2"


def test_rollouts_under_way_and_pauses_come_first() -> None:
    sim = upgraded("RollBack")
    judge(sim, "v2", 0.3)
    sim.edit(rollout={"paused": True})
    sim.run(900)
    assert sim.version == "v2" and sim.condition("FeedbackHealthy") == ("False", "RollbackBlocked")
    sim.edit(rollout={"paused": False, "soak": "20m"})
    sim.set_version("v3")
    sim.run(1200)
    assert sim.condition("FeedbackHealthy") == ("False", "RollbackBlocked")
    sim.settle()
    assert sim.version == "v3" and not sim.status.failed_revisions


def test_a_rollback_waits_for_no_window_and_no_approval() -> None:
    sim = upgraded("RollBack")
    waves = [{"name": "canary", "count": 1, "approval": "Manual"}, {"name": "rest", "percent": 100}]
    never = {"days": [], "startTime": "03:00", "endTime": "03:01"}
    sim.edit(rollout={"waves": waves, "windows": [never]})
    judge(sim, "v2", 0.3)
    assert sim.run_until(lambda: sim.version == "v1", limit_seconds=1800), sim.explain()


def test_a_revision_that_does_not_come_up_again_ends_the_way_back() -> None:
    sim = upgraded("RollBack")
    sim.cluster.behaviour("v1").crashes = True
    judge(sim, "v2", 0.3)
    sim.run(4 * 3600)
    assert set(sim.versions().values()) == {"v2"} and sim.version == "v2"
    assert [version for version, _ in failed(sim)] == ["v1"]
    assert sim.status.feedback is not None and sim.status.feedback.rollback is None
    assert sim.status.pinned is None
    assert sim.condition("FeedbackHealthy") == ("False", "RollbackBlocked")


def test_a_spec_that_moves_on_ends_the_way_back() -> None:
    sim = upgraded("RollBack")
    judge(sim, "v2", 0.3)
    assert sim.run_until(lambda: sim.condition("FeedbackHealthy")[1] == "RollingBack")
    sim.set_version("v3")
    sim.settle()
    assert sim.version == "v3" and sim.status.feedback is not None
    assert sim.status.feedback.rollback is None and sim.status.pinned is None
    assert failed(sim) == []


def test_the_revision_before_is_kept_however_many_failed_since() -> None:
    sim = upgraded("RollBack")
    first = sim.revision_of("v1")
    for version in ("v3", "v4", "v5", "v6", "v7"):
        sim.cluster.behaviours[version] = Behaviour(score=0.1)
        sim.set_version(version)
        sim.settle()
        assert sim.version == "v2" and sim.step == "Failed"
    judge(sim, "v2", 0.3)
    assert sim.run_until(lambda: sim.status.stable_revision == first, limit_seconds=3600), sim.explain()


def test_what_somebody_chose_by_hand_is_theirs_to_leave() -> None:
    sim = upgraded("RollBack")
    sim.ask("undo", sim.revision_of("v1"))
    sim.settle()
    assert sim.version == "v1" and sim.condition("RolloutSucceeded") == ("False", "Pinned")
    judge(sim, "v1", 0.3)
    sim.run(1800)
    assert sim.version == "v1" and sim.condition("FeedbackHealthy") == ("False", "RollbackBlocked")
    assert sim.status.pinned is not None


def test_without_a_revision_before_there_is_no_way_back() -> None:
    sim = installed()
    sim.edit(feedback=policy("RollBack"))
    judge(sim, "v1", 0.3)
    sim.run(3600)
    assert sim.condition("FeedbackHealthy") == ("False", "RollbackBlocked") and sim.version == "v1"


def test_there_is_no_model_to_ask_without_from() -> None:
    sim = installed()
    sim.edit(feedback=policy("NewModelVersion"))
    sim.run(60)
    assert sim.condition("Accepted") == ("False", "InvalidQuery")
    accepted = next(c.message for c in sim.status.conditions if c.type == "Accepted")
    assert "spec.feedback.rules[0].action: NewModelVersion needs spec.model.from" in accepted


def test_a_rule_that_is_changed_begins_anew() -> None:
    sim = upgraded("Notify")
    judge(sim, "v2", 0.5)
    sim.run(600)
    assert sim.condition("FeedbackHealthy")[0] == "False"
    sim.edit(feedback=policy("Notify", min="0.55"))
    sim.run(100)
    assert sim.condition("FeedbackHealthy") == ("Unknown", "Pending")
    sim.edit(feedback=policy("Notify", min="0.4"))
    sim.run(100)
    assert sim.condition("FeedbackHealthy") == ("True", "Healthy")


@pytest.mark.parametrize(
    ("metric", "cure"),
    [
        ({"query": "sum(up)"}, "$selector"),
        ({"query": "sum(up{$selector}"}, "does not parse"),
        ({"query": "sum(up{$selector})", "samplesQuery": "sum(up)"}, "samplesQuery"),
    ],
)
def test_queries_are_checked(metric: dict[str, str], cure: str) -> None:
    sim = installed()
    sim.edit(feedback=policy("RollBack", metric=metric, **{"for": "0s"}))
    sim.run(3600)
    assert sim.condition("Accepted") == ("False", "InvalidQuery")
    accepted = next(c.message for c in sim.status.conditions if c.type == "Accepted")
    assert "spec.feedback.rules[0].metric" in accepted and cure in accepted
    asked = [request.metric for look in sim.looks for request in look.plan.measure]
    assert not any(name.startswith("feedback/") for name in asked)


@pytest.mark.parametrize("where", ["spec.feedback.rules[0].metric", "spec.rollout.analysis.metrics[0]"])
def test_a_rate_of_refusals_needs_phrases_that_tell_one(where: str) -> None:
    """Servers without phrases have no such series: the rule would be without data for ever."""
    refusals = {"preset": "RefusalRate"}
    phrases = {"refusalPhrases": ["I cannot help"]}
    sim = installed()
    if where.startswith("spec.feedback"):
        sim.edit(feedback=policy("Notify", metric=refusals, max="0.2", min=None))
    else:
        sim.edit(rollout={"analysis": {"metrics": [{"name": "refusals", "max": "0.2"} | refusals]}})
    sim.run(60)
    assert sim.condition("Accepted") == ("False", "InvalidQuery")
    accepted = next(c.message for c in sim.status.conditions if c.type == "Accepted")
    assert accepted.startswith(f"{where}.preset: RefusalRate needs spec.feedback.refusalPhrases")
    sim.edit(feedback=phrases)
    sim.run(60)
    assert sim.condition("Accepted") == ("True", "Accepted")


SIGNALS = [f"{version} {how}" for version in ("v1", "v2", "v3") for how in ("bad", "good")]
OTHERS = ["silent", "outage", "over", "next", "restart", "pause", "resume", "crash v1", "heal v1", "kill"]
EVENTS = st.lists(st.sampled_from([*SIGNALS, *OTHERS]), min_size=1, max_size=12)


@settings(max_examples=10, deadline=None)
@given(EVENTS, st.sampled_from(["RollBack", "Hold"]))
def test_no_sequence_of_signals_takes_a_revision_back_twice(series: list[str], action: str) -> None:
    sim = upgraded(action, nodes=3)
    began: list[str] = []
    seen: set[str] = set()
    versions = iter(["v3", "v4"])

    def watch_rollbacks(sim: FleetSim, look: Any) -> None:
        # What is stored counts: a look that was killed before its status was written is made again.
        stored = look.observed.deployment.status.feedback
        under_way = stored.rollback if stored else None
        if under_way is not None and under_way.at not in seen:
            seen.add(under_way.at)
            began.append(under_way.revision)

    sim.checks.append(watch_rollbacks)
    for event in series:
        match event.split():
            case [version, "bad" | "good" as how]:
                judge(sim, version, 0.1 if how == "bad" else 0.9)
            case ["silent"]:
                for version in ("v1", "v2", "v3", "v4"):
                    judge(sim, version, None)
            case ["outage" | "over"]:
                sim.provider_error = "HTTP 503" if event == "outage" else ""
            case ["next"]:
                version = next(versions, "")
                if version:
                    sim.set_version(version)
            case ["restart"]:
                sim.restart_operator()
            case ["pause" | "resume"]:
                sim.edit(rollout={"paused": event == "pause"})
            case ["crash" | "heal" as how, version]:
                sim.cluster.behaviour(version).crashes = how == "crash"
            case ["kill"]:
                sim.kill_at = sim.writes + 2
        sim.run(500)
    assert len(began) == len(set(began)), "each at most once"
    if action == "Hold":
        assert not began
    feedback = sim.status.feedback
    assert feedback is None or (len(feedback.rules) <= 1 and len(feedback.rolled_back) <= 20)
    # Whatever happened, with good scores, nothing paused and no outage it comes to rest.
    sim.provider_error = ""
    for version in ("v1", "v2", "v3", "v4"):
        judge(sim, version, 0.9)
        sim.cluster.behaviour(version).crashes = False
    sim.edit(rollout={"paused": False})
    sim.settle(limit_seconds=24 * 3600)
    looks = len(sim.looks)
    sim.run(3600)
    assert len(sim.looks) - looks < 300, "one rule, one look a minute and its reading"
    assert OwnedKind.CONTROLLER_REVISION in {kind for kind, _ in sim.cluster.objects}
