# SPDX-License-Identifier: Apache-2.0
"""`explain`: why a deployment stands where it stands, and what one can do."""

import argparse

from slmcli.documents import explain_document
from slmcli.errors import Exit
from slmcli.output import add_output_argument, to_document_text
from slmcli.render.explain import render_standing
from slmcli.session import Session
from slmcli.standing import assess_standing
from slmcli.view import read_deployment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("name", metavar="NAME", help="name of the SLMDeployment")
    add_output_argument(parser)


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""
    view = read_deployment(session.cluster.get(session.namespace, arguments.name))
    now = session.now()
    standing = assess_standing(view, now=now)
    if arguments.output:
        session.terminal.write(to_document_text(explain_document(view, standing), arguments.output))
    else:
        session.terminal.show(*render_standing(standing, now=now, width=session.terminal.width))
    return Exit.OK
