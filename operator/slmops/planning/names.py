# SPDX-License-Identifier: Apache-2.0
"""Names of the objects and node labels that belong to an SLMDeployment."""

import hashlib
from dataclasses import dataclass
from typing import Final

from slmwire.labels import DOMAIN

PREFETCH_SUFFIX: Final = ".prefetch"
RELEASE_KEY: Final = "release"
MOVING_KEY: Final = "moving"


def is_serve_tail(tail: str) -> bool:
    """Whether a label of ours that ends so gives its node a revision to serve."""
    return "." not in tail and tail not in (MOVING_KEY, RELEASE_KEY)


@dataclass(frozen=True, slots=True)
class Names:
    """Derives every name from namespace and name; nothing is generated at random."""

    namespace: str
    name: str

    @property
    def label_prefix(self) -> str:
        """Prefix of all node labels of this deployment, slash included."""
        return f"{self.name}.{self.namespace}.{DOMAIN}/"

    def serve_label(self, revision: str) -> str:
        """Node label whose value is the variant of `revision` that the node serves."""
        return self.label_prefix + revision

    def prefetch_label(self, revision: str) -> str:
        """Node label whose value is the variant of `revision` that the node fetches ahead."""
        return self.label_prefix + revision + PREFETCH_SUFFIX

    @property
    def release_label(self) -> str:
        """Node label under which a node drops this deployment's cached models."""
        return self.label_prefix + RELEASE_KEY

    @property
    def moving_label(self) -> str:
        """Node label of a node whose serving pod was taken away to make room for another revision;
        its value tells the rollout that did it. It goes when the node serves again."""
        return self.label_prefix + MOVING_KEY

    def workload(self, revision: str, variant: str) -> str:
        """DaemonSet and ConfigMap of one variant of one revision."""
        return f"{self.name}-{revision}-{variant}"

    def replica_workload(self, revision: str, variant: str, site: str) -> str:
        """Deployment of one variant of one revision, of one site unless `site` is empty."""
        digest = hashlib.sha256(site.encode()).hexdigest()[:8] if site else ""
        return f"{self.workload(revision, variant)}{digest and '-' + digest}"

    def prefetch_workload(self, revision: str, variant: str) -> str:
        """DaemonSet that fetches ahead."""
        return f"{self.name}-{revision}-{variant}-prefetch"

    @property
    def distribution(self) -> str:
        """ConfigMap with limits and neighbours of the fetchers."""
        return f"{self.name}-distribution"

    @property
    def confine_policy(self) -> str:
        """NetworkPolicy of all pods."""
        return f"{self.name}-confine"

    @property
    def fetch_policy(self) -> str:
        """NetworkPolicy that opens the way to the sources."""
        return f"{self.name}-fetch"

    @property
    def train_policy(self) -> str:
        """NetworkPolicy of the pods that train adapters."""
        return f"{self.name}-train"

    @property
    def release_workload(self) -> str:
        """DaemonSet that drops cached models at deletion."""
        return f"{self.name}-release"

    def controller_revision(self, revision: str) -> str:
        """ControllerRevision of one revision."""
        return f"{self.name}-{revision}"
