# SPDX-License-Identifier: Apache-2.0
"""`cache`: what the model store of each node holds, pins and fetches."""

import argparse

from slmcli.documents import cache_document
from slmcli.errors import Exit, NotFoundError, UsageError
from slmcli.observe import report_nodes
from slmcli.output import add_output_argument, to_document_text
from slmcli.render.cache import render_stores
from slmcli.session import Session
from slmcli.stores import Wanted, read_agent, report_stores
from slmcli.view import read_deployment

DEFAULT_NAMESPACE = "slmops-system"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="only its nodes and what it pins (default: every node)"
    )
    parser.add_argument("--site", help="only nodes of this site; needs NAME")
    parser.add_argument("--problems", action="store_true", help="only nodes with a problem")
    parser.add_argument(
        "--agents",
        metavar="NAMESPACE",
        default=DEFAULT_NAMESPACE,
        help=f"namespace of the store agents, which is the operator's (default: {DEFAULT_NAMESPACE})",
    )
    add_output_argument(parser)


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""
    if arguments.site is not None and arguments.name is None:
        raise UsageError("--site needs NAME: an SLMDeployment says which label names the site")
    wanted = _wanted(arguments, session)
    cluster = session.cluster
    agents = [read_agent(body) for body in cluster.store_agents(arguments.agents)]
    if not agents:
        raise NotFoundError(
            f"no store agents in namespace {arguments.agents}; name the operator's namespace with --agents, "
            "or install the chart with storeAgent.enabled=true"
        )
    reports = [
        report
        for report in report_stores(
            agents, wanted, ask=lambda agent: cluster.store(agent.namespace, agent.pod, agent.port)
        )
        if report.problem is not None or not arguments.problems
    ]
    if arguments.output:
        document = cache_document(reports, wanted.pins_of)
        session.terminal.write(to_document_text(document, arguments.output))
    elif not reports:
        session.say(
            "no node with a problem" if arguments.problems else "no node matches placement and --site"
        )
    else:
        owners = wanted.pins_of is None
        lines = render_stores(reports, width=session.terminal.width, owners="shown" if owners else "left out")
        session.terminal.show(*lines)
    return Exit.OK


def _wanted(arguments: argparse.Namespace, session: Session) -> Wanted:
    if arguments.name is None:
        return Wanted()
    view = read_deployment(session.cluster.get(session.namespace, arguments.name))
    for note in view.notes:
        session.say(note)
    sites = {
        report.node: report.site
        for report in report_nodes(view, session.cluster.nodes(), ())
        if arguments.site is None or report.site == arguments.site
    }
    return Wanted(sites=sites, pins_of=(view.namespace, view.name))
