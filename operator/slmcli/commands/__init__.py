# SPDX-License-Identifier: Apache-2.0
"""The commands by name. A module of a command has

- `add_arguments(parser: argparse.ArgumentParser) -> None`, which adds what is its own, and
- `run(arguments: argparse.Namespace, session: slmcli.session.Session) -> int`, which returns the exit code.

A module is imported when its command is named, so that one command does not pay for another.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command: where it is, and what it does in half a line."""

    module: str
    help: str


COMMANDS: Final[dict[str, Command]] = {
    "list": Command(module="slmcli.commands.list", help="all SLMDeployments of a namespace, or of all (-A)"),
    "get": Command(module="slmcli.commands.list", help="the same as list"),
    "status": Command(module="slmcli.commands.status", help="where a deployment stands; --watch follows it"),
    "explain": Command(
        module="slmcli.commands.explain", help="why it stands there, what comes next, what one can do"
    ),
    "nodes": Command(module="slmcli.commands.nodes", help="node by node: what it was given, what it serves"),
    "cache": Command(
        module="slmcli.commands.cache", help="what the model store of each node holds, pins and fetches"
    ),
    "models": Command(
        module="slmcli.commands.models", help="versions of models, their variants and what these measured"
    ),
    "chat": Command(
        module="slmcli.commands.chat", help="talk to a deployment's model through the API server"
    ),
    "audit": Command(
        module="slmcli.commands.audit", help="where it runs, which bytes, what may leave, and what is wrong"
    ),
    "cost": Command(
        module="slmcli.commands.cost", help="tokens, energy and money by site, compared with a cloud"
    ),
    "history": Command(module="slmcli.commands.history", help="the revisions that are kept"),
    "diff": Command(module="slmcli.commands.diff", help="what differs between two revisions"),
    "promote": Command(module="slmcli.commands.promote", help="let the wave go that waits for approval"),
    "skip": Command(module="slmcli.commands.skip", help="judge the current wave no further, go on"),
    "abort": Command(module="slmcli.commands.abort", help="roll the new revision back"),
    "retry": Command(module="slmcli.commands.retry", help="roll a failed revision out once more"),
    "pause": Command(module="slmcli.commands.pause", help="stop the rollout where it is"),
    "resume": Command(module="slmcli.commands.resume", help="go on after a pause"),
    "undo": Command(module="slmcli.commands.undo", help="go back to an earlier revision"),
    "train": Command(
        module="slmcli.commands.train", help="train an adapter now at the sites of spec.adaptation"
    ),
    "fit": Command(module="slmcli.commands.fit", help="which variant each node would take, with the numbers"),
    "try": Command(
        module="slmcli.commands.trial",
        help="serve the model of a manifest on this machine, without a cluster",
    ),
    "simulate": Command(
        module="slmcli.commands.simulate", help="what a rollout would do to a virtual fleet, in virtual time"
    ),
    "version": Command(module="slmcli.commands.version", help="the version of this program"),
}
