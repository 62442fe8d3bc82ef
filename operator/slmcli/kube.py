# SPDX-License-Identifier: Apache-2.0
"""The `Cluster` port on the kubernetes client: JSON in, JSON out, errors of one line with a cure."""

import json
import os
import re
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import urllib3
import yaml
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException, load_incluster_config
from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION, list_kube_config_contexts
from kubernetes.config.kube_config import load_kube_config as load_file

from slmcli.cluster import Body, PodAddress
from slmcli.errors import (
    BrokenOffError,
    CliError,
    ConflictError,
    ForbiddenError,
    GoneError,
    NotFoundError,
    UnreachableError,
    UsageError,
)
from slmcli.pod_errors import describe_refusal
from slmcli.safe import clean
from slmops.api import GROUP, MODEL_PLURAL, PLURAL, VERSION
from slmops.api.profile import PROFILE_PLURAL
from slmwire.labels import ADAPTATION, DEPLOYMENT
from slmwire.paths import AGENT_STORE, KEY_HEADER

CONNECT_TIMEOUT_SECONDS: Final = 10.0
READ_TIMEOUT_SECONDS: Final = 30.0
AGENT_TIMEOUT_SECONDS: Final = 10.0
"""A node that is gone costs no more than this."""
ANSWER_TIMEOUT_SECONDS: Final = 300.0
"""Longest silence of a model: it may wait for a slot, or read a long prompt on a small device."""
MAX_POD_TEXT_BYTES: Final = 4 << 20
WATCH_TIMEOUT_SECONDS: Final = 240
"""What the server is asked to end a watch after."""
WATCH_SILENCE_SECONDS: Final = 100.0
"""A healthy watch carries a bookmark about every minute; a silent one is dead."""
PAGE_SIZE: Final = 500
_AGENTS: Final = "app.kubernetes.io/component=store-agent"
_UNUSABLE: Final = (ConfigException, OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError)
"""What the client raises over a kubeconfig that is missing, no YAML or of another shape."""
_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A cluster and the namespace that the kubeconfig's context names."""

    cluster: "KubeCluster"
    namespace: str


def connect(*, kubeconfig: str | None, context: str | None) -> Connection:
    """Read the kubeconfig as kubectl does (the flag, KUBECONFIG, ~/.kube/config); else the pod's account."""
    configuration = Configuration()
    # One try: a person waits, and the message names the cure.
    configuration.retries = urllib3.Retry(total=0)
    path = kubeconfig or os.environ.get("KUBECONFIG") or KUBE_CONFIG_DEFAULT_LOCATION
    try:
        if _inside_a_pod(path, explicit=kubeconfig or context):
            load_incluster_config(client_configuration=configuration)
            namespace = _NAMESPACE_FILE.read_text().strip()
        else:
            namespace = _namespace(path, context)
            load_file(
                config_file=path, context=context, client_configuration=configuration, persist_config=False
            )
    except _UNUSABLE as error:
        raise CliError(
            f"no usable kubeconfig: {clean(str(error)).rstrip('.')}; name one with --kubeconfig or "
            "KUBECONFIG, and a context of it with --context (kubectl config get-contexts lists them)"
        ) from error
    client = ApiClient(configuration)
    client.user_agent = "kubectl-slm"
    return Connection(cluster=KubeCluster(client), namespace=namespace or "default")


def _inside_a_pod(path: str, *, explicit: str | None) -> bool:
    present = any(Path(part).expanduser().exists() for part in path.split(os.pathsep) if part)
    return not explicit and not present and "KUBERNETES_SERVICE_HOST" in os.environ


def _namespace(path: str, context: str | None) -> str:
    contexts, active = list_kube_config_contexts(config_file=path)
    if context is not None:
        active = next((entry for entry in contexts if entry["name"] == context), None)
        if active is None:
            known = ", ".join(sorted(entry["name"] for entry in contexts))
            raise UsageError(f"there is no context {context!r} in {path}; it has {known or 'none'}")
    return str((active or {}).get("context", {}).get("namespace") or "")


class KubeCluster:
    """Implements `slmcli.cluster.Cluster`."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    def get(self, namespace: str, name: str) -> Body:
        """One SLMDeployment."""
        return self._json("GET", _deployments(namespace, name))

    def deployments(self, namespace: str) -> list[Body]:
        """All SLMDeployments of a namespace, or of all."""
        return self._items(_deployments(namespace))

    def model(self, namespace: str, name: str) -> Body:
        """One SLMModel."""
        return self._json("GET", _models(namespace, name))

    def models(self, namespace: str) -> list[Body]:
        """All SLMModels of a namespace."""
        return self._items(_models(namespace))

    def patch(self, namespace: str, name: str, body: Body) -> Body:
        """Merge patch."""
        return self._json("PATCH", _deployments(namespace, name), body=body)

    def watch(self, namespace: str, name: str, resource_version: str) -> Iterator[Body]:
        """Watch events, bookmarks left out."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(WATCH_TIMEOUT_SECONDS),
            "fieldSelector": f"metadata.name={name}",
        }
        path = _deployments(namespace)
        response = self._send("GET", path, query=query, read_seconds=WATCH_SILENCE_SECONDS)
        with closing(response):
            if response.status != 200:
                raise _error("watch", path, response.status, response.data)
            yield from _watch_events(response, path)

    def revisions(self, namespace: str, name: str) -> list[Body]:
        """ControllerRevisions that carry the deployment's label."""
        path = f"/apis/apps/v1/namespaces/{quote(namespace)}/controllerrevisions"
        return self._items(path, labelSelector=f"{DEPLOYMENT}={name}")

    def events(self, namespace: str, uid: str) -> list[Body]:
        """Core Events: every version of Kubernetes finds them by the object that they are about."""
        return self._items(
            f"/api/v1/namespaces/{quote(namespace)}/events", fieldSelector=f"involvedObject.uid={uid}"
        )

    def nodes(self) -> list[Body]:
        """All nodes, page by page."""
        return self._items("/api/v1/nodes")

    def profiles(self) -> list[Body]:
        """All DeviceProfiles."""
        return self._items(f"/apis/{GROUP}/{VERSION}/{PROFILE_PLURAL}")

    def pods(self, namespace: str, name: str) -> list[Body]:
        """Pods that carry the deployment's label."""
        return self._items(
            f"/api/v1/namespaces/{quote(namespace)}/pods", labelSelector=f"{DEPLOYMENT}={name}"
        )

    def training_pods(self, namespace: str, name: str) -> list[Body]:
        """Pods that carry the label of its adaptation."""
        return self._items(
            f"/api/v1/namespaces/{quote(namespace)}/pods", labelSelector=f"{ADAPTATION}={name}"
        )

    def services(self, namespace: str) -> list[Body]:
        """All Services of a namespace."""
        return self._items(f"/api/v1/namespaces/{quote(namespace, safe='')}/services")

    def network_policies(self, namespace: str) -> list[Body]:
        """All NetworkPolicies of a namespace."""
        where = f"/apis/networking.k8s.io/v1/namespaces/{quote(namespace, safe='')}"
        return self._items(f"{where}/networkpolicies")

    def pod_text(self, address: PodAddress, path: str) -> str:
        """Through the API server's proxy, as `store`."""
        where = _proxied(address, path)
        response = self._send(
            "GET", where, read_seconds=AGENT_TIMEOUT_SECONDS, headers={"Accept": "text/plain, */*"}
        )
        with closing(response):
            text = b"".join(self._pieces(response, address, verb="get", limit_bytes=MAX_POD_TEXT_BYTES))
        return text.decode("utf-8", errors="replace")

    def pod_stream(
        self, address: PodAddress, path: str, body: Body, *, key: str
    ) -> Generator[bytes, None, None]:
        """Through the API server's proxy; it takes Authorization off, so the key goes in another header."""
        headers = {"Accept": "text/event-stream, application/json", "Content-Type": "application/json"}
        response = self._send(
            "POST",
            _proxied(address, path),
            body=body,
            read_seconds=ANSWER_TIMEOUT_SECONDS,
            headers=headers | ({KEY_HEADER: key} if key else {}),
        )
        with closing(response):
            yield from self._pieces(response, address, verb="create")

    def _pieces(
        self,
        response: urllib3.BaseHTTPResponse,
        address: PodAddress,
        *,
        verb: str,
        limit_bytes: int | None = None,
    ) -> Iterator[bytes]:
        try:
            if response.status >= 300:
                raise describe_refusal(address, verb=verb, status=response.status, text=response.data)
            count = 0
            for piece in response.stream(65536, decode_content=True):
                count += len(piece)
                if limit_bytes is not None and count > limit_bytes:
                    raise UnreachableError(f"pod {address.pod} answers with more than {limit_bytes} bytes")
                yield piece
        except urllib3.exceptions.HTTPError as error:
            cause = clean(str(getattr(error, "reason", None) or error))
            raise BrokenOffError(f"the answer of pod {address.pod} broke off: {cause}") from error

    def store_agents(self, namespace: str) -> list[Body]:
        """Pods of the store agents."""
        return self._items(f"/api/v1/namespaces/{quote(namespace, safe='')}/pods", labelSelector=_AGENTS)

    def store(self, namespace: str, pod: str, port: int) -> Body:
        """Through the API server's proxy to the pod, so that no node needs to be reachable from here."""
        where = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(pod, safe='')}:{port}"
        return self._json("GET", f"{where}/proxy{AGENT_STORE}", read_seconds=AGENT_TIMEOUT_SECONDS)

    def _items(self, path: str, **query: str) -> list[Body]:
        found: list[Body] = []
        token = ""
        while True:
            page = self._json(
                "GET", path, query=query | {"limit": str(PAGE_SIZE)} | ({"continue": token} if token else {})
            )
            found += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue") or ""
            if not token:
                return found

    def _json(
        self,
        verb: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Body | None = None,
        read_seconds: float = READ_TIMEOUT_SECONDS,
    ) -> Body:
        response = self._send(verb, path, query=query, body=body, read_seconds=read_seconds)
        with closing(response):
            try:
                text = response.data
            except urllib3.exceptions.HTTPError as error:
                raise _unreachable(self._client.configuration.host, error) from error
            if response.status >= 300:
                raise _error(verb.lower(), path, response.status, text)
        return _parse(text, path)

    def _send(
        self,
        verb: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Body | None = None,
        read_seconds: float = READ_TIMEOUT_SECONDS,
        headers: dict[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        if headers is None:
            headers = {"Accept": "application/json"}
            if body is not None:
                headers["Content-Type"] = "application/merge-patch+json"
        try:
            request = self._client.param_serialize(
                method=verb,
                resource_path=path,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            answer = self._client.call_api(*request, _request_timeout=(CONNECT_TIMEOUT_SECONDS, read_seconds))
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            raise _unreachable(self._client.configuration.host, error) from error
        response: urllib3.BaseHTTPResponse = answer.response
        return response


def _proxied(address: PodAddress, path: str) -> str:
    namespace, pod = (quote(part, safe="") for part in (address.namespace, address.pod))
    # The API server checks no certificate of a pod; what is between it and the pod is encrypted.
    scheme = "https:" if address.scheme == "https" else ""
    return f"/api/v1/namespaces/{namespace}/pods/{scheme}{pod}:{address.port}/proxy{path}"


def _deployments(namespace: str, name: str = "") -> str:
    parts = ["/apis", GROUP, VERSION, *(["namespaces", quote(namespace)] if namespace else []), PLURAL]
    return "/".join([*parts, *([quote(name, safe="")] if name else [])])


def _models(namespace: str, name: str = "") -> str:
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{quote(namespace, safe='')}/{MODEL_PLURAL}"
    return f"{path}/{quote(name, safe='')}" if name else path


def _watch_events(response: urllib3.BaseHTTPResponse, path: str) -> Iterator[Body]:
    buffer = b""
    try:
        for chunk in response.stream(65536, decode_content=True):
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in filter(None, lines):
                event = _parse(line, path)
                kind, item = event.get("type"), event.get("object") or {}
                if kind == "ERROR":
                    raise _error("watch", path, int(item.get("code") or 500), json.dumps(item).encode())
                if kind != "BOOKMARK":
                    yield event
    except urllib3.exceptions.HTTPError as error:
        raise UnreachableError(f"the watch broke off: {clean(str(error))}") from error


def _parse(text: bytes, path: str) -> Body:
    try:
        body = json.loads(text)
    except ValueError as error:
        raise UnreachableError(
            f"GET {path} was answered with something that is not JSON; does the kubeconfig's server name a "
            "Kubernetes API?"
        ) from error
    if not isinstance(body, dict):
        raise UnreachableError(f"GET {path} was answered with {type(body).__name__} and not an object")
    return body


def _unreachable(host: str, error: Exception) -> UnreachableError:
    cause = clean(str(getattr(error, "reason", None) or error))
    cause = re.sub(r"^\w+\(host=.*?\): ", "", cause)  # the host is named already
    return UnreachableError(
        f"the API server {clean(host)} cannot be reached: {cause}; check the link, and the "
        "context with kubectl cluster-info"
    )


def _error(verb: str, path: str, status: int, text: bytes) -> CliError:
    """The error behind an HTTP status; the server's own words are kept."""
    try:
        said: dict[str, Any] = json.loads(text)
    except ValueError:
        said = {}
    details = (said.get("details") or {}) if isinstance(said, dict) else {}
    words = clean(str(said.get("message") or text[:200].decode(errors="replace")))
    match status:
        case 401:
            return ForbiddenError(
                f"the API server does not know who you are ({words}); log in again or choose another "
                "--context"
            )
        case 403:
            return ForbiddenError(
                f"{words}; ask an administrator for that permission, docs/cli.md lists what is needed"
            )
        case 404 if not details.get("name") and f"/{PLURAL}" in path:
            return NotFoundError(
                "this cluster knows no SLMDeployments; install SLMOps (helm install slmops charts/slmops) or "
                "choose another --context"
            )
        case 404 if not details.get("name") and f"/{MODEL_PLURAL}" in path:
            return NotFoundError(
                "this cluster knows no SLMModels; upgrade SLMOps (helm upgrade slmops charts/slmops) or "
                "choose another --context"
            )
        case 404 if f"/{MODEL_PLURAL}" in path:
            return NotFoundError(f"{words}; kubectl slm models shows what there is, -n chooses the namespace")
        case 404:
            return NotFoundError(
                f"{words}; kubectl slm list -A shows what there is, -n chooses the namespace"
            )
        case 409:
            return ConflictError(f"{words}; run the command again")
        case 410:
            return GoneError(words)
        case _:
            return CliError(f"{verb} {path}: the API server answered {status}: {words}")
