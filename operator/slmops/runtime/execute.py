# SPDX-License-Identifier: Apache-2.0
"""Carries out a plan: the status first, then the actions in order.

The status is written first because it is the intent: whoever is killed after it goes on from there.
It replaces the status subresource under the resourceVersion that was planned from, so it is never
written over a newer object; a Conflict means: look again.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from slmops.adapters.errors import Conflict, KubeError, NotFound
from slmops.adapters.kube import FIELD_MANAGER, KubeClient
from slmops.adapters.resources import DEPLOYMENTS, NODES
from slmops.api import API_VERSION, FINALIZER, KIND, SLMDeploymentStatus
from slmops.model.jobs import CreateJob, DeleteJob
from slmops.model.observed import Deployment, OwnedKind
from slmops.model.plan import (
    Action,
    AddFinalizer,
    ApplyObject,
    DeleteObject,
    PatchNodeLabels,
    RemoveFinalizer,
)
from slmops.planning.names import Names, is_serve_tail
from slmops.planning.network import MISSING
from slmops.runtime.jobs import JobWriter
from slmops.runtime.logs import fields_of
from slmops.runtime.metrics import OperatorMetrics
from slmops.runtime.refusals import ForeignObject, WritesForbidden
from slmops.runtime.resource import DeploymentKey, StoredDeployment, owner_reference
from slmops.runtime.world import World, resource_of
from slmwire.labels import REVISION

PARALLEL_NODE_PATCHES: Final = 8
_WHOLE_FIELDS: Final[Mapping[OwnedKind, tuple[str, ...]]] = {
    OwnedKind.DAEMON_SET: ("template", "updateStrategy"),
    OwnedKind.DEPLOYMENT: ("template", "strategy", "replicas", "paused"),
    OwnedKind.SERVICE: ("ports", "selector"),
    OwnedKind.NETWORK_POLICY: ("podSelector", "policyTypes", "ingress", "egress"),
}
"""Fields of spec that hold nothing but what we put there."""
_log = logging.getLogger("slmops")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An action that could not be carried out."""

    action: Action
    error: KubeError


class Executor:
    """Writes for any deployment. `may_write` is asked before each write."""

    def __init__(
        self, kube: KubeClient, world: World, metrics: OperatorMetrics, *, may_write: Callable[[], bool]
    ) -> None:
        self._kube = kube
        self._world = world
        self._metrics = metrics
        self._may_write = may_write
        self._jobs = JobWriter(kube, world.trainings, metrics, kind=KIND)
        self._node_slots = asyncio.Semaphore(PARALLEL_NODE_PATCHES)

    async def apply_status(self, stored: StoredDeployment, status: SLMDeploymentStatus) -> None:
        """Replace the status; Conflict when the object is no longer the one that was planned from."""
        self._check()
        deployment = stored.deployment
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": deployment.name,
                "namespace": deployment.namespace,
                "uid": deployment.uid,
                "resourceVersion": stored.resource_version,
            },
            "status": status.to_body(),
        }
        answer = await self._kube.replace(
            DEPLOYMENTS, namespace=deployment.namespace, body=body, subresource="status"
        )
        self._metrics.writes.labels(KIND, "status").inc()
        self._world.take_in_deployment(answer)

    async def refresh(self, key: DeploymentKey) -> StoredDeployment | None:
        """Read the deployment from the store; None when it is gone."""
        try:
            body = await self._kube.get(DEPLOYMENTS, namespace=key.namespace, name=key.name)
        except NotFound:
            return None
        self._world.take_in_deployment(body)
        return self._world.stored(key)

    async def apply_actions(self, deployment: Deployment, actions: Sequence[Action]) -> list[Failure]:
        """Carry out the actions in order and return those that failed.

        One that fails does not stop those that do not depend on it: labels that name a revision wait
        for that revision's objects, a training for the policy that keeps its pods to themselves, and the
        finalizer waits for everything; the rest goes on, so that one object that cannot be written never
        keeps the fleet from moving on or back.
        """
        failures: list[Failure] = []
        for is_patch, group in groupby(actions, key=lambda action: isinstance(action, PatchNodeLabels)):
            if is_patch:
                patches = [action for action in group if isinstance(action, PatchNodeLabels)]
                failures += await self._patch_nodes(deployment, patches, after=failures)
                continue
            for action in group:
                if isinstance(action, RemoveFinalizer) and failures:
                    continue
                if isinstance(action, CreateJob) and _is_unconfined(deployment, failures):
                    continue
                try:
                    await self._act(deployment, action)
                except KubeError as error:
                    failures.append(Failure(action=action, error=error))
        return failures

    async def _act(self, deployment: Deployment, action: Action) -> None:
        self._check()
        match action:
            case ApplyObject():
                await self._apply_object(deployment, action)
            case DeleteObject():
                await self._delete_object(deployment, action)
            case PatchNodeLabels():
                await self._patch_node(deployment, action)
            case AddFinalizer():
                await self._set_finalizer(deployment, wanted=True)
            case RemoveFinalizer():
                await self._set_finalizer(deployment, wanted=False)
            case CreateJob():
                await self._jobs.create(_key_of(deployment), deployment.uid, action)
            case DeleteJob():
                await self._jobs.delete(_key_of(deployment), action)

    async def _apply_object(self, deployment: Deployment, action: ApplyObject) -> None:
        resource = resource_of(action.kind)
        key = _key_of(deployment)
        if not self._world.is_known(action.kind, key, action.name):
            await self._check_not_foreign(deployment, action)
        owners = [owner_reference(KIND, deployment.name, deployment.uid)]
        body = {**action.body, "metadata": {**action.body["metadata"], "ownerReferences": owners}}
        answer = await self._kube.apply(resource, namespace=deployment.namespace, body=body)
        if _has_foreign_fields(answer):
            # Applying takes back what is ours and leaves what others added, a container, say.
            fields = {f"/spec/{name}": body["spec"][name] for name in _WHOLE_FIELDS[action.kind]}
            answer = await self._kube.put_fields(
                resource, namespace=deployment.namespace, name=action.name, fields=fields
            )
        self._world.take_in_owned(action.kind, answer)
        self._wrote(deployment, action.kind, "apply", action.name, action.why)

    async def _check_not_foreign(self, deployment: Deployment, action: ApplyObject) -> None:
        # Apply with force takes over whatever has the name: a user's own Service, say.
        resource = resource_of(action.kind)
        try:
            found = await self._kube.get(resource, namespace=deployment.namespace, name=action.name)
        except NotFound:
            return
        metadata = found["metadata"]
        wanted = action.body["metadata"].get("labels") or {}
        present = metadata.get("labels") or {}
        owners = metadata.get("ownerReferences") or ()
        if any(owner.get("uid") == deployment.uid for owner in owners):
            return
        if wanted and all(present.get(name) == value for name, value in wanted.items()):
            return
        raise ForeignObject(
            f"{action.kind} {action.name} exists and is not managed by slmops; delete or rename it, "
            "or give the SLMDeployment another name",
            status=409,
            reason="ForeignObject",
        )

    async def _delete_object(self, deployment: Deployment, action: DeleteObject) -> None:
        key = _key_of(deployment)
        meta = self._world.owned_meta(action.kind, key, action.name)
        try:
            await self._kube.delete(
                resource_of(action.kind),
                namespace=deployment.namespace,
                name=action.name,
                uid=meta.uid if meta else "",
            )
        except (NotFound, Conflict):
            return  # gone already, or another object by now: the next look sees which
        self._wrote(deployment, action.kind, "delete", action.name, action.why)

    async def _patch_nodes(
        self, deployment: Deployment, patches: Sequence[PatchNodeLabels], *, after: Iterable[Failure]
    ) -> list[Failure]:
        missing = {
            str((failure.action.body["metadata"].get("labels") or {}).get(REVISION, ""))
            for failure in after
            if isinstance(failure.action, ApplyObject)
        } - {""}
        prefix = Names(deployment.namespace, deployment.name).label_prefix
        is_open = _lacks_policy(deployment, after)

        async def patch(action: PatchNodeLabels) -> Failure | None:
            if any(_names_revision(action.labels, prefix + revision) for revision in missing):
                return None
            if is_open and _gives_pod(action.labels, prefix):
                return None
            async with self._node_slots:
                try:
                    await self._act(deployment, action)
                except KubeError as error:
                    return Failure(action=action, error=error)
            return None

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(patch(action)) for action in patches]
        return [failure for task in tasks if (failure := task.result()) is not None]

    async def _patch_node(self, deployment: Deployment, action: PatchNodeLabels) -> None:
        try:
            answer = await self._kube.merge_patch(
                NODES, name=action.node, body={"metadata": {"labels": dict(action.labels)}}
            )
        except NotFound:
            return
        self._world.take_in_node(answer)
        self._wrote(deployment, "Node", "patch", action.node, action.why)

    async def _set_finalizer(self, deployment: Deployment, *, wanted: bool) -> None:
        # Decided on a live read: a cache that missed a deletion (or a re-creation) must not decide it.
        key = _key_of(deployment)
        stored = await self.refresh(key)
        if stored is None or stored.deployment.uid != deployment.uid:
            return
        if stored.deployment.has_finalizer == wanted:
            return
        if wanted == (stored.deployment.deleting_since is not None):
            return  # deleted meanwhile, or not deleted at all: look again
        kept = [name for name in stored.finalizers if name != FINALIZER]
        body = {
            "metadata": {
                "uid": deployment.uid,
                "resourceVersion": stored.resource_version,
                "finalizers": [*kept, FINALIZER] if wanted else kept,
            }
        }
        answer = await self._kube.merge_patch(
            DEPLOYMENTS, namespace=deployment.namespace, name=deployment.name, body=body
        )
        if wanted:  # without it the object may be gone by now, and must not come back to life here
            self._world.take_in_deployment(answer)
        self._wrote(deployment, KIND, "finalizer", deployment.name, "added" if wanted else "removed")

    def _check(self) -> None:
        if not self._may_write():
            raise WritesForbidden("this process does not hold the Lease")

    def _wrote(self, deployment: Deployment, kind: str, verb: str, name: str, why: str) -> None:
        self._metrics.writes.labels(kind, verb).inc()
        _log.debug(
            "%s %s %s",
            verb,
            kind,
            name,
            extra=fields_of(namespace=deployment.namespace, deployment=deployment.name, why=why),
        )


def _has_foreign_fields(body: Mapping[str, Any]) -> bool:
    """Whether somebody else has set fields of spec, as far as the API server has kept account."""
    return any(
        entry.get("manager") != FIELD_MANAGER and "f:spec" in (entry.get("fieldsV1") or {})
        for entry in body["metadata"].get("managedFields") or ()
    )


def _key_of(deployment: Deployment) -> DeploymentKey:
    return DeploymentKey(deployment.namespace, deployment.name)


def _names_revision(labels: Mapping[str, str | None], key: str) -> bool:
    """Whether a patch gives the node a revision (to serve or to fetch), `key` being its label."""
    return any(
        value is not None and (name == key or name.startswith(f"{key}.")) for name, value in labels.items()
    )


def _lacks_policy(deployment: Deployment, failures: Iterable[Failure]) -> bool:
    """Whether pods that are to reach nothing would reach everything: their NetworkPolicy is not there and
    cannot be written."""
    if deployment.spec is None or deployment.spec.privacy.egress != "Denied":
        return False
    return Names(deployment.namespace, deployment.name).confine_policy in _missing_policies(failures)


def _is_unconfined(deployment: Deployment, failures: Iterable[Failure]) -> bool:
    """Whether pods that train would reach anything: their NetworkPolicy is not there and cannot be
    written."""
    return Names(deployment.namespace, deployment.name).train_policy in _missing_policies(failures)


def _missing_policies(failures: Iterable[Failure]) -> frozenset[str]:
    return frozenset(
        failure.action.name
        for failure in failures
        if isinstance(failure.action, ApplyObject)
        and failure.action.kind is OwnedKind.NETWORK_POLICY
        and failure.action.why == MISSING
    )


def _gives_pod(labels: Mapping[str, str | None], prefix: str) -> bool:
    """Whether a patch brings a serving pod to the node."""
    return any(
        value is not None and name.startswith(prefix) and is_serve_tail(name.removeprefix(prefix))
        for name, value in labels.items()
    )


def describe(action: Action) -> tuple[str, str]:
    """Kind and name of what an action is about."""
    match action:
        case ApplyObject() | DeleteObject():
            return action.kind.value, action.name
        case PatchNodeLabels():
            return "Node", action.node
        case CreateJob() | DeleteJob():
            return "Job", action.name
        case _:
            return KIND, ""
