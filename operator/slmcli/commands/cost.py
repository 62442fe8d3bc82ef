# SPDX-License-Identifier: Apache-2.0
"""`cost`: what serving takes by site, and what the same tokens would cost in a cloud."""

import argparse
from pathlib import Path
from typing import Final

from slmcli.cost.collect import Asked, collect_uses, profiles_of_nodes
from slmcli.cost.estimate import estimate_costs
from slmcli.cost.prices import read_prices, read_watts, watts_of_profiles
from slmcli.errors import Exit, ForbiddenError, NotFoundError, UsageError
from slmcli.fitting import read_profiles
from slmcli.observe import observe_node
from slmcli.output import add_output_argument, to_document_text
from slmcli.render.cost import cost_document, render_costs
from slmcli.render.cost_metrics import cost_metrics
from slmcli.safe import clean_tree
from slmcli.serving import read_serving
from slmcli.session import Session
from slmcli.view import DeploymentView, read_deployment
from slmops.api.base import duration_seconds
from slmops.model.observed import NodeView, ProfileView
from slmwire.paths import PATH_METRICS

_DAY_SECONDS: Final = 86400.0
_LONGEST_SECONDS: Final = 100 * 366 * _DAY_SECONDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="name of the SLMDeployment")
    parser.add_argument("--all", action="store_true", help="all SLMDeployments of the namespace")
    parser.add_argument("--prices", metavar="FILE", help="YAML with prices (default: tokens and energy only)")
    parser.add_argument(
        "--watts", metavar="FILE", help="YAML with idle and busy by profile, before those of DeviceProfiles"
    )
    parser.add_argument(
        "--period", type=_period, default=_DAY_SECONDS, metavar="24h",
        help="span that is computed for, for example 1h or 30d (default: 24h)",
    )  # fmt: skip
    add_output_argument(parser, "prometheus")


def _period(text: str) -> float:
    try:
        seconds = float(text[:-1]) * _DAY_SECONDS if text.endswith("d") else duration_seconds(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= _LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a span such as 24h or 30d")
    return seconds


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it."""
    if (arguments.name is None) is not arguments.all:
        raise UsageError("give the NAME of an SLMDeployment, or --all")
    prices = read_prices(Path(arguments.prices)) if arguments.prices else None
    given = read_watts(Path(arguments.watts)) if arguments.watts else {}
    views = _views(arguments, session)
    nodes = _nodes(session)
    profiles = _profiles(session)
    wanted = [
        Asked(
            deployment=(view.namespace, view.name),
            site_label=view.spec.placement.site_label if view.spec is not None else "",
            pod=pod,
        )
        for view in views
        for pod in read_serving(session.cluster.pods(view.namespace, view.name))
    ]
    uses, left = collect_uses(
        wanted,
        ask=lambda pod: session.cluster.pod_text(pod.address, PATH_METRICS),
        nodes={node.name: node for node in nodes},
        profiles=profiles_of_nodes(nodes, profiles),
        now=session.now(),
    )
    rows, total = estimate_costs(
        uses,
        period_seconds=arguments.period,
        watts=watts_of_profiles(profiles) | given,
        prices=prices,
    )
    if arguments.output == "prometheus":
        session.terminal.write(
            cost_metrics(rows, left, period_seconds=arguments.period, prices=prices, now=session.now())
        )
    elif arguments.output:
        document = cost_document(
            rows, total, left, period_seconds=arguments.period, prices=prices, now=session.now()
        )
        session.terminal.write(to_document_text(document, arguments.output))
    elif not rows and not left:
        session.say("no serving pod")
    else:
        lines = render_costs(
            rows,
            total,
            left,
            period_seconds=arguments.period,
            prices=prices,
            width=session.terminal.width,
            names="shown" if arguments.all else "left out",
        )
        session.terminal.show(*lines)
    return Exit.OK


def _views(arguments: argparse.Namespace, session: Session) -> list[DeploymentView]:
    if arguments.all:
        bodies = session.cluster.deployments(session.namespace)
    else:
        bodies = [session.cluster.get(session.namespace, arguments.name)]
    return [read_deployment(body) for body in bodies]


def _nodes(session: Session) -> list[NodeView]:
    try:
        return [observe_node(clean_tree(body)) for body in session.cluster.nodes()]
    except ForbiddenError:
        session.say("nodes may not be listed: sites and profiles are not known")
        return []


def _profiles(session: Session) -> list[ProfileView]:
    try:
        return read_profiles("the cluster", [clean_tree(body) for body in session.cluster.profiles()])
    except (ForbiddenError, NotFoundError) as error:
        session.say(f"no DeviceProfiles: {error}; watts come from --watts alone")
        return []
