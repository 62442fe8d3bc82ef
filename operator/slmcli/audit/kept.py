# SPDX-License-Identifier: Apache-2.0
"""What is kept of users' words (`spec.adaptation`), and the adapters that were trained from it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from slmcli.audit.facts import PodFacts
from slmcli.revisions import StoredRevision
from slmcli.view import DeploymentView
from slmops.api.adaptation_status import SiteAdaptationStatus, SiteAdapter
from slmwire.examples import REDACTIONS
from slmwire.manifest import STORE_URL


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFacts:
    """What spec lets nodes keep, and which do."""

    sites: tuple[str, ...]
    retention: str
    max_examples: int
    redacted: tuple[str, ...]
    not_redacted: tuple[str, ...]
    """Kinds that could be taken out and are not."""
    patterns: tuple[str, ...]
    """Further regular expressions of what is taken out."""
    nodes: tuple[str, ...]
    """Those with a pod that has the folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedFacts:
    """An adapter that was trained at a site. What only status knows is empty where it knows it no more."""

    site: str
    name: str
    sha256: str
    size_bytes: int
    base_digest: str
    trained_at: str
    examples: int | None
    """That it learnt from; None for one that is not the site's latest."""
    revision: str
    """That has it; empty while none does."""
    variant: str
    nodes: tuple[str, ...]
    """With a pod of that revision and variant."""


def keepers(pods: Iterable[PodFacts]) -> list[PodFacts]:
    """Pods whose server has a folder of examples."""
    return [pod for pod in pods if any(mount.is_examples for mount in pod.mounts)]


def observe_kept(view: DeploymentView, pods: Iterable[PodFacts]) -> KeptFacts | None:
    """None where spec lets no site keep anything."""
    adaptation = view.spec.adaptation if view.spec is not None else None
    if adaptation is None:
        return None
    collect = adaptation.collect
    return KeptFacts(
        sites=tuple(sorted(adaptation.sites)),
        retention=collect.retention,
        max_examples=collect.max_examples,
        redacted=tuple(kind for kind in REDACTIONS if kind in collect.redact),
        not_redacted=tuple(kind for kind in REDACTIONS if kind not in collect.redact),
        patterns=tuple(collect.patterns),
        nodes=tuple(sorted({pod.node for pod in keepers(pods) if pod.node})),
    )


def observe_trained(
    view: DeploymentView, pods: Iterable[PodFacts], revisions: Iterable[StoredRevision]
) -> tuple[TrainedFacts, ...]:
    """Those of running pods, of the stable revision and of the one that is wanted, and what status has."""
    running = [pod for pod in pods if pod.revision]
    status = view.status
    wanted = {status.stable_revision, status.update_revision} if status is not None else set()
    known = {adapter.sha256: (site, adapter) for site in _sites(view) for adapter in _adapters(site)}
    found: list[TrainedFacts] = []
    for revision in revisions:
        for variant, row in _rows(revision.data):
            nodes = {p.node for p in running if (p.revision, p.variant) == (revision.revision, variant)}
            if nodes or revision.revision in wanted:
                site, adapter = known.get(str(row["sha256"]), (None, None))
                found.append(
                    _facts(site, adapter, row, revision=revision.revision, variant=variant, nodes=nodes)
                )
    shown = {facts.sha256 for facts in found}
    name = view.spec.adaptation.name if view.spec is not None and view.spec.adaptation is not None else ""
    found += [
        _facts(site, adapter, {"path": name}, revision="", variant="", nodes=set())
        for sha256, (site, adapter) in known.items()
        if sha256 not in shown and adapter in (site.adapter, site.waiting)
    ]
    return tuple(found)


def _sites(view: DeploymentView) -> list[SiteAdaptationStatus]:
    adaptation = view.status.adaptation if view.status is not None else None
    return adaptation.sites if adaptation is not None else []


def _adapters(site: SiteAdaptationStatus) -> list[SiteAdapter]:
    return [adapter for adapter in (site.previous, site.adapter, site.waiting) if adapter is not None]


def _rows(data: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Variants of a stored revision with each adapter that was trained on a node."""
    variants = data.get("variants")
    for entry in variants if isinstance(variants, list) else ():
        rows = entry.get("adapters") if isinstance(entry, Mapping) else None
        for row in rows if isinstance(rows, list) else ():
            if (
                isinstance(row, Mapping)
                and row.get("url") == STORE_URL
                and {"path", "sha256", "size"} <= {*row}
            ):
                yield str(entry.get("name", "")), row


def _facts(
    site: SiteAdaptationStatus | None,
    adapter: SiteAdapter | None,
    row: Mapping[str, Any],
    *,
    revision: str,
    variant: str,
    nodes: set[str],
) -> TrainedFacts:
    latest = site is not None and adapter is not None and adapter == (site.waiting or site.adapter)
    return TrainedFacts(
        site=site.site if site is not None else "",
        name=str(row["path"]).rpartition("/")[2].partition(".")[0],
        sha256=adapter.sha256 if adapter is not None else str(row["sha256"]),
        size_bytes=adapter.size if adapter is not None else int(row["size"]),
        base_digest=adapter.base_digest if adapter is not None else "",
        trained_at=adapter.trained_at if adapter is not None else "",
        examples=site.examples if site is not None and latest else None,
        revision=revision,
        variant=variant,
        nodes=tuple(sorted(nodes - {""})),
    )
