# SPDX-License-Identifier: Apache-2.0
"""`list` and `get`: all SLMDeployments of a namespace, or of all."""

import argparse

from slmcli.documents import list_document
from slmcli.errors import Exit
from slmcli.output import add_output_argument, to_document_text
from slmcli.render.tables import render_list
from slmcli.session import Session
from slmcli.view import read_deployment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("names", metavar="NAME", nargs="*", help="only these")
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces")
    add_output_argument(parser)


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""
    everywhere = arguments.all_namespaces
    if arguments.names and not everywhere:
        bodies = [session.cluster.get(session.namespace, name) for name in arguments.names]
    else:
        bodies = session.cluster.deployments("" if everywhere else session.namespace)
    views = sorted((read_deployment(body) for body in bodies), key=lambda view: (view.namespace, view.name))
    if arguments.names:
        views = [view for view in views if view.name in arguments.names]
    if arguments.output:
        session.terminal.write(to_document_text(list_document(views), arguments.output))
    elif not views:
        where = "in any namespace" if everywhere else f"in namespace {session.namespace}; -A looks in all"
        session.say(f"no SLMDeployment {where}")
    else:
        lines = render_list(
            views,
            now=session.now(),
            width=session.terminal.width,
            namespaces=("shown" if everywhere else "left out"),
        )
        session.terminal.show(*lines)
    return Exit.OK
