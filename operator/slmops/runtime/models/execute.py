# SPDX-License-Identifier: Apache-2.0
"""Carries out the plan of an SLMModel: the status first, then the Jobs in order."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from slmops.adapters.errors import Conflict, KubeError, NotFound
from slmops.adapters.kube import KubeClient
from slmops.adapters.resources import JOBS, MODELS
from slmops.api import API_VERSION, MODEL_KIND, SLMModelStatus
from slmops.model.jobs import CreateJob, DeleteJob
from slmops.model.slmmodel import ModelObject
from slmops.runtime.execute import ForeignObject, WritesForbidden
from slmops.runtime.logs import fields_of
from slmops.runtime.metrics import OperatorMetrics
from slmops.runtime.models.resource import StoredModel
from slmops.runtime.models.world import ModelKey, ModelWorld

_log = logging.getLogger("slmops")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFailure:
    """An action that could not be carried out."""

    action: CreateJob | DeleteJob
    error: KubeError


class ModelExecutor:
    """Writes for any SLMModel. `may_write` is asked before each write."""

    def __init__(
        self, kube: KubeClient, world: ModelWorld, metrics: OperatorMetrics, *, may_write: Callable[[], bool]
    ) -> None:
        self._kube = kube
        self._world = world
        self._metrics = metrics
        self._may_write = may_write

    async def apply_status(self, stored: StoredModel, status: SLMModelStatus) -> None:
        """Replace the status; Conflict when the object is no longer the one that was planned from."""
        self._check()
        model = stored.model
        body = {
            "apiVersion": API_VERSION,
            "kind": MODEL_KIND,
            "metadata": {
                "name": model.name,
                "namespace": model.namespace,
                "uid": model.uid,
                "resourceVersion": stored.resource_version,
            },
            "status": status.to_body(),
        }
        answer = await self._kube.replace(MODELS, namespace=model.namespace, body=body, subresource="status")
        self._metrics.writes.labels(MODEL_KIND, "status").inc()
        self._world.take_in_model(answer)

    async def refresh(self, key: ModelKey) -> StoredModel | None:
        """Read the model from the store; None when it is gone."""
        try:
            body = await self._kube.get(MODELS, namespace=key.namespace, name=key.name)
        except NotFound:
            return None
        self._world.take_in_model(body)
        return self._world.stored(key)

    async def apply_actions(
        self, model: ModelObject, actions: Iterable[CreateJob | DeleteJob]
    ) -> list[ModelFailure]:
        """Carry out the actions in order and return those that failed; no Job depends on another."""
        failures: list[ModelFailure] = []
        for action in actions:
            self._check()
            try:
                if isinstance(action, CreateJob):
                    await self._create(model, action)
                else:
                    await self._delete(model, action)
            except KubeError as error:
                failures.append(ModelFailure(action=action, error=error))
        return failures

    async def _create(self, model: ModelObject, action: CreateJob) -> None:
        owner = {
            "apiVersion": API_VERSION,
            "kind": MODEL_KIND,
            "name": model.name,
            "uid": model.uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }
        body = {**action.body, "metadata": {**action.body["metadata"], "ownerReferences": [owner]}}
        try:
            answer = await self._kube.create(JOBS, namespace=model.namespace, body=body)
        except Conflict as conflict:
            # An attempt before did arrive, and the cache does not know yet.
            found = await self._kube.get(JOBS, namespace=model.namespace, name=action.name)
            owners = found["metadata"].get("ownerReferences") or ()
            if any(entry.get("uid") == model.uid for entry in owners):
                self._world.take_in_job(found)
                return
            raise ForeignObject(
                f"Job {action.name} exists and is not of this SLMModel; delete or rename it",
                status=409,
                reason="ForeignObject",
            ) from conflict
        self._world.take_in_job(answer)
        self._wrote(model, "create", action)

    async def _delete(self, model: ModelObject, action: DeleteJob) -> None:
        uid = self._world.job_uid(model.namespace, action.name)
        try:
            await self._kube.delete(JOBS, namespace=model.namespace, name=action.name, uid=uid)
        except (NotFound, Conflict):
            return  # gone already, or another object by now: the next look sees which
        self._wrote(model, "delete", action)

    def _check(self) -> None:
        if not self._may_write():
            raise WritesForbidden("this process does not hold the Lease")

    def _wrote(self, model: ModelObject, verb: str, action: CreateJob | DeleteJob) -> None:
        self._metrics.writes.labels("Job", verb).inc()
        fields = fields_of(namespace=model.namespace, model=model.name, why=action.why)
        _log.debug("%s Job %s", verb, action.name, extra=fields)
