# SPDX-License-Identifier: Apache-2.0
"""spec.adaptation on a virtual fleet: who trains when, what becomes of it, and that it ends."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmops.api.adaptation_status import MAX_TRIED, MESSAGE_LIMIT
from slmops.model.jobs import CreateJob
from slmops.model.observed import OwnedKind
from slmops.planning import times
from slmwire.jobs import TrainOutcome
from slmwire.reasons import Reason
from tests.unit.planning.adaptation_sim import (
    ADAPTATION,
    RULE,
    AdaptationSim,
    Training,
    installed_sites,
    sha_of,
)
from tests.unit.planning.fleet_cluster import Behaviour, SimNode, SimPod
from tests.unit.planning.fleet_sim import FleetSim, Look
from tests.unit.planning.profile_kit import GIB

COOLDOWN = 2 * 3600


def ended(sim: AdaptationSim, site: str) -> bool:
    state = sim.site(site)
    return state.finished_at is not None and state.phase != "Training"


def adapted(**changes: Any) -> tuple[AdaptationSim, str]:
    """A fleet in which north has an adapter, and the revision before it."""
    sim = installed_sites(**changes)
    first = sim.status.stable_revision
    sim.edit(adaptation={"sites": ["north"]})
    sim.settle()
    first = sim.status.stable_revision
    sim.train()
    assert sim.run_until(lambda: ended(sim, "north")), sim.explain()
    sim.settle()
    assert sim.status.stable_revision != first and sim.site("north").adapter is not None, sim.explain()
    return sim, first


def test_a_site_that_takes_part_is_a_class_of_its_own_from_the_start() -> None:
    sim = installed_sites()
    assert sim.variants()["north0"] == "int4-north" and sim.variants()["west0"] == "int4"
    assert sim.condition("AdaptationHealthy") == ("True", "Collecting")
    revision = sim.status.stable_revision
    for name, keeps in {"int4-north": True, "int4-south": True, "int4": False}.items():
        body = sim.cluster.objects[OwnedKind.DAEMON_SET, f"orders-{revision}-{name}"]
        pod = body["spec"]["template"]["spec"]
        told = {
            c["name"]: {e["name"] for e in c["env"]} for c in (*pod["containers"], *pod["initContainers"])
        }
        for container in ("server", "fetch"):
            assert ({"SLM_EXAMPLES", "SLM_EXAMPLES_DIR"} <= told[container]) is keeps
        assert ("supplementalGroups" in pod["securityContext"]) is keeps


def test_the_site_whose_users_complain_trains_and_gets_its_adapter_as_a_canary() -> None:
    sim = installed_sites()
    first = sim.status.stable_revision
    sim.fire("int4-north")
    assert sim.run_until(lambda: ended(sim, "north")), sim.explain()
    sim.settle()
    assert [job.site for job in sim.made] == ["north"]
    assert sim.status.stable_revision != first and sim.step == "Completed"
    assert sim.adapters(sim.status.stable_revision) == {"int4-north": sim.made[0].sha256}
    assert sim.condition("AdaptationHealthy") == ("True", "Adapted")
    assert sim.condition("FeedbackHealthy") == ("True", "Healthy")
    assert sim.site("south").phase == "Collecting"
    events = sim.events()
    assert events.index("TrainingStarted") < events.index("AdapterAccepted") < events.index("RolloutStarted")
    sim.run(2 * 3600)
    assert not sim.jobs, "a Job that has ended is deleted after an hour"


def test_a_variant_that_is_of_no_site_makes_all_train_and_silence_none() -> None:
    sim = installed_sites()
    sim.fire("int4")
    assert sim.run_until(lambda: ended(sim, "north") and ended(sim, "south"))
    assert sorted(job.site for job in sim.made) == ["north", "south"]
    sim.cluster.behaviour("v1").judged = None
    sim.scores.clear()
    sim.adapted.judged = None
    sim.run(3 * COOLDOWN)
    assert len(sim.made) == 2


def test_a_rule_waits_for_the_cooldown_and_a_person_does_not() -> None:
    sim = installed_sites()
    sim.trainings["north0"] = Training(outcome=TrainOutcome.NO_GAIN)
    sim.fire("int4-north")
    assert sim.run_until(lambda: ended(sim, "north"))
    assert (sim.site("north").phase, sim.site("north").reason) == ("Refused", "NoGain")
    sim.run(COOLDOWN - 120)
    assert len(sim.made) == 1
    sim.run(1200)
    assert len(sim.made) == 2
    sim.train("now")
    assert sim.run_until(lambda: len(sim.made) == 4), "south, too"
    sim.run(3600)
    assert len(sim.made) == 4, "the same value asks once"


def test_with_too_few_examples_each_node_is_tried_once() -> None:
    sim = installed_sites()
    for node in ("north0", "north1"):
        sim.trainings[node] = Training(outcome=TrainOutcome.TOO_FEW_EXAMPLES, seconds=20)
    sim.fire("int4-north")
    assert sim.run_until(lambda: ended(sim, "north"))
    state = sim.site("north")
    assert [job.node for job in sim.made] == ["north0", "north1"]
    assert (state.phase, state.reason, state.tried) == ("Refused", "TooFewExamples", ["north0", "north1"])
    assert "99 examples" in state.message and "100" in state.message
    sim.run(COOLDOWN - 600)
    assert len(sim.made) == 2


def test_an_adapter_that_fails_its_rollout_is_dropped_and_the_fleet_is_as_before() -> None:
    sim = installed_sites()
    first = sim.status.stable_revision
    sim.adapted = Behaviour(score=0.3)
    sim.fire("int4-north")
    assert sim.run_until(
        lambda: sim.status.adaptation is not None and sim.site("north").phase == "RolledBack"
    )
    sim.run(60)
    assert sim.status.stable_revision == sim.status.update_revision == first
    assert sim.condition("RolloutSucceeded") == ("True", "Promoted")
    assert sim.condition("AdaptationHealthy") == ("False", "AdapterRolledBack")
    (failed,) = sim.status.failed_revisions
    assert failed.reason == "AnalysisFailed" and sim.site("north").adapter is None
    assert {len(revisions) for revisions in sim.history.values()} <= {1, 3}
    sim.run(COOLDOWN - 600)
    assert len(sim.made) == 1
    # The same examples make the same adapter: it is known to be bad, and goes to no node again.
    before = dict(sim.history)
    assert sim.run_until(lambda: len(sim.made) == 2)
    sim.run(1800)
    assert sim.history == before and sim.site("north").phase == "RolledBack"
    assert sim.status.update_revision == first


def test_a_second_adapter_that_fails_gives_way_to_the_first() -> None:
    sim, _ = adapted()
    stable, first = sim.status.stable_revision, sim.site("north").adapter
    sim.adapted = Behaviour(score=0.3)
    # What serves already is as good as it was.
    kept = sim.adapters(stable)
    plain = sim.sample

    def sample(query: Any) -> Any:
        sim.adapted = Behaviour() if query.revision == stable else Behaviour(score=0.3)
        return plain(query)

    sim.sample = sample  # type: ignore[method-assign]
    sim.trainings["north0"] = Training(seed="b")
    sim.train()
    assert sim.run_until(lambda: sim.site("north").phase == "RolledBack"), sim.explain()
    sim.run(60)
    assert sim.status.stable_revision == sim.status.update_revision == stable
    assert sim.site("north").adapter == first and sim.adapters(stable) == kept
    assert sim.condition("RolloutSucceeded") == ("True", "Promoted")


def test_a_rule_that_takes_an_adapter_back_does_not_condemn_what_was_before() -> None:
    sim = installed_sites()
    first = sim.status.stable_revision
    sim.train()
    assert sim.run_until(lambda: ended(sim, "north") and ended(sim, "south"))
    sim.settle()
    sim.settle()
    sim.adapted.judged = 0.2
    sim.edit(feedback={"interval": "10m", "rules": [RULE | {"action": "RollBack"}]})
    assert sim.run_until(lambda: bool(sim.status.failed_revisions)), sim.explain()
    sim.settle()
    assert sim.status.update_revision not in {entry.revision for entry in sim.status.failed_revisions}
    assert sim.status.stable_revision == sim.status.update_revision
    dropped = [state.site for state in sim.status.adaptation.sites if state.adapter is None]  # type: ignore[union-attr]
    assert dropped and all(sim.site(name).phase == "RolledBack" for name in dropped)
    assert first in {view.revision for view in sim.cluster.revision_views()}


LIES: dict[str, dict[str, Any]] = {
    "no hash": {"sha256": "../../etc/passwd"},
    "another file": {"sha256": sha_of("another")},
    "another model": {"base_digest": f"sha256:{sha_of('another')}"},
    "no share": {"after": 1.5},
    "not a number": {"before": float("nan")},
    "a text": {"examples": "many"},
    "true": {"held_out": True},
    "nothing held back": {"held_out": 0},
    "a huge size": {"size_bytes": 1 << 60},
    "negative": {"golden_samples": -1},
    "golden without shares": {"golden_after": None},
    "refused and done": {"outcome": "NoGain"},
    "unknown": {"outcome": "Perfect"},
    "no text": {"outcome": ["Accepted"]},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_report_that_cannot_be_right_changes_no_model(lie: str) -> None:
    sim = installed_sites(adaptation=ADAPTATION | {"sites": ["north"]})
    first = sim.status.stable_revision
    sim.trainings["north0"] = Training(report=LIES[lie])
    sim.train()
    assert sim.run_until(lambda: ended(sim, "north"))
    state = sim.site("north")
    assert (state.phase, state.reason) == ("Failed", "BadReport"), state
    assert state.adapter is None and state.waiting is None
    sim.run(60)
    assert sim.status.update_revision == first


@pytest.mark.parametrize("outcome", [["NoGain"], {"NoGain": 1}, None, 1, "", "Perfect"])
def test_whatever_a_failed_job_says_it_is_a_failure_and_no_defect(outcome: Any) -> None:
    sim = installed_sites(adaptation=ADAPTATION | {"sites": ["north"]})
    refused = Training(outcome=TrainOutcome.NO_GAIN, report={"outcome": outcome})
    sim.trainings["north0"] = sim.trainings["north1"] = refused
    sim.train()
    assert sim.run_until(lambda: ended(sim, "north"))
    assert sim.site("north").phase == "Failed"


GATES: dict[str, tuple[dict[str, Any], str]] = {
    "gain": ({"before": 0.5, "after": 0.54}, "NoGain"),
    "none": ({"before": 0.5, "after": 0.5}, "NoGain"),
    "loss": ({"golden_before": 0.9, "golden_after": 0.8}, "QualityLoss"),
    "examples": ({"examples": 99}, "TooFewExamples"),
}


@pytest.mark.parametrize("gate", GATES)
def test_gates_are_judged_again(gate: str) -> None:
    report, outcome = GATES[gate]
    sim = installed_sites(adaptation=ADAPTATION | {"sites": ["north"]})
    sim.trainings["north0"] = sim.trainings["north1"] = Training(report=report)
    sim.train()
    assert sim.run_until(lambda: ended(sim, "north"))
    assert (sim.site("north").phase, sim.site("north").last_outcome) == ("Refused", outcome)


def test_just_the_gain_that_is_asked_for_is_enough() -> None:
    sim = installed_sites(adaptation=ADAPTATION | {"sites": ["north"]})
    sim.trainings["north0"] = Training(report={"before": 0.3, "after": 0.35})
    sim.train()
    assert sim.run_until(lambda: ended(sim, "north"))
    assert sim.site("north").phase == "Accepted"


def test_a_job_that_crashes_is_tried_three_times() -> None:
    sim = installed_sites(adaptation=ADAPTATION | {"sites": ["north"]})
    sim.trainings["north0"] = Training(crash="train", seconds=10)
    sim.train()
    assert sim.run_until(lambda: ended(sim, "north"))
    assert len(sim.made) == 3 and len({job.name for job in sim.made}) == 3
    waits = [after.made_at - before.made_at for before, after in zip(sim.made, sim.made[1:], strict=False)]
    assert waits[0] >= 30 and waits[1] >= 60
    assert (sim.site("north").phase, sim.site("north").reason) == ("Failed", "TrainingFailed")
    assert sim.condition("AdaptationHealthy") == ("False", "TrainingFailed")


def test_a_node_that_goes_away_leaves_it_to_another_one() -> None:
    sim = installed_sites(adaptation=ADAPTATION | {"sites": ["north"]})
    sim.train()
    assert sim.run_until(lambda: len(sim.made) == 1)
    del sim.cluster.nodes["north0"]
    assert sim.run_until(lambda: ended(sim, "north"))
    assert [job.node for job in sim.made] == ["north0", "north1"]
    assert sim.site("north").phase == "Accepted"


def test_a_node_that_never_answers_again_is_not_waited_for() -> None:
    sim = installed_sites(adaptation=ADAPTATION | {"sites": ["north"]})
    sim.train()
    assert sim.run_until(lambda: len(sim.made) == 1)
    sim.set_online("north0", online=False)
    sim.run(3600 + 300)
    assert (sim.site("north").phase, sim.site("north").reason) == ("Failed", "DeadlineExceeded")


def lose(sim: AdaptationSim) -> None:
    """From now on fetches fail where no node has what was trained."""
    plain = sim.cluster._fetch_error

    def fetch_error(pod: SimPod, node: SimNode, behaviour: Behaviour) -> Reason | None:
        somebody = any(pod.digest in other.cache for other in sim.cluster.nodes.values() if other.online)
        if pod.variant in sim.adapters(pod.revision) and not somebody:
            return Reason.ADAPTER_LOST
        return plain(pod, node, behaviour)

    sim.cluster._fetch_error = fetch_error  # type: ignore[method-assign]


def test_a_site_whose_nodes_were_all_replaced_goes_on_without_the_adapter() -> None:
    sim, first = adapted()
    lose(sim)
    for name in ("north0", "north1"):
        del sim.cluster.nodes[name]
    sim.add_node("north2", labels={"site": "north"}, memory_bytes=4 * GIB)
    assert sim.run_until(lambda: sim.site("north").adapter is None), sim.explain()
    assert sim.run_until(lambda: sim.condition("Ready")[0] == "True"), sim.explain()
    assert sim.status.update_revision == first and sim.adapters(first) == {}
    state = sim.site("north")
    assert (state.phase, state.reason) == ("RolledBack", "AdapterLost")
    sim.run(COOLDOWN)
    assert len(sim.made) == 1


def test_a_rollout_of_an_adapter_that_nobody_has_is_given_up() -> None:
    """The node that trained it was gone before any other had fetched it."""
    sim = installed_sites(adaptation=ADAPTATION | {"sites": ["north"]})
    first = sim.status.stable_revision
    lose(sim)
    sim.train()
    assert sim.run_until(lambda: sim.site("north").adapter is not None), sim.explain()
    assert sim.site("north").node == "north0"
    del sim.cluster.nodes["north0"]
    assert sim.run_until(lambda: sim.site("north").adapter is None), sim.explain()
    assert sim.site("north").reason == "AdapterLost"
    sim.settle()
    assert sim.status.stable_revision == sim.status.update_revision == first
    assert sim.condition("Ready")[0] == "True"


def test_a_node_that_is_away_may_have_the_adapter_still() -> None:
    sim, _ = adapted()
    stable, adapter = sim.status.stable_revision, sim.site("north").adapter
    lose(sim)
    del sim.cluster.nodes["north0"]
    sim.set_online("north1", online=False)
    sim.add_node("north2", labels={"site": "north"}, memory_bytes=4 * GIB)
    sim.run(1800)
    assert sim.site("north").adapter == adapter and sim.status.update_revision == stable
    sim.set_online("north1", online=True)
    assert sim.run_until(lambda: sim.condition("Ready")[0] == "True"), sim.explain()
    assert sim.site("north").adapter == adapter and sim.status.update_revision == stable


def test_nothing_begins_in_a_rollout_and_what_ends_in_one_waits() -> None:
    sim = installed_sites(adaptation=ADAPTATION | {"sites": ["north"]})
    sim.train("one")
    sim.trainings["north0"] = Training(seconds=30)
    assert sim.run_until(lambda: len(sim.made) == 1)
    sim.edit(runtime={"slots": 2})
    sim.edit(rollout={"soak": "5m"})
    assert sim.run_until(lambda: ended(sim, "north"))
    assert sim.step not in ("Completed", "") and sim.site("north").waiting is not None
    target = sim.status.update_revision
    sim.train("two")
    sim.run(60)
    assert len(sim.made) == 1 and sim.site("north").reason == "Waiting"
    assert sim.status.update_revision == target
    assert sim.run_until(lambda: sim.status.stable_revision == target), sim.explain()
    assert sim.run_until(lambda: len(sim.made) == 2), sim.explain()
    assert sim.adapters(sim.status.stable_revision), "the first went out before the second began"


def test_paused_nothing_begins_and_nothing_counts() -> None:
    sim = installed_sites(adaptation=ADAPTATION | {"sites": ["north"]})
    first = sim.status.stable_revision
    sim.edit(rollout={"paused": True})
    sim.train()
    sim.run(3600)
    assert not sim.made and "paused" in sim.site("north").message
    sim.edit(rollout={"paused": False})
    assert sim.run_until(lambda: len(sim.made) == 1)
    sim.edit(rollout={"paused": True})
    sim.run(3600)
    assert sim.site("north").waiting is not None and sim.status.update_revision == first
    sim.edit(rollout={"paused": False})
    sim.settle()
    assert sim.status.stable_revision != first


def test_a_new_version_has_no_adapter_until_the_site_has_trained_for_it() -> None:
    sim, _ = adapted()
    sim.set_version("v2")
    assert sim.run_until(lambda: sim.version == "v2"), sim.explain()
    assert sim.adapters(sim.status.stable_revision) == {}
    assert sim.run_until(lambda: len(sim.made) == 2)
    assert sim.run_until(lambda: ended(sim, "north"))
    sim.settle()
    assert sim.adapters(sim.status.stable_revision) == {"int4-north": sim.made[1].sha256}
    assert sim.site("north").asked_by == "NewModel"
    sim.run(2 * COOLDOWN)
    assert len(sim.made) == 2


def test_a_new_version_that_learns_nothing_is_asked_once() -> None:
    sim, _ = adapted()
    sim.trainings["north0"] = Training(outcome=TrainOutcome.NO_GAIN)
    sim.set_version("v2")
    assert sim.run_until(lambda: len(sim.made) == 2)
    sim.run(2 * COOLDOWN)
    assert len(sim.made) == 2 and sim.adapters(sim.status.stable_revision) == {}


def test_without_the_site_its_job_and_adapter_go() -> None:
    sim, _ = adapted()
    sim.edit(adaptation={"sites": ["north", "south"]})
    sim.settle()
    sim.train()
    assert sim.run_until(lambda: len(sim.made) == 3)
    sim.edit(adaptation={"sites": ["south"]})
    sim.run(5)
    assert [job.site for job in sim.jobs.values()] == ["south"]
    sim.settle()
    assert sim.variants()["north0"] == "int4"
    assert "int4-north" not in sim.adapters(sim.status.stable_revision)


def test_without_adaptation_the_revision_is_the_one_that_it_always_was() -> None:
    sim = installed_sites()
    del sim.spec_body["adaptation"]
    sim.edit()
    sim.settle()
    plain = sim.status.stable_revision
    assert sim.status.adaptation is None and set(sim.variants().values()) == {"int4"}
    sim.edit(adaptation=ADAPTATION)
    sim.settle()
    assert sim.status.stable_revision != plain
    other = AdaptationSim()
    del other.spec_body["adaptation"]
    other.settle()
    assert other.status.stable_revision == plain


def test_at_most_four_sites_train_at_a_time() -> None:
    sites = [f"s{index}" for index in range(6)]
    sim = AdaptationSim()
    for name in sites:
        sim.add_node(name, labels={"site": name}, memory_bytes=4 << 30)
    sim.edit(adaptation={"sites": sites})
    sim.settle()
    sim.train()
    assert sim.run_until(lambda: len(sim.made) == 4)
    sim.run(30)
    assert len(sim.made) == 4
    assert sim.run_until(lambda: all(ended(sim, name) for name in sites), limit_seconds=4 * 3600)
    assert sorted(job.site for job in sim.made) == sites


@pytest.mark.parametrize("kill_at", range(0, 24, 3))
def test_killed_at_any_write_it_comes_to_the_same_end(kill_at: int) -> None:
    sim = installed_sites(adaptation=ADAPTATION | {"sites": ["north"]})
    sim.kill_at = sim.writes + kill_at
    sim.train()
    assert sim.run_until(lambda: ended(sim, "north"))
    sim.settle()
    assert len(sim.made) == 1
    assert sim.adapters(sim.status.stable_revision) == {"int4-north": sim.made[0].sha256}


def test_a_site_that_cannot_train_says_why() -> None:
    sim = AdaptationSim(distribution={"peers": "None"})
    sim.settle()
    sim.train()
    sim.run(60)
    assert sim.condition("AdaptationHealthy") == ("False", "Unsupported") and not sim.made
    assert "spec.distribution.peers" in sim.site("north").message
    sim.edit(distribution={"peers": "Site"})
    sim.run(60)
    assert sim.site("north").phase == "Collecting" and not sim.made
    sim.train()
    assert sim.run_until(lambda: len(sim.made) == 2)


# Invariants


def test_a_site_without_nodes_says_where_to_look_until_one_comes() -> None:
    sim = installed_sites(adaptation=ADAPTATION | {"sites": ["nort", "south"]})
    assert (sim.site("nort").phase, sim.site("nort").reason) == ("Collecting", "NoNodes")
    assert "label site=nort" in sim.site("nort").message
    assert sim.site("south").reason == ""
    (said,) = [c for c in sim.status.conditions if c.type == "AdaptationHealthy"]
    assert (said.status, said.reason) == ("True", "Collecting") and "spec.adaptation.sites" in said.message
    sim.train()
    sim.run(60)
    assert {job.site for job in sim.made} == {"south"} and sim.site("nort").reason == "NoNodes"
    sim.add_node("late", labels={"site": "nort"}, memory_bytes=4 << 30)
    assert sim.run_until(lambda: sim.site("nort").adapter is not None), sim.explain()


def test_what_waits_still_says_how_the_last_training_ended() -> None:
    sim = installed_sites(adaptation=ADAPTATION | {"sites": ["north"]})
    sim.trainings = {f"north{i}": Training(outcome=TrainOutcome.NO_GAIN) for i in range(2)}
    sim.train()
    assert sim.run_until(lambda: ended(sim, "north"))
    sim.settle()
    refused = sim.site("north")
    sim.edit(rollout=sim.spec_body["rollout"] | {"paused": True})
    sim.train("again")
    sim.settle()
    waits = sim.site("north")
    assert (waits.phase, waits.reason) == ("Refused", "NoGain")
    assert waits.message == f"{refused.message}; a training is wanted and waits: rollouts are paused"


class Watch:
    """What must hold after each look, whatever is asked and reported."""

    def __init__(self) -> None:
        self.by_rule: dict[str, float] = {}
        self.started: dict[str, float] = {}

    def __call__(self, sim: FleetSim, look: Look) -> None:
        assert isinstance(sim, AdaptationSim)
        self._one_job_for_a_site(sim, look)
        self._status_is_bounded_and_says_why(look)
        self._no_other_revision_without_cause(look)

    def _status_is_bounded_and_says_why(self, look: Look) -> None:
        adaptation = look.plan.status.adaptation
        spec = look.observed.deployment.spec
        if adaptation is None or spec is None or spec.adaptation is None:
            return
        assert [state.site for state in adaptation.sites] == sorted(spec.adaptation.sites)
        assert sum(state.phase == "Training" and not state.retry_at for state in adaptation.sites) <= 4
        for state in adaptation.sites:
            assert len(state.tried) <= MAX_TRIED and len(state.message) <= MESSAGE_LIMIT
            assert state.message.count("waits: ") <= 1, state
            if state.phase in ("Refused", "Failed", "RolledBack", "Unsupported"):
                assert state.reason not in ("", "Waiting") and state.message, state
            assert (state.reason == "Waiting") <= (state.asked_at is not None), state

    def _one_job_for_a_site(self, sim: AdaptationSim, look: Look) -> None:
        adaptation = look.plan.status.adaptation
        states = {state.job: state for state in adaptation.sites} if adaptation is not None else {}
        running = {job.name: job.site for job in sim.jobs.values() if sim._state(job) == "Active"}
        for action in look.plan.actions:
            if not isinstance(action, CreateJob):
                continue
            state = states[action.name]
            assert state.phase == "Training"
            others = [name for name, site in running.items() if site == state.site and name != action.name]
            gone = [name for name in others if sim.jobs[name].node not in sim.cluster.nodes]
            assert others == gone, f"two Jobs for {state.site}"
            if action.name in running or action.name in self.started:
                continue
            self.started[action.name] = look.at
            if state.asked_by == "Rule" and state.failures == 0 and not state.tried:
                before = next(
                    (
                        s.finished_at
                        for s in (
                            look.observed.deployment.status.adaptation.sites
                            if look.observed.deployment.status.adaptation
                            else ()
                        )
                        if s.site == state.site
                    ),
                    None,
                )
                if before is not None:
                    assert look.at - times.to_seconds(before) >= COOLDOWN - 1

    def _no_other_revision_without_cause(self, look: Look) -> None:
        """Adapters change only where one was accepted, dropped with its revision, or taken out of spec."""
        before, after = look.observed.deployment.status.adaptation, look.plan.status.adaptation
        if before is None or after is None:
            return
        old = {state.site: state for state in before.sites}
        for state in after.sites:
            was = old.get(state.site)
            if was is None or was.adapter == state.adapter:
                continue
            if state.phase == "RolledBack" or was.previous == state.adapter:
                assert look.plan.status.failed_revisions
                continue
            assert state.adapter is not None
            fresh = was.waiting == state.adapter or times.to_text(look.at) == state.adapter.trained_at
            assert fresh, f"{state.site}: {was} became {state}"


OUTCOMES = st.sampled_from(
    [
        Training(),
        Training(seed="b"),
        Training(outcome=TrainOutcome.NO_GAIN, seconds=30),
        Training(outcome=TrainOutcome.TOO_FEW_EXAMPLES, seconds=10),
        Training(crash="judge", seconds=20),
        Training(report={"after": 7}),
        Training(seconds=2 * 3600),
    ]
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("training"), st.sampled_from(["north0", "north1", "south0", "south1"]), OUTCOMES),
        st.tuples(st.just("train")),
        st.tuples(st.just("fire"), st.sampled_from(["int4-north", "int4-south", "int4"])),
        st.tuples(st.just("run"), st.sampled_from([30.0, 400.0, 2000.0, 9000.0])),
        st.tuples(st.just("kill"), st.integers(0, 6)),
        st.tuples(st.just("bad"), st.booleans()),
        st.tuples(st.just("version"), st.sampled_from(["v1", "v2"])),
        st.tuples(st.just("node"), st.sampled_from(["north0", "south1"]), st.booleans()),
        st.tuples(st.just("sites"), st.sampled_from([["north"], ["north", "south"], ["south"]])),
    ),
    min_size=4,
    max_size=9,
)


def act(sim: AdaptationSim, step: tuple[Any, ...]) -> None:
    match step:
        case ("training", node, training):
            sim.trainings[node] = training
        case ("train",):
            sim.train()
        case ("fire", name):
            sim.fire(name)
        case ("run", seconds):
            sim.run(seconds)
        case ("kill", after):
            sim.kill_at = sim.writes + after
        case ("bad", is_bad):
            sim.adapted = Behaviour(score=0.2) if is_bad else Behaviour()
        case ("version", version):
            sim.set_version(version)
        case ("node", name, online):
            sim.set_online(name, online=online)
        case ("sites", sites):
            sim.edit(adaptation={"sites": sites})


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_whatever_is_asked_and_reported_no_site_trains_twice_and_nothing_flaps(
    steps: list[tuple[Any, ...]],
) -> None:
    sim = installed_sites()
    sim.checks.append(Watch())
    for step in steps:
        act(sim, step)
    # What is left comes to an end, and then to rest.
    for name in sim.cluster.nodes:
        sim.set_online(name, online=True)
    sim.scores.clear()
    sim.kill_at = None
    assert sim.run_until(
        lambda: sim.settled() and all(s.phase != "Training" for s in sim.status.adaptation.sites),  # type: ignore[union-attr]
        limit_seconds=60 * 3600,
    ), sim.explain()
    sim.run(3600)
    revision = sim.status.update_revision
    sim.run(2 * COOLDOWN)
    assert sim.status.update_revision == revision
