# SPDX-License-Identifier: Apache-2.0
"""Builds the Jobs that train adapters; owner references are added later.

Each runs on one node that serves the model, next to its store and its examples, and needs no network and no
credential. Its pod is found by slmops.dev/adaptation and carries no label of pods that serve.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from slmops.api import SLMDeploymentSpec
from slmops.api.adaptation import Adaptation
from slmops.api.base import duration_seconds
from slmops.model.config import OperatorConfig
from slmops.model.observed import NodeView
from slmops.planning.adapters import FOLDER
from slmops.planning.build import SERVER_USER
from slmops.planning.examples_mount import server_of
from slmops.planning.names import Names
from slmops.planning.revision import RevisionVariant
from slmops.planning.scheduling import HOSTNAME, label_in, require_nodes
from slmwire import env, jobs, labels, paths
from slmwire.examples import SERVER_GROUP
from slmwire.manifest import digest_of

PREPARE: Final = "prepare"
TRAIN: Final = "train"
JUDGE: Final = "judge"
KEEP: Final = "keep"
KEEP_MEMORY: Final = "64Mi"
HELD_OUT_LIMIT: Final = "80Mi"
"""More than a server keeps of examples in all."""
_HELD_OUT: Final = "held-out"
_AS_SERVED: Final = (
    env.MODEL,
    env.MODEL_VERSION,
    env.THREADS,
    env.SLOTS,
    env.CONTEXT_LENGTH,
    env.DEFAULT_ADAPTER,
)
"""Settings of the server that decide which prompts fit and how they are answered."""
_TOLD_DIR: Final = jobs.JOB_FILE.rpartition("/")[0]
_ANNOTATION: Final = f"{labels.DOMAIN}/told-job.json"
Body = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlace:
    """Where a training runs, and for what."""

    names: Names
    spec: SLMDeploymentSpec
    adaptation: Adaptation
    config: OperatorConfig
    site: str
    node: NodeView
    variant: RevisionVariant
    """That the node serves, of the stable revision."""
    name: str
    """Of the Job."""
    seed: int


def train_job_name(names: Names, *, site: str, attempt: int, asked_at: str) -> str:
    """Name of one attempt: a Job of an earlier one is never taken for it."""
    text = f"{site}/{attempt}/{asked_at}"
    return f"{names.name}-train-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def base_digest_of(variant: RevisionVariant) -> str:
    """Of the model's own files, without what overrides and trainings add."""
    return (variant.base or variant.manifest).digest


def tree_digest_of(variant: RevisionVariant, name: str) -> str:
    """What a node finds in the tree that it serves, without the adapter `name` of an earlier training."""
    own = f"{FOLDER}/{name}.onnx_adapter"
    return digest_of(file for file in variant.manifest.files if file.path != own)


def build_order(adaptation: Adaptation, *, seed: int) -> jobs.TrainOrder:
    """What the containers are told."""
    training, gates = adaptation.training, adaptation.gates
    return jobs.TrainOrder(
        name=adaptation.name,
        retention_seconds=int(duration_seconds(adaptation.collect.retention)),
        min_examples=training.min_examples,
        max_epochs=training.max_epochs,
        learning_rate=float(training.learning_rate),
        min_gain=float(gates.min_gain),
        max_quality_loss=float(gates.max_quality_loss),
        seed=seed,
    )


def build_train_job(place: TrainPlace) -> Body:
    """The Job: prepare, train, judge and keep, one after another."""
    tags = {
        labels.MANAGED_BY: labels.MANAGED_BY_VALUE,
        labels.ADAPTATION: place.names.name,
        labels.WORK: "train",
        labels.SITE: place.site,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": place.name, "namespace": place.names.namespace, "labels": tags},
        "spec": {
            # Whether another attempt makes sense depends on the reason, and is decided by the planner.
            "backoffLimit": 0,
            "activeDeadlineSeconds": _deadline(place),
            "template": {
                "metadata": {
                    "labels": dict(tags),
                    "annotations": {_ANNOTATION: build_order(place.adaptation, seed=place.seed).to_json()},
                },
                "spec": _pod(place),
            },
        },
    }


def _deadline(place: TrainPlace) -> int:
    return max(1, int(duration_seconds(place.adaptation.training.deadline)))


def _pod(place: TrainPlace) -> Body:
    spec, server = place.spec, server_of(place.variant)
    # The image that serves: what it measures is what users get.
    runtime = str(server.get("image") or place.config.runtime_image)
    model = {
        "name": "store",
        "mountPath": paths.MODEL_DIR,
        "subPath": paths.tree_subpath(place.variant.manifest.digest),
        "readOnly": True,
    }
    folder = {
        "name": "store",
        "mountPath": paths.EXAMPLES_DIR,
        "subPath": paths.examples_subpath(place.names.namespace, place.names.name),
        "readOnly": True,
    }
    serve = ["python3", "-m", "slmserve.adapt"]
    where = ["--model-dir", paths.MODEL_DIR, "--work", jobs.WORK_DIR, "--job", jobs.JOB_FILE]
    told = {str(entry["name"]): entry.get("value") for entry in server.get("env", ())}
    settings = {name: told[name] for name in _AS_SERVED if told.get(name)}
    settings |= {env.MODEL_DIGEST: base_digest_of(place.variant)}
    held_out = {"name": _HELD_OUT, "mountPath": jobs.HELD_OUT_DIR}
    body: Body = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": {
            "fsGroup": SERVER_GROUP,
            "supplementalGroups": [SERVER_GROUP],
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [
            _step(
                place,
                name=PREPARE,
                image=runtime,
                command=[*serve, PREPARE, *where[:2], "--examples", paths.EXAMPLES_DIR, *where[2:]],
                env_values=settings,
                mounts=[model, folder, held_out],
            ),
            _step(
                place,
                name=TRAIN,
                image=place.config.optimizer_image,
                command=["python3", "-m", "slmopt", TRAIN, *where],
                env_values={},
                mounts=[model],
            ),
            _step(
                place,
                name=JUDGE,
                image=runtime,
                # One bound, which spec has: by then the Job itself is ended.
                command=[*serve, JUDGE, *where, "--deadline-seconds", str(_deadline(place))],
                env_values=settings,
                mounts=[model, {**held_out, "readOnly": True}],
            ),
        ],
        "containers": [_keep(place, runtime)],
        "volumes": [
            {"name": "store", "hostPath": {"path": spec.cache.host_path, "type": "Directory"}},
            {"name": "work", "emptyDir": {}},
            {"name": _HELD_OUT, "emptyDir": {"medium": "Memory", "sizeLimit": HELD_OUT_LIMIT}},
            {"name": "tmp", "emptyDir": {}},
            {
                "name": "told",
                "downwardAPI": {
                    "items": [
                        {
                            "path": jobs.JOB_FILE.rpartition("/")[2],
                            "fieldRef": {"fieldPath": f"metadata.annotations['{_ANNOTATION}']"},
                        }
                    ]
                },
            },
        ],
    }
    if spec.placement.tolerations:
        body["tolerations"] = [toleration.to_body() for toleration in spec.placement.tolerations]
    if spec.runtime.image_pull_secrets:
        body["imagePullSecrets"] = [{"name": name} for name in spec.runtime.image_pull_secrets]
    hostname = place.node.labels.get(HOSTNAME) or place.node.name
    return require_nodes(body, [label_in(HOSTNAME, hostname)])


def _step(
    place: TrainPlace, *, name: str, image: str, command: list[str], env_values: Body, mounts: list[Body]
) -> Body:
    amounts = place.adaptation.training.resources
    limits = amounts.limits.to_body()
    return {
        **_container(place, name=name, image=image, command=command, env_values=env_values),
        "resources": {"requests": amounts.requests.to_body()} | ({"limits": limits} if limits else {}),
        "volumeMounts": [
            *mounts,
            {"name": "work", "mountPath": jobs.WORK_DIR},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "told", "mountPath": _TOLD_DIR, "readOnly": True},
        ],
        "securityContext": {
            "runAsUser": SERVER_USER,
            "runAsGroup": SERVER_GROUP,
            "runAsNonRoot": True,
            **_confined(),
        },
    }


def _keep(place: TrainPlace, image: str) -> Body:
    command = ["python3", "-m", "slmfetch", KEEP, "--file", jobs.ADAPTER_FILE]
    settings = {
        env.NAMESPACE: place.names.namespace,
        env.DEPLOYMENT: place.names.name,
        env.STORE_DIR: paths.STORE_DIR,
    }
    return {
        **_container(place, name=KEEP, image=image, command=command, env_values=settings),
        "resources": {"requests": {"cpu": "10m", "memory": KEEP_MEMORY}},
        "volumeMounts": [
            {"name": "store", "mountPath": paths.STORE_DIR},
            {"name": "work", "mountPath": jobs.WORK_DIR, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
        # As the fetcher: the store belongs to root.
        "securityContext": {"runAsUser": 0, "runAsNonRoot": False, **_confined()},
    }


def _container(place: TrainPlace, *, name: str, image: str, command: list[str], env_values: Body) -> Body:
    values = {"HOME": "/tmp", **env_values}
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": place.config.runtime_pull_policy,
        "command": command,
        "env": [{"name": key, "value": value} for key, value in values.items()],
        "terminationMessagePath": paths.TERMINATION_LOG,
        # What a program prints as it dies may quote an example: only what it chooses to report is read.
        "terminationMessagePolicy": "File",
    }


def _confined() -> Body:
    return {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
