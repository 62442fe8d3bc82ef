# SPDX-License-Identifier: Apache-2.0
"""`pause`: stop the rollout where it is, without touching spec."""

import argparse

from slmcli.errors import Exit
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
        return Change(
            operation="pause",
            annotations={PAUSED_ANNOTATION: "true"},
            promise="the rollout stops where it is; what serves goes on serving",
            outcome=_stopped,
        )

    return steer(session, arguments, plan)


def _stopped(view: DeploymentView) -> Outcome | None:
    progressing = view.condition(ConditionType.PROGRESSING)
    if not view.paused or progressing is None or progressing.reason != "Paused":
        return None
    return Outcome(kind="Done", message="")
