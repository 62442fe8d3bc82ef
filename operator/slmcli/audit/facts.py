# SPDX-License-Identifier: Apache-2.0
"""Pods and Services as an audit looks at them: what they are, not whether it is well."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from slmcli.safe import clean_tree
from slmcli.view import Body
from slmops.planning.access import CHECK
from slmwire import env, labels, paths
from slmwire.scheme import SERVER

TELEMETRY = "ORT_DISABLE_TELEMETRY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A volume that matters, where a container has it. `what` is a host's path or a Secret's name."""

    container: str
    kind: Literal["hostPath", "secret"]
    what: str
    access: Literal["read-only", "writable"]
    path: str
    """Where the container has it."""
    part: str = ""
    """Of a host's path: the folder below it that alone is mounted; empty for all of it."""

    @property
    def is_examples(self) -> bool:
        """The folder of examples from feedback, where the operator gives it to the server."""
        ours = self.path == paths.EXAMPLES_DIR and "/examples/" in f"{self.what}/{self.part}/"
        return ours and self.kind == "hostPath" and self.container == SERVER

    @property
    def is_access(self) -> bool:
        """API keys or the certificate of the server, where the operator mounts them (spec.service)."""
        ours = self.path in (paths.API_KEYS_DIR, paths.TLS_DIR) and self.access == "read-only"
        return ours and self.container in (SERVER, CHECK)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerFacts:
    """A container with the security context that holds for it, its own before the pod's."""

    name: str
    kind: Literal["main", "init", "debug"]
    image: str
    image_digest: str
    """`sha256:...` as the node reports it; empty while it does not."""
    non_root: bool
    read_only_root: bool
    no_escalation: bool
    privileged: bool
    drops_all: bool
    added_capabilities: tuple[str, ...]
    seccomp: str
    """Type of the profile; empty for none."""
    env: Mapping[str, str]
    """Plain values of the variables that an audit asks for."""
    secret_env: tuple[str, ...]
    """Variables whose value comes out of a Secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """A pod of the deployment."""

    name: str
    node: str
    role: str
    """One of slmwire.labels.Role, or `train`."""
    revision: str
    variant: str
    ready: bool
    since: str | None
    """When the kubelet took it on, RFC 3339."""
    labels: Mapping[str, str]
    token: Literal["mounted", "not mounted"]
    """A service account token."""
    host_namespaces: tuple[str, ...]
    mounts: tuple[Mount, ...]
    containers: tuple[ContainerFacts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFacts:
    """A Service that leads to pods of the deployment."""

    name: str
    kind: str
    traffic: str
    """`Local` or `Cluster`: whether a request may go to another node's pod."""
    external: tuple[str, ...]
    """Ways in from outside of the cluster, in words."""


def observe_pod_facts(body: Body) -> PodFacts:
    """One pod."""
    body = clean_tree(dict(body))
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    tags = {str(key): str(value) for key, value in (metadata.get("labels") or {}).items()}
    conditions = status.get("conditions") or ()
    return PodFacts(
        name=metadata["name"],
        node=str(spec.get("nodeName") or ""),
        role=tags.get(labels.ROLE) or tags.get(labels.WORK, ""),
        revision=tags.get(labels.REVISION, ""),
        variant=tags.get(labels.VARIANT, ""),
        ready=any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions),
        since=status.get("startTime"),
        labels=tags,
        token="mounted" if _has_token(spec) else "not mounted",
        host_namespaces=tuple(key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)),
        mounts=tuple(_mounts(spec)),
        containers=tuple(_containers(spec, status)),
    )


def _has_token(spec: Mapping[str, Any]) -> bool:
    # The admission controller adds the volume when it is to be mounted, so the volume is what counts; the
    # field is looked at for pods that somebody made without it.
    for volume in spec.get("volumes") or ():
        sources = (volume.get("projected") or {}).get("sources") or ()
        if any("serviceAccountToken" in source for source in sources):
            return True
    return spec.get("automountServiceAccountToken") is not False


def _mounts(spec: Mapping[str, Any]) -> Iterable[Mount]:
    volumes = {volume.get("name"): volume for volume in spec.get("volumes") or ()}
    for _, container in _all_containers(spec):
        for mount in container.get("volumeMounts") or ():
            volume = volumes.get(mount.get("name")) or {}
            access: Literal["read-only", "writable"] = "read-only" if mount.get("readOnly") else "writable"
            name, where = container["name"], str(mount.get("mountPath") or "")
            if "hostPath" in volume:
                path = str((volume["hostPath"] or {}).get("path", ""))
                part = str(mount.get("subPath") or "")
                yield Mount(container=name, kind="hostPath", what=path, access=access, path=where, part=part)
            for secret in _secrets(volume):
                yield Mount(container=name, kind="secret", what=secret, access=access, path=where)


def _secrets(volume: Mapping[str, Any]) -> Iterable[str]:
    if "secret" in volume:
        yield str((volume["secret"] or {}).get("secretName", ""))
    for source in (volume.get("projected") or {}).get("sources") or ():
        if "secret" in source:
            yield str((source["secret"] or {}).get("name", ""))


def _all_containers(
    spec: Mapping[str, Any],
) -> Iterable[tuple[Literal["main", "init", "debug"], dict[str, Any]]]:
    for container in spec.get("initContainers") or ():
        yield "init", container
    for container in spec.get("containers") or ():
        yield "main", container
    for container in spec.get("ephemeralContainers") or ():
        yield "debug", container


def _containers(spec: Mapping[str, Any], status: Mapping[str, Any]) -> Iterable[ContainerFacts]:
    lists = ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses")
    reported = {entry.get("name"): entry for key in lists for entry in status.get(key) or ()}
    whole = spec.get("securityContext") or {}
    for kind, container in _all_containers(spec):
        own = container.get("securityContext") or {}
        user = own.get("runAsUser", whole.get("runAsUser"))
        capabilities = own.get("capabilities") or {}
        seccomp = own.get("seccompProfile") or whole.get("seccompProfile") or {}
        identity = str((reported.get(container["name"]) or {}).get("imageID") or "")
        variables = container.get("env") or ()
        yield ContainerFacts(
            name=container["name"],
            kind=kind,
            image=str(container.get("image") or ""),
            image_digest=f"sha256:{identity.rpartition('sha256:')[2]}" if "sha256:" in identity else "",
            non_root=user != 0 and (own.get("runAsNonRoot", whole.get("runAsNonRoot")) is True or bool(user)),
            read_only_root=own.get("readOnlyRootFilesystem") is True,
            no_escalation=own.get("allowPrivilegeEscalation") is False,
            privileged=own.get("privileged") is True,
            drops_all="ALL" in (capabilities.get("drop") or ()),
            added_capabilities=tuple(map(str, capabilities.get("add") or ())),
            seccomp=str(seccomp.get("type") or ""),
            env={
                str(entry["name"]): str(entry["value"])
                for entry in variables
                if entry.get("name") in (TELEMETRY, env.API_KEYS_FILE, env.TLS_CERT_FILE) and "value" in entry
            },
            secret_env=tuple(
                str(entry.get("name"))
                for entry in variables
                if "secretKeyRef" in (entry.get("valueFrom") or {})
            ),
        )


def observe_services(bodies: Iterable[Body], pods: Iterable[PodFacts]) -> tuple[ServiceFacts, ...]:
    """The Services whose selector matches one of the pods, by name."""
    tags = [pod.labels for pod in pods]
    found = []
    for raw in bodies:
        body = clean_tree(dict(raw))
        spec = body.get("spec") or {}
        selector = spec.get("selector") or {}
        if selector and any(all(own.get(k) == v for k, v in selector.items()) for own in tags):
            found.append(_service(str(body["metadata"]["name"]), spec))
    return tuple(sorted(found, key=lambda service: service.name))


def _service(name: str, spec: Mapping[str, Any]) -> ServiceFacts:
    kind = str(spec.get("type") or "ClusterIP")
    ports = [p for p in spec.get("ports") or () if p.get("nodePort")]
    external = [f"port {port['nodePort']} of every node" for port in ports]
    external += ["a load balancer"] if kind == "LoadBalancer" else []
    external += [f"external address {address}" for address in spec.get("externalIPs") or ()]
    return ServiceFacts(
        name=name,
        kind=kind,
        traffic=str(spec.get("internalTrafficPolicy") or "Cluster"),
        external=tuple(external),
    )
