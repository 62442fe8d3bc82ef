# SPDX-License-Identifier: Apache-2.0
"""`simulate`: what if; asks no cluster."""

import argparse

from slmcli.errors import Exit
from slmcli.session import Session
from slmcli.simulate.command import add_arguments
from slmcli.simulate.command import run as simulate

__all__ = ["add_arguments", "run"]


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""
    return Exit(simulate(arguments))
