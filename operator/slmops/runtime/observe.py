# SPDX-License-Identifier: Apache-2.0
"""One consistent snapshot for the planner from what is known."""

from collections.abc import Mapping

from slmops.adapters.trim import OwnedMeta
from slmops.model.config import OperatorConfig
from slmops.model.observed import (
    Deployment,
    Observed,
    OwnedKind,
    OwnedView,
    Reading,
    Resolved,
    ResolveFailure,
    RevisionView,
)
from slmops.model.offers import ModelOffer
from slmops.runtime.resource import DeploymentKey, StoredDeployment
from slmops.runtime.world import World
from slmwire.labels import REVISION


def observe(
    world: World,
    stored: StoredDeployment,
    *,
    config: OperatorConfig,
    resolutions: Mapping[str, Resolved | ResolveFailure],
    readings: tuple[Reading, ...],
    namespace_ending: bool = False,
) -> Observed:
    """Snapshot of everything about one deployment; refers to no live object."""
    deployment = stored.deployment
    key = DeploymentKey(deployment.namespace, deployment.name)
    nodes = world.nodes_of(key)
    owned = sorted(world.owned_by(key, deployment.uid), key=lambda meta: (meta.kind, meta.name))
    return Observed(
        deployment=deployment,
        config=config,
        nodes=nodes,
        other_nodes=len(nodes) < world.node_count,
        pods=tuple(sorted((pod.view for pod in world.pods_of(key)), key=lambda pod: pod.name)),
        owned=tuple(
            OwnedView(
                kind=meta.kind,
                name=meta.name,
                drifted=world.has_drifted(meta),
                deleting=meta.deleting,
                replicas=meta.replicas,
                content=meta.content,
                digest=meta.digest,
            )
            for meta in owned
        ),
        revisions=tuple(_revision(meta) for meta in owned if meta.kind is OwnedKind.CONTROLLER_REVISION),
        resolutions=dict(resolutions),
        readings=readings,
        profiles=world.profiles,
        offer=find_offer(world, deployment),
        are_models_known=world.are_models_known,
        namespace_ending=namespace_ending,
        jobs=world.trainings.jobs_of(key, deployment.uid),
        job_pods=world.trainings.pods_of(key),
        are_jobs_known=world.trainings.is_known,
    )


def find_offer(world: World, deployment: Deployment) -> ModelOffer | None:
    """What the SLMModel offers that spec follows, if it follows one."""
    followed = deployment.spec.model.from_ if deployment.spec is not None else None
    return world.offer_of(deployment.namespace, followed.name) if followed is not None else None


def _revision(meta: OwnedMeta) -> RevisionView:
    return RevisionView(
        revision=meta.labels.get(REVISION, ""), number=meta.number, data=dict(meta.data or {})
    )
