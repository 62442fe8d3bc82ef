# SPDX-License-Identifier: Apache-2.0
"""`status`: where a deployment stands."""

import argparse

from slmcli.documents import status_document
from slmcli.errors import Exit, ForbiddenError
from slmcli.output import add_output_argument, to_document_text
from slmcli.render.status import render_status
from slmcli.session import Session
from slmcli.view import DeploymentView, EventView, read_deployment, read_events


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("name", metavar="NAME", help="name of the SLMDeployment")
    parser.add_argument("-w", "--watch", action="store_true", help="follow it until Ctrl-C")
    add_output_argument(parser, "wide")


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""
    if arguments.watch:
        from slmcli.live import watch_status

        return watch_status(session, arguments.name, output=arguments.output)
    view = read_deployment(session.cluster.get(session.namespace, arguments.name))
    events = list_events(session, view)
    if arguments.output in ("json", "yaml"):
        session.terminal.write(to_document_text(status_document(view, events), arguments.output))
        return Exit.OK
    wide = ("messages", "variants") if arguments.output == "wide" else ()
    width = session.terminal.width
    session.terminal.show(*render_status(view, events, now=session.now(), width=width, wide=wide))
    return Exit.OK


def list_events(session: Session, view: DeploymentView) -> tuple[EventView, ...]:
    """Events about it; none when the account may not read them, which is no reason to show nothing."""
    try:
        return read_events(session.cluster.events(view.namespace, view.uid))
    except ForbiddenError:
        return ()
