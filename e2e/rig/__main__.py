# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.rig`: the rig's command line."""

import argparse
import sys

from e2e.rig.control_plane import ControlPlane
from e2e.rig.shell import RigError
from e2e.rig.tools import FAMILIES, build_tools, tool


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m e2e.rig", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build tools into the cache (all when none is named)")
    build.add_argument("families", nargs="*", choices=[[], *(family.name for family in FAMILIES)])
    one = commands.add_parser("tool", help="print the path of a tool, built first if need be")
    one.add_argument("binary")
    for name, text in (("up", "start"), ("down", "stop and delete")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--name", default="default")
        if name == "up":
            command.add_argument("--no-nodes", action="store_true")
            command.add_argument("--kwok", type=int, default=0)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 1 and one line on standard error when the rig cannot do it."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "build":
            build_tools(options.families)
        elif options.command == "tool":
            print(tool(options.binary))
        elif options.command == "up":
            print(ControlPlane(options.name).up(kwok_nodes=options.kwok).kubeconfig)
        else:
            ControlPlane(options.name).down()
    except RigError as error:
        print(f"rig: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
