# SPDX-License-Identifier: Apache-2.0
"""The ConfigMap that tells fetchers how much they may take from the source, and who their neighbours are.

It is written again when its content changes and only then: every kubelet that mounts it gets each
version whole. So nothing is in it that comes and goes, such as which nodes are online, and while
nodes are added to a large fleet one by one, their neighbours hear of them in batches.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from slmops.api import SLMDeploymentSpec
from slmops.api.base import quantity_value
from slmops.model.observed import DistributionView, NodeView, Observed, OwnedKind
from slmops.model.plan import ApplyObject
from slmops.planning import times
from slmops.planning.build import object_labels
from slmops.planning.fleet import Fleet
from slmops.planning.names import Names
from slmops.planning.slots import sites_of
from slmwire.distribution import FILE_KEY, Distribution, parse_distribution

MAX_PEER_BYTES: Final = 900_000
"""A ConfigMap holds 1 MiB at most."""

SECONDS_PER_PEER: Final = 0.1
"""A list of n peers goes to n kubelets: no more often than every n times this, if only neighbours have
changed. That bounds what the API server sends for it by about 2 MB/s for 3,000 nodes."""
WRITTEN_AT: Final = "slmops.dev/written-at"

Sites = Mapping[str, Mapping[str, str]]
"""By site: node name -> address."""


def content_of(body: Mapping[str, Any]) -> DistributionView | None:
    """What the file in a ConfigMap says; None for one that holds none, or nonsense."""
    text = (body.get("data") or {}).get(FILE_KEY)
    annotations = (body.get("metadata") or {}).get("annotations") or {}
    if not isinstance(text, str):
        return None
    try:
        file = parse_distribution(text)
    except ValueError:
        return None
    try:
        written_at = times.to_seconds(annotations.get(WRITTEN_AT, ""))
    except ValueError:
        written_at = 0.0
    return DistributionView(digest=_digest_of(text), limits=_limits_of(file), written_at=written_at)


def _digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _limits_of(file: Distribution) -> tuple[int, int]:
    return file.rate_limit_bytes_per_second, file.peer_port


def find_sites(nodes: Iterable[NodeView], site_label: str) -> Sites:
    """Nodes with an address by site; only sites of two nodes or more, in the order of names."""
    found: dict[str, dict[str, str]] = {}
    for node in nodes:
        site = node.labels.get(site_label)
        if site and node.address:
            found.setdefault(site, {})[node.name] = node.address
    return {site: dict(sorted(found[site].items())) for site in sorted(found) if len(found[site]) > 1}


def fit_sites(sites: Sites, limit_bytes: int = MAX_PEER_BYTES) -> Sites:
    """The sites, in order, whose text there is room for; a small one may still fit where a large one
    does not."""
    kept: dict[str, Mapping[str, str]] = {}
    left = limit_bytes
    for site, nodes in sites.items():
        # As JSON writes it; no name, label value or address has a character that is escaped.
        size = len(site) + 6 + sum(len(name) + len(address) + 6 for name, address in nodes.items())
        if size <= left:
            kept[site] = nodes
            left -= size
    return kept


def rate_limit(spec: SLMDeploymentSpec) -> int:
    """Bytes per second that one node may take from the source; 0 is no limit.

    The site's limit is shared out evenly among the nodes that may fetch at a time.
    """
    wanted = spec.distribution
    rates = [quantity_value(wanted.rate_limit)] if wanted.rate_limit else []
    if wanted.site_rate_limit and wanted.max_concurrent_per_site:
        rates.append(quantity_value(wanted.site_rate_limit) / wanted.max_concurrent_per_site)
    return max(1, int(min(rates))) if rates else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the file is to say."""

    file: Distribution
    left_out: int
    """Sites that there was no room for: their nodes take everything from the source."""
    unserved: str = ""
    """Why no node could ask another one; empty when they can, or have nobody to ask."""

    @property
    def note(self) -> str:
        """What a person should know of it; mostly empty."""
        if self.unserved or not self.left_out:
            return self.unserved
        return (
            f"{self.left_out} site(s) share no models between their nodes: the list of peers is too long for "
            "a ConfigMap; divide the fleet among several SLMDeployments by placement.nodeSelector"
        )


def is_served(host_path: str, agent_path: str) -> bool:
    """Whether a store agent that serves `agent_path` gives away what lies in the store at `host_path`: in
    this folder or in one directly below it whose name begins with no dot."""
    store, served = ([part for part in path.split("/") if part] for path in (host_path, agent_path))
    if store == served:
        return True
    return store[:-1] == served and not store[-1].startswith(".")


def share(spec: SLMDeploymentSpec, nodes: Iterable[NodeView], *, peer_port: int, agent_path: str) -> Shared:
    """Limits and neighbours as spec wants them. `nodes` are those that placement selects; `peer_port` is 0
    where no store agents run, `agent_path` the folder of the nodes that they serve."""
    label, host_path = spec.placement.site_label, spec.cache.host_path
    wanted = find_sites(nodes, label) if spec.distribution.peers == "Site" and peer_port else {}
    unserved = ""
    if wanted and not is_served(host_path, agent_path):
        wanted = {}
        unserved = (
            f"nodes share no models: the store agents serve {agent_path} and the folders directly below it "
            f"(chart value storeAgent.hostPath), not spec.cache.hostPath {host_path}"
        )
    sites = fit_sites(wanted)
    return Shared(
        file=Distribution(
            rate_limit_bytes_per_second=rate_limit(spec),
            peer_port=peer_port if sites else 0,
            sites=sites,
        ),
        left_out=len(wanted) - len(sites),
        unserved=unserved,
    )


def hosts_of(fleet: Fleet, observed: Observed) -> list[NodeView]:
    """Nodes that may hold the model: those that placement selects, with either mode."""
    if fleet.spec.placement.mode == "Replicas":
        return [node for hosts in sites_of(fleet.spec, observed.nodes)[0].values() for node in hosts]
    return [state.node for state in fleet.matched]


def share_among(fleet: Fleet, observed: Observed) -> Shared:
    """`share` for this look; replicas may come to every node that matches."""
    config = observed.config
    return share(
        fleet.spec,
        hosts_of(fleet, observed),
        peer_port=config.store_agent_port,
        agent_path=config.store_agent_path,
    )


def apply_distribution(
    names: Names, observed: Observed, shared: Shared, *, now: float
) -> tuple[tuple[ApplyObject, ...], float | None]:
    """The ConfigMap, where it is missing or says something else; or in how many seconds new neighbours may
    be written to it."""
    text = shared.file.to_json()
    kind, name = OwnedKind.CONFIG_MAP, names.distribution
    view = next((v for v in observed.owned if v.kind is kind and v.name == name), None)
    if view is None:
        why = "missing"
    elif view.content is None or view.content.limits != _limits_of(shared.file):
        why = "limits changed"
    elif view.drifted:
        why = "changed by somebody else"
    elif view.content.digest == _digest_of(text):
        return (), None
    else:
        why = "neighbours changed"
        wait = _neighbours_wait(shared.file, view.content, now)
        if wait > 0:
            return (), wait
    return (ApplyObject(kind=kind, name=name, body=build_distribution(names, text, now=now), why=why),), None


def _neighbours_wait(file: Distribution, content: DistributionView, now: float) -> float:
    interval = SECONDS_PER_PEER * sum(map(len, file.sites.values()))
    # A clock that was put back must not keep the list from being written for longer.
    return min(interval, content.written_at + interval - now)


def build_distribution(names: Names, text: str, *, now: float) -> dict[str, Any]:
    """The ConfigMap that holds `text`."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names.distribution,
            "namespace": names.namespace,
            "labels": object_labels(names),
            "annotations": {WRITTEN_AT: times.to_text(now)},
        },
        "data": {FILE_KEY: text},
    }
