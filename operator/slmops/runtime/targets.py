# SPDX-License-Identifier: Apache-2.0
"""The pods that the Direct provider may scrape, from the operator's own cache."""

from slmops.adapters.direct import PodTarget
from slmops.runtime.resource import DeploymentKey
from slmops.runtime.world import World
from slmwire.labels import Role


def observe_targets(world: World, namespace: str, deployment: str, revision: str) -> tuple[PodTarget, ...]:
    """Serving pods of one revision that have an address and are not on their way out."""
    return tuple(
        PodTarget(
            name=pod.view.name,
            ip=pod.ip,
            variant=pod.view.variant,
            node=pod.view.node,
            scheme=pod.scheme,
            ready=pod.view.ready,
            created_at=pod.view.created_at,
        )
        for pod in world.pods_of(DeploymentKey(namespace, deployment))
        if pod.ip and pod.view.role is Role.SERVE and pod.view.revision == revision and not pod.view.deleting
    )
