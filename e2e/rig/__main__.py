# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.rig`: the rig's command line."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from e2e.rig.access import existing_cluster
from e2e.rig.apt import install_packages
from e2e.rig.control_plane import ControlPlane
from e2e.rig.images import build_images, describe
from e2e.rig.paths import instances
from e2e.rig.progress import set_quiet
from e2e.rig.rig import Rig, load_plan
from e2e.rig.shell import RigError
from e2e.rig.tools import FAMILIES, build_tools, tool


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m e2e.rig", description=__doc__)
    parser.add_argument("--quiet", action="store_true", help="no progress lines")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    def named(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
        made.add_argument("--name", default="default", help="which rig (default: %(default)s)")
        return made

    build = command("build", _build, "build tools into the cache: all, or the named families")
    build.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join(f.name for f in FAMILIES))
    command("tool", _tool, "print the path of a tool, built first if need be").add_argument("binary")
    command("packages", _packages, "install the Debian packages that are missing")

    up = named(command("up", _up, "start the rig, or repair what is missing of it"))
    up.add_argument("--nodes", type=int, metavar="N", help="edge nodes beside the server (default: 3)")
    up.add_argument("--store", choices=["kine", "etcd"], help="store behind the API server (default: kine)")
    up.add_argument("--no-nodes", action="store_true", help="a control plane alone, on loopback")
    up.add_argument("--kwok", type=int, default=0, metavar="N", help="fake nodes")

    named(command("down", _down, "stop the rig and delete its state"))
    status = named(command("status", _status, "show what runs"))
    status.add_argument("-o", dest="output", choices=["table", "json"], default="table")
    named(command("kubeconfig", _kubeconfig, "print the path of the administrator's kubeconfig"))
    images = named(command("images", _images, "build and push the product's images; print their references"))
    images.add_argument("image", nargs="*")
    images.add_argument("-o", dest="output", choices=["table", "json"], default="table")

    fault = named(command("fault", _fault, "break something, or heal it"))
    fault.add_argument(
        "fault",
        choices=["link-down", "link-up", "bandwidth", "kill", "restart", "reboot", "apiserver", "prometheus"],
    )
    fault.add_argument(
        "node", nargs="?", help="node (seconds away, for apiserver; stop or start, for prometheus)"
    )
    fault.add_argument("value", nargs="?", help="Mbit/s or `none`; containerd, kubelet or kube-proxy")
    return parser


def _build(options: argparse.Namespace) -> None:
    install_packages()
    build_tools(options.families)


def _tool(options: argparse.Namespace) -> None:
    print(tool(options.binary))


def _packages(options: argparse.Namespace) -> None:
    print(" ".join(install_packages()) or "all installed")


def _up(options: argparse.Namespace) -> None:
    if options.no_nodes:
        plane = ControlPlane(options.name, store=options.store or "kine").up(kwok_nodes=options.kwok)
        print(f"export KUBECONFIG={plane.kubeconfig}")
        return
    rig = Rig(options.name, edge_nodes=options.nodes, store=options.store).up(kwok_nodes=options.kwok)
    print(f"export KUBECONFIG={rig.kubeconfig}")


def _down(options: argparse.Namespace) -> None:
    if load_plan(options.name) is None:
        ControlPlane(options.name).down()
    else:
        Rig(options.name).down()


def _status(options: argparse.Namespace) -> None:
    if load_plan(options.name) is None:
        plane = ControlPlane(options.name)
        daemons = {daemon.name.partition("/")[2]: daemon.pid for daemon in plane.daemons}
        status: dict[str, Any] = {"name": options.name, "processes": daemons, "nodes": []}
        if options.name in instances():
            status["kubeconfig"] = str(plane.kubeconfig)
    else:
        status = Rig(options.name).observe_status()
    print(json.dumps(status, indent=1) if options.output == "json" else render_status(status))


def render_status(status: dict[str, Any]) -> str:
    """The status as lines for a person."""
    lines = [f"rig {status['name']}"]
    if all(pid is None for pid in status["processes"].values()) and not status["nodes"]:
        return f"{lines[0]}: down"
    for part, pid in status["processes"].items():
        lines.append(f"  {part:<20} {'-' if pid is None else pid}")
    if status["nodes"]:
        lines.append(f"  {'NODE':<10} {'ADDRESS':<12} {'READY':<6} {'LINK':<5} PROCESSES")
    for node in status["nodes"]:
        processes = " ".join(f"{part}={pid or '-'}" for part, pid in node["processes"].items())
        ready, link = "yes" if node["ready"] else "no", "up" if node["link"] else "down"
        lines.append(f"  {node['name']:<10} {node['address']:<12} {ready:<6} {link:<5} {processes}")
    keys = ("registry", "prometheus", "models", "kubeconfig")
    lines.extend(f"  {key:<12} {status[key]}" for key in keys if status.get(key))
    return "\n".join(lines)


def _kubeconfig(options: argparse.Namespace) -> None:
    given = existing_cluster()
    print(given.kubeconfig if given else ControlPlane(options.name).kubeconfig)


def _images(options: argparse.Namespace) -> None:
    rig = Rig(options.name)
    if not rig.control_plane.daemon("registry").alive:
        raise RigError("the registry does not run: `python -m e2e.rig up` first")
    images = build_images(tuple(options.image))
    if options.output == "json":
        print(
            json.dumps({image.name: {"repository": image.repository, "tag": image.tag} for image in images})
        )
    else:
        print("\n".join(describe(image) for image in images))


def _fault(options: argparse.Namespace) -> None:
    rig, node, value = Rig(options.name), options.node or "", options.value or ""
    if options.fault == "apiserver":
        rig.restart_apiserver(downtime_seconds=float(node or 0))
    elif options.fault == "prometheus":
        (rig.start_service if node == "start" else rig.stop_service)("prometheus")
    elif node not in rig.nodes:
        raise RigError(f"no node {node!r}; there are: {', '.join(rig.nodes)}")
    elif options.fault == "link-down":
        rig.node_link_down(node)
    elif options.fault == "link-up":
        rig.node_link_up(node)
    elif options.fault == "bandwidth":
        rig.limit_bandwidth(node, None if value in {"", "none"} else float(value))
    elif options.fault == "reboot":
        rig.reboot_node(node)
    elif value not in {"containerd", "kubelet", "kube-proxy"}:
        raise RigError("name what to kill or restart: containerd, kubelet or kube-proxy")
    else:
        (rig.kill_daemon if options.fault == "kill" else rig.restart_daemon)(node, value)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 1 and one line on standard error when the rig cannot do it."""
    options = _parser().parse_args(arguments)
    set_quiet(quiet=options.quiet)
    if options.command in {"up", "down", "fault"} and os.geteuid() != 0:
        print("rig: needs root: it makes network namespaces and cgroups", file=sys.stderr)
        return 1
    try:
        options.run(options)
    except (RigError, ValueError) as error:
        print(f"rig: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
