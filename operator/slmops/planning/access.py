# SPDX-License-Identifier: Apache-2.0
"""API keys and TLS of the inference pods: Secrets that the server mounts, and what else follows.

The operator never reads these Secrets. They reach the server's container alone, as folders and not by
subPath, so that what the kubelet renews comes to the server without a restart.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from slmops.api import SLMDeploymentSpec
from slmops.api.spec import Service
from slmops.planning.nodes import NodeState
from slmops.planning.revision import Revision
from slmwire import env, paths
from slmwire.labels import Role
from slmwire.scheme import SERVER, Scheme, read_scheme

Body = dict[str, Any]
CHECK: Final = "secrets"
"""Init container of prefetching pods that starts only where the Secrets are."""
KEYS_VOLUME: Final = "api-keys"
TLS_VOLUME: Final = "tls"
_READABLE: Final = 0o444
"""The files belong to root and the server is not root. A group of the pod's own (fsGroup) would be the
fetcher's, too, and would be written into volumes of claims; nobody else is in the server's container."""
_BEFORE_START: Final = frozenset({"ContainerCreating", "PodInitializing"})
PATIENCE_SECONDS: Final = 60.0
"""A pod that has had no volumes for so long is a problem to be told; the kubelet goes on trying."""
_AS_SERVER: Final = (
    "image",
    "imagePullPolicy",
    "securityContext",
    "terminationMessagePath",
    "terminationMessagePolicy",
)
_PROBES: Final = ("startupProbe", "readinessProbe", "livenessProbe")


def with_access(template: Body, service: Service) -> Body:
    """The template of a serving pod with the Secrets of `service`; as it was if there are none."""
    if service.auth is None and service.tls is None:
        return template
    pod = template["spec"]
    containers = [_with_access(c, service) if c["name"] == SERVER else c for c in pod["containers"]]
    volumes = [*pod["volumes"], *_volumes(service)]
    return {**template, "spec": {**pod, "containers": containers, "volumes": volumes}}


def with_access_check(template: Body, service: Service, *, like: Body) -> Body:
    """The template of a prefetching pod that gets ready only where the Secrets of `service` can be mounted.

    So a Secret that is missing takes no serving pod away: the node is not prepared. They are mounted into an
    init container that ends at once, not into the fetcher. `like` is the template of the serving pod.
    """
    if service.auth is None and service.tls is None:
        return template
    pod = template["spec"]
    server = next(c for c in like["spec"]["containers"] if c["name"] == SERVER)
    check = {
        "name": CHECK,
        **{key: server[key] for key in _AS_SERVER},
        "command": ["true"],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        "volumeMounts": access_mounts(service),
    }
    initial = [check, *pod.get("initContainers", ())]
    return {
        **template,
        "spec": {**pod, "initContainers": initial, "volumes": [*pod["volumes"], *_volumes(service)]},
    }


def access_mounts(service: Service) -> list[Body]:
    """Mounts of the server's container, by the names of the volumes."""
    wanted = ((service.auth, KEYS_VOLUME, paths.API_KEYS_DIR), (service.tls, TLS_VOLUME, paths.TLS_DIR))
    return [
        {"name": name, "mountPath": path, "readOnly": True} for part, name, path in wanted if part is not None
    ]


def _volumes(service: Service) -> list[Body]:
    volumes: list[Body] = []
    if service.auth is not None:
        ref = service.auth.api_keys_secret_ref
        file = paths.API_KEYS_FILE.removeprefix(f"{paths.API_KEYS_DIR}/")
        volumes.append(_volume(KEYS_VOLUME, ref.name, {ref.key: file}))
    if service.tls is not None:
        files = {"tls.crt": "tls.crt", "tls.key": "tls.key"}
        volumes.append(_volume(TLS_VOLUME, service.tls.secret_ref.name, files))
    return volumes


def _volume(name: str, secret: str, items: Mapping[str, str]) -> Body:
    # Not optional: a server that starts without its keys would be open to everybody.
    wanted = [{"key": key, "path": path} for key, path in items.items()]
    source = {"secretName": secret, "optional": False, "defaultMode": _READABLE, "items": wanted}
    return {"name": name, "secret": source}


def _with_access(server: Body, service: Service) -> Body:
    variables: list[Body] = []
    result = dict(server)
    if service.auth is not None:
        variables.append({"name": env.API_KEYS_FILE, "value": paths.API_KEYS_FILE})
    if service.tls is not None:
        variables.append({"name": env.TLS_CERT_FILE, "value": paths.TLS_CERT_FILE})
        variables.append({"name": env.TLS_KEY_FILE, "value": paths.TLS_KEY_FILE})
        result["ports"] = [{**port, "name": "https"} for port in server["ports"]]
        for probe in _PROBES:
            # The kubelet checks no certificate: it asks the pod's address on its own node.
            result[probe] = {**server[probe], "httpGet": {**server[probe]["httpGet"], "scheme": "HTTPS"}}
    result["env"] = [*server["env"], *variables]
    result["volumeMounts"] = [*server["volumeMounts"], *access_mounts(service)]
    return result


def scheme_of(revision: Revision | None, spec: SLMDeploymentSpec) -> Scheme:
    """What the pods of a revision speak; what spec says while there is none."""
    if revision is None or not revision.variants:
        return "http" if spec.service.tls is None else "https"
    return read_scheme(revision.variants[0].serve_template["spec"])


def build_ports(spec: SLMDeploymentSpec, scheme: Scheme) -> list[Body]:
    """The Service's ports. By number and not by name: pods of both kinds stay behind it during a rollout."""
    port: Body = {"name": scheme, "port": spec.service.port, "targetPort": paths.HTTP_PORT, "protocol": "TCP"}
    return [port | ({"appProtocol": "https"} if scheme == "https" else {})]


def secrets_of(revision: Revision | None) -> tuple[str, ...]:
    """Names of the Secrets that the serving pods of a revision cannot start without."""
    volumes: Iterable[Mapping[str, Any]] = (
        volume
        for variant in (revision.variants if revision is not None else ())
        for volume in variant.serve_template["spec"].get("volumes") or ()
        if volume.get("name") in (KEYS_VOLUME, TLS_VOLUME) and "secret" in volume
    )
    return tuple(sorted({str(volume["secret"]["secretName"]) for volume in volumes}))


def is_unstarted(status: Mapping[str, Any]) -> bool:
    """Whether a pod of this `status` waits for what comes before its first container: volumes, the network.

    Kubernetes before 1.29 does not say so itself; there an image that is being pulled looks the same.
    """
    conditions = {c.get("type"): c.get("status") for c in status.get("conditions") or ()}
    if status.get("phase") != "Pending" or conditions.get("PodScheduled") != "True":
        return False
    if (ready := conditions.get("PodReadyToStartContainers")) is not None:
        return str(ready) == "False"
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    states = [(c.get("state") or {}).get("waiting") or {} for c in containers]
    return bool(states) and all(waiting.get("reason") in _BEFORE_START for waiting in states)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretWait:
    """A pod that has not begun and needs Secrets of which the operator cannot know whether they are
    there."""

    since: float
    """When the pod was made, seconds since the epoch."""
    message: str


def find_wait(state: NodeState, revisions: Mapping[str, Revision]) -> SecretWait | None:
    """The first such pod of what the node's labels ask for."""
    if not any(pod.unstarted for pod in state.pods):
        return None
    asked = ((Role.SERVE, state.serve), (Role.PREFETCH, state.prefetch))
    for role, revision in ((role, name) for role, names in asked for name in sorted(names)):
        secrets = secrets_of(revisions.get(revision))
        pod = next((p for p in state.pods_of(revision, role) if p.unstarted), None)
        if secrets and pod is not None:
            needs = " and ".join(f"Secret {name}" for name in secrets)
            message = (
                f"pod {pod.name} waits for its volumes and needs {needs}; if that lasts, kubectl describe "
                "pod names the Secret or key that is missing"
            )
            return SecretWait(since=pod.created_at, message=message)
    return None


def seconds_to_problem(
    states: Iterable[NodeState], revisions: Mapping[str, Revision], now: float
) -> float | None:
    """When the next wait becomes a problem that is told; None if there is none."""
    waits = (find_wait(state, revisions) for state in states if state.online)
    left = (wait.since + PATIENCE_SECONDS - now for wait in waits if wait is not None)
    return min((seconds for seconds in left if seconds > 0), default=None)
