# SPDX-License-Identifier: Apache-2.0
"""Whether the inference server of a pod speaks HTTP or HTTPS: the name of its container port says it.

Who talks to a pod (probes, Prometheus, the operator, the API server's proxy for kubectl slm) finds out by
the pod itself, not by spec: during a rollout there are pods of both kinds.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

Scheme = Literal["http", "https"]
SERVER: Final = "server"
"""Name of the container that serves."""


def read_scheme(pod_spec: Mapping[str, Any]) -> Scheme:
    """What the server in a pod of this `spec` speaks; http if the pod says nothing."""
    for container in pod_spec.get("containers") or ():
        if container.get("name") == SERVER:
            ports = container.get("ports") or ()
            return "https" if any(port.get("name") == "https" for port in ports) else "http"
    return "http"
