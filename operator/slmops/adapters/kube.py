# SPDX-License-Identifier: Apache-2.0
"""A thin asynchronous Kubernetes client: JSON in, JSON out, errors of one taxonomy.

It stands on `kubernetes.aio`'s ApiClient for configuration, TLS and token refresh, and leaves its
generated models alone: they are imported when used, and cost tens of megabytes.
"""

import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
from kubernetes.aio import config as kube_config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from slmops.adapters.errors import Gone, KubeError, Unavailable, error_from_status
from slmops.adapters.resources import Resource

FIELD_MANAGER: Final = "slmops"
REQUEST_TIMEOUT_SECONDS: Final = 30.0
CONNECT_TIMEOUT_SECONDS: Final = 10.0
WATCH_TIMEOUT_SECONDS: Final = 240
"""What the server is asked to end a watch after."""
WATCH_INACTIVITY_SECONDS: Final = 100.0
"""A healthy watch carries a bookmark about every minute; a silent one is dead."""
PAGE_SIZE: Final = 500

_MERGE_PATCH: Final = "application/merge-patch+json"
_APPLY_PATCH: Final = "application/apply-patch+yaml"
_JSON_PATCH: Final = "application/json-patch+json"

RequestHook = Callable[[str, str, int, float], None]
"""Called after each request with verb, resource, HTTP status (0: no answer) and seconds."""


async def load_configuration(kubeconfig: str | None = None) -> Configuration:
    """In-cluster configuration when the process runs in a pod, else a kubeconfig file.

    `kubeconfig` defaults to the KUBECONFIG variable and then to ~/.kube/config. Raises KubeError.
    """
    configuration = Configuration()
    configuration.connection_pool_maxsize = 64
    try:
        if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            kube_config.load_incluster_config(client_configuration=configuration)
        else:
            await kube_config.load_kube_config(
                config_file=kubeconfig or os.environ.get("KUBECONFIG"),
                client_configuration=configuration,
                persist_config=False,
            )
    except (kube_config.ConfigException, OSError) as error:
        raise KubeError(
            f"no Kubernetes credentials: {error}; run in a pod, or let KUBECONFIG name a kubeconfig file"
        ) from error
    return configuration


class KubeClient:
    """Requests to one API server. Every method raises a KubeError."""

    def __init__(self, configuration: Configuration, *, on_request: RequestHook | None = None) -> None:
        self._client = ApiClient(configuration)
        self._client.user_agent = "slmops"
        self._on_request = on_request or (lambda verb, resource, status, seconds: None)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def get(self, resource: Resource, *, namespace: str = "", name: str) -> dict[str, Any]:
        """One object, from the store and not from a cache."""
        return await self._json("get", resource, path=resource.path(namespace=namespace, name=name))

    async def list(
        self, resource: Resource, *, namespace: str = "", label_selector: str = "", page_size: int = PAGE_SIZE
    ) -> AsyncGenerator[dict[str, Any]]:
        """Pages of a list, each a List object; all are of the resource version of the first."""
        path = resource.path(namespace=namespace)
        token = ""
        while True:
            query = {"limit": str(page_size)}
            if label_selector:
                query["labelSelector"] = label_selector
            if token:
                query["continue"] = token
            page = await self._json("list", resource, path=path, query=query)
            yield page
            token = str(page.get("metadata", {}).get("continue") or "")
            if not token:
                return

    async def watch(
        self, resource: Resource, *, namespace: str = "", label_selector: str = "", resource_version: str
    ) -> AsyncGenerator[dict[str, Any]]:
        """Events from `resource_version` on, bookmarks included, until the server ends the stream.

        Raises Gone when the version is too old, Unavailable when the stream falls silent.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(WATCH_TIMEOUT_SECONDS),
        }
        if label_selector:
            query["labelSelector"] = label_selector
        what = f"watch {resource.plural}"
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_SECONDS, sock_read=WATCH_INACTIVITY_SECONDS
        )
        response = await self._send(
            "watch", resource, "GET", resource.path(namespace=namespace), query=query, timeout=timeout
        )
        try:
            if response.status != 200:
                raise error_from_status(response.status, await response.text(), what=what)
            async for line in _lines(response):
                event: dict[str, Any] = json.loads(line)
                if event.get("type") == "ERROR":
                    status = event.get("object") or {}
                    code = int(status.get("code") or 500)
                    if code == 410 or status.get("reason") in ("Expired", "Gone"):
                        raise Gone(f"{what}: {status.get('message', 'expired')}", status=410)
                    raise Unavailable(f"{what}: {status.get('message', 'error event')}", status=code)
                yield event
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unavailable(f"{what}: {type(error).__name__} {error}".rstrip()) from error
        finally:
            response.close()

    async def create(
        self, resource: Resource, *, namespace: str = "", body: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Create an object; Conflict when it exists."""
        return await self._json(
            "create", resource, method="POST", path=resource.path(namespace=namespace), body=body
        )

    async def replace(
        self, resource: Resource, *, namespace: str = "", body: Mapping[str, Any], subresource: str = ""
    ) -> dict[str, Any]:
        """Replace an object; Conflict when its resourceVersion is not the one in `body`."""
        path = resource.path(namespace=namespace, name=body["metadata"]["name"], subresource=subresource)
        return await self._json("update", resource, method="PUT", path=path, body=body)

    async def apply(
        self, resource: Resource, *, namespace: str = "", body: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Server-side apply as field manager `slmops`, taking fields over from others."""
        return await self._json(
            "apply",
            resource,
            method="PATCH",
            path=resource.path(namespace=namespace, name=body["metadata"]["name"]),
            query={"fieldManager": FIELD_MANAGER, "force": "true"},
            body=body,
            content_type=_APPLY_PATCH,
        )

    async def merge_patch(
        self, resource: Resource, *, namespace: str = "", name: str, body: Mapping[str, Any]
    ) -> dict[str, Any]:
        """JSON merge patch; with metadata.resourceVersion in `body`, Conflict when it is not current."""
        return await self._json(
            "patch",
            resource,
            method="PATCH",
            path=resource.path(namespace=namespace, name=name),
            query={"fieldManager": FIELD_MANAGER},
            body=body,
            content_type=_MERGE_PATCH,
        )

    async def put_fields(
        self, resource: Resource, *, namespace: str = "", name: str, fields: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Replace whole fields by their JSON pointer, whoever put what is in them."""
        return await self._json(
            "patch",
            resource,
            method="PATCH",
            path=resource.path(namespace=namespace, name=name),
            query={"fieldManager": FIELD_MANAGER},
            body=[{"op": "add", "path": path, "value": value} for path, value in fields.items()],
            content_type=_JSON_PATCH,
        )

    async def delete(self, resource: Resource, *, namespace: str = "", name: str, uid: str = "") -> None:
        """Delete an object, its dependants in the background; Conflict when its uid is another one."""
        body: dict[str, Any] = {"propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        path = resource.path(namespace=namespace, name=name)
        await self._json("delete", resource, method="DELETE", path=path, body=body)

    async def _json(
        self,
        verb: str,
        resource: Resource,
        *,
        method: str = "GET",
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | Sequence[Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS, sock_connect=CONNECT_TIMEOUT_SECONDS)
        what = f"{verb} {path}"
        response = await self._send(
            verb,
            resource,
            method,
            path,
            query=query or {},
            timeout=timeout,
            body=body,
            content_type=content_type,
        )
        try:
            text = await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"{what}: {type(error).__name__} {error}".rstrip()) from error
        finally:
            response.release()
        if response.status >= 300:
            raise error_from_status(response.status, text, what=what)
        try:
            answer = json.loads(text)
        except ValueError as error:
            raise Unavailable(f"{what}: the answer is not JSON", status=response.status) from error
        if not isinstance(answer, dict):
            raise Unavailable(f"{what}: the answer is not an object", status=response.status)
        return answer

    async def _send(
        self,
        verb: str,
        resource: Resource,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
        body: Mapping[str, Any] | Sequence[Any] | None = None,
        content_type: str = "application/json",
    ) -> aiohttp.ClientResponse:
        started = time.monotonic()
        status = 0
        try:
            method, url, headers, sent, _ = await self._client.param_serialize(
                method,
                path,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            answer = await self._client.call_api(method, url, headers, sent, _request_timeout=timeout)
            response: aiohttp.ClientResponse = answer.response
            status = response.status
            return response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"{verb} {path}: {type(error).__name__} {error}".rstrip()) from error
        finally:
            self._on_request(verb, resource.plural, status, time.monotonic() - started)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    # StreamReader.readline has a limit that one large object would break.
    pending: list[bytes] = []
    async for chunk in response.content.iter_any():
        *complete, rest = chunk.split(b"\n")
        for part in complete:
            pending.append(part)
            line = b"".join(pending)
            pending.clear()
            if line.strip():
                yield line
        if rest:
            pending.append(rest)


def in_cluster_namespace() -> str:
    """Namespace of the pod that this process runs in; empty outside of a pod."""
    path = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    try:
        return path.read_text().strip()
    except OSError:
        return ""
