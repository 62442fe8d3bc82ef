# SPDX-License-Identifier: Apache-2.0
"""`abort`: roll the new revision back; it counts as failed."""

import argparse

from slmcli.commands.promote import build_token
from slmcli.errors import Exit
from slmcli.session import Session
from slmcli.steer import Change, add_steer_arguments, answered, need_rollout, steer
from slmcli.view import DeploymentView
from slmops.api import ABORT_ANNOTATION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_steer_arguments(parser)


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""

    def plan(view: DeploymentView) -> Change:
        revision = need_rollout(view, "abort")
        token = build_token(revision, "", session.now())
        return Change(
            operation="abort",
            annotations={ABORT_ANNOTATION: token},
            promise=f"revision {revision} is rolled back and counts as failed",
            outcome=answered("abort", token),
        )

    return steer(session, arguments, plan)
