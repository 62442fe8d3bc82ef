# SPDX-License-Identifier: Apache-2.0
"""`history`: the revisions that are kept."""

import argparse

from slmcli.documents import history_document
from slmcli.errors import Exit
from slmcli.output import add_output_argument, to_document_text
from slmcli.render.tables import render_history
from slmcli.revisions import read_revisions
from slmcli.session import Session
from slmcli.view import read_deployment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("name", metavar="NAME", help="name of the SLMDeployment")
    add_output_argument(parser, "wide")


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""
    view = read_deployment(session.cluster.get(session.namespace, arguments.name))
    revisions = read_revisions(view, session.cluster.revisions(view.namespace, view.name))
    if arguments.output in ("json", "yaml"):
        session.terminal.write(to_document_text(history_document(view, revisions), arguments.output))
    elif not revisions:
        session.say("no revision is kept yet: the model's files are not known, or the spec is refused")
    else:
        length = 71 if arguments.output == "wide" else 12
        session.terminal.show(
            *render_history(revisions, now=session.now(), width=session.terminal.width, digest_length=length)
        )
    return Exit.OK
