# SPDX-License-Identifier: Apache-2.0
"""Carries out the plan of an SLMModel: the status first, then the Jobs in order."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from slmops.adapters.errors import KubeError, NotFound
from slmops.adapters.kube import KubeClient
from slmops.adapters.resources import MODELS
from slmops.api import API_VERSION, MODEL_KIND, SLMModelStatus
from slmops.model.jobs import CreateJob, DeleteJob
from slmops.model.slmmodel import ModelObject
from slmops.runtime.jobs import JobWriter
from slmops.runtime.metrics import OperatorMetrics
from slmops.runtime.models.resource import StoredModel
from slmops.runtime.models.world import ModelKey, ModelWorld
from slmops.runtime.refusals import WritesForbidden


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
        self._jobs = JobWriter(kube, world.jobs, metrics, kind=MODEL_KIND)

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
        key = ModelKey(model.namespace, model.name)
        for action in actions:
            self._check()
            try:
                if isinstance(action, CreateJob):
                    await self._jobs.create(key, model.uid, action)
                else:
                    await self._jobs.delete(key, action)
            except KubeError as error:
                failures.append(ModelFailure(action=action, error=error))
        return failures

    def _check(self) -> None:
        if not self._may_write():
            raise WritesForbidden("this process does not hold the Lease")
