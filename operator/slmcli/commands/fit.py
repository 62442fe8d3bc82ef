# SPDX-License-Identifier: Apache-2.0
"""`fit`: which variant each node would take, with the numbers; applies nothing."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slmcli.documents import fit_document
from slmcli.errors import Exit, NotFoundError, RefusedError, UsageError
from slmcli.fitting import (
    Written,
    fetch_url,
    find_offered,
    find_sizes,
    merge_profiles,
    read_nodes_file,
    read_profiles,
    read_written,
    sizes_of,
)
from slmcli.observe import observe_node
from slmcli.output import add_output_argument, to_document_text
from slmcli.render.fit import render_fit
from slmcli.safe import clean_tree
from slmcli.session import Session
from slmcli.view import Body, read_deployment
from slmops.api.spec import ModelSource
from slmops.api.status import VariantStatus
from slmops.model.observed import NodeView, ProfileView
from slmops.model.offers import OfferedVersion
from slmops.planning.expand import ExpansionError
from slmops.planning.fit import assess_fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "-f", "--filename", required=True, metavar="FILE",
        help="YAML with the SLMDeployment; DeviceProfiles in it count before those of the cluster",
    )  # fmt: skip
    parser.add_argument(
        "--nodes", metavar="FILE",
        help="YAML with nodes (and DeviceProfiles) instead of those of the cluster, which is not asked then",
    )  # fmt: skip
    parser.add_argument(
        "--no-fetch", action="store_true", help="read no manifest over HTTP to find out sizes"
    )
    add_output_argument(parser, "wide")


def run(arguments: argparse.Namespace, session: Session) -> Exit:
    """Run it; `Exit.REFUSED` when no variant fits any node."""
    written = read_written(Path(arguments.filename))
    spec = written.spec
    known = _Known()
    offered: OfferedVersion | None = None
    if arguments.nodes is not None:
        if spec.model.from_ is not None:
            raise UsageError(
                f"{arguments.filename}: spec.model.from names an SLMModel, which only the cluster knows; "
                "leave --nodes out"
            )
        nodes, profiles = read_nodes_file(Path(arguments.nodes))
    else:
        nodes, profiles = _of_cluster(session)
        known = _known(written, session)
        if spec.model.from_ is not None:
            offered = _offered(spec.model.from_, written, session, present=known.version)
    sources, sizes = sizes_of(offered) if offered is not None else (spec.variants, [])
    resolved, notes = find_sizes(
        spec.model_copy(update={"variants": sources}),
        revisions=known.revisions,
        variants=[*known.variants, *sizes],
        fetch=None if arguments.no_fetch else fetch_url,
    )
    for note in notes:
        session.say(note)
    try:
        table = assess_fit(
            spec,
            profiles=merge_profiles(profiles, written.profiles),
            nodes=nodes,
            resolved=resolved,
            offered=offered,
        )
    except ExpansionError as error:
        raise RefusedError(str(error)) from None
    if arguments.output in ("json", "yaml"):
        session.terminal.write(to_document_text(fit_document(written.name, table), arguments.output))
    elif not table.rows:
        session.say("no node matches spec.placement.nodeSelector")
    else:
        wide = arguments.output == "wide"
        lines = render_fit(table, width=session.terminal.width, detail="all" if wide else "problems")
        session.terminal.show(*lines)
        if table.idle_overrides:
            session.say(
                f"spec.overrides: {', '.join(table.idle_overrides)}: for none of these nodes; compare sites "
                f"with the values of the label {spec.placement.site_label}, and profiles and nodeSelector"
            )
    return Exit.OK if table.fits_anywhere else Exit.REFUSED


def _of_cluster(session: Session) -> tuple[list[NodeView], list[ProfileView]]:
    nodes = [observe_node(clean_tree(body)) for body in session.cluster.nodes()]
    try:
        bodies = session.cluster.profiles()
    except NotFoundError:
        session.say("this cluster knows no DeviceProfiles; going on without")
        bodies = []
    return nodes, read_profiles("the cluster", [clean_tree(body) for body in bodies])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What the cluster knows of the deployment, if it is there already."""

    revisions: Sequence[Body] = ()
    variants: Sequence[VariantStatus] = ()
    version: str = ""


def _known(written: Written, session: Session) -> _Known:
    namespace = _namespace(written, session)
    try:
        view = read_deployment(session.cluster.get(namespace, written.name))
    except NotFoundError:
        return _Known()
    revisions = session.cluster.revisions(namespace, written.name)
    if view.status is None:
        return _Known(revisions=revisions)
    return _Known(revisions=revisions, variants=view.status.variants, version=view.status.model_version)


def _offered(source: ModelSource, written: Written, session: Session, *, present: str) -> OfferedVersion:
    namespace = _namespace(written, session)
    body = session.cluster.model(namespace, source.name)
    return find_offered(source, body, namespace=namespace, present=present)


def _namespace(written: Written, session: Session) -> str:
    return session.chosen_namespace or written.namespace or session.namespace
