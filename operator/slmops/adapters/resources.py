# SPDX-License-Identifier: Apache-2.0
"""Resource types that the operator deals with, and their paths in the Kubernetes API."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from slmops.api import GROUP, KIND, MODEL_KIND, MODEL_PLURAL, PLURAL, VERSION
from slmops.api.profile import PROFILE_KIND, PROFILE_PLURAL
from slmops.model.observed import OwnedKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A resource type; `group` is empty for the core API."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """`apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, *, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """URL path; without a namespace, that of all namespaces. ValueError for what is no name.

        A name with a slash would make it the path of another object, in another namespace even.
        """
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", _segment(namespace)]
        parts.append(self.plural)
        parts += [_segment(part) for part in (name, subresource) if part]
        return "/".join(parts)


def _segment(text: str) -> str:
    if text in (".", ".."):
        raise ValueError(f"{text!r} is no name of an object")
    return quote(text, safe="")


DEPLOYMENTS: Final = Resource(group=GROUP, version=VERSION, plural=PLURAL, kind=KIND)
DEVICE_PROFILES: Final = Resource(
    group=GROUP, version=VERSION, plural=PROFILE_PLURAL, kind=PROFILE_KIND, namespaced=False
)
MODELS: Final = Resource(group=GROUP, version=VERSION, plural=MODEL_PLURAL, kind=MODEL_KIND)
NODES: Final = Resource(group="", version="v1", plural="nodes", kind="Node", namespaced=False)
PODS: Final = Resource(group="", version="v1", plural="pods", kind="Pod")
SECRETS: Final = Resource(group="", version="v1", plural="secrets", kind="Secret")
SERVICES: Final = Resource(group="", version="v1", plural="services", kind="Service")
CONFIG_MAPS: Final = Resource(group="", version="v1", plural="configmaps", kind="ConfigMap")
DAEMON_SETS: Final = Resource(group="apps", version="v1", plural="daemonsets", kind="DaemonSet")
APPS_DEPLOYMENTS: Final = Resource(group="apps", version="v1", plural="deployments", kind="Deployment")
JOBS: Final = Resource(group="batch", version="v1", plural="jobs", kind="Job")
CONTROLLER_REVISIONS: Final = Resource(
    group="apps", version="v1", plural="controllerrevisions", kind="ControllerRevision"
)
NETWORK_POLICIES: Final = Resource(
    group="networking.k8s.io", version="v1", plural="networkpolicies", kind="NetworkPolicy"
)
EVENTS: Final = Resource(group="events.k8s.io", version="v1", plural="events", kind="Event")
LEASES: Final = Resource(group="coordination.k8s.io", version="v1", plural="leases", kind="Lease")

OWNED: Final[Mapping[OwnedKind, Resource]] = {
    OwnedKind.DAEMON_SET: DAEMON_SETS,
    OwnedKind.DEPLOYMENT: APPS_DEPLOYMENTS,
    OwnedKind.CONFIG_MAP: CONFIG_MAPS,
    OwnedKind.SERVICE: SERVICES,
    OwnedKind.CONTROLLER_REVISION: CONTROLLER_REVISIONS,
    OwnedKind.NETWORK_POLICY: NETWORK_POLICIES,
}
