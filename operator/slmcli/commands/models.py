# SPDX-License-Identifier: Apache-2.0
"""`models`: versions of SLMModels, their variants, and what these measured."""

import argparse
from pathlib import Path

from slmcli.errors import Exit, UsageError
from slmcli.models import models_document, read_model
from slmcli.output import add_output_argument, to_document_text
from slmcli.render.models import render_models
from slmcli.session import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="only this SLMModel")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write a page with tables and plots (HTML) instead"
    )
    add_output_argument(parser)


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""
    if arguments.name:
        bodies = [session.cluster.model(session.namespace, arguments.name)]
    else:
        bodies = session.cluster.models(session.namespace)
    views = sorted((read_model(body) for body in bodies), key=lambda view: view.name)
    if arguments.output:
        session.terminal.write(to_document_text(models_document(views), arguments.output))
        return Exit.OK
    for view in views:
        for note in view.notes:
            session.say(f"{view.name}: {note}")
    if arguments.report is not None:
        from slmcli.render.model_report import render_report

        try:
            arguments.report.write_text(render_report(views), encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"--report {arguments.report}: {error.strerror}; name a file to write"
            ) from error
        session.say(f"wrote {arguments.report}")
    elif not views:
        session.say(f"no SLMModel in namespace {session.namespace}; -n chooses another")
    else:
        lines = render_models(views, width=session.terminal.width)
        session.terminal.show(*lines)
        if not any(view.status is not None and view.status.versions for view in views):
            session.say("no version yet")
    return Exit.OK
