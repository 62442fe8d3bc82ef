# SPDX-License-Identifier: Apache-2.0
"""The port to a cluster. Bodies are as the API server sends them: parse them before showing them."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from slmwire.scheme import Scheme

Body = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodAddress:
    """A port of a pod."""

    namespace: str
    pod: str
    port: int
    scheme: Scheme = "http"


class Cluster(Protocol):
    """What the commands need of the Kubernetes API. Every method raises a CliError."""

    def get(self, namespace: str, name: str) -> Body:
        """One SLMDeployment; NotFoundError when it is not there."""
        ...

    def deployments(self, namespace: str) -> list[Body]:
        """All SLMDeployments of a namespace; of all namespaces when it is empty."""
        ...

    def model(self, namespace: str, name: str) -> Body:
        """One SLMModel; NotFoundError when it is not there."""
        ...

    def models(self, namespace: str) -> list[Body]:
        """All SLMModels of a namespace."""
        ...

    def patch(self, namespace: str, name: str, body: Body) -> Body:
        """Merge patch of an SLMDeployment; ConflictError when `metadata.resourceVersion` is old."""
        ...

    def watch(self, namespace: str, name: str, resource_version: str) -> Iterator[Body]:
        """Watch events of one SLMDeployment until the server ends the stream; GoneError after a 410."""
        ...

    def revisions(self, namespace: str, name: str) -> list[Body]:
        """Its ControllerRevisions."""
        ...

    def events(self, namespace: str, uid: str) -> list[Body]:
        """Core Events about it."""
        ...

    def nodes(self) -> list[Body]:
        """All nodes."""
        ...

    def profiles(self) -> list[Body]:
        """All DeviceProfiles; NotFoundError when the cluster does not know the kind."""
        ...

    def pods(self, namespace: str, name: str) -> list[Body]:
        """Its pods."""
        ...

    def training_pods(self, namespace: str, name: str) -> list[Body]:
        """Pods that train an adapter for it."""
        ...

    def services(self, namespace: str) -> list[Body]:
        """All Services of a namespace."""
        ...

    def network_policies(self, namespace: str) -> list[Body]:
        """All NetworkPolicies of a namespace."""
        ...

    def pod_text(self, address: PodAddress, path: str) -> str:
        """What a pod answers to GET, at most 4 MiB; may be called from several threads."""
        ...

    def pod_stream(
        self, address: PodAddress, path: str, body: Body, *, key: str
    ) -> Generator[bytes, None, None]:
        """Pieces of what a pod answers to POST, as they come; closing it ends the request. `key` is an API
        key of the server, empty for none."""
        ...

    def store_agents(self, namespace: str) -> list[Body]:
        """Pods of the store agents."""
        ...

    def store(self, namespace: str, pod: str, port: int) -> Body:
        """What the store of a node holds, from its agent; may be called from several threads."""
        ...
