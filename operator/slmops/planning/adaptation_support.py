# SPDX-License-Identifier: Apache-2.0
"""Whether a site can train at all, and on which of its nodes."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from slmops.api import SLMDeploymentSpec
from slmops.api.adaptation_status import SiteAdapter
from slmops.model.config import OperatorConfig
from slmops.planning.adaptation_triggers import variants_of_site
from slmops.planning.adapters import trained_in
from slmops.planning.distribution import is_served
from slmops.planning.examples_mount import keeps_examples
from slmops.planning.fleet import Fleet
from slmops.planning.nodes import NodeState
from slmops.planning.revision import Revision, RevisionVariant
from slmwire.reasons import Reason

NO_NODES: Final = "NoNodes"
"""Reason of a site that no node is of."""


Hosts = Mapping[str, Sequence[NodeState]]
"""Nodes that placement selects, of each site that adapts the model and has some."""


def hosts_by_site(fleet: Fleet, sites: Collection[str]) -> Hosts:
    """The nodes of `sites`, in one pass over a fleet that may be large."""
    result: dict[str, list[NodeState]] = {}
    for state in fleet.matched:
        site = state.node.labels.get(fleet.spec.placement.site_label, "")
        if site in sites:
            result.setdefault(site, []).append(state)
    return result


def find_obstacle(fleet: Fleet, config: OperatorConfig, site: str, hosts: Sequence[NodeState]) -> str:
    """Why the site cannot train, and the cure; empty when it can, and while that is not known yet."""
    if not config.optimizer_image:
        return (
            "the operator has no image that trains: let an administrator name one (chart value "
            "optimizerImage)"
        )
    variants = variants_of_site(fleet.stable, site)
    if not variants:
        return ""  # the stable revision is from before the site took part
    if not any(keeps_examples(variant) for variant in variants):
        return (
            "no variant for the site is served by onnxruntime from files of its own: give it one in ONNX "
            "format, not as an ImageVolume, made with the recipe step loraInputs"
        )
    if len(hosts) > 1 and not _shares(fleet.spec, config):
        return (
            f"the site has {len(hosts)} nodes, and they cannot give each other an adapter: set "
            "spec.distribution.peers to Site, with store agents that serve spec.cache.hostPath"
        )
    return ""


def _shares(spec: SLMDeploymentSpec, config: OperatorConfig) -> bool:
    return (
        spec.distribution.peers == "Site"
        and bool(config.store_agent_port)
        and is_served(spec.cache.host_path, config.store_agent_path)
    )


def find_absence(spec: SLMDeploymentSpec, site: str, hosts: Sequence[NodeState]) -> str:
    """What to look at where no node is of the site; empty where one is."""
    if hosts:
        return ""
    label = spec.placement.site_label
    return (
        f"no node that spec.placement selects has the label {label}={site}: compare spec.adaptation.sites "
        f"with kubectl get nodes -L {label}"
    )


def has_lost(
    revision: Revision | None,
    site: str,
    adapter: SiteAdapter,
    hosts: Sequence[NodeState],
    *,
    trainer: str,
) -> bool:
    """Whether no node of the site has the adapter that a revision brings there.

    Each that was told to take the revision has to say so, and the `trainer`, if it is still there. A node
    that does not report may have it.
    """
    if revision is None:
        return False
    holding = {v.name for v in variants_of_site(revision, site) if adapter.sha256 in trained_in([v])}
    name = revision.revision
    asked = [
        state
        for state in hosts
        if state.name == trainer or not holding.isdisjoint((state.serve.get(name), state.prefetch.get(name)))
    ]
    misses = (_misses_adapter(state, name) for state in asked)
    return bool(holding and asked) and all(state.online for state in hosts) and all(misses)


def _misses_adapter(state: NodeState, revision: str) -> bool:
    problems = (state.serve_problem(revision), state.prefetch_problem(revision))
    return any(problem is not None and problem.reason == Reason.ADAPTER_LOST for problem in problems)


def find_places(
    fleet: Fleet, site: str, hosts: Iterable[NodeState], *, without: Collection[str] = ()
) -> list[tuple[NodeState, RevisionVariant]]:
    """Nodes of the site, by name, that serve the stable revision now with a variant that can be trained."""
    stable = fleet.stable
    if stable is None:
        return []
    trainable = {v.name: v for v in variants_of_site(stable, site) if keeps_examples(v)}
    return [
        (state, variant)
        for state in hosts
        if state.name not in without
        and (variant := trainable.get(state.serve.get(stable.revision, ""))) is not None
        and state.serves(stable.revision, variant.name)
    ]
