# SPDX-License-Identifier: Apache-2.0
"""`retry`: roll a failed revision out once more, or ask a model's source again."""

import argparse

from slmcli.errors import Exit
from slmcli.session import Session
from slmcli.steer import Change, Outcome, add_steer_arguments, answered, steer
from slmcli.times import stamp
from slmcli.view import DeploymentView
from slmops.api import RETRY_ANNOTATION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_steer_arguments(parser)


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""
    token = stamp(session.now())

    def outcome(view: DeploymentView) -> Outcome | None:
        if (found := answered("retry", token)(view)) is not None:
            return found
        # Operators that know no status.operations acknowledge a retry this way.
        taken = view.status is not None and view.status.retry_token == token
        return Outcome(kind="Done", message="") if taken else None

    def plan(view: DeploymentView) -> Change:
        return Change(
            operation="retry",
            annotations={RETRY_ANNOTATION: token},
            promise="what failed is tried once more",
            outcome=outcome,
        )

    return steer(session, arguments, plan)
