# SPDX-License-Identifier: Apache-2.0
"""Jobs of ours: a cache of them and of their pods, and how they are made and taken away.

SLMModels have Jobs that make and measure their variants, SLMDeployments those that train adapters. Which
are whose is told by a label that names the owner.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Generic, TypeVar

from slmops.adapters.errors import Conflict, NotFound
from slmops.adapters.kube import KubeClient
from slmops.adapters.reflector import Key, Reflector
from slmops.adapters.resources import JOBS, PODS
from slmops.adapters.trim_jobs import OwnedJob, OwnedJobPod, trim_job, trim_job_pod
from slmops.api import MODEL_KIND
from slmops.model.jobs import CreateJob, DeleteJob, JobPodView, JobView
from slmops.runtime.logs import fields_of
from slmops.runtime.metrics import OperatorMetrics
from slmops.runtime.refusals import ForeignObject
from slmops.runtime.resource import DeploymentKey, owner_reference
from slmwire.labels import MANAGED_BY, MANAGED_BY_VALUE

V = TypeVar("V", OwnedJob, OwnedJobPod)
_log = logging.getLogger("slmops")


class _Index(Generic[V]):
    """What each owner has, so that a look at one without anything costs nothing."""

    def __init__(self, on_wake: Callable[[DeploymentKey], None]) -> None:
        self._on_wake = on_wake
        self._of: defaultdict[DeploymentKey, dict[Key, V]] = defaultdict(dict)

    def of(self, key: DeploymentKey) -> Mapping[Key, V]:
        return self._of.get(key, {})

    def changed(self, key: Key, old: V | None, new: V | None) -> None:
        """Implements a Reflector's `on_change`."""
        owners = []
        for value, is_there in ((old, False), (new, True)):
            if value is None or not value.owner:
                continue
            owner = DeploymentKey(value.namespace, value.owner)
            if is_there:
                self._of[owner][key] = value
            elif (found := self._of.get(owner)) is not None:
                found.pop(key, None)
                if not found:
                    del self._of[owner]
            owners.append(owner)
        for owner in dict.fromkeys(owners):
            self._on_wake(owner)


class JobCache:
    """Jobs that carry `owner_label`, with their pods. `on_wake` is called with each owner that a change
    concerns."""

    def __init__(
        self,
        kube: KubeClient,
        *,
        owner_label: str,
        namespaces: tuple[str, ...],
        on_wake: Callable[[DeploymentKey], None],
    ) -> None:
        self._jobs_of: _Index[OwnedJob] = _Index(on_wake)
        self._pods_of: _Index[OwnedJobPod] = _Index(on_wake)
        selector = f"{MANAGED_BY}={MANAGED_BY_VALUE},{owner_label}"
        self._jobs = [
            Reflector(
                kube,
                JOBS,
                trim=partial(trim_job, owner_label=owner_label),
                on_change=self._jobs_of.changed,
                namespace=namespace,
                label_selector=selector,
            )
            for namespace in namespaces or ("",)
        ]
        self._pods = [
            Reflector(
                kube,
                PODS,
                trim=partial(trim_job_pod, owner_label=owner_label),
                on_change=self._pods_of.changed,
                namespace=namespace,
                label_selector=selector,
            )
            for namespace in namespaces or ("",)
        ]

    @property
    def reflectors(self) -> list[Reflector[Any]]:
        """All caches, to be run."""
        return [*self._jobs, *self._pods]

    @property
    def is_known(self) -> bool:
        """Whether every cache has seen its whole list once: a Job that is not known is not there then."""
        return all(reflector.synced.is_set() for reflector in self.reflectors)

    def jobs_of(self, key: DeploymentKey, uid: str) -> tuple[JobView, ...]:
        """Jobs owned by this very object, not by an earlier one of that name, by name."""
        views = (job.view for job in self._jobs_of.of(key).values() if uid in job.owner_uids)
        return tuple(sorted(views, key=lambda view: view.name))

    def pods_of(self, key: DeploymentKey) -> tuple[JobPodView, ...]:
        """Pods that carry the owner's label, by name; also those whose Job is gone already."""
        views = (pod.view for pod in self._pods_of.of(key).values())
        return tuple(sorted(views, key=lambda view: view.name))

    def take_in(self, body: Mapping[str, Any]) -> None:
        """The answer to a create."""
        namespace = body["metadata"].get("namespace", "")
        for reflector in self._jobs:
            if reflector.namespace in ("", namespace):
                reflector.put(body)

    def uid_of(self, namespace: str, name: str) -> str:
        """Uid of a Job; empty when it is not known."""
        found = (reflector.get((namespace, name)) for reflector in self._jobs)
        return next((job.uid for job in found if job is not None), "")


class JobWriter:
    """Makes and deletes the Jobs of one kind of owner."""

    def __init__(self, kube: KubeClient, cache: JobCache, metrics: OperatorMetrics, *, kind: str) -> None:
        self._kube = kube
        self._cache = cache
        self._metrics = metrics
        self._kind: Final = kind

    async def create(self, owner: DeploymentKey, uid: str, action: CreateJob) -> None:
        """Create the Job for its owner; one of ours that exists is fine, any other is a ForeignObject."""
        reference = owner_reference(self._kind, owner.name, uid)
        body = {**action.body, "metadata": {**action.body["metadata"], "ownerReferences": [reference]}}
        try:
            answer = await self._kube.create(JOBS, namespace=owner.namespace, body=body)
        except Conflict as conflict:
            # An attempt before did arrive, and the cache does not know yet.
            found = await self._kube.get(JOBS, namespace=owner.namespace, name=action.name)
            owners = found["metadata"].get("ownerReferences") or ()
            if any(entry.get("uid") == uid for entry in owners):
                self._cache.take_in(found)
                return
            raise ForeignObject(
                f"Job {action.name} exists and is not of this {self._kind}; delete or rename it",
                status=409,
                reason="ForeignObject",
            ) from conflict
        self._cache.take_in(answer)
        self._wrote(owner, "create", action)

    async def delete(self, owner: DeploymentKey, action: DeleteJob) -> None:
        """Delete the Job that is known by that name, its pods in the background; gone already is fine."""
        uid = self._cache.uid_of(owner.namespace, action.name)
        if not uid:
            return  # gone since it was planned
        try:
            await self._kube.delete(JOBS, namespace=owner.namespace, name=action.name, uid=uid)
        except (NotFound, Conflict):
            return  # gone already, or another object by now: the next look sees which
        self._wrote(owner, "delete", action)

    def _wrote(self, owner: DeploymentKey, verb: str, action: CreateJob | DeleteJob) -> None:
        self._metrics.writes.labels("Job", verb).inc()
        where = {"model" if self._kind == MODEL_KIND else "deployment": owner.name}
        fields = fields_of(namespace=owner.namespace, why=action.why, **where)
        _log.debug("%s Job %s", verb, action.name, extra=fields)
