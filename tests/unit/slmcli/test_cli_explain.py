# SPDX-License-Identifier: Apache-2.0
"""`explain` says what is waited for, what comes next and which command does something."""

from typing import Any, get_args

import pytest

from slmcli.render.explain import render_standing
from slmcli.standing import Standing, assess_standing
from slmcli.terminal import to_text
from slmcli.view import read_deployment
from slmops.api.status import RolloutStatus
from tests.unit.slmcli.cli_objects import (
    NOW,
    STABLE,
    UPDATE,
    Body,
    ago,
    build_body,
    build_rollout,
    build_spec,
    build_status,
    condition,
    conditions,
)

STEPS = get_args(RolloutStatus.model_fields["step"].annotation)


def _standing(status: Body | None, **body: Any) -> Standing:
    return assess_standing(read_deployment(build_body(status, **body)), now=NOW)


def _commands(standing: Standing) -> str:
    return "\n".join(action.command for action in standing.actions)


@pytest.mark.parametrize("step", STEPS)
def test_every_step_has_a_story_and_something_to_do(step: str) -> None:
    standing = _standing(build_status(build_rollout(step)))
    assert standing.summary.endswith(".")
    assert standing.because
    assert standing.next
    assert standing.actions
    text = to_text(tuple(render_standing(standing, now=NOW, width=80)), width=80)
    for action in standing.actions:
        assert action.command in text


def test_soaking_counts_down_and_names_the_gate_that_follows() -> None:
    standing = _standing(build_status())
    assert "Soaking, wave pilot (1 of 3)" in standing.summary
    assert any("40s left" in text for text in standing.waits_for)
    assert any("29m more for the wave" in text for text in standing.waits_for)
    assert "wave half follows, which waits for approval" in standing.next[0]


def test_a_pause_stops_the_countdown() -> None:
    status = build_status(build_rollout(pausedAt=ago(10)))
    standing = _standing(status, annotations={"slmops.dev/paused": "true"})
    assert "paused in step Soaking" in standing.summary
    assert "kubectl slm resume orders -n shop" in _commands(standing)
    assert "kubectl slm pause" not in _commands(standing)


def test_a_pause_in_spec_names_the_patch() -> None:
    standing = _standing(build_status(), spec=build_spec(paused=True))
    assert "kubectl patch slmd orders -n shop --type merge" in _commands(standing)
    assert "kubectl slm resume" not in _commands(standing)


def test_analysing_tells_which_metrics_are_missing() -> None:
    standing = _standing(build_status(build_rollout("Analysing")))
    told = "\n".join(standing.waits_for)
    assert "metric quality to pass 2 times in a row, 1 so far" in told
    assert "metric errors to pass 2 times in a row, 0 so far; NoData: no requests in the window" in told
    assert "kubectl slm skip orders -n shop" in _commands(standing)


def test_metrics_that_do_not_decide_are_not_waited_for() -> None:
    spec = build_spec()
    spec["rollout"]["analysis"]["metrics"][1] |= {"required": False}
    standing = _standing(build_status(build_rollout("Analysing")), spec=spec)
    assert not any("errors" in text for text in standing.waits_for)


def test_approval_is_asked_for_with_the_command() -> None:
    status = build_status(
        build_rollout("Prefetching", wave=1),
        conditions=conditions(("False", "AwaitingApproval", "half waits")),
    )
    standing = _standing(status)
    assert any("approve wave half" in text for text in standing.waits_for)
    assert standing.actions[0].command == "kubectl slm promote orders -n shop"


def test_a_closed_window_is_named() -> None:
    spec = build_spec(
        windows=[{"days": ["Sat"], "startTime": "22:00", "endTime": "04:00", "timeZone": "Europe/Berlin"}]
    )
    status = build_status(
        build_rollout("Prefetching"), conditions=conditions(("False", "OutsideWindow", "closed"))
    )
    told = "\n".join(_standing(status, spec=spec).waits_for)
    assert "Sat 22:00-04:00 Europe/Berlin" in told


def test_a_closed_window_for_fetching_is_named_and_the_clock_stands() -> None:
    spec = build_spec()
    spec["distribution"] = {"windows": [{"startTime": "22:00", "endTime": "05:00"}]}
    closed = ("False", "OutsideWindow", "no window of spec.distribution.windows is open")
    rollout = build_rollout("Prefetching", stepStartedAt=ago(7200), pausedAt=ago(3600))
    told = _standing(build_status(rollout, conditions=conditions(closed)), spec=spec).waits_for
    assert told[0] == "the next window for fetching models: every day 22:00-05:00 UTC"
    assert "23h" in told[1], "an hour of the 24 hours was used, the other one does not count"


def test_a_first_installation_that_waits_for_a_window_says_so() -> None:
    spec = build_spec()
    spec["distribution"] = {"windows": [{"startTime": "22:00", "endTime": "05:00"}]}
    closed = ("False", "OutsideWindow", "no window of spec.distribution.windows is open")
    status = build_status(build_rollout("Installing", waves=[]), conditions=conditions(closed))
    assert _standing(status, spec=spec).waits_for[0].startswith("the next window for fetching models: every")


def test_a_deadline_that_passed_says_what_it_means() -> None:
    held = build_rollout("Analysing", waveStartedAt=ago(4000))
    assert any("has passed: it holds" in text for text in _standing(build_status(held)).waits_for)
    rolled = _standing(build_status(held), spec=build_spec(onDeadline="Rollback"))
    assert any("has passed: it is rolled back" in text for text in rolled.waits_for)


def test_waves_of_an_exponential_one_take_its_settings() -> None:
    waves = [{"name": "grow", "exponential": {}, "soak": "5m", "approval": "Manual"}]
    rollout = build_rollout(waves=[{"name": "grow-1", "nodes": 1}, {"name": "grow-2"}])
    standing = _standing(build_status(rollout), spec=build_spec(waves=waves))
    assert any("the soak of 5m to end" in text for text in standing.waits_for)
    assert "waits for approval" in standing.next[0]


def test_after_a_failure_retry_and_diff_are_offered() -> None:
    status = build_status(
        build_rollout("Failed", finishedAt=ago(50), reason="AnalysisFailed", message="quality fell"),
        conditions=conditions(("False", "Complete", "nothing to do"), ("False", "AnalysisFailed")),
        failedRevisions=[
            {"revision": UPDATE, "reason": "AnalysisFailed", "message": "quality fell", "at": ago(50)}
        ],
    )
    standing = _standing(status)
    assert "failed (AnalysisFailed)" in standing.summary
    assert any("quality fell" in text for text in standing.because)
    assert "kubectl slm retry orders -n shop" in _commands(standing)
    assert f"kubectl slm diff orders -n shop {STABLE} {UPDATE}" in _commands(standing)
    assert standing.decisions[0].text.startswith(("revision", "rollout"))


def test_a_pin_offers_the_way_back() -> None:
    standing = _standing(
        build_status(
            build_rollout("Completed", finishedAt=ago(5)),
            pinned={"revision": STABLE, "insteadOf": UPDATE, "at": ago(9)},
            conditions=conditions(("False", "Complete", ""), ("False", "Pinned")),
        )
    )
    assert f"--to {UPDATE}" in _commands(standing)
    assert "retry" not in _commands(standing)


def test_a_refused_spec_comes_first() -> None:
    refused = [
        condition("Accepted", "False", "InvalidWaves", "spec.rollout.waves: wave pilot selects no node")
    ]
    standing = _standing(build_status(conditions=refused))
    assert "refused: InvalidWaves" in standing.summary
    assert any("selects no node" in text for text in standing.because)


def test_an_unresolved_model_says_why() -> None:
    status = build_status(
        conditions=[condition("ModelResolved", "False", "AccessDenied", "variant int4: 403")],
        updateRevision="",
    )
    del status["rollout"]
    standing = _standing(status)
    assert "not known by digest" in standing.summary
    assert any("403" in text for text in standing.waits_for)
    assert "kubectl slm retry" in _commands(standing)


def test_at_rest_nothing_is_waited_for() -> None:
    status = build_status(
        build_rollout("Completed", finishedAt=ago(9)),
        stableRevision=UPDATE,
        conditions=conditions(("False", "Complete", "nothing to do"), ("True", "Promoted")),
    )
    standing = _standing(status)
    assert standing.waits_for == ()
    assert f"{UPDATE} is the stable revision" in standing.summary


def test_names_are_quoted_for_the_shell() -> None:
    standing = _standing(build_status(), name="a;b")
    assert "'a;b'" in _commands(standing)


@pytest.mark.parametrize(
    ("judge", "analysis", "says"),
    [
        ("Direct", {}, "the operator itself (Direct), for no Prometheus is named"),
        ("Direct", {"provider": "Direct"}, "as spec.rollout.analysis.provider says"),
        ("Prometheus", {}, "judged by the operator's Prometheus"),
        (
            "Prometheus",
            {"prometheus": {"url": "https://m.example"}},
            "judged by Prometheus https://m.example",
        ),
    ],
)
def test_it_says_who_judges(judge: str, analysis: Body, says: str) -> None:
    spec = build_spec()
    spec["rollout"]["analysis"] |= analysis
    standing = _standing(build_status(build_rollout(judgedBy=judge)), spec=spec)
    assert any(says in text for text in standing.because)
    assert not any("judged by" in text for text in _standing(build_status()).because)


SITE: Body = {
    "site": "wien",
    "phase": "Accepted",
    "reason": "Accepted",
    "askedBy": "Rule",
    "node": "n7",
    "job": "orders-train-1",
    "startedAt": ago(60),
    "finishedAt": ago(30),
    "examples": 112,
    "heldOut": 28,
    "before": "0.0714",
    "after": "0.9286",
    "goldenBefore": "0.9833",
    "goldenAfter": "0.9667",
}


def _adapting(*sites: Body, **status: Any) -> Standing:
    spec = build_spec() | {"adaptation": {"sites": ["berlin", "wien"]}}
    return _standing(build_status(adaptation={"sites": list(sites)}, **status), spec=spec)


def test_what_came_of_a_training_is_told_with_its_numbers() -> None:
    standing = _adapting(SITE, {"site": "berlin", "message": "3 corrections so far"})
    told = [text for text in standing.because if text.startswith("site ")]
    assert told == [
        "site berlin collects corrections: 3 corrections so far",
        "site wien has trained an adapter; right answers to 28 examples held back: 7% before, 93% with it, "
        "from 112 examples; golden set 98% and 97%",
    ]
    decided = [entry.text for entry in standing.decisions]
    assert "training at site wien began on n7, asked for by a rule" in decided
    assert any(text.startswith("site wien: Accepted, right answers") for text in decided)
    assert "kubectl slm train orders -n shop" in _commands(standing)


def test_a_training_that_runs_names_its_job_and_offers_no_other() -> None:
    standing = _adapting(SITE | {"phase": "Training", "reason": "Training", "finishedAt": None})
    assert "site wien trains an adapter on n7 (Job orders-train-1)" in standing.because
    assert "slm train" not in _commands(standing)
    assert not any("Accepted" in entry.text for entry in standing.decisions)


def test_a_site_that_cannot_go_on_says_why() -> None:
    unhealthy = condition("AdaptationHealthy", "False", "TrainingFailed", "site wien: out of memory")
    standing = _adapting(
        SITE | {"phase": "Failed", "reason": "OutOfMemory", "message": "raise training.resources"},
        conditions=[*conditions(("True", "Complete", "")), unhealthy],
    )
    assert "AdaptationHealthy is False, TrainingFailed: site wien: out of memory" in standing.because
    # The numbers are of a training before.
    assert "site wien could not train, OutOfMemory: raise training.resources" in standing.because


def test_without_adaptation_status_of_before_tells_nothing() -> None:
    standing = _standing(build_status(adaptation={"sites": [SITE]}))
    assert not any(text.startswith("site ") for text in standing.because)
    assert "slm train" not in _commands(standing)
