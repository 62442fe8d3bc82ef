# SPDX-License-Identifier: Apache-2.0
"""Bodies as the API server sends them, for tests of the command line."""

from collections.abc import Iterable, Mapping
from typing import Any

from slmops.api import API_VERSION, KIND
from slmops.api.spec import SLMDeploymentSpec
from slmops.model.observed import Resolved
from slmops.planning.revision import build_revision_data
from slmops.planning.times import to_text
from slmwire import labels
from slmwire.manifest import Manifest, ManifestFile

Body = dict[str, Any]
NOW = 1_772_366_400.0  # 2026-03-01T12:00:00Z
STABLE, UPDATE = "7c1f0e93ab", "e07b52d1c4"
EVIL = "\x1b[2J\x1b]0;owned\x07\u202egnp.exe\x9b31m\r\nnext"


def ago(seconds: float) -> str:
    """RFC 3339 time so many seconds before NOW."""
    return to_text(NOW - seconds)


def build_spec(version: str = "v2", **rollout: Any) -> Body:
    """Three waves, two metrics."""
    return {
        "model": {"name": "orders", "version": version},
        "variants": [
            {
                "name": "int4",
                "source": {"http": {"url": f"https://models.example/{version}/m.json"}},
                "resources": {"requests": {"memory": "256Mi"}},
            }
        ],
        "placement": {"nodeSelector": {"matchLabels": {"edge": "true"}}, "siteLabel": "site"},
        "rollout": {
            "waves": [
                {"name": "pilot", "nodeSelector": {"matchLabels": {"ring": "pilot"}}},
                {"name": "half", "percent": 50, "approval": "Manual"},
                {"name": "all", "percent": 100},
            ],
            "soak": "60s",
            "progressDeadline": "30m",
            "analysis": {
                "passes": 2,
                "metrics": [
                    {"name": "quality", "preset": "EvaluationScore", "maxDegradation": "0.03"},
                    {"name": "errors", "preset": "ErrorRate", "max": "0.05"},
                ],
            },
        }
        | rollout,
    }


def condition(kind: str, status: str, reason: str, message: str = "") -> Body:
    """A condition of two minutes ago."""
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": ago(120),
        "observedGeneration": 2,
    }


def conditions(
    progressing: tuple[str, str, str], succeeded: tuple[str, str] = ("Unknown", "InProgress")
) -> list[Body]:
    """All five; `progressing` is (status, reason, message), `succeeded` (status, reason)."""
    return [
        condition("Accepted", "True", "Accepted", "the spec makes sense"),
        condition("ModelResolved", "True", "Resolved", "1 variant(s)"),
        condition("Progressing", *progressing),
        condition("Ready", "True", "AllNodesReady", "4 of 4 node(s) serve"),
        condition("RolloutSucceeded", *succeeded, f"revision {UPDATE} is being rolled out"),
    ]


def build_rollout(step: str = "Soaking", *, wave: int = 0, **more: Any) -> Body:
    """A rollout at one of the three waves."""
    waves: list[Body] = [
        {"name": "pilot", "nodes": 1, "updated": 1, "ready": 1, "verdict": "Pending", "startedAt": ago(300)},
        {"name": "half", "nodes": 0, "verdict": ""},
        {"name": "all", "nodes": 0, "verdict": ""},
    ]
    for passed in waves[:wave]:
        passed |= {"verdict": "Pass", "finishedAt": ago(100)}
    return {
        "revision": UPDATE,
        "step": step,
        "stepStartedAt": ago(20),
        "waveStartedAt": ago(60),
        "startedAt": ago(300),
        "wave": wave,
        "waves": waves,
        "metrics": [
            {"name": "quality", "verdict": "Pass", "consecutivePasses": 1, "measuredAt": ago(5)},
            {"name": "errors", "verdict": "NoData", "consecutiveNoData": 3, "measuredAt": ago(5)},
        ],
        "measurements": [
            {
                "metric": "quality",
                "wave": "pilot",
                "at": ago(5),
                "verdict": "Pass",
                "canary": "0.9812345678",
                "stable": "0.98",
                "canarySamples": 40,
                "stableSamples": 120,
                "message": "within bounds",
            },
            {
                "metric": "errors",
                "wave": "pilot",
                "at": ago(5),
                "verdict": "NoData",
                "canarySamples": 0,
                "stableSamples": 700,
                "pValue": "0.4312",
                "message": "no requests in the window",
            },
        ],
    } | more


def build_status(rollout: Body | None = None, **more: Any) -> Body:
    """Status with a rollout in progress."""
    return {
        "observedGeneration": 2,
        "stableRevision": STABLE,
        "updateRevision": UPDATE,
        "modelVersion": "v1",
        "readyNodes": "4/4",
        "canary": f"{UPDATE} Soaking 1/3",
        "nodes": {"total": 4, "ready": 4, "stable": 3, "updated": 1, "offline": 0, "failed": 0, "unfit": 0},
        "rollout": build_rollout() if rollout is None else rollout,
        "conditions": conditions(("True", "Soaking", "soaking")),
    } | more


def build_body(
    status: Body | None = None,
    *,
    name: str = "orders",
    spec: Body | None = None,
    annotations: Mapping[str, str] | None = None,
    generation: int = 2,
    version: int = 1,
    **metadata: Any,
) -> Body:
    """An SLMDeployment; without `status` the operator has not looked at it yet."""
    body: Body = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": "uid-1",
            "generation": generation,
            "resourceVersion": str(version),
            "creationTimestamp": ago(7200),
            "annotations": dict(annotations or {}),
        }
        | metadata,
        "spec": build_spec() if spec is None else spec,
    }
    return body if status is None else body | {"status": status}


def build_revision(number: int, revision: str, version: str, *, uid: str = "uid-1") -> Body:
    """A ControllerRevision as the operator writes it, with a template that names the revision."""
    spec = SLMDeploymentSpec.model_validate(build_spec(version))
    manifest = Manifest(files=(ManifestFile(path="model.onnx", size=10 * number, sha256=f"{number:064x}"),))
    variables = {"SLM_REVISION": revision, "SLM_MODEL_VERSION": version}
    template = {
        "metadata": {"labels": {labels.DEPLOYMENT: "orders", labels.REVISION: revision}},
        "spec": {
            "containers": [
                {"name": "server", "env": [{"name": key, "value": value} for key, value in variables.items()]}
            ],
            "volumes": [{"name": "manifest", "configMap": {"name": f"orders-{revision}-int4"}}],
        },
    }
    return {
        "metadata": {
            "name": f"orders-{revision}",
            "labels": {labels.DEPLOYMENT: "orders", labels.REVISION: revision},
            "ownerReferences": [{"uid": uid}],
            "creationTimestamp": ago(86400 // number),
        },
        "revision": number,
        "data": build_revision_data(
            spec,
            resolved={"int4": Resolved(manifest=manifest, reference=version)},
            templates={"int4": (template, template)},
        ),
    }


def build_node(
    name: str,
    given: Mapping[str, str] | None = None,
    *,
    site: str = "berlin",
    ready: bool = True,
    edge: str = "true",
) -> Body:
    """A node; `given` maps the tails of our labels (`REVISION`, `REVISION.prefetch`) to variants."""
    ours = {f"orders.shop.slmops.dev/{tail}": variant for tail, variant in (given or {}).items()}
    return {
        "metadata": {"name": name, "labels": {"edge": edge, "site": site} | ours},
        "status": {
            "conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}],
            "allocatable": {"memory": "4Gi"},
        },
    }


def build_pod(
    node: str, revision: str, *, ready: bool = True, role: str = "serve", waiting: str = ""
) -> Body:
    """A pod of ours on a node."""
    state: Body = {"waiting": {"reason": waiting}} if waiting else {"running": {}}
    return {
        "metadata": {
            "name": f"orders-{revision}-{node}"[:60],
            "namespace": "shop",
            "labels": {
                labels.DEPLOYMENT: "orders",
                labels.REVISION: revision,
                labels.VARIANT: "int4",
                labels.ROLE: role,
            },
            "creationTimestamp": ago(500),
        },
        "spec": {"nodeName": node},
        "status": {
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"name": "server", "restartCount": 3 if waiting else 0, "state": state}],
        },
    }


def build_event(reason: str, note: str, *, seconds_ago: float, kind: str = "Normal") -> Body:
    """A core Event that was posted through events.k8s.io."""
    return {
        "metadata": {"name": reason.lower(), "creationTimestamp": ago(seconds_ago)},
        "eventTime": ago(seconds_ago).replace("Z", ".123456Z"),
        "lastTimestamp": None,
        "type": kind,
        "reason": reason,
        "message": note,
    }


def widest(lines: Iterable[Any]) -> int:
    """Columns of the widest line."""
    return max(int(line.cell_len) for line in lines)
