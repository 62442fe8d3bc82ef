# SPDX-License-Identifier: Apache-2.0
"""Commands that steer: set an annotation, wait until the operator says what came of it.

The annotation names the revision (and wave) that the person saw, so a request that comes late is refused by
the operator rather than done to another revision. The patch carries the resource version that was read.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from slmcli.actions import command_line
from slmcli.errors import ConflictError, Exit, RefusedError, UnreachableError
from slmcli.output import to_yaml
from slmcli.session import Session
from slmcli.view import DeploymentView, read_deployment
from slmops.api.base import duration_seconds

ATTEMPTS: Final = 5
POLL_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the operator said."""

    kind: Literal["Done", "Refused"]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is asked for: annotations (None takes one away), and how to see what came of it."""

    operation: str
    annotations: Mapping[str, str | None]
    promise: str
    """What was asked for, in half a sentence."""
    outcome: Callable[[DeploymentView], Outcome | None]


def add_steer_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that all steering commands share."""
    parser.add_argument("name", metavar="NAME", help="name of the SLMDeployment")
    parser.add_argument(
        "--timeout",
        type=seconds_argument,
        default=15.0,
        metavar="DURATION",
        help="how long to wait for the operator's answer, for example 15s; 0 does not wait (default: 15s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be patched, change nothing")


def seconds_argument(text: str) -> float:
    """`15s`, `1m30s` or a number of seconds."""
    try:
        seconds = float(text) if text.replace(".", "", 1).isdigit() else duration_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor a number of seconds") from error
    return seconds


def answered(operation: str, token: str) -> Callable[[DeploymentView], Outcome | None]:
    """Look for the operation with this token in status."""

    def outcome(view: DeploymentView) -> Outcome | None:
        for entry in view.status.operations if view.status is not None else ():
            if entry.operation == operation and entry.token == token:
                return Outcome(kind=entry.outcome, message=entry.message)
        return None

    return outcome


def need_rollout(view: DeploymentView, operation: str) -> str:
    """Revision of the rollout in progress; RefusedError when there is none."""
    running = view.running
    if running is not None:
        return running.revision
    stands = f"; {view.status.stable_revision} is the stable revision" if view.status is not None else ""
    raise RefusedError(
        f"there is no rollout in progress to {operation}{stands}; see {command_line(view, 'explain')}"
    )


def steer(session: Session, arguments: Any, plan: Callable[[DeploymentView], Change]) -> Exit:
    """Read, patch, wait and say what came of it.

    `plan` is asked again, with what was read anew, when the object changed in between.
    """
    view = change = None
    for attempt in range(ATTEMPTS):
        view = read_deployment(session.cluster.get(session.namespace, arguments.name))
        if view.deleting:
            raise RefusedError(f"{view.namespace}/{view.name} is being deleted")
        change = plan(view)
        if arguments.dry_run:
            session.terminal.write(_dry_run(view, change))
            return Exit.OK
        try:
            session.cluster.patch(view.namespace, view.name, _patch(view, change))
            break
        except ConflictError:
            if attempt + 1 == ATTEMPTS:
                raise
    assert view is not None and change is not None
    return _await_outcome(session, view, change, timeout_seconds=arguments.timeout)


def _patch(view: DeploymentView, change: Change) -> dict[str, Any]:
    return {
        "metadata": {"resourceVersion": view.resource_version, "annotations": dict(change.annotations)},
    }


def _dry_run(view: DeploymentView, change: Change) -> str:
    head = (
        f"# {change.operation}: {change.promise}\n"
        f"# merge patch of slmdeployment {view.namespace}/{view.name}\n"
    )
    return head + to_yaml(_patch(view, change))


def _await_outcome(session: Session, view: DeploymentView, change: Change, *, timeout_seconds: float) -> Exit:
    subject = f"slmdeployment/{view.name}"
    if timeout_seconds <= 0:
        session.terminal.write(f"{subject}: asked to {change.operation}: {change.promise}\n")
        return Exit.OK
    end = session.now() + timeout_seconds
    while True:
        try:
            found, trouble = (
                change.outcome(read_deployment(session.cluster.get(view.namespace, view.name))),
                "",
            )
        except UnreachableError as error:
            found, trouble = None, f" (last: {error})"  # it is written; the link may come back in time
        if found is not None:
            text = f": {found.message}" if found.message else f": {change.promise}"
            session.terminal.write(f"{subject}: {change.operation} {found.kind.lower()}{text}\n")
            return Exit.OK if found.kind == "Done" else Exit.REFUSED
        if session.now() >= end:
            session.say(
                f"{subject}: asked to {change.operation}, but the operator has not answered within "
                f"{timeout_seconds:g}s{trouble}; it will when it next looks: {command_line(view, 'status')}. "
                "If that lasts, see whether it runs: kubectl get pods -A -l app.kubernetes.io/name=slmops"
            )
            return Exit.UNCONFIRMED
        session.sleep(min(POLL_SECONDS, max(0.0, end - session.now())))
