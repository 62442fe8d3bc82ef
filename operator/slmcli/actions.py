# SPDX-License-Identifier: Apache-2.0
"""What a person can do now, as commands to copy."""

import shlex
from dataclasses import dataclass

from slmcli.view import WAVE_STEPS, DeploymentView
from slmops.api.status import ConditionType


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A command line and what it brings about."""

    command: str
    effect: str


def command_line(view: DeploymentView, command: str, *arguments: str) -> str:
    """`kubectl slm COMMAND NAME -n NAMESPACE ...`, quoted for a shell."""
    return shlex.join(["kubectl", "slm", command, view.name, "-n", view.namespace, *arguments])


def actions_for(view: DeploymentView) -> tuple[Action, ...]:
    """The commands that do something where the deployment stands, the most likely ones first."""
    if view.status is None:
        return (_operator_pods(),)
    if view.deleting:
        return ()
    return (*_pausing(view), *_rollout_actions(view), *_after_failure(view), *_looking(view))


def _operator_pods() -> Action:
    return Action(
        command="kubectl get pods -A -l app.kubernetes.io/name=slmops", effect="see whether the operator runs"
    )


def _pausing(view: DeploymentView) -> tuple[Action, ...]:
    if view.paused == "annotation":
        return (Action(command=command_line(view, "resume"), effect="go on with the rollout"),)
    if view.paused == "spec":
        patch = '{"spec":{"rollout":{"paused":false}}}'
        target = ["kubectl", "patch", "slmd", view.name, "-n", view.namespace, "--type", "merge", "-p", patch]
        return (Action(command=shlex.join(target), effect="go on with the rollout (or change it in Git)"),)
    return ()


def _rollout_actions(view: DeploymentView) -> tuple[Action, ...]:
    running = view.running
    if running is None or running.step not in WAVE_STEPS:
        return ()
    progressing = view.condition(ConditionType.PROGRESSING)
    reason = progressing.reason if progressing is not None else ""
    found: list[Action] = []
    if reason == "AwaitingApproval" and view.wave is not None:
        found.append(Action(command=command_line(view, "promote"), effect=f"approve wave {view.wave.name}"))
    if running.step in ("Soaking", "Analysing"):
        found.append(
            Action(
                command=command_line(view, "skip"),
                effect="judge this wave no further and go on with the next",
            )
        )
    found.append(
        Action(command=command_line(view, "abort"), effect="roll back; the revision counts as failed")
    )
    if not view.paused:
        found.append(Action(command=command_line(view, "pause"), effect="stop where it is"))
    found.append(
        Action(
            command=command_line(view, "promote", "--all"),
            effect="go through all waves now, without gates and analysis",
        )
    )
    return tuple(found)


def _after_failure(view: DeploymentView) -> tuple[Action, ...]:
    status = view.status
    assert status is not None
    found: list[Action] = []
    succeeded, resolved = (
        view.condition(ConditionType.ROLLOUT_SUCCEEDED),
        view.condition(ConditionType.MODEL_RESOLVED),
    )
    if (
        view.running is None
        and succeeded is not None
        and succeeded.status == "False"
        and status.pinned is None
    ):
        found.append(
            Action(command=command_line(view, "retry"), effect="roll the failed revision out once more")
        )
        found.append(
            Action(
                command=command_line(view, "diff", status.stable_revision, status.update_revision),
                effect="see what it changed",
            )
        )
    elif resolved is not None and resolved.status == "False":
        found.append(Action(command=command_line(view, "retry"), effect="ask the model's source again now"))
    if status.pinned is not None:
        found.append(
            Action(
                command=command_line(view, "undo", "--to", status.pinned.instead_of),
                effect="take up the revision that spec stands for again",
            )
        )
    return tuple(found)


def _looking(view: DeploymentView) -> tuple[Action, ...]:
    status = view.status
    assert status is not None
    found: list[Action] = []
    if status.worst_nodes:
        found.append(
            Action(command=command_line(view, "nodes", "--problems"), effect="see the nodes with a problem")
        )
    if view.running is not None:
        found.append(Action(command=command_line(view, "status", "--watch"), effect="follow the rollout"))
    elif status.stable_revision:
        found.append(Action(command=command_line(view, "history"), effect="see the revisions to go back to"))
    return tuple(found)
