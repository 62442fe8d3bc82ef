# SPDX-License-Identifier: Apache-2.0
"""`undo`: go back to an earlier revision, until spec changes."""

import argparse

from slmcli.actions import command_line
from slmcli.commands.promote import build_token
from slmcli.errors import Exit, RefusedError
from slmcli.revisions import find_revision, read_revisions, revision_before
from slmcli.session import Session
from slmcli.steer import Change, add_steer_arguments, answered, steer
from slmcli.view import DeploymentView
from slmops.api import UNDO_ANNOTATION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_steer_arguments(parser)
    parser.add_argument(
        "--to",
        metavar="REV",
        help="revision, the beginning of one, or its number (default: the one before the stable one)",
    )


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""

    def plan(view: DeploymentView) -> Change:
        revisions = read_revisions(view, session.cluster.revisions(view.namespace, view.name))
        if arguments.to is not None:
            chosen = find_revision(revisions, arguments.to)
        else:
            if view.running is not None and view.running.step != "Installing":
                # The revision before the stable one is hardly meant in the middle of a rollout.
                raise RefusedError(
                    f"revision {view.running.revision} is being rolled out; {command_line(view, 'abort')} "
                    "takes it back to the stable revision, --to REV goes to another"
                )
            chosen = revision_before(view, revisions)
        token = build_token(chosen.revision, "", session.now())
        return Change(
            operation="undo",
            annotations={UNDO_ANNOTATION: token},
            promise=f"revision {chosen.revision} (number {chosen.number}, {chosen.model_version}) is rolled "
            "out instead of spec's, until spec changes",
            outcome=answered("undo", token),
        )

    return steer(session, arguments, plan)
