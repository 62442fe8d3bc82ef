# SPDX-License-Identifier: Apache-2.0
"""The overview: the whole fleet on one page. Pure."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from slmops.model.observed import Deployment, NodeView
from slmops.model.slmmodel import ModelObject
from slmops.page.assess import build_row, is_active
from slmops.page.documents import (
    Counters,
    Health,
    ModelRow,
    ModelVariantRow,
    Overview,
    Site,
    shorten,
)
from slmops.planning.transitions import hold_of

MAX_MODELS: Final = 200
_ORDER: Final = (Health.FAILING, Health.HELD, Health.ROLLING, Health.OFFLINE, Health.UNKNOWN, Health.OK)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSnapshot:
    """What the overview is made of; refers to no live object."""

    deployments: tuple[Deployment, ...]
    nodes: tuple[NodeView, ...]
    models: tuple[ModelObject, ...]
    leads: bool
    nodes_known: bool


def build_overview(snapshot: FleetSnapshot) -> Overview:
    """The document; what needs attention comes first."""
    rows = [build_row(deployment) for deployment in snapshot.deployments]
    rows.sort(key=lambda row: (_ORDER.index(row.health), row.namespace, row.name))
    labels = {d.spec.placement.site_label for d in snapshot.deployments if d.spec is not None}
    sites = count_sites(snapshot.nodes, labels)
    statuses = [deployment.status for deployment in snapshot.deployments]
    models = sorted(snapshot.models, key=lambda model: (model.namespace, model.name))
    return Overview(
        leads=snapshot.leads,
        nodes_known=snapshot.nodes_known,
        counters=Counters(
            deployments=len(rows),
            nodes=len(snapshot.nodes),
            nodes_ready=sum(node.ready for node in snapshot.nodes),
            sites=len(sites),
            rolling=sum(is_active(status.rollout) for status in statuses),
            held=sum(bool(hold_of(status)) for status in statuses),
            failing=sum(row.health is Health.FAILING for row in rows),
        ),
        deployments=tuple(rows),
        sites=sites,
        models=tuple(build_model_row(model) for model in models[:MAX_MODELS]),
        models_left_out=max(0, len(models) - MAX_MODELS),
    )


def count_sites(nodes: Iterable[NodeView], labels: Collection[str]) -> tuple[Site, ...]:
    """Sites by name. `labels` are the node labels that deployments tell sites by; a node counts for each."""
    total: Counter[str] = Counter()
    ready: Counter[str] = Counter()
    for node in nodes:
        for name in {name for label in labels if (name := node.labels.get(label))}:
            total[name] += 1
            ready[name] += node.ready
    return tuple(Site(name=name, nodes=total[name], ready=ready[name]) for name in sorted(total))


def build_model_row(model: ModelObject) -> ModelRow:
    """An SLMModel's row, with the gates of its newest version."""
    status = model.status
    newest = status.versions[0] if status.versions else None
    ready = next((condition for condition in status.conditions if condition.type == "Ready"), None)
    reason, message = (ready.reason, ready.message) if ready is not None else ("", "")
    if model.spec is None:
        reason, message = "InvalidSpec", model.spec_error
    return ModelRow(
        namespace=model.namespace,
        name=model.name,
        latest=status.latest_version,
        accepted=status.accepted_version,
        progress=status.progress,
        versions=len(status.versions),
        reason=reason,
        message=shorten(message),
        variants=tuple(
            ModelVariantRow(
                name=variant.name,
                step=variant.step,
                verdict=variant.verdict,
                reason=variant.reason,
                size_bytes=variant.size_bytes,
            )
            for variant in (newest.variants if newest is not None else ())
        ),
    )
