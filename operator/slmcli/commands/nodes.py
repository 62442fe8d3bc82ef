# SPDX-License-Identifier: Apache-2.0
"""`nodes`: what each node was given, what it serves and what is wrong with it."""

import argparse

from slmcli.documents import nodes_document
from slmcli.errors import Exit
from slmcli.observe import report_nodes
from slmcli.output import add_output_argument, to_document_text
from slmcli.render.tables import render_nodes
from slmcli.session import Session
from slmcli.view import read_deployment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("name", metavar="NAME", help="name of the SLMDeployment")
    parser.add_argument("--site", help="only nodes of this site")
    parser.add_argument("--problems", action="store_true", help="only nodes with a problem")
    add_output_argument(parser, "wide")


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""
    view = read_deployment(session.cluster.get(session.namespace, arguments.name))
    for note in view.notes:
        session.say(note)
    reports = [
        report
        for report in report_nodes(
            view, session.cluster.nodes(), session.cluster.pods(view.namespace, view.name)
        )
        if (arguments.site is None or report.site == arguments.site)
        and (report.problem is not None or not arguments.problems)
    ]
    if arguments.output in ("json", "yaml"):
        session.terminal.write(to_document_text(nodes_document(view, reports), arguments.output))
    elif not reports:
        session.say(
            "no node with a problem" if arguments.problems else "no node matches placement and --site"
        )
    else:
        columns = ("restarts",) if arguments.output == "wide" else ()
        session.terminal.show(*render_nodes(reports, width=session.terminal.width, more=columns))
    return Exit.OK
