# SPDX-License-Identifier: Apache-2.0
"""A fleet in memory: a World that was told of nodes, pods, revisions and deployments, with no API behind."""

from typing import Any, Final

from slmops.adapters.resources import PODS
from slmops.api import API_VERSION, KIND
from slmops.model.config import OperatorConfig
from slmops.model.observed import OwnedKind
from slmops.page.feed import Feed
from slmops.page.source import WorldSource
from slmops.planning import times
from slmops.planning.names import Names
from slmops.planning.revision import SCHEMA
from slmops.runtime.resource import DeploymentKey
from slmops.runtime.world import World
from slmwire.labels import DEPLOYMENT, REVISION, ROLE, VARIANT
from tests.unit.runtime.fakes import FakeKube

Body = dict[str, Any]
SITE: Final = "topology.kubernetes.io/zone"
START: Final = 1_700_000_000.0
VARIANT_NAME: Final = "int4"
TEMPLATE: Final = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}


def at(seconds: float) -> str:
    """A time of this fleet, as text."""
    return times.to_text(START + seconds)


class KitFleet:
    """Tells a World what an API server would."""

    def __init__(self) -> None:
        self.feed = Feed()
        self.world = World(FakeKube(), namespaces=(), on_wake=lambda _: None, onlooker=self.feed)  # type: ignore[arg-type]
        self.leads = True
        self._version = 0
        for reflector in self.world.reflectors:
            reflector.synced.set()

    @property
    def source(self) -> WorldSource:
        """The page's view of it."""
        return WorldSource(
            self.world, self.feed, config=OperatorConfig(runtime_image="x"), leads=lambda: self.leads
        )

    def _next(self) -> str:
        self._version += 1
        return str(self._version)

    def node(
        self, name: str, *, site: str = "", ready: bool = True, memory: str = "8Gi", **labels: str
    ) -> None:
        """A node; labels of deployments are given by `give`."""
        tags = {"edge": "true", **({SITE: site} if site else {}), **labels}
        known = self.world.node(name)
        if known is not None:
            tags = {**known.labels, **tags}
        self.world.take_in_node(
            {
                "metadata": {"name": name, "resourceVersion": self._next(), "labels": tags},
                "status": {
                    "conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}],
                    "allocatable": {"memory": memory},
                },
            }
        )

    def give(self, key: DeploymentKey, node: str, revision: str) -> None:
        """The node's label for a revision."""
        view = self.world.node(node)
        assert view is not None
        label = Names(*key).serve_label(revision)
        self.node(node, ready=view.ready, **{label: VARIANT_NAME})

    def pod(
        self,
        key: DeploymentKey,
        node: str,
        revision: str,
        *,
        ready: bool = True,
        waiting: str = "",
        message: str = "",
        created: float = 0,
    ) -> None:
        """A serving pod, and the label that asks for it."""
        self.give(key, node, revision)
        container: Body = {"restartCount": 0, "state": {}}
        if waiting:
            container = {"restartCount": 5, "state": {"waiting": {"reason": waiting}}}
        if message:
            container["lastState"] = {"terminated": {"exitCode": 1, "reason": "Error", "message": message}}
        body = {
            "metadata": {
                "name": f"{key.name}-{revision}-{node}",
                "namespace": key.namespace,
                "resourceVersion": self._next(),
                "creationTimestamp": at(created),
                "labels": {DEPLOYMENT: key.name, REVISION: revision, VARIANT: VARIANT_NAME, ROLE: "serve"},
            },
            "spec": {"nodeName": node},
            "status": {
                "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
                "containerStatuses": [container],
            },
        }
        next(r for r in self.world.reflectors if r.resource is PODS).put(body)

    def revision(self, key: DeploymentKey, name: str, *, memory: str = "64Mi") -> None:
        """A ControllerRevision of one variant."""
        entry = {
            "name": VARIANT_NAME,
            "nodeSelector": {},
            "memory": memory,
            "manifest": {
                "version": 1,
                "files": [
                    {"path": "m.onnx", "size": 1, "sha256": "0" * 64, "url": "https://models.example/m.onnx"}
                ],
            },
            "sourceHash": "h",
            "reference": "r",
            "serve": TEMPLATE,
            "prefetch": TEMPLATE,
        }
        self.world.take_in_owned(
            OwnedKind.CONTROLLER_REVISION,
            {
                "metadata": {
                    "name": f"{key.name}-{name}",
                    "namespace": key.namespace,
                    "uid": f"uid-{key.name}-{name}",
                    "resourceVersion": self._next(),
                    "labels": {DEPLOYMENT: key.name, REVISION: name},
                    "ownerReferences": [{"uid": f"uid-{key.name}"}],
                },
                "revision": 1,
                "data": {"schema": SCHEMA, "modelVersion": "v1", "variants": [entry]},
            },
        )

    def deployment(
        self, key: DeploymentKey, status: Body, *, spec: Body | None = None, uid: str = ""
    ) -> None:
        """An SLMDeployment."""
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": key.name,
                "namespace": key.namespace,
                "uid": uid or f"uid-{key.name}",
                "generation": 1,
                "resourceVersion": self._next(),
                "finalizers": ["slmops.dev/cleanup"],
            },
            "spec": {
                "model": {"name": "orders", "version": "v2"},
                "variants": [
                    {"name": VARIANT_NAME, "source": {"http": {"url": "https://models.example/m.json"}}}
                ],
                "placement": {"nodeSelector": {"matchLabels": {"edge": "true"}}},
                "rollout": {
                    "waves": [{"name": "pilot", "count": 1}, {"name": "all", "percent": 100}],
                    "analysis": {"metrics": METRICS},
                },
            }
            | (spec or {}),
            "status": status,
        }
        assert self.world.take_in_deployment(body)


METRICS: Final[list[Body]] = [
    {"name": "errors", "preset": "ErrorRate", "max": "0.05", "maxDegradation": "0.02"},
    {"name": "latency", "preset": "LatencyP95", "maxDegradation": "20%"},
    {"name": "quality", "preset": "EvaluationScore", "min": "0.8", "maxDegradation": "0.03"},
]


def condition(kind: str, status: str, reason: str, message: str = "") -> Body:
    """A condition."""
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": at(0),
        "observedGeneration": 1,
    }


def measurement(metric: str, seconds: float, canary: str | None, stable: str | None, **more: Any) -> Body:
    """A measurement of the pilot wave."""
    return {
        "metric": metric,
        "wave": "pilot",
        "at": at(seconds),
        "verdict": "Pass",
        "variant": VARIANT_NAME,
        **({"canary": canary} if canary is not None else {}),
        **({"stable": stable} if stable is not None else {}),
    } | more


def rolling_status(**rollout: Any) -> Body:
    """A rollout from `one` to `two` in its first wave."""
    return {
        "observedGeneration": 1,
        "stableRevision": "one",
        "updateRevision": "two",
        "nodes": {"total": 3, "ready": 3},
        "conditions": [
            condition("Accepted", "True", "Accepted"),
            condition("Progressing", "True", "Analysing", "wave pilot is being measured"),
            condition("Ready", "True", "AllNodesReady", "3 of 3 nodes serve"),
            condition("RolloutSucceeded", "Unknown", "InProgress"),
        ],
        "rollout": {
            "revision": "two",
            "step": "Analysing",
            "stepStartedAt": at(10),
            "wave": 0,
            "waveStartedAt": at(5),
            "startedAt": at(0),
            "waves": [
                {
                    "name": "pilot",
                    "nodes": 1,
                    "updated": 1,
                    "ready": 1,
                    "verdict": "Pending",
                    "startedAt": at(5),
                },
                {"name": "all", "nodes": 2, "verdict": "Pending"},
            ],
            "measurements": [measurement("errors", 20, "0.01", "0.02")],
        }
        | rollout,
    }


def settled_status() -> Body:
    """Everything serves revision `one`."""
    return {
        "observedGeneration": 1,
        "stableRevision": "one",
        "updateRevision": "one",
        "modelVersion": "v1",
        "nodes": {"total": 3, "ready": 3},
        "conditions": [
            condition("Accepted", "True", "Accepted"),
            condition("Progressing", "False", "Complete"),
            condition("Ready", "True", "AllNodesReady", "3 of 3 nodes serve"),
            condition("RolloutSucceeded", "True", "Promoted"),
        ],
    }
