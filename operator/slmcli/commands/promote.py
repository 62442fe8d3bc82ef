# SPDX-License-Identifier: Apache-2.0
"""`promote`: open the gate of a wave that waits for approval, or of all waves."""

import argparse

from slmcli.errors import Exit, UsageError
from slmcli.session import Session
from slmcli.steer import Change, add_steer_arguments, answered, need_rollout, steer
from slmcli.times import stamp
from slmcli.view import DeploymentView
from slmops.api import PROMOTE_ANNOTATION
from slmops.api.status import RolloutStatus
from slmops.planning.operations import ALL_WAVES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_steer_arguments(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="go through all waves, without gates and analysis")
    which.add_argument("--wave", metavar="WAVE", help="the wave to approve (default: the current one)")


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""

    def plan(view: DeploymentView) -> Change:
        revision = need_rollout(view, "promote")
        part = ALL_WAVES if arguments.all else choose_wave(view.running, arguments.wave)
        token = build_token(revision, part, session.now())
        what = (
            "goes through all waves" if arguments.all else f"wave {part} is approved" if part else "goes on"
        )
        return Change(
            operation="promote",
            annotations={PROMOTE_ANNOTATION: token},
            promise=f"revision {revision} {what}" if arguments.all or not part else f"{what} for {revision}",
            outcome=answered("promote", token),
        )

    return steer(session, arguments, plan)


def choose_wave(rollout: RolloutStatus | None, wanted: str | None) -> str:
    """Name of the wave that is meant: the wanted one, else the current; UsageError for an unknown one."""
    waves = [wave.name for wave in rollout.waves] if rollout is not None else []
    if wanted is not None:
        if wanted not in waves:
            raise UsageError(
                f"--wave {wanted}: the rollout has no such wave; it has {', '.join(waves) or 'none'}"
            )
        return wanted
    return waves[rollout.wave] if rollout is not None and rollout.wave < len(waves) else ""


def build_token(revision: str, part: str, now: float) -> str:
    """`REVISION[/PART]@TIME`: the time makes the same request, made again, a new one."""
    return f"{revision}{f'/{part}' if part else ''}@{stamp(now)}"
