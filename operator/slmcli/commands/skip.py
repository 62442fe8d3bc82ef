# SPDX-License-Identifier: Apache-2.0
"""`skip`: judge the current wave no further and go on with the next."""

import argparse

from slmcli.commands.promote import build_token, choose_wave
from slmcli.errors import Exit
from slmcli.session import Session
from slmcli.steer import Change, add_steer_arguments, answered, need_rollout, steer
from slmcli.view import DeploymentView
from slmops.api import SKIP_ANNOTATION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_steer_arguments(parser)
    parser.add_argument("--wave", metavar="WAVE", help="the wave to end (default: the current one)")


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""

    def plan(view: DeploymentView) -> Change:
        revision = need_rollout(view, "skip a wave of")
        wave = choose_wave(view.running, arguments.wave)
        token = build_token(revision, wave, session.now())
        return Change(
            operation="skip",
            annotations={SKIP_ANNOTATION: token},
            promise=f"wave {wave} of revision {revision} is judged no further",
            outcome=answered("skip", token),
        )

    return steer(session, arguments, plan)
