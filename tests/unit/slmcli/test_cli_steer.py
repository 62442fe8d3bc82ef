# SPDX-License-Identifier: Apache-2.0
"""Commands that steer: what is patched, how the outcome is waited for, and how each ends."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from slmcli.errors import UnreachableError
from tests.unit.slmcli.cli_double import Ran, ScriptedCluster, run_cli
from tests.unit.slmcli.cli_objects import (
    STABLE,
    UPDATE,
    Body,
    ago,
    build_body,
    build_revision,
    build_rollout,
    build_spec,
    build_status,
    conditions,
)

STAMP = "@2026-03-01T12:00:00.000Z"
OLD = "0123456789"
Run = Callable[..., Ran]


@pytest.fixture
def cluster() -> ScriptedCluster:
    found = ScriptedCluster()
    found.put(build_body(build_status(), spec=build_spec() | {"adaptation": {"sites": ["berlin", "wien"]}}))
    found.stored = [build_revision(n, r, f"v{n}") for n, r in enumerate((OLD, STABLE, UPDATE), 1)]
    return found


@pytest.fixture
def cli(cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str, **options: Any) -> Ran:
        return run_cli(cluster, *argv, capsys=capsys, **options)

    return run


def _operator(outcome: str, message: str = "as asked") -> Callable[[Body], None]:
    """An operator that acts on every annotation at once."""

    def answer(body: Body) -> None:
        body["status"]["operations"] = [
            {
                "operation": key.rpartition("/")[2],
                "token": value,
                "outcome": outcome,
                "message": message,
                "at": ago(0),
            }
            for key, value in body["metadata"]["annotations"].items()
        ]

    return answer


@pytest.mark.parametrize(
    ("argv", "key", "token"),
    [
        (["train"], "train", STAMP[1:]),
        (["promote"], "promote", f"{UPDATE}/pilot{STAMP}"),
        (["promote", "--wave", "half"], "promote", f"{UPDATE}/half{STAMP}"),
        (["promote", "--all"], "promote", f"{UPDATE}/*{STAMP}"),
        (["skip"], "skip", f"{UPDATE}/pilot{STAMP}"),
        (["skip", "--wave", "all"], "skip", f"{UPDATE}/all{STAMP}"),
        (["abort"], "abort", f"{UPDATE}{STAMP}"),
        (["retry"], "retry", STAMP[1:]),
        (["undo", "--to", OLD], "undo", f"{OLD}{STAMP}"),
        (["undo", "--to", "1"], "undo", f"{OLD}{STAMP}"),
    ],
)
def test_the_annotation_names_what_the_person_saw(
    cluster: ScriptedCluster, cli: Run, argv: list[str], key: str, token: str
) -> None:
    cluster.answer = _operator("Done")
    ran = cli(argv[0], "orders", *argv[1:])
    assert cluster.patches == [
        {"metadata": {"resourceVersion": "1", "annotations": {f"slmops.dev/{key}": token}}}
    ]
    assert ran.code == 0
    assert ran.out == f"slmdeployment/orders: {key} done: as asked\n"


def test_a_refusal_ends_with_one_and_the_operators_words(cluster: ScriptedCluster, cli: Run) -> None:
    cluster.answer = _operator("Refused", "wave pilot does not wait for approval")
    ran = cli("promote", "orders")
    assert ran.code == 1
    assert "promote refused: wave pilot does not wait for approval" in ran.out


def test_an_old_answer_is_not_taken_for_the_new_one(cluster: ScriptedCluster, cli: Run) -> None:
    cluster.objects["shop", "orders"]["status"]["operations"] = [
        {"operation": "promote", "token": f"{UPDATE}/pilot@earlier", "outcome": "Done", "at": ago(99)}
    ]
    ran = cli("promote", "orders", "--timeout", "3s")
    assert ran.code == 4
    assert ran.slept == pytest.approx(3.0)


def test_an_answer_that_comes_late_is_waited_for(cluster: ScriptedCluster, cli: Run) -> None:
    reads = 0
    read = cluster.get

    def get(namespace: str, name: str) -> Body:
        nonlocal reads
        reads += 1
        if reads == 6:
            _operator("Done")(cluster.objects[namespace, name])
        return read(namespace, name)

    cluster.get = get  # type: ignore[method-assign]
    ran = cli("abort", "orders")
    assert ran.code == 0
    assert 0 < ran.slept < 15


def test_silence_of_the_operator_is_its_own_exit_code(cli: Run) -> None:
    ran = cli("abort", "orders")
    assert ran.code == 4
    assert ran.slept == pytest.approx(15.0)
    assert "has not answered within 15s" in ran.err
    assert ran.out == ""


def test_a_link_that_breaks_while_waiting_is_borne(cluster: ScriptedCluster, cli: Run) -> None:
    def answer(body: Body) -> None:
        _operator("Done")(body)
        cluster.broken = UnreachableError("no route")

    cluster.answer = answer
    ran = cli("abort", "orders", "--timeout", "2s")
    assert ran.code == 4
    assert ran.slept == pytest.approx(2.0)
    assert "(last: no route)" in ran.err
    assert len(cluster.patches) == 1


def _sites(**phases: str) -> Body:
    """`status.adaptation` of an operator that has seen the token."""
    states = [{"site": s, "phase": phase, "message": "no engine"} for s, phase in phases.items()]
    return {"trainToken": STAMP[1:], "sites": states}


@pytest.mark.parametrize(
    ("phases", "code", "words"),
    [
        (
            {"berlin": "Training", "wien": "Unsupported"},
            0,
            "train done: an adapter is trained at berlin, wien",
        ),
        ({"berlin": "Unsupported", "wien": "Unsupported"}, 1, "train refused: no engine"),
    ],
)
def test_status_tells_that_a_training_was_taken_up(
    cluster: ScriptedCluster, cli: Run, phases: dict[str, str], code: int, words: str
) -> None:
    cluster.answer = lambda body: body["status"].update(adaptation=_sites(**phases))
    ran = cli("train", "orders")
    assert (ran.code, words in ran.out) == (code, True), ran.out


def test_where_nothing_is_kept_there_is_nothing_to_train_on(cluster: ScriptedCluster, cli: Run) -> None:
    cluster.put(build_body(build_status()))
    ran = cli("train", "orders")
    assert ran.code == 1 and "spec.adaptation names no site" in ran.err
    assert cluster.patches == []


def test_timeout_zero_does_not_wait(cluster: ScriptedCluster, cli: Run) -> None:
    ran = cli("abort", "orders", "--timeout", "0")
    assert (ran.code, ran.slept) == (0, 0)
    assert len(cluster.patches) == 1
    assert "asked to abort" in ran.out


def test_dry_run_changes_nothing(cluster: ScriptedCluster, cli: Run) -> None:
    ran = cli("promote", "orders", "--dry-run")
    assert ran.code == 0
    assert cluster.patches == []
    assert yaml.safe_load(ran.out)["metadata"]["annotations"] == {
        "slmops.dev/promote": f"{UPDATE}/pilot{STAMP}"
    }


def test_a_conflict_is_decided_anew(cluster: ScriptedCluster, cli: Run) -> None:
    cluster.answer = _operator("Done")
    cluster.conflicts = 2
    assert cli("promote", "orders").code == 0
    assert cluster.patches[0]["metadata"]["resourceVersion"] == "3"


def test_conflicts_without_end_are_an_error(cluster: ScriptedCluster, cli: Run) -> None:
    cluster.conflicts = 99
    ran = cli("promote", "orders")
    assert ran.code == 3
    assert cluster.patches == []


@pytest.mark.parametrize("command", ["promote", "skip", "abort"])
@pytest.mark.parametrize("step", ["Completed", "Failed", "Cancelled", ""])
def test_without_a_rollout_there_is_nothing_to_steer(
    cluster: ScriptedCluster, cli: Run, command: str, step: str
) -> None:
    status = build_status(build_rollout(step)) if step else None
    cluster.put(build_body(status))
    ran = cli(command, "orders")
    assert ran.code == 1
    assert "no rollout in progress" in ran.err
    assert "kubectl slm explain orders -n shop" in ran.err
    assert cluster.patches == []


def test_an_unknown_wave_is_wrong_usage(cluster: ScriptedCluster, cli: Run) -> None:
    ran = cli("promote", "orders", "--wave", "nope")
    assert ran.code == 2
    assert "pilot, half, all" in ran.err


def test_an_object_that_is_being_deleted_is_left_alone(cluster: ScriptedCluster, cli: Run) -> None:
    cluster.put(build_body(build_status(), deletionTimestamp=ago(3)))
    assert cli("abort", "orders").code == 1
    assert cluster.patches == []


def test_undo_goes_to_the_revision_before_the_stable_one(cluster: ScriptedCluster, cli: Run) -> None:
    cluster.put(build_body(build_status(build_rollout("Completed"), stableRevision=UPDATE)))
    cluster.answer = _operator("Done")
    assert cli("undo", "orders").code == 0
    assert cluster.patches[0]["metadata"]["annotations"]["slmops.dev/undo"] == f"{STABLE}{STAMP}"


def test_undo_in_the_middle_of_a_rollout_wants_to_know(cluster: ScriptedCluster, cli: Run) -> None:
    ran = cli("undo", "orders")
    assert ran.code == 1
    assert "kubectl slm abort orders -n shop" in ran.err
    assert cluster.patches == []


def _paused(body: Body) -> None:
    paused = body["metadata"]["annotations"].get("slmops.dev/paused") == "true"
    paused = paused or body["spec"]["rollout"].get("paused", False)
    step = ("False", "Paused", "paused") if paused else ("True", "Soaking", "soaking")
    body["status"]["conditions"] = conditions(step)


def test_pause_and_resume(cluster: ScriptedCluster, cli: Run) -> None:
    cluster.answer = _paused
    ran = cli("pause", "orders")
    assert (ran.code, ran.slept) == (0, 0)
    assert cluster.objects["shop", "orders"]["metadata"]["annotations"] == {"slmops.dev/paused": "true"}
    ran = cli("resume", "orders")
    assert (ran.code, ran.slept) == (0, 0)
    assert cluster.objects["shop", "orders"]["metadata"]["annotations"] == {}


def test_pause_waits_until_the_operator_has_stopped(cli: Run) -> None:
    assert cli("pause", "orders").code == 4


def test_resume_cannot_undo_a_pause_of_spec(cluster: ScriptedCluster, cli: Run) -> None:
    cluster.put(build_body(build_status(), spec=build_spec(paused=True)))
    ran = cli("resume", "orders")
    assert ran.code == 1
    assert "kubectl patch slmd orders" in ran.err


def test_resume_says_when_spec_pauses_as_well(cluster: ScriptedCluster, cli: Run) -> None:
    cluster.put(
        build_body(build_status(), spec=build_spec(paused=True), annotations={"slmops.dev/paused": "true"})
    )
    cluster.answer = _paused
    ran = cli("resume", "orders")
    assert ran.code == 1
    assert "spec.rollout.paused" in ran.out


def test_an_operator_that_acknowledges_retries_only_by_token(cluster: ScriptedCluster, cli: Run) -> None:
    def answer(body: Body) -> None:
        body["status"]["retryToken"] = body["metadata"]["annotations"]["slmops.dev/retry"]

    cluster.answer = answer
    assert cli("retry", "orders").code == 0


@pytest.mark.parametrize("timeout", ["abc", "15x", "-3", ""])
def test_a_timeout_that_is_none_is_wrong_usage(cli: Run, timeout: str) -> None:
    ran = cli("abort", "orders", f"--timeout={timeout}")
    assert ran.code == 2
    assert "90s or 1m30s" in ran.err
