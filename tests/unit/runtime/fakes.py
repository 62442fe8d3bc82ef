# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes API in memory, small enough to see through, and the bodies that tests need."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from copy import deepcopy
from typing import Any, Final

from slmops.adapters.errors import Conflict, KubeError, NotFound
from slmops.adapters.resources import DEPLOYMENTS, Resource
from slmops.api import API_VERSION, KIND

Body = dict[str, Any]
NAMESPACE: Final = "ns"
NAME: Final = "orders"


class FakeClock:
    """A clock that is moved by hand."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.seconds = now

    def now(self) -> float:
        """Implements Clock."""
        return self.seconds


class FakeKube:
    """Objects by (plural, namespace, name), with versions and conflicts; `fails` may raise first."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Body] = {}
        self.log: list[str] = []
        self.fails: Callable[[str], KubeError | None] = lambda line: None
        self._version = 100

    def add(self, resource: Resource, body: Body) -> Body:
        """Put an object in as the server would store it."""
        self._version += 1
        metadata = body["metadata"]
        metadata["resourceVersion"] = str(self._version)
        metadata.setdefault("uid", f"uid-{self._version}")
        metadata.setdefault("generation", 1)
        self.objects[(resource.plural, metadata.get("namespace", ""), metadata["name"])] = body
        return deepcopy(body)

    async def get(self, resource: Resource, *, namespace: str = "", name: str) -> Body:
        return deepcopy(self._find("get", resource, namespace, name))

    async def list(self, resource: Resource, **_: Any) -> AsyncGenerator[Body]:
        items = [deepcopy(b) for (plural, _, _), b in self.objects.items() if plural == resource.plural]
        yield {"metadata": {"resourceVersion": str(self._version)}, "items": items}

    async def watch(self, resource: Resource, *, resource_version: str, **_: Any) -> AsyncGenerator[Body]:
        """What has changed since; nothing that happens later."""
        for key, body in list(self.objects.items()):
            if key[0] == resource.plural and int(body["metadata"]["resourceVersion"]) > int(resource_version):
                yield {"type": "MODIFIED", "object": deepcopy(body)}
        await asyncio.Event().wait()

    async def create(self, resource: Resource, *, namespace: str = "", body: Mapping[str, Any]) -> Body:
        name = body["metadata"]["name"]
        self._check(f"create {resource.plural}/{name}")
        if (resource.plural, namespace, name) in self.objects:
            raise Conflict("exists", status=409, reason="AlreadyExists")
        return self.add(resource, deepcopy(dict(body)))

    async def replace(
        self, resource: Resource, *, namespace: str = "", body: Mapping[str, Any], subresource: str = ""
    ) -> Body:
        name = body["metadata"]["name"]
        stored = self._find(f"replace{subresource}", resource, namespace, name)
        self._check_version(stored, body)
        if subresource:
            stored["status"] = deepcopy(body["status"])
        else:
            stored.clear()
            stored |= deepcopy(dict(body))
        return self.add(resource, stored)

    async def apply(self, resource: Resource, *, namespace: str = "", body: Mapping[str, Any]) -> Body:
        name = body["metadata"]["name"]
        self._check(f"apply {resource.plural}/{name}")
        known = self.objects.get((resource.plural, namespace, name))
        new = deepcopy(dict(body))
        new["metadata"]["namespace"] = namespace
        if known is not None:
            if known.get("spec") == new.get("spec") and known["metadata"].get("labels") == new[
                "metadata"
            ].get("labels"):
                return deepcopy(known)
            new["metadata"]["uid"] = known["metadata"]["uid"]
            new["metadata"]["generation"] = known["metadata"]["generation"] + 1
        return self.add(resource, new)

    async def merge_patch(
        self, resource: Resource, *, namespace: str = "", name: str, body: Mapping[str, Any]
    ) -> Body:
        stored = self._find("patch", resource, namespace, name)
        self._check_version(stored, body)
        for key, value in body.get("metadata", {}).get("labels", {}).items():
            if value is None:
                stored["metadata"]["labels"].pop(key, None)
            else:
                stored["metadata"].setdefault("labels", {})[key] = value
        if "finalizers" in body.get("metadata", {}):
            stored["metadata"]["finalizers"] = list(body["metadata"]["finalizers"])
        return self.add(resource, stored)

    async def delete(self, resource: Resource, *, namespace: str = "", name: str, uid: str = "") -> None:
        stored = self._find("delete", resource, namespace, name)
        if uid and stored["metadata"]["uid"] != uid:
            raise Conflict("another uid", status=409)
        del self.objects[(resource.plural, namespace, name)]

    def _find(self, verb: str, resource: Resource, namespace: str, name: str) -> Body:
        self._check(f"{verb} {resource.plural}/{name}")
        try:
            return self.objects[(resource.plural, namespace, name)]
        except KeyError:
            raise NotFound(f"{resource.plural} {name} not found", status=404) from None

    def _check(self, line: str) -> None:
        error = self.fails(line)
        self.log.append(line if error is None else f"{line} failed")
        if error is not None:
            raise error

    @staticmethod
    def _check_version(stored: Body, body: Mapping[str, Any]) -> None:
        wanted = body["metadata"].get("resourceVersion")
        if wanted is not None and wanted != stored["metadata"]["resourceVersion"]:
            raise Conflict("changed meanwhile", status=409, reason="Conflict")


def deployment_body(**metadata: Any) -> Body:
    """An SLMDeployment with a finalizer of ours and no status."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "uid": "uid",
            "generation": 1,
            "finalizers": ["slmops.dev/cleanup"],
        }
        | metadata,
        "spec": {
            "model": {"name": "orders", "version": "v1"},
            "variants": [{"name": "int4", "source": {"http": {"url": "https://models.example/m.json"}}}],
            "placement": {"nodeSelector": {"matchLabels": {"edge": "true"}}},
        },
    }


def store_deployment(kube: FakeKube, **metadata: Any) -> Body:
    """The SLMDeployment in the fake API."""
    return kube.add(DEPLOYMENTS, deployment_body(**metadata))
