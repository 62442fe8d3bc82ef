# SPDX-License-Identifier: Apache-2.0
"""Reading any cluster the way the suites read the rig: a kubeconfig is enough, faults are not offered."""

import json
import os
import shutil
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from e2e.rig.kubectl import Kubectl
from e2e.rig.shell import RigError
from e2e.rig.tools import tool


def is_node_ready(node: dict[str, Any]) -> bool:
    """Whether a Node object's Ready condition is True."""
    conditions = node.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


class ClusterAccess:
    """A cluster by kubeconfig. `prometheus_url` is where this machine reaches its Prometheus, if it does."""

    prometheus_url: str = ""

    def __init__(self, *, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    @property
    def kubectl(self) -> Kubectl:
        """kubectl for this cluster: the rig's own build, or one on PATH when there is no Go to build it."""
        found = None if shutil.which("go") else shutil.which("kubectl")
        return Kubectl(Path(found) if found else tool("kubectl"), self.kubeconfig)

    def ready_nodes(self) -> set[str]:
        """Names of the nodes that are Ready."""
        return {item["metadata"]["name"] for item in self.kubectl.items("nodes") if is_node_ready(item)}

    def query_prometheus(self, promql: str) -> list[dict[str, Any]]:
        """Instant vector of a PromQL query: [{"metric": {...}, "value": [seconds, "text"]}, ...]."""
        if not self.prometheus_url:
            raise RigError("no Prometheus address is known for this cluster")
        url = f"{self.prometheus_url}/api/v1/query?{urllib.parse.urlencode({'query': promql})}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                read = json.load(answer)
        except OSError as error:
            raise RigError(f"Prometheus at {self.prometheus_url}: {error}") from error
        return list(read["data"]["result"])


class ExistingCluster(ClusterAccess):
    """A cluster that the rig did not make."""

    def __init__(self, *, kubeconfig: Path, prometheus_url: str = "") -> None:
        super().__init__(kubeconfig=kubeconfig)
        self.prometheus_url = prometheus_url


def existing_cluster(kubeconfig: str | None = None) -> ClusterAccess | None:
    """The cluster named by the argument or SLMOPS_KUBECONFIG; None when neither is set.

    SLMOPS_PROMETHEUS_URL names its Prometheus. Raises RigError when the file does not exist.
    """
    named = kubeconfig or os.environ.get("SLMOPS_KUBECONFIG", "")
    if not named:
        return None
    path = Path(named).expanduser()
    if not path.is_file():
        raise RigError(f"there is no kubeconfig {path}")
    return ExistingCluster(kubeconfig=path, prometheus_url=os.environ.get("SLMOPS_PROMETHEUS_URL", ""))
