# SPDX-License-Identifier: Apache-2.0
"""What people do by annotation: approve, promote, skip, abort, undo, pause."""

from typing import Any

import pytest

from slmops.model.observed import OwnedKind
from slmops.planning import times
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_sim import FleetSim
from tests.unit.planning.fleet_situations import installed, reach

GATED: list[dict[str, Any]] = [
    {"name": "canary", "percent": 10},
    {"name": "rest", "percent": 100, "approval": "Manual"},
]


def waiting_for_approval() -> FleetSim:
    sim = installed(waves=GATED)
    sim.set_version("v2")
    assert sim.run_until(lambda: sim.condition("Progressing") == ("False", "AwaitingApproval")), sim.explain()
    return sim


def progressing(sim: FleetSim) -> str:
    return next(c.message for c in sim.status.conditions if c.type == "Progressing")


def test_a_gate_holds_until_somebody_approves_and_fetches_ahead_meanwhile() -> None:
    sim = waiting_for_approval()
    sim.run(48 * 3600)
    assert list(sim.versions().values()).count("v2") == 1
    revision = sim.revision_of("v2")
    assert f"slmops.dev/promote: {revision}/rest" in progressing(sim)
    assert all(f"{revision}/int4" in node.cache for node in sim.cluster.nodes.values())
    answer = sim.ask("promote", f"{revision}/rest@1")
    assert (answer.outcome, answer.token) == ("Done", f"{revision}/rest@1")
    sim.settle()
    assert set(sim.versions().values()) == {"v2"}
    assert sim.events().count("PromoteDone") == 1 and "AwaitingApproval" in sim.events()


def test_a_gate_outlasts_the_prefetch_deadline_and_nodes_that_go_offline_meanwhile() -> None:
    sim = waiting_for_approval()
    sim.edit(rollout={"onDeadline": "Rollback"})
    sim.run(30 * 3600)
    away = sorted(sim.cluster.nodes)[:3]
    for name in away:
        sim.set_online(name, online=False)
    sim.run(60)
    for name in away:
        sim.set_online(name, online=True)
    sim.run(60)
    assert not sim.status.failed_revisions
    assert sim.condition("Progressing") == ("False", "AwaitingApproval")


def test_approval_is_for_one_wave_of_one_revision() -> None:
    sim = waiting_for_approval()
    revision = sim.revision_of("v2")
    for value, cure in [
        (f"{revision}/canary", "at wave rest"),
        ("0123456789", "is being rolled out, not 0123456789"),
        ("yes please", "write REVISION"),
        (f"{revision}/", "write REVISION"),
    ]:
        answer = sim.ask("promote", value)
        assert answer.outcome == "Refused" and cure in answer.message
    assert list(sim.versions().values()).count("v2") == 1
    assert sim.condition("Progressing") == ("False", "AwaitingApproval")


def test_a_wave_that_is_called_all_is_one_wave() -> None:
    waves = [{"name": "all", "count": 1, "approval": "Manual"}, {**GATED[1], "name": "rest"}]
    sim = installed(waves=waves)
    sim.set_version("v2")
    assert sim.run_until(lambda: sim.condition("Progressing") == ("False", "AwaitingApproval"))
    sim.ask("promote", f"{sim.revision_of('v2')}/all")
    sim.run(3600)
    assert list(sim.versions().values()).count("v2") == 1, "the next wave waits for its own approval"


def test_an_approval_is_used_once() -> None:
    sim = waiting_for_approval()
    sim.ask("promote", sim.revision_of("v2"))
    sim.settle()
    sim.cluster.behaviours["v3"] = Behaviour()
    sim.set_version("v3")
    assert sim.run_until(lambda: sim.condition("Progressing") == ("False", "AwaitingApproval"))
    sim.restart_operator()
    sim.run(3600)
    assert sim.version == "v2" and sim.condition("Progressing") == ("False", "AwaitingApproval")


def test_promote_needs_a_wave_that_waits() -> None:
    sim = installed()
    sim.set_version("v2")
    reach(sim, "Soaking")
    answer = sim.ask("promote", sim.revision_of("v2"))
    assert answer.outcome == "Refused" and "slmops.dev/skip" in answer.message
    sim.settle()
    answer = sim.ask("promote", f"{sim.revision_of('v2')}@late")
    assert answer.outcome == "Refused" and answer.message == "no rollout is under way"


def test_promote_all_goes_through_gates_and_without_evidence() -> None:
    sim = installed(waves=GATED, behaviours={"v2": Behaviour(score=None)})
    sim.set_version("v2")
    reach(sim, "Soaking")
    began = sim.now
    sim.ask("promote", f"{sim.revision_of('v2')}/*")
    sim.settle(limit_seconds=300)
    assert set(sim.versions().values()) == {"v2"} and sim.now - began < 120
    waves = sim.status.rollout.waves if sim.status.rollout else []
    assert [wave.verdict for wave in waves] == ["Skipped", "Skipped"], "nobody judged them"


def test_promote_all_still_stops_at_nodes_that_crash() -> None:
    sim = installed(waves=GATED, behaviours={"v2": Behaviour(crashes=True)})
    sim.set_version("v2")
    reach(sim, "Flipping")
    sim.ask("promote", f"{sim.revision_of('v2')}/*")
    sim.settle()
    assert sim.step == "Failed" and set(sim.versions().values()) == {"v1"}


def test_skip_ends_the_analysis_of_one_wave() -> None:
    sim = installed(behaviours={"v2": Behaviour(score=None)})
    sim.set_version("v2")
    reach(sim, "Analysing")
    sim.run(60)
    revision = sim.revision_of("v2")
    assert sim.ask("skip", f"{revision}/canary").outcome == "Done"
    reach(sim, "Analysing", wave=1)
    sim.run(600)
    assert sim.condition("Progressing") == ("False", "NoData"), "the next wave is judged again"
    assert sim.ask("skip", f"{revision}/rest").outcome == "Done"
    sim.settle()
    assert sim.version == "v2" and sim.step == "Completed"


def test_skip_before_anything_moved_is_refused() -> None:
    sim = installed(waves=[{"name": "canary", "percent": 10, "approval": "Manual"}, GATED[1]])
    sim.set_version("v2")
    assert sim.run_until(lambda: sim.condition("Progressing") == ("False", "AwaitingApproval"))
    answer = sim.ask("skip", sim.revision_of("v2"))
    assert answer.outcome == "Refused" and "nothing to skip" in answer.message


def test_abort_rolls_back_and_is_remembered() -> None:
    sim = installed(20, maxUnavailable=3)
    sim.set_version("v2")
    reach(sim, "Soaking", wave=1)
    revision = sim.revision_of("v2")
    assert sim.ask("abort", revision).outcome == "Done"
    sim.settle()
    assert sim.step == "Failed" and set(sim.versions().values()) == {"v1"}
    assert sim.condition("RolloutSucceeded") == ("False", "Aborted")
    sim.restart_operator()
    sim.run(3600)
    assert set(sim.versions().values()) == {"v1"}
    sim.retry()
    sim.settle()
    assert set(sim.versions().values()) == {"v2"}


def test_abort_names_its_revision() -> None:
    sim = installed()
    sim.set_version("v2")
    reach(sim, "Soaking")
    answer = sim.ask("abort", sim.revision_of("v1"))
    assert answer.outcome == "Refused" and "not " + sim.revision_of("v1") in answer.message
    sim.settle()
    assert sim.version == "v2"


def test_undo_goes_back_in_waves_and_stays_until_spec_changes() -> None:
    sim = installed()
    sim.set_version("v2")
    sim.settle()
    first, second = sim.revision_of("v1"), sim.revision_of("v2")
    assert sim.ask("undo", first).outcome == "Done"
    assert sim.wave == 0 and sim.step != "Completed", "with waves and analysis like any other"
    sim.settle()
    assert set(sim.versions().values()) == {"v1"} and sim.version == "v1"
    assert sim.condition("RolloutSucceeded") == ("False", "Pinned")
    sim.restart_operator()
    sim.edit(rollout={"soak": "31s"})  # no other revision
    sim.run(3600)
    assert set(sim.versions().values()) == {"v1"}
    assert sim.ask("undo", first + "@again").outcome == "Refused"
    sim.set_version("v3")
    sim.settle()
    assert set(sim.versions().values()) == {"v3"} and sim.status.pinned is None
    assert sim.ask("undo", second + "@2").outcome == "Done"
    sim.settle()
    assert sim.version == "v2"
    assert sim.ask("undo", sim.revision_of("v3")).outcome == "Done"
    sim.settle()
    assert sim.version == "v3" and sim.condition("RolloutSucceeded") == ("True", "Promoted")


def test_undo_knows_only_the_history_and_nothing_that_failed() -> None:
    sim = installed(behaviours={"v2": Behaviour(score=0.1)})
    sim.set_version("v2")
    sim.settle()
    answer = sim.ask("undo", "0123456789")
    assert answer.outcome == "Refused" and "not in the history" in answer.message
    answer = sim.ask("undo", sim.revision_of("v2"))
    assert answer.outcome == "Refused"


def test_spec_s_revision_can_be_tried_again_after_it_failed_and_another_was_pinned() -> None:
    sim = installed(behaviours={"v3": Behaviour(score=0.1)})
    for version in ("v2", "v3"):
        sim.set_version(version)
        sim.settle()
    assert sim.version == "v2"
    assert sim.ask("undo", sim.revision_of("v1")).outcome == "Done"
    sim.settle()
    assert sim.version == "v1"
    answer = sim.ask("undo", sim.revision_of("v3"))
    assert answer.outcome == "Done" and "slmops.dev/retry" in answer.message
    sim.settle()
    assert sim.status.pinned is None
    assert set(sim.versions().values()) == {"v1"}, "it is not tried again by itself"
    assert sim.ask("retry", "1").outcome == "Done"
    assert sim.status.rollout is not None
    assert sim.status.rollout.revision == sim.revision_of("v3") and sim.step in ("Prefetching", "Flipping")


def test_pause_by_annotation_stops_and_goes_on() -> None:
    sim = installed(20, maxUnavailable=2)
    sim.set_version("v2")
    reach(sim, "Flipping", wave=1)
    sim.annotations["slmops.dev/paused"] = "true"
    sim.run(2)
    before = sim.versions()
    sim.run(7200)
    assert sim.versions() == before and sim.condition("Progressing") == ("False", "Paused")
    del sim.annotations["slmops.dev/paused"]
    sim.settle()
    assert set(sim.versions().values()) == {"v2"}


@pytest.mark.parametrize("operation", ["promote", "skip", "abort", "undo"])
def test_a_request_is_carried_out_once_whenever_the_operator_dies(operation: str) -> None:
    def run(kill_after: int | None) -> tuple[FleetSim, list[str]]:
        score = None if operation in ("skip", "abort") else 0.99
        behaviours = {"v2": Behaviour(score=score)}
        sim = waiting_for_approval() if operation == "promote" else installed(behaviours=behaviours)
        if operation != "promote":
            sim.set_version("v2")
            sim.settle() if operation == "undo" else reach(sim, "Analysing")
        if kill_after is not None:
            sim.kill_at = sim.writes + kill_after
        sim.ask(operation, sim.revision_of("v1" if operation == "undo" else "v2"))
        sim.cluster.behaviours["v2"].score = 0.99
        sim.settle()
        return sim, [e for e in sim.events() if e == f"{operation.capitalize()}Done"]

    whole, _ = run(None)
    for kill_after in range(6):
        sim, events = run(kill_after)
        assert sim.kills == 1 and sim.versions() == whole.versions() and sim.step == whole.step
        assert len(events) <= 1


def wave_began_in_the_past(sim: FleetSim) -> bool:
    return sim.status.rollout is not None and times.to_seconds(sim.status.rollout.wave_started_at) <= sim.now


def test_a_skip_while_paused_does_not_move_timers_into_the_future() -> None:
    sim = installed()
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.annotations["slmops.dev/paused"] = "true"
    sim.run(3600)
    assert sim.ask("skip", sim.revision_of("v2")).outcome == "Done"
    sim.run(3600)
    del sim.annotations["slmops.dev/paused"]
    sim.run(2)
    assert wave_began_in_the_past(sim)
    sim.run(600)
    assert sim.version == "v2", "measurements count from the wave's begin on"


def test_waves_edited_while_paused_begin_with_whole_timers() -> None:
    sim = installed()
    sim.set_version("v2")
    reach(sim, "Soaking")
    sim.edit(rollout={"paused": True})
    sim.run(7200)
    waves = [{"name": "first", "percent": 10}, {"name": "rest", "percent": 100}]
    sim.edit(rollout={"paused": False, "waves": waves})
    sim.run(2)
    assert wave_began_in_the_past(sim)
    sim.run(600)
    assert sim.version == "v2"


def test_a_retry_and_an_edit_of_the_waves_do_not_end_a_rollback() -> None:
    half = {"name": "half", "percent": 50}
    rest = {"name": "rest", "percent": 100}
    behaviours = {"v2": Behaviour(score=0.1, start_seconds=1)}
    sim = installed(20, waves=[half, rest], behaviours=behaviours, rollback={"maxUnavailable": 1})
    sim.set_version("v2")
    reach(sim, "RollingBack")
    sim.retry()
    sim.edit(rollout={"waves": [half, {"name": "more", "percent": 60}, rest]})
    sim.run(2)
    assert sim.step == "RollingBack", "a wave after the failed one would begin"
    reach(sim, "Flipping", wave=0)


def test_a_restart_while_the_source_is_away_does_not_give_up_what_was_pinned() -> None:
    sim = installed()
    first = sim.revision_of("v1")
    sim.set_version("v2")
    sim.settle()
    sim.set_version("v3")
    sim.annotations["slmops.dev/undo"] = first  # before v3 was ever stored
    assert sim.run_until(lambda: sim.step == "Soaking" and sim.status.pinned is not None), sim.explain()
    sim.unresolvable.add("v3")
    sim.restart_operator()
    sim.settle()
    assert sim.version == "v1" and "RolloutCancelled" not in sim.events()


def test_a_pinned_revision_whose_record_is_gone_is_said_to_be() -> None:
    sim = installed()
    first = sim.revision_of("v1")
    sim.set_version("v2")
    sim.settle()
    sim.ask("undo", first)
    reach(sim, "Soaking")
    del sim.cluster.objects[OwnedKind.CONTROLLER_REVISION, sim.names.controller_revision(first)]
    sim.run(3600)
    assert set(sim.versions().values()) == {"v2"}, "nothing is known of v1 any more"
    assert sim.condition("Progressing")[0] == "False" and "is gone" in progressing(sim)
    assert sim.ask("undo", sim.revision_of("v2")).outcome == "Done"
    sim.settle()
    assert sim.version == "v2" and sim.condition("Progressing") == ("False", "Complete")


def test_skip_does_not_promote_what_no_node_serves() -> None:
    waves = [{"name": "all", "percent": 100}]
    sim = installed(waves=waves, maxFailures="100%", behaviours={"v2": Behaviour(crashes=True)})
    sim.set_version("v2")
    reach(sim, "Flipping")
    sim.run(60)
    answer = sim.ask("skip", sim.revision_of("v2"))
    assert answer.outcome == "Refused" and "no node serves" in answer.message
    assert sim.version == "v1" and sim.ask("abort", sim.revision_of("v2")).outcome == "Done"
    sim.settle()
    assert set(sim.versions().values()) == {"v1"}


def test_little_traffic_is_told_once_and_not_at_every_measurement() -> None:
    sim = installed(behaviours={"v2": Behaviour(score=None)})
    sim.set_version("v2")
    reach(sim, "Analysing")
    behaviour = sim.cluster.behaviours["v2"]

    def swap() -> None:
        behaviour.score, behaviour.samples = (None, 1000) if behaviour.score else (0.99, 1)
        sim.at(10, swap)

    swap()
    sim.run(1200)
    assert sim.step == "Analysing" and sim.condition("Progressing")[1] in ("NoData", "Inconclusive")
    assert len([event for event in sim.events() if event in ("NoData", "Inconclusive")]) == 1
