# SPDX-License-Identifier: Apache-2.0
"""Builds the Jobs of an SLMModel; owner references are added later.

What a pod is told stands in annotations of its template and is mounted by the downward API, so that a Job is
one object: there is no moment at which half of it exists.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

from slmops.api import SLMModelSpec
from slmops.api.base import duration_seconds
from slmops.api.slmmodel import Recipe
from slmops.api.source import Source
from slmops.api.variant import AUTO
from slmops.model.config import OperatorConfig
from slmops.model.jobs import Work
from slmops.model.observed import Resolved
from slmops.model.slmmodel import ModelObject, ProfileView
from slmops.model.source_secret import secret_of
from slmops.planning.scheduling import HOSTNAME, require_nodes, selector_requirements
from slmops.planning.slmmodel.sources import publish_access, publish_body, publish_target
from slmops.planning.source_pods import file_root, source_env, source_mounts, source_volumes
from slmwire import env, jobs, labels, paths

USER: Final = 65532
FETCH_MEMORY: Final = "64Mi"
MAX_TOLD_BYTES: Final = 200_000
"""Kubernetes takes at most 256 KiB of annotations on a pod."""
STORE: Final = f"{jobs.WORK_DIR}/store"
_TOLD_DIR: Final = jobs.JOB_FILE.rpartition("/")[0]
_FETCH_SHARE: Final = 0.2
"""Of a measurement's deadline, for what comes before and after: the image, the files, a scorer."""
_ANNOTATION: Final = f"{labels.DOMAIN}/told-"
Body = dict[str, Any]


class TooLarge(ValueError):
    """The lists of files do not fit into a pod's annotations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlace:
    """A Job's name and what it belongs to."""

    model: ModelObject
    spec: SLMModelSpec
    config: OperatorConfig
    recipe: Recipe
    name: str
    version: str


def build_optimise_job(place: JobPlace, *, source: Source, resolved: Resolved) -> Body:
    """Job that makes one variant: fetch, an init container for each step, publish."""
    spec, recipe = place.spec, place.recipe
    assert spec.publish is not None
    target = publish_target(spec.publish, version=place.version, variant=recipe.name)
    told = {
        "manifest.json": resolved.manifest.to_json(),
        "job.json": json.dumps(
            {
                "steps": [step.to_body() for step in recipe.steps],
                "publish": publish_body(target),
                "sign": spec.signing is not None,
            },
            separators=(",", ":"),
        ),
    }
    tree = f"{STORE}/{paths.tree_subpath(resolved.manifest.digest)}"
    # Copies of a model are made on the volume that was asked for, not on the node's disk.
    env_values = {jobs.SOURCE_TREE_ENV: tree, "TMPDIR": jobs.WORK_DIR}
    image = recipe.image or spec.jobs.optimizer_image or place.config.optimizer_image
    steps = [
        _container(
            place,
            name=f"step-{index}",
            image=image,
            command=["python3", "-m", "slmopt", "step", "--index", str(index), "--job", jobs.JOB_FILE],
            env_values=env_values,
        )
        for index in range(len(recipe.steps))
    ]
    publish = _container(
        place,
        name="publish",
        image=image,
        command=["python3", "-m", "slmopt", "publish", "--job", jobs.JOB_FILE],
        env_values=env_values,
    )
    volumes: list[Body] = []
    access = secret_of(publish_access(spec.publish))
    if access is not None:
        # Optional, because one of the keys may be (a session token): the publisher says which it misses.
        items = [{"key": key, "path": path} for key, path in access.items.items()]
        secret = {"secretName": access.name, "items": items, "optional": True}
        volumes.append({"name": "publish", "secret": secret})
        publish["volumeMounts"].append(
            {"name": "publish", "mountPath": jobs.PUBLISH_SECRET_DIR, "readOnly": True}
        )
    if spec.publish.pvc is not None:
        claim = {"claimName": spec.publish.pvc.claim_name}
        volumes.append({"name": "target", "persistentVolumeClaim": claim})
        publish["volumeMounts"].append({"name": "target", "mountPath": jobs.PUBLISH_VOLUME_DIR})
    if spec.signing is not None:
        key = spec.signing.key_secret_ref
        items = [{"key": key.key, "path": jobs.SIGNING_KEY_FILE.rpartition("/")[2]}]
        volumes.append({"name": "signing", "secret": {"secretName": key.name, "items": items}})
        folder = jobs.SIGNING_KEY_FILE.rpartition("/")[0]
        publish["volumeMounts"].append({"name": "signing", "mountPath": folder, "readOnly": True})
    pod = _pod(
        place,
        told,
        init_containers=[_fetch(place, source=source, manifest="manifest.json", kind="source"), *steps],
        container=publish,
        volumes=[*source_volumes(source), *volumes],
    )
    pod["spec"] = require_nodes(pod["spec"], selector_requirements(spec.jobs.node_selector))
    return _job(place, "optimise", pod, deadline=spec.jobs.deadline)


def build_evaluate_job(
    place: JobPlace,
    *,
    source: Source,
    resolved: Resolved,
    dataset: tuple[Source, Resolved] | None,
    profile: str,
    view: ProfileView | None,
) -> Body:
    """Job that measures one variant on a node of `view`, or of jobs.nodeSelector without one."""
    spec = place.spec
    assert spec.evaluation is not None
    engine = _engine(place.recipe, view)
    told = {"manifest.json": resolved.manifest.to_json()}
    volumes = source_volumes(source)
    init = [_fetch(place, source=source, manifest="manifest.json", kind="source")]
    mounts = [_tree(resolved, paths.MODEL_DIR)]
    folder = paths.MODEL_DIR if dataset is None else jobs.DATASET_DIR
    command = ["python3", "-m", "slmserve.evaluate", "--model-dir", paths.MODEL_DIR, "--dataset", folder]
    command += ["--deadline-seconds", str(_measuring_seconds(spec.evaluation.deadline))]
    if dataset is not None:
        told["dataset.json"] = dataset[1].manifest.to_json()
        volumes += _renamed(source_volumes(dataset[0]), "dataset")
        init.append(_fetch(place, source=dataset[0], manifest="dataset.json", kind="dataset"))
        mounts.append(_tree(dataset[1], jobs.DATASET_DIR))
    evaluate = _container(
        place,
        name="evaluate",
        image=_runtime_image(place, view, engine),
        command=command,
        env_values={
            env.ENGINE: engine,
            env.MODEL_DIR: paths.MODEL_DIR,
            env.MODEL: place.model.name,
            env.MODEL_VERSION: place.version,
            env.MODEL_DIGEST: resolved.manifest.digest,
            # The digest is checked against it; what is published to a registry brings none of its own.
            env.MANIFEST_FILE: f"{_TOLD_DIR}/manifest.json",
        },
    )
    evaluate["volumeMounts"] += mounts
    container = evaluate
    scorer = spec.evaluation.scorer
    if scorer is not None:
        init.append(evaluate)
        container = _container(
            place, name="score", image=scorer.image, command=list(scorer.command), env_values={}
        ) | ({"args": list(scorer.args)} if scorer.args else {})
        container["volumeMounts"] += mounts[1:]
    pod = _pod(place, told, init_containers=init, container=container, volumes=volumes)
    selector = view.node_selector if view is not None else spec.jobs.node_selector
    pod["spec"] = _alone(require_nodes(pod["spec"], selector_requirements(selector)))
    job = _job(place, "evaluate", pod, deadline=spec.evaluation.deadline)
    if profile:
        job["metadata"]["labels"][labels.PROFILE] = profile
    return job


def _measuring_seconds(deadline: str) -> int:
    """What the measurement is told of a Job's deadline: it has to cut itself short before it is killed."""
    return max(1, int(duration_seconds(deadline) * (1 - _FETCH_SHARE)))


def _engine(recipe: Recipe, view: ProfileView | None) -> str:
    """The engine that the class would serve it with; empty: what suits its files."""
    of_class = view.engine if view is not None and view.engine != AUTO else ""
    return recipe.engine or of_class


def _runtime_image(place: JobPlace, view: ProfileView | None, engine: str) -> str:
    """Image that has the engine."""
    recipe = place.recipe
    named = recipe.runtime_image or place.spec.jobs.runtime_image
    if not named and view is not None and engine and view.engine == engine:
        named = view.engine_image
    return named or place.config.engine_images.get(engine, place.config.runtime_image)


def _job(place: JobPlace, work: Work, pod: Body, *, deadline: str) -> Body:
    tags = {
        labels.MANAGED_BY: labels.MANAGED_BY_VALUE,
        labels.MODEL: place.model.name,
        labels.WORK: work,
        labels.VERSION: place.version,
        labels.VARIANT: place.recipe.name,
    }
    pod["metadata"]["labels"] = dict(tags)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": place.name, "namespace": place.model.namespace, "labels": tags},
        "spec": {
            # Whether another attempt makes sense depends on the reason, and is decided by the planner.
            "backoffLimit": 0,
            "activeDeadlineSeconds": max(1, int(duration_seconds(deadline))),
            "template": pod,
        },
    }


def _pod(
    place: JobPlace, told: Body, *, init_containers: list[Body], container: Body, volumes: list[Body]
) -> Body:
    if sum(len(text) for text in told.values()) > MAX_TOLD_BYTES:
        raise TooLarge(
            f"the list of files has more than {MAX_TOLD_BYTES} bytes; take fewer files (source.hf.files or "
            "source.oci.files)"
        )
    wanted = place.spec.jobs
    work: Body = {"emptyDir": {}}
    if wanted.storage is not None:
        claim: Body = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": wanted.storage.size}},
        }
        if wanted.storage.storage_class_name is not None:
            claim["storageClassName"] = wanted.storage.storage_class_name
        work = {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
    files = [
        {"path": name, "fieldRef": {"fieldPath": f"metadata.annotations['{_ANNOTATION}{name}']"}}
        for name in told
    ]
    spec: Body = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": init_containers,
        "containers": [container],
        "volumes": [
            {"name": "work", **work},
            {"name": "tmp", "emptyDir": {}},
            {"name": "told", "downwardAPI": {"items": files}},
            *volumes,
        ],
    }
    if wanted.tolerations:
        spec["tolerations"] = [toleration.to_body() for toleration in wanted.tolerations]
    if wanted.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in wanted.image_pull_secrets]
    annotations = {f"{_ANNOTATION}{name}": text for name, text in told.items()}
    return {"metadata": {"annotations": annotations}, "spec": spec}


def _alone(pod_spec: Body) -> Body:
    """One measurement on a node at a time, whoever's it is: two would measure each other."""
    term = {
        "topologyKey": HOSTNAME,
        "labelSelector": {
            "matchLabels": {labels.MANAGED_BY: labels.MANAGED_BY_VALUE, labels.WORK: "evaluate"}
        },
        "namespaceSelector": {},
    }
    anti = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    return {**pod_spec, "affinity": {**pod_spec.get("affinity", {}), **anti}}


def _tree(resolved: Resolved, path: str) -> Body:
    subpath = f"store/{paths.tree_subpath(resolved.manifest.digest)}"
    return {"name": "work", "mountPath": path, "subPath": subpath, "readOnly": True}


def _container(place: JobPlace, *, name: str, image: str, command: list[str], env_values: Body) -> Body:
    amounts = place.spec.jobs.resources
    limits = amounts.limits.to_body()
    values = {"HOME": "/tmp", **env_values}
    body: Body = {
        "name": name,
        "image": image,
        "imagePullPolicy": place.config.runtime_pull_policy,
        "env": [{"name": key, "value": value} for key, value in values.items() if value],
        "resources": {"requests": amounts.requests.to_body()} | ({"limits": limits} if limits else {}),
        "volumeMounts": [
            {"name": "work", "mountPath": jobs.WORK_DIR},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "told", "mountPath": _TOLD_DIR, "readOnly": True},
        ],
        "securityContext": {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": paths.TERMINATION_LOG,
        # What a program says as it dies stands in its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    return body | ({"command": command} if command else {})


def _fetch(place: JobPlace, *, source: Source, manifest: str, kind: str) -> Body:
    """Init container that brings a source's files into the store on the work volume."""
    body = _container(
        place,
        name="fetch" if kind == "source" else "fetch-dataset",
        image=place.spec.jobs.runtime_image or place.config.runtime_image,
        command=["python3", "-m", "slmfetch"],
        env_values={
            env.NAMESPACE: place.model.namespace,
            # The store is this pod's alone. Each has an owner of its own in it, whatever the model is called,
            # so that neither is collected for the other.
            env.DEPLOYMENT: kind,
            env.REVISION: kind,
            env.STORE_DIR: STORE,
            env.MANIFEST_FILE: f"{_TOLD_DIR}/{manifest}",
            env.SOURCE_TOKEN_FILE: paths.SOURCE_TOKEN_FILE,
        },
    )
    body["env"] += source_env(source)
    body["args"] = ["fetch", *file_root(source)]
    body["resources"] = {"requests": {"cpu": "10m", "memory": FETCH_MEMORY}}
    mounts = source_mounts(source)
    body["volumeMounts"] += mounts if kind == "source" else _renamed(mounts, kind)
    return body


def _renamed(entries: list[Body], kind: str) -> list[Body]:
    """Volumes or mounts of a second source beside those of the first."""
    return [{**entry, "name": entry["name"].replace("source-", f"{kind}-", 1)} for entry in entries]
