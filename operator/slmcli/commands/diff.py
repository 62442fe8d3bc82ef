# SPDX-License-Identifier: Apache-2.0
"""`diff`: what differs between two revisions, or between the stable one and spec."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from rich.text import Text

from slmcli.errors import Exit, RefusedError, UsageError
from slmcli.revisions import (
    StoredRevision,
    describe_data,
    describe_like_spec,
    describe_spec,
    diff_lines,
    find_revision,
    read_revisions,
)
from slmcli.session import Session
from slmcli.view import DeploymentView, read_deployment

_STYLES: Final = {"+": "green", "-": "red", "@": "cyan"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("name", metavar="NAME", help="name of the SLMDeployment")
    parser.add_argument(
        "revisions",
        metavar="REV",
        nargs="*",
        help="revision, the beginning of one, or its number (default: the stable one and the one that spec "
        "stands for; with one REV, the stable one and that)",
    )
    parser.add_argument(
        "--spec", action="store_true", help="the stable revision and spec as it is written now"
    )
    parser.add_argument("--full", action="store_true", help="also the pod that fetches ahead")


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""
    if len(arguments.revisions) > 2 or (arguments.spec and arguments.revisions):
        raise UsageError("name at most two revisions, and none with --spec")
    view = read_deployment(session.cluster.get(session.namespace, arguments.name))
    stored = read_revisions(view, session.cluster.revisions(view.namespace, view.name))
    pods = ("serve", "prefetch") if arguments.full else ("serve",)
    sides = choose_sides(
        view, stored, arguments.revisions, against="spec" if arguments.spec else "revision", pods=pods
    )
    if sides.note:
        session.say(sides.note)
    lines = diff_lines(sides.old, sides.new, old_name=sides.old_name, new_name=sides.new_name)
    if not lines:
        session.say(f"no difference between {sides.old_name} and {sides.new_name}")
    session.terminal.show(*(Text(line, style=_STYLES.get(line[:1], "")) for line in lines))
    return Exit.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """The two values that are compared, and their names."""

    old: Any
    new: Any
    old_name: str
    new_name: str
    note: str = ""


def choose_sides(
    view: DeploymentView,
    stored: Sequence[StoredRevision],
    wanted: Sequence[str],
    *,
    against: Literal["spec", "revision"] = "revision",
    pods: Sequence[str] = ("serve",),
) -> Sides:
    """What is compared; RefusedError when a side is missing, UsageError for an unknown revision."""
    if len(wanted) == 2:
        return _of_two(find_revision(stored, wanted[0]), find_revision(stored, wanted[1]), pods)
    stable = next((r for r in stored if "stable" in r.states), None)
    if stable is None:
        raise RefusedError("there is no stable revision to compare with; name two revisions of the history")
    if wanted:
        return _of_two(stable, find_revision(stored, wanted[0]), pods)
    update = next((r for r in stored if "update" in r.states), None)
    if update is not None and against == "revision":
        return _of_two(stable, update, pods)
    return _with_spec(view, stable, note="" if against == "spec" or view.status is None else _why_spec(view))


def _why_spec(view: DeploymentView) -> str:
    assert view.status is not None
    if view.status.update_revision in ("", view.status.stable_revision):
        return (
            "spec stands for no other recorded revision; comparing the stable one with spec as it is written"
        )
    return f"revision {view.status.update_revision} is not kept; comparing with spec as it is written"


def _of_two(old: StoredRevision, new: StoredRevision, pods: Sequence[str]) -> Sides:
    return Sides(
        old=describe_data(old, pods),
        new=describe_data(new, pods),
        old_name=_name(old),
        new_name=_name(new),
    )


def _with_spec(view: DeploymentView, stable: StoredRevision, *, note: str) -> Sides:
    if view.spec is None:
        raise RefusedError("; ".join(view.notes))
    return Sides(
        old=describe_like_spec(stable),
        new=describe_spec(view.spec),
        old_name=_name(stable),
        new_name=f"spec (generation {view.generation})",
        note=note,
    )


def _name(stored: StoredRevision) -> str:
    return f"{stored.revision} (number {stored.number}{''.join(f', {s}' for s in stored.states)})"
