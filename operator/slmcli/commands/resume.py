# SPDX-License-Identifier: Apache-2.0
"""`resume`: go on after a pause."""

import argparse

from slmcli.actions import actions_for
from slmcli.errors import Exit, RefusedError
from slmcli.session import Session
from slmcli.steer import Change, Outcome, add_steer_arguments, steer
from slmcli.view import DeploymentView
from slmops.api import PAUSED_ANNOTATION
from slmops.api.status import ConditionType


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_steer_arguments(parser)


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""

    def plan(view: DeploymentView) -> Change:
        if view.paused == "spec":
            cure = actions_for(view)[0].command if view.status is not None else "set it to false"
            raise RefusedError(f"spec.rollout.paused is true, which is not this program's to change: {cure}")
        return Change(
            operation="resume",
            annotations={PAUSED_ANNOTATION: None},
            promise="the rollout goes on where it was",
            outcome=_goes_on,
        )

    return steer(session, arguments, plan)


def _goes_on(view: DeploymentView) -> Outcome | None:
    progressing = view.condition(ConditionType.PROGRESSING)
    if progressing is None or (progressing.reason == "Paused" and not view.paused):
        return None
    if view.paused == "spec":
        return Outcome(
            kind="Refused", message="spec.rollout.paused is true as well; set it to false to go on"
        )
    return None if view.paused else Outcome(kind="Done", message="")
