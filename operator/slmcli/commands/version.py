# SPDX-License-Identifier: Apache-2.0
"""`version`: of this program and of the API that it speaks; asks no cluster."""

import argparse

from slmcli.errors import Exit
from slmcli.output import DOCUMENT_VERSION, add_output_argument, to_document_text
from slmcli.session import Session
from slmops import __version__
from slmops.api import API_VERSION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_output_argument(parser)


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""
    if arguments.output:
        document = {
            "apiVersion": DOCUMENT_VERSION,
            "kind": "Version",
            "client": __version__,
            "api": API_VERSION,
        }
        session.terminal.write(to_document_text(document, arguments.output))
    else:
        session.terminal.write(f"kubectl-slm {__version__} for {API_VERSION}\n")
    return Exit.OK
