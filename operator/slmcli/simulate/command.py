# SPDX-License-Identifier: Apache-2.0
"""`kubectl slm simulate`: arguments in, report out."""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from slmcli.simulate.fleet import uniform_groups
from slmcli.simulate.inputs import number, parse_effects, parse_sizes, read_deployment, read_fleet
from slmcli.simulate.plot import build_svg
from slmcli.simulate.report import build_report, summarise
from slmcli.simulate.settings import DEFAULT_START_SECONDS, MAX_NODES, Group, InputError, Settings
from slmcli.simulate.simulation import Simulation
from slmcli.simulate.stable import build_versions
from slmcli.simulate.text import report_text, summary_text
from slmops.api import SLMDeploymentSpec
from slmops.planning.expand import ExpansionError

_FLEET_OPTIONS = ("nodes", "sites", "link_mbps", "offline_percent", "mean_outage_minutes", "memory_gb")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.description = (
        "Runs the operator's planner on a virtual fleet in virtual time: how long a rollout takes, what it "
        "costs, and how far a bad version gets. Nothing is asked of a cluster."
    )
    parser.add_argument("-f", "--filename", required=True, metavar="FILE", help="YAML with the SLMDeployment")
    fleet = parser.add_argument_group("fleet")
    fleet.add_argument("--fleet", metavar="FILE", help="YAML with groups of nodes, instead of --nodes")
    fleet.add_argument("--nodes", type=_whole(1, MAX_NODES), help="number of like nodes (default 1000)")
    fleet.add_argument(
        "--sites",
        type=_whole(1, MAX_NODES),
        help="sites with one shared link each (default: a link per node)",
    )
    fleet.add_argument("--link-mbps", type=_number(0.001, 1e6), help="Mbit/s of each link (default 50)")
    fleet.add_argument("--offline-percent", type=_number(0, 100), help="share of nodes offline (default 0)")
    fleet.add_argument(
        "--mean-outage-minutes", type=_number(0.1, 1e6), help="length of an outage (default 60)"
    )
    fleet.add_argument("--memory-gb", type=_number(0.01, 1e5), help="memory of a node in GiB (default 8)")
    what = parser.add_argument_group("new version")
    what.add_argument("--size-gb", metavar="GB", help="size of the model, or VARIANT=GB,... (default 1)")
    what.add_argument(
        "--bad", action="append", default=[], metavar="EFFECT=NUMBER",
        help="error-rate=0.1, score=0.5, crash-percent=5 or latency=1.5 (a factor); may be repeated",
    )  # fmt: skip
    what.add_argument(
        "--requests-per-node-minute", type=_number(0, 1e6), default=6.0, help="traffic (default 6)"
    )
    what.add_argument("--approve-after", type=_number(0, 1e6), default=0.0, metavar="MINUTES",
                      help="delay of manual approvals (default 0)")  # fmt: skip
    run_ = parser.add_argument_group("run")
    run_.add_argument("--seed", type=int, default=1, help="equal seeds give equal results (default 1)")
    run_.add_argument("--runs", type=_whole(1, 10_000), default=1, help="simulate so many seeds in a row")
    run_.add_argument("--until", type=_number(0.01, 1e5), default=72.0, metavar="HOURS",
                      help="give up after so much virtual time (default 72)")  # fmt: skip
    run_.add_argument("--start", type=_moment, default=DEFAULT_START_SECONDS, metavar="TIME",
                      help="RFC 3339; counts for windows (default 2026-01-05T08:00Z, Monday)")  # fmt: skip
    run_.add_argument("-o", "--output", choices=("text", "json", "yaml"), default="text")
    run_.add_argument("--plot", metavar="FILE.svg", help="also draw nodes on the new version over time")


def run(args: argparse.Namespace) -> int:
    """Simulate and print; 0 whatever the verdict, 2 when the input is wrong."""
    try:
        return _run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2


def _run(args: argparse.Namespace) -> int:
    if args.plot and Path(args.plot).suffix != ".svg":
        raise InputError(f"--plot {args.plot}: the plot is an SVG; name a file that ends in .svg")
    names, spec = read_deployment(Path(args.filename))
    groups = _groups(args, spec)
    settings = Settings(
        effect=parse_effects(args.bad),
        requests_per_node_minute=args.requests_per_node_minute,
        size_bytes=parse_sizes(args.size_gb, [variant.name for variant in spec.variants]),
        start_seconds=args.start,
        until_seconds=args.until * 3600,
        approve_after_seconds=args.approve_after * 60,
    )
    try:
        versions = build_versions(names, spec, settings.size_bytes)
    except ExpansionError as error:
        raise InputError(f"{args.filename}: {error}") from None
    reports: list[dict[str, Any]] = []
    for seed in range(args.seed, args.seed + args.runs):
        simulation = Simulation(versions, groups, settings, seed=seed)
        simulation.run()
        if simulation.record.verdict == "Refused":
            raise InputError(f"{args.filename}: {build_report(simulation, seed=seed)['message']}")
        reports.append(build_report(simulation, seed=seed))
    if args.plot:
        _write_plot(Path(args.plot), reports[0], f"{names.name}: {reports[0]['verdict']}")
    summary = summarise(reports)
    if args.output == "text":
        columns = max(20, min(72, shutil.get_terminal_size().columns - 40))
        text = report_text(reports[0], columns=columns) if args.runs == 1 else summary_text(summary)
    else:
        body = {"runs": reports, "summary": summary}
        text = (
            json.dumps(body, indent=2)
            if args.output == "json"
            else yaml.safe_dump(body, sort_keys=False, allow_unicode=True).rstrip()
        )
    print(text)  # noqa: T201
    return 0


def _groups(args: argparse.Namespace, spec: SLMDeploymentSpec) -> tuple[Group, ...]:
    if args.fleet is not None:
        given = [name for name in _FLEET_OPTIONS if getattr(args, name) is not None]
        if given:
            option = "--" + given[0].replace("_", "-")
            raise InputError(f"{option}: the fleet comes from {args.fleet}; leave {option} or --fleet out")
        return read_fleet(Path(args.fleet))
    base = Group(
        name="edge",
        count=args.nodes or 1000,
        sites=min(args.sites or 0, args.nodes or 1000),
        link_mbps=args.link_mbps or 50.0,
        offline_percent=args.offline_percent or 0.0,
        mean_outage_minutes=args.mean_outage_minutes or 60.0,
        memory_bytes=int((args.memory_gb or 8.0) * 2**30),
    )
    return uniform_groups(spec, base)


def _write_plot(path: Path, report: dict[str, Any], title: str) -> None:
    try:
        path.write_text(build_svg(report, title=title), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--plot {path}: cannot be written: {error.strerror or error}") from None


def _number(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            return number("value", text, least=least, most=most)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-01-05T08:00:00Z") from None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
