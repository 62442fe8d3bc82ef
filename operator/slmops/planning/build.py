# SPDX-License-Identifier: Apache-2.0
"""Builds the Kubernetes objects that belong to an SLMDeployment; owner references are added later."""

from collections.abc import Mapping
from typing import Any, Final

from slmops.api import SLMDeploymentSpec
from slmops.api.base import quantity_value
from slmops.api.spec import Source, Variant
from slmops.api.variant import AUTO
from slmops.model.config import OperatorConfig
from slmops.planning.access import build_ports, with_access, with_access_check
from slmops.planning.distribution_mount import DISTRIBUTION_MOUNT, distribution_volume, limit_env
from slmops.planning.examples_mount import default_env, with_examples
from slmops.planning.names import Names
from slmops.planning.revision import Revision, RevisionVariant
from slmops.planning.scheduling import build_scheduling
from slmops.planning.serving import optional_env, serving_of
from slmops.planning.source_pods import (
    CHOICE_VOLUME,
    CHOOSE,
    as_image_volume,
    file_root,
    source_env,
    source_mounts,
    source_volumes,
)
from slmwire import env, labels, paths
from slmwire.labels import Role
from slmwire.scheme import Scheme

SERVER_USER: Final = 65532
TERMINATION_GRACE_SECONDS: Final = 30
FETCH_MEMORY: Final = "64Mi"
STARTUP_SECONDS: Final = 600
"""Loading a model and answering its golden set may take this long before the kubelet restarts it."""

Body = dict[str, Any]


def object_labels(names: Names, *, revision: str = "", variant: str = "", role: Role | None = None) -> Body:
    """Labels of an object of ours."""
    result = {labels.MANAGED_BY: labels.MANAGED_BY_VALUE, labels.DEPLOYMENT: names.name}
    if revision:
        result[labels.REVISION] = revision
    if variant:
        result[labels.VARIANT] = variant
    if role is not None:
        result[labels.ROLE] = role.value
    return result


def build_templates(
    names: Names,
    spec: SLMDeploymentSpec,
    *,
    config: OperatorConfig,
    revision: str,
    digests: Mapping[str, str],
    references: Mapping[str, str],
) -> dict[str, tuple[Body, Body]]:
    """Pod templates (serve, prefetch) of every variant; digest and reference are what its source stands
    for."""
    result = {}
    for variant in spec.variants:
        fetch = _Fetch(names, spec, config, revision, variant)
        reference = references[variant.name]
        serve = as_image_volume(variant, _serve_template(fetch, digests[variant.name]), reference=reference)
        prefetch = as_image_volume(variant, _prefetch_template(fetch), reference=reference)
        serve, prefetch = (with_examples(names, variant, pod) for pod in (serve, prefetch))
        result[variant.name] = (
            with_access(serve, spec.service),
            with_access_check(prefetch, spec.service, like=serve),
        )
    return result


class _Fetch:
    """What the serving and the prefetching pod of one variant have in common."""

    def __init__(
        self, names: Names, spec: SLMDeploymentSpec, config: OperatorConfig, revision: str, variant: Variant
    ) -> None:
        self.names, self.spec, self.config = names, spec, config
        self.revision, self.variant = revision, variant
        self.serving = serving_of(spec, variant, config)

    def identity_env(self) -> list[Body]:
        spec, names = self.spec, self.names
        return [
            {"name": env.NAMESPACE, "value": names.namespace},
            {"name": env.DEPLOYMENT, "value": names.name},
            {"name": env.REVISION, "value": self.revision},
            {"name": env.VARIANT, "value": self.variant.name},
            {"name": env.MODEL, "value": spec.model.name},
            {"name": env.MODEL_VERSION, "value": spec.model.version},
            {"name": env.NODE, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ]

    def container(self, *, name: str, args: list[str]) -> Body:
        cache = self.spec.cache
        return {
            "name": name,
            "image": self.serving.image,
            "imagePullPolicy": self.config.runtime_pull_policy,
            "command": ["python3", "-m", "slmfetch"],
            "args": args,
            "env": [
                *self.identity_env(),
                {"name": env.STORE_DIR, "value": paths.STORE_DIR},
                {"name": env.MANIFEST_FILE, "value": paths.MANIFEST_FILE},
                {"name": env.KEEP_PREVIOUS, "value": str(cache.keep_previous)},
                {
                    "name": env.SIZE_LIMIT_BYTES,
                    "value": str(int(quantity_value(cache.size_limit)) if cache.size_limit else 0),
                },
                *limit_env(self.spec),
                {"name": env.SOURCE_TOKEN_FILE, "value": paths.SOURCE_TOKEN_FILE},
                *source_env(self.variant.source),
                {"name": env.READY_FILE, "value": paths.READY_FILE},
            ],
            "resources": {"requests": {"cpu": "10m", "memory": FETCH_MEMORY}},
            "volumeMounts": [
                {"name": "store", "mountPath": paths.STORE_DIR},
                {"name": "manifest", "mountPath": "/etc/slmops", "readOnly": True},
                {"name": "tmp", "mountPath": "/tmp"},
                DISTRIBUTION_MOUNT,
                *source_mounts(self.variant.source),
            ],
            # Root without any capability: the store's folder on the host belongs to root, and the
            # server, which is not root, must not be able to change what it loads.
            "securityContext": {
                "runAsUser": 0,
                "runAsNonRoot": False,
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
            "terminationMessagePath": paths.TERMINATION_LOG,
            "terminationMessagePolicy": "File",
        }

    def volumes(self) -> list[Body]:
        workload = self.names.workload(self.revision, self.variant.name)
        return [
            {"name": "store", "hostPath": {"path": self.spec.cache.host_path, "type": "DirectoryOrCreate"}},
            {"name": "manifest", "configMap": {"name": workload}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
            distribution_volume(self.names),
            *source_volumes(self.variant.source),
        ]

    def pod_spec(self, *, containers: list[Body], init_containers: list[Body], grace_seconds: int) -> Body:
        spec = self.spec
        body: Body = {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": grace_seconds,
            **build_scheduling(spec, self.variant, pods=object_labels(self.names, role=Role.SERVE)),
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": containers,
            "volumes": self.volumes(),
        }
        if init_containers:
            body["initContainers"] = init_containers
        if spec.placement.priority_class_name:
            body["priorityClassName"] = spec.placement.priority_class_name
        if spec.runtime.image_pull_secrets:
            body["imagePullSecrets"] = [{"name": name} for name in spec.runtime.image_pull_secrets]
        return body


def _serve_template(fetch: _Fetch, digest: str) -> Body:
    spec, serving = fetch.spec, fetch.serving
    requests = fetch.variant.resources.requests.to_body()
    limits = fetch.variant.resources.limits.to_body()
    server: Body = {
        "name": "server",
        "image": serving.image,
        "imagePullPolicy": fetch.config.runtime_pull_policy,
        "command": ["python3", "-m", "slmserve"],
        "env": [
            *fetch.identity_env(),
            {"name": env.MODEL_DIR, "value": paths.MODEL_DIR},
            {"name": env.MODEL_DIGEST, "value": digest},
            {"name": env.MANIFEST_FILE, "value": paths.MANIFEST_FILE},
            {"name": env.PORT, "value": str(paths.HTTP_PORT)},
            *optional_env(spec, serving),
            *default_env(fetch.variant),
            {"name": env.THREADS, "value": str(serving.threads)},
            {"name": env.SLOTS, "value": str(serving.slots)},
            {"name": env.CONTEXT_LENGTH, "value": str(serving.context_length)},
            {"name": env.MAX_QUEUE, "value": str(serving.max_queue)},
            {"name": env.EVALUATE, "value": "true" if spec.evaluation.enabled else "false"},
            {"name": env.DRAIN_SECONDS, "value": str(TERMINATION_GRACE_SECONDS - 5)},
        ],
        "ports": [{"name": "http", "containerPort": paths.HTTP_PORT}],
        "resources": {"requests": requests} | ({"limits": limits} if limits else {}),
        "startupProbe": _http_probe(paths.PATH_READY, period_seconds=1, failure_threshold=STARTUP_SECONDS),
        "readinessProbe": _http_probe(paths.PATH_READY, period_seconds=5, failure_threshold=2),
        "livenessProbe": _http_probe(paths.PATH_HEALTH, period_seconds=10, failure_threshold=6),
        "volumeMounts": [
            {
                "name": "store",
                "mountPath": paths.MODEL_DIR,
                "subPath": paths.tree_subpath(digest),
                "readOnly": True,
            },
            {"name": "manifest", "mountPath": "/etc/slmops", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
        "securityContext": {
            "runAsUser": SERVER_USER,
            "runAsGroup": SERVER_USER,
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": paths.TERMINATION_LOG,
        "terminationMessagePolicy": "File",
    }
    pod_labels = object_labels(
        fetch.names, revision=fetch.revision, variant=fetch.variant.name, role=Role.SERVE
    )
    initial = [fetch.container(name="fetch", args=["fetch", "--serve", *file_root(fetch.variant.source)])]
    if serving.engine == AUTO:
        server = _with_choice(server)
        initial.append(_choose_container(server))
    body = fetch.pod_spec(
        containers=[server], init_containers=initial, grace_seconds=TERMINATION_GRACE_SECONDS
    )
    if serving.engine == AUTO:
        body["volumes"] = [*body["volumes"], {"name": CHOICE_VOLUME, "emptyDir": {"sizeLimit": "1Mi"}}]
    return {"metadata": {"labels": pod_labels}, "spec": body}


def _with_choice(server: Body) -> Body:
    """The server, told where the engine stands that was chosen on its node."""
    choice = {"name": env.ENGINE_CHOICE_FILE, "value": paths.CHOICE_FILE}
    mount = {"name": CHOICE_VOLUME, "mountPath": paths.CHOICE_DIR, "readOnly": True}
    return server | {"env": [*server["env"], choice], "volumeMounts": [*server["volumeMounts"], mount]}


def _choose_container(server: Body) -> Body:
    """Measures the engines that can load the model, with what the server will have."""
    kept = ("image", "imagePullPolicy", "env", "resources", "securityContext")
    mounts = [m for m in server["volumeMounts"] if m["name"] != CHOICE_VOLUME]
    return {
        "name": CHOOSE,
        **{key: server[key] for key in kept},
        "command": ["python3", "-m", "slmserve"],
        "args": ["choose", "--model-dir", paths.MODEL_DIR, "--out", paths.CHOICE_FILE],
        "volumeMounts": [*mounts, {"name": CHOICE_VOLUME, "mountPath": paths.CHOICE_DIR}],
        "terminationMessagePath": paths.TERMINATION_LOG,
        "terminationMessagePolicy": "File",
    }


def _prefetch_template(fetch: _Fetch) -> Body:
    container = fetch.container(name="fetch", args=["hold", *file_root(fetch.variant.source)]) | {
        "readinessProbe": {
            "exec": {"command": ["test", "-f", paths.READY_FILE]},
            "periodSeconds": 1,
            "failureThreshold": 1,
        }
    }
    pod_labels = object_labels(
        fetch.names, revision=fetch.revision, variant=fetch.variant.name, role=Role.PREFETCH
    )
    return {
        "metadata": {"labels": pod_labels},
        "spec": fetch.pod_spec(containers=[container], init_containers=[], grace_seconds=5),
    }


def _http_probe(path: str, *, period_seconds: int, failure_threshold: int) -> Body:
    return {
        "httpGet": {"path": path, "port": paths.HTTP_PORT},
        "periodSeconds": period_seconds,
        "timeoutSeconds": 5,
        "failureThreshold": failure_threshold,
    }


def _node_affinity(label: str, value: str) -> Body:
    term = {"matchExpressions": [{"key": label, "operator": "In", "values": [value]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


def _daemon_set(names: Names, *, name: str, template: Mapping[str, Any], label: str, value: str) -> Body:
    pod_labels = template["metadata"]["labels"]
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": names.namespace, "labels": pod_labels},
        "spec": {
            "selector": {"matchLabels": pod_labels},
            # The template never changes; should it, nothing may restart because of it.
            "updateStrategy": {"type": "OnDelete"},
            "revisionHistoryLimit": 1,
            "template": {
                "metadata": template["metadata"],
                "spec": {**template["spec"], "affinity": _node_affinity(label, value)},
            },
        },
    }


def build_serve_daemon_set(names: Names, revision: Revision, variant: RevisionVariant) -> Body:
    """DaemonSet that serves one variant of one revision on the nodes labelled for it."""
    return _daemon_set(
        names,
        name=names.workload(revision.revision, variant.name),
        template=variant.serve_template,
        label=names.serve_label(revision.revision),
        value=variant.name,
    )


def build_prefetch_daemon_set(names: Names, revision: Revision, variant: RevisionVariant) -> Body:
    """DaemonSet that fetches one variant ahead on the nodes labelled for it."""
    return _daemon_set(
        names,
        name=names.prefetch_workload(revision.revision, variant.name),
        template=variant.prefetch_template,
        label=names.prefetch_label(revision.revision),
        value=variant.name,
    )


def build_release_daemon_set(names: Names, spec: SLMDeploymentSpec, *, config: OperatorConfig) -> Body:
    """DaemonSet that drops this deployment's models from the nodes labelled for it, or examples alone."""
    # Of the variant nothing is used but what every pod has.
    nobody = Variant.model_construct(name="none", source=Source())
    fetch = _Fetch(names, spec, config, "release", spec.variants[0] if spec.variants else nobody)
    kept = ["--keep-models"] if spec.cache.deletion_policy == "Retain" else []
    container = fetch.container(name="release", args=["release", *kept]) | {
        "readinessProbe": {"exec": {"command": ["test", "-f", paths.READY_FILE]}, "periodSeconds": 1}
    }
    container["volumeMounts"] = [
        mount for mount in container["volumeMounts"] if mount["name"] in ("store", "tmp")
    ]
    pod = fetch.pod_spec(containers=[container], init_containers=[], grace_seconds=5)
    pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] in ("store", "tmp")]
    template = {"metadata": {"labels": object_labels(names, role=Role.RELEASE)}, "spec": pod}
    return _daemon_set(
        names, name=names.release_workload, template=template, label=names.release_label, value="true"
    )


def build_config_map(names: Names, revision: Revision, variant: RevisionVariant) -> Body:
    """Immutable ConfigMap with the resolved manifest."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names.workload(revision.revision, variant.name),
            "namespace": names.namespace,
            "labels": object_labels(names, revision=revision.revision, variant=variant.name),
        },
        "immutable": True,
        "data": {"manifest.json": variant.manifest.to_json()},
    }


def build_controller_revision(names: Names, *, revision: str, number: int, data: Mapping[str, Any]) -> Body:
    """ControllerRevision with everything needed to bring the revision back."""
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": names.controller_revision(revision),
            "namespace": names.namespace,
            "labels": object_labels(names, revision=revision),
        },
        "revision": number,
        "data": dict(data),
    }


def build_service(names: Names, spec: SLMDeploymentSpec, scheme: Scheme = "http") -> Body:
    """Service over the serving pods of all revisions, `scheme` is what most of them speak."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": names.name,
            "namespace": names.namespace,
            "labels": object_labels(names),
        },
        "spec": {
            "type": "ClusterIP",
            "internalTrafficPolicy": (
                "Cluster" if spec.placement.mode == "Replicas" else spec.service.traffic_policy
            ),
            "selector": object_labels(names, role=Role.SERVE),
            "ports": build_ports(spec, scheme),
        },
    }
