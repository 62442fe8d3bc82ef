# SPDX-License-Identifier: Apache-2.0
"""`kubectl slm ...` and `python -m slmcli ...`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Final

from slmcli.commands import COMMANDS
from slmcli.errors import CliError, Exit
from slmcli.safe import clean

BROKEN_PIPE: Final = 141
"""What a shell reports for a program that ended because nobody read on."""


def main() -> None:
    """Entry point; see `slmcli.errors.Exit` for the exit codes."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str], *, open_session: Callable[[argparse.Namespace], Any] | None = None) -> int:
    """Run one command line; returns the exit code. Errors become one line on standard error."""
    try:
        arguments = build_parser(argv).parse_args(argv)
    except SystemExit as error:  # argparse has said what is wrong
        return int(error.code or 0)
    try:
        module = import_module(COMMANDS[arguments.command].module)
        session = (open_session or _open_session)(arguments)
        return int(module.run(arguments, session))
    except CliError as error:
        sys.stderr.write(f"error: {clean(str(error))}\n")
        return int(error.code)
    except KeyboardInterrupt:
        return int(Exit.INTERRUPTED)
    except BrokenPipeError:
        # Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except ImportError as error:
        sys.stderr.write(
            f"error: {clean(str(error))}; install the program with its packages, from a checkout: "
            "pip install '.[cli]'\n"
        )
        return int(Exit.USAGE)


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; only commands that `argv` names are imported for their own arguments."""
    parser = argparse.ArgumentParser(
        prog="kubectl slm",
        description="Look at SLMDeployments and steer their rollouts.",
        epilog="Exit codes: 0 done, 1 refused, 2 wrong usage, 3 cluster not reachable, forbidden or not "
        "found, 4 not in time, 130 interrupted.",
    )
    _add_shared(parser, default=None)
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    _add_shared(shared, default=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        child = commands.add_parser(
            name, help=command.help, description=_sentence(command.help), parents=[shared]
        )
        if name in argv:
            import_module(command.module).add_arguments(child)
    return parser


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _add_shared(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    """Flags as kubectl has them; they may stand before and after the command."""
    parser.add_argument("-n", "--namespace", default=default, help="namespace (default: the context's)")
    parser.add_argument("--context", default=default, help="context of the kubeconfig (default: the current)")
    parser.add_argument("--kubeconfig", default=default, help="kubeconfig file (default: as kubectl)")
    parser.add_argument(
        "--plain",
        action="store_true",
        default=default if default is not None else False,
        help="no colours and no redrawing, as when NO_COLOR is set or output is no terminal",
    )


def _open_session(arguments: argparse.Namespace) -> Any:
    from slmcli.session import Session
    from slmcli.terminal import find_terminal

    def connect() -> Any:
        from slmcli.kube import connect as open_connection

        return open_connection(kubeconfig=arguments.kubeconfig, context=arguments.context)

    return Session(
        connect=connect,
        terminal=find_terminal(sys.stdout, os.environ, wanted="plain" if arguments.plain else "best"),
        err=sys.stderr,
        chosen_namespace=arguments.namespace,
    )


if __name__ == "__main__":
    main()
