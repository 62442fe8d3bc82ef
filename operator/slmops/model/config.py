# SPDX-License-Identifier: Apache-2.0
"""What the operator's administrator decides, as opposed to the user of an SLMDeployment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from slmwire.paths import AGENT_PORT, DEFAULT_STORE_PATH

Peer = Mapping[str, Any]
"""As in a NetworkPolicy: namespaceSelector and podSelector, or ipBlock."""
CLUSTER_DNS: Final[tuple[Peer, ...]] = (
    {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    },
)
"""CoreDNS as K3s, kubeadm and most clouds install it."""
PUBLIC_HUB: Final = "https://huggingface.co"
ANY_PROMETHEUS: Final[tuple[Peer, ...]] = (
    {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}},
)
"""The label that the Prometheus operator and the community's chart give its pods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """What NetworkPolicies of SLMDeployments rest on that only an administrator knows."""

    default_mode: Literal["Managed", "None"] = "Managed"
    """For an SLMDeployment that does not say whether it wants them."""
    default_clients: Literal["Any", "Namespace"] = "Any"
    """Who may use the API of one that does not say."""
    operator_namespace: str = ""
    """Where the operator's pod runs, which reads metrics for provider Direct; empty: not known."""
    metrics_from: tuple[Peer, ...] = ANY_PROMETHEUS
    """Peers that may scrape inference pods."""
    dns_to: tuple[Peer, ...] = CLUSTER_DNS
    """The cluster's DNS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorConfig:
    """Settings that the planner needs; read once at start from the environment."""

    runtime_image: str
    runtime_pull_policy: str = "IfNotPresent"
    engine_images: Mapping[str, str] = field(default_factory=dict)
    """By engine; an engine without one is in `runtime_image`."""
    optimizer_image: str = ""
    """Image of the steps of SLMModels; empty: each SLMModel must name one."""
    allowed_host_paths: tuple[str, ...] = ("/var/lib/slmops",)
    """Prefixes that `cache.hostPath` may lie under."""
    allowed_file_paths: tuple[str, ...] = ()
    """Prefixes that a `file` source may lie under; empty refuses file sources."""
    allowed_source_hosts: tuple[str, ...] = ()
    """Hosts that sources may name and be redirected to, see `model.hosts`; empty allows all."""
    hugging_face_endpoint: str = PUBLIC_HUB
    """Of hf sources that name none."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    prometheus_url: str = ""
    """The operator's own Prometheus; empty: there is none, and the operator measures for deployments that
    name no other."""
    allowed_prometheus_urls: tuple[str, ...] = ()
    """Prefixes that `analysis.prometheus.url` may begin with; empty allows only the operator's own."""
    node_settle_seconds: float = 30.0
    """How long a node's kubelet must have reported before a pod that serves is taken from it. Its
    kube-proxy hears of new endpoints later than that, and the Service would point at nothing till then."""
    store_agent_port: int = AGENT_PORT
    """Port of the store agents on the nodes; 0: none run, so nodes take nothing from each other."""
    store_agent_path: str = DEFAULT_STORE_PATH
    """Folder of the nodes that the store agents serve, with the stores in folders directly below it. Nobody
    answers for a store elsewhere, so nodes that have theirs there take nothing from each other."""
    release_timeout_seconds: float = 300.0
    """How long a deletion waits for a node to drop its cached models."""
