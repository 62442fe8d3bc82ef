# SPDX-License-Identifier: Apache-2.0
"""`audit`: where a deployment runs, which bytes, who may reach it, what may leave, and findings."""

import argparse
from collections.abc import Callable, Sequence

from slmcli.audit.document import audit_document
from slmcli.audit.findings import assess_findings, reaches_level
from slmcli.audit.report import SEVERITIES, build_audit, build_observed
from slmcli.cluster import Body
from slmcli.errors import Exit, ForbiddenError
from slmcli.output import add_output_argument, to_document_text
from slmcli.render.audit import render_audit
from slmcli.revisions import read_revisions
from slmcli.session import Session
from slmcli.view import read_deployment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("name", metavar="NAME", help="name of the SLMDeployment")
    parser.add_argument(
        "--fail-on", choices=SEVERITIES, help="end with 1 when there is a finding as severe as that, or more"
    )
    add_output_argument(parser)


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it; `Exit.REFUSED` by --fail-on."""
    cluster = session.cluster
    view = read_deployment(cluster.get(session.namespace, arguments.name))
    unread: list[str] = []
    observed = build_observed(
        view,
        pods=[
            *cluster.pods(view.namespace, view.name),
            *cluster.training_pods(view.namespace, view.name),
        ],
        revisions=read_revisions(view, cluster.revisions(view.namespace, view.name)),
        services=_try(lambda: cluster.services(view.namespace), "services", unread),
        policies=_try(lambda: cluster.network_policies(view.namespace), "networkpolicies", unread),
        nodes=_try(cluster.nodes, "nodes", unread),
        unread=unread,
    )
    audit = build_audit(observed)
    findings = assess_findings(audit)
    if arguments.output:
        document = audit_document(audit, findings, now=session.now())
        session.terminal.write(to_document_text(document, arguments.output))
    else:
        lines = render_audit(audit, findings, now=session.now(), width=session.terminal.width)
        session.terminal.show(*lines)
    if arguments.fail_on is not None and reaches_level(findings, arguments.fail_on):
        return Exit.REFUSED
    return Exit.OK


def _try(read: Callable[[], list[Body]], what: str, unread: list[str]) -> Sequence[Body] | None:
    """None when the account may not read it: the report says so instead of ending."""
    try:
        return read()
    except ForbiddenError:
        unread.append(what)
        return None
