# SPDX-License-Identifier: Apache-2.0
"""NetworkPolicies of an SLMDeployment: who reaches its pods, and what these reach.

Two policies for what serves. The first selects all pods of the deployment, lets clients, Prometheus and the
operator in on the server's port, and nothing out. The second opens the way to the sources of the revisions
that are needed for the pods that fetch. A pod has one address for all its containers, so what the fetcher of
a serving pod may reach, its server may as well; with `egress: Denied` serving pods are left out of the
second. Pods that train adapters have a policy of their own that lets nothing in and nothing out: they see
what users wrote, and need nobody.

Policies see a packet after the address of a Service was replaced by a pod's, and know no names. So a
source that is given by name is any address at its port but link-local and metadata addresses; a name that
may be a Service's opens all ports of the pods in its namespace, too.
"""

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final

from slmops.api import SLMDeploymentSpec
from slmops.api.base import LabelSelector
from slmops.model.config import NetworkConfig, OperatorConfig
from slmops.model.hosts import HostPort, read_host
from slmops.model.jobs import JobPodView
from slmops.model.observed import NodeView, OwnedKind, OwnedView
from slmops.model.plan import ApplyObject
from slmops.planning.build import object_labels
from slmops.planning.names import Names
from slmops.planning.places import serves_without_egress
from slmops.planning.revision import Revision, canonical
from slmwire import labels
from slmwire.labels import Role
from slmwire.paths import HTTP_PORT

Body = dict[str, Any]
CONTENT: Final = "slmops.dev/content"
"""Annotation: hash of the spec that we wrote."""
MISSING: Final = "missing"
"""Why a policy is written that is not there."""
_LINK_LOCAL: Final = ("169.254.0.0/16", "fe80::/10", "64:ff9b::a9fe:0/112")
"""The last is the first behind NAT64."""
_METADATA: Final = ("100.100.100.200/32", "192.0.0.192/32", "fd00:ec2::254/128", "fd20:ce::254/128")
"""Metadata services outside the link-local ranges: Alibaba, Oracle, AWS and Google over IPv6."""
_FORBIDDEN: Final = tuple(ip_network(cidr) for cidr in (*_LINK_LOCAL, *_METADATA))
_NAMESPACE: Final = "kubernetes.io/metadata.name"
_HTTPS: Final = 443
MAX_NODE_NETWORKS: Final = 64
"""With more networks of nodes than these the stores' port is opened to every address."""


def is_managed(spec: SLMDeploymentSpec, config: NetworkConfig) -> bool:
    """Whether the operator keeps policies for this deployment.

    Who says what only policies can give gets them, whatever the administrator's default: a promise that spec
    makes is kept or refused, and never dropped.
    """
    privacy = spec.privacy
    needs_them = privacy.egress == "Denied" or privacy.clients is not None
    default = "Managed" if needs_them else config.default_mode
    return (privacy.network_policy or default) == "Managed"


def confines_trainings(spec: SLMDeploymentSpec) -> bool:
    """Whether there is a policy for pods that train adapters: always, unless the user says that there are to
    be none. It takes nothing away that anybody needs, so an administrator's default does not matter."""
    return spec.adaptation is not None and spec.privacy.network_policy != "None"


def policy_names(
    names: Names, spec: SLMDeploymentSpec, config: OperatorConfig, *, job_pods: Iterable[JobPodView] = ()
) -> frozenset[str]:
    """Names of the policies that are to exist. As long as there are `job_pods`, so is theirs."""
    found = {names.confine_policy, names.fetch_policy} if is_managed(spec, config.network) else set()
    if confines_trainings(spec) or any(True for _ in job_pods):
        found.add(names.train_policy)
    return frozenset(found)


def apply_policies(
    names: Names,
    spec: SLMDeploymentSpec,
    config: OperatorConfig,
    *,
    revisions: Iterable[Revision],
    nodes: Iterable[NodeView],
    owned: Iterable[OwnedView],
) -> tuple[ApplyObject, ...]:
    """The policies that are missing, say something else or were changed by somebody else.

    `revisions` are those that any pod may still have or get, `nodes` those that placement selects. To be
    written before the pods that need them.
    """
    present = {view.name: view for view in owned if view.kind is OwnedKind.NETWORK_POLICY}
    result = []
    wanted: list[Body] = []
    if is_managed(spec, config.network):
        wanted += build_policies(names, spec, config, revisions=revisions, nodes=nodes)
    if confines_trainings(spec):
        wanted.append(build_train_policy(names))
    for body in wanted:
        name, content = body["metadata"]["name"], body["metadata"]["annotations"][CONTENT]
        view = present.get(name)
        if view is None:
            why = MISSING
        elif view.digest != content:
            why = "clients, sources or nodes changed"
        elif view.drifted:
            why = "changed by somebody else"
        else:
            continue
        result.append(ApplyObject(kind=OwnedKind.NETWORK_POLICY, name=name, body=body, why=why))
    return tuple(result)


def build_policies(
    names: Names,
    spec: SLMDeploymentSpec,
    config: OperatorConfig,
    *,
    revisions: Iterable[Revision],
    nodes: Iterable[NodeView],
) -> tuple[Body, Body]:
    """Both policies of what serves, as in `apply_policies`."""
    confine = {
        "podSelector": _pods(names, *Role),
        "policyTypes": ["Ingress", "Egress"],
        "ingress": _ingress(names, spec, config.network),
        "egress": [],
    }
    serving = () if serves_without_egress(spec) else (Role.SERVE,)
    fetch = {
        "podSelector": _pods(names, *serving, Role.PREFETCH),
        "policyTypes": ["Egress"],
        "ingress": [],
        "egress": _egress(names, spec, config, hosts=find_hosts(revisions), nodes=nodes),
    }
    return _policy(names, names.confine_policy, confine), _policy(names, names.fetch_policy, fetch)


def build_train_policy(names: Names) -> Body:
    """The policy of the pods that train adapters."""
    tags = {labels.MANAGED_BY: labels.MANAGED_BY_VALUE, labels.ADAPTATION: names.name}
    spec: Body = {
        "podSelector": {"matchLabels": tags},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [],
        "egress": [],
    }
    return _policy(names, names.train_policy, spec)


def _policy(names: Names, name: str, spec: Body) -> Body:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": name,
            "namespace": names.namespace,
            "labels": object_labels(names),
            "annotations": {CONTENT: hashlib.sha256(canonical(spec).encode()).hexdigest()[:16]},
        },
        "spec": spec,
    }


def _pods(names: Names, *roles: Role) -> Body:
    return {
        "matchLabels": object_labels(names),
        "matchExpressions": [
            {"key": labels.ROLE, "operator": "In", "values": sorted(role.value for role in roles)}
        ],
    }


# Ingress


def _ingress(names: Names, spec: SLMDeploymentSpec, config: NetworkConfig) -> list[Body]:
    port = [{"port": HTTP_PORT, "protocol": "TCP"}]
    clients = spec.privacy.clients
    if clients is None and config.default_clients == "Any":
        return [{"ports": port}]  # no peer named: everybody, and so those below, too
    peers: list[Body] = [{"podSelector": {}}]
    if clients is not None:
        peers = [_peer(client.namespace_selector, client.pod_selector) for client in clients]
    rules = [{"from": peers, "ports": port}] if peers else []
    monitors = [dict(peer) for peer in config.metrics_from]
    if config.operator_namespace:
        monitors.append(
            {
                "namespaceSelector": {"matchLabels": {_NAMESPACE: config.operator_namespace}},
                "podSelector": {"matchLabels": {"app.kubernetes.io/component": "operator"}},
            }
        )
    return [*rules, {"from": monitors, "ports": port}] if monitors else rules


def _peer(namespaces: LabelSelector | None, pods: LabelSelector | None) -> Body:
    peer: Body = {}
    if namespaces is not None:
        peer["namespaceSelector"] = namespaces.to_body()
    if pods is not None or namespaces is None:
        peer["podSelector"] = pods.to_body() if pods is not None else {}
    return peer


# Egress


def find_hosts(revisions: Iterable[Revision]) -> tuple[HostPort, ...]:
    """Where the files of the revisions come from, in order. Files of nodes and volumes come from nowhere."""
    urls = {
        file.url for revision in revisions for variant in revision.variants for file in variant.manifest.files
    }
    found = {host for url in urls if (host := read_host(url)) is not None}
    return tuple(sorted(found, key=lambda host: (host.host, host.port)))


def _egress(
    names: Names,
    spec: SLMDeploymentSpec,
    config: OperatorConfig,
    *,
    hosts: Iterable[HostPort],
    nodes: Iterable[NodeView],
) -> list[Body]:
    rules: list[Body] = []
    named: set[int] = set()
    namespaces: set[str] = set()
    for host in hosts:
        if host.address is None:
            # 443 as well: a server may redirect there, and a registry has its tokens elsewhere.
            named |= {host.port, _HTTPS}
            namespaces |= _service_namespaces(names, host.host)
        elif not is_forbidden(host.host):
            rules.append({"to": [{"ipBlock": {"cidr": _single(host.host)}}], "ports": _tcp(host.port)})
    if named:
        dns = [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
        rules.append({"to": [dict(peer) for peer in config.network.dns_to], "ports": dns})
        rules.append({"to": _anywhere(), "ports": _tcp(*named)})
    rules += [
        {
            "to": [{"namespaceSelector": {"matchLabels": {_NAMESPACE: namespace}}, "podSelector": {}}],
            "ports": [{"protocol": "TCP"}],
        }
        for namespace in sorted(namespaces)
    ]
    if config.store_agent_port and spec.distribution.peers == "Site":
        peers = _node_networks(nodes)
        rules += [{"to": peers, "ports": _tcp(config.store_agent_port)}] if peers else []
    return rules


def _service_namespaces(names: Names, host: str) -> set[str]:
    """Namespaces in which the name may be that of a Service: `models`, `models.team`, `models.team.svc...`.

    `example.com` looks like one as well. Nobody has a namespace `com`, and if so, its pods are reachable.
    """
    parts = host.split(".")
    if len(parts) == 1:
        return {names.namespace}
    if len(parts) == 2 or (len(parts) > 2 and parts[2] == "svc"):
        return {parts[1]}
    return set()


def _tcp(*ports: int) -> list[Body]:
    return [{"port": port, "protocol": "TCP"} for port in sorted(set(ports))]


def _single(address: str) -> str:
    found = _parse(address)
    return f"{found}/{found.max_prefixlen}"


def _parse(address: str) -> IPv4Address | IPv6Address:
    """An IPv4 address in IPv6 form leaves the pod as IPv4, and no policy matches the other form."""
    found = ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped if mapped is not None else found


def _anywhere() -> list[Body]:
    """Every address but link-local and metadata addresses."""
    blocks = []
    for whole in ("0.0.0.0/0", "::/0"):
        version = ip_network(whole).version
        inside = [cidr for cidr in (*_LINK_LOCAL, *_METADATA) if ip_network(cidr).version == version]
        blocks.append({"ipBlock": {"cidr": whole, "except": inside}})
    return blocks


def is_forbidden(address: str) -> bool:
    """Whether an IP address is one that no policy of ours opens."""
    found = _parse(address)
    return found.is_loopback or any(found in network for network in _FORBIDDEN)


def _node_networks(nodes: Iterable[NodeView]) -> list[Body]:
    """Networks of the nodes' addresses, /24 and /64; every address where these are too many.

    Networks, or each node that joins would have the policy written anew.
    """
    found = {network for node in nodes if (network := _network_of(node.address)) is not None}
    if len(found) > MAX_NODE_NETWORKS:
        return _anywhere()
    return [{"ipBlock": {"cidr": cidr}} for _, _, cidr in sorted(found)]


@lru_cache(maxsize=1 << 14)
def _network_of(address: str) -> tuple[int, int, str] | None:
    """What is opened for a node of this address: (version, first address, CIDR). Kept: every look asks it of
    every node."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    if is_forbidden(address):
        return None
    network = ip_network(f"{address}/{24 if parsed.version == 4 else 64}", strict=False)
    return network.version, int(network.network_address), str(network)


def digest_of(body: Mapping[str, Any]) -> str:
    """What `CONTENT` says on an object; empty without it."""
    return str(((body.get("metadata") or {}).get("annotations") or {}).get(CONTENT, ""))
