# SPDX-License-Identifier: Apache-2.0
"""A virtual cluster in virtual time: nodes, DaemonSet controller, scheduler, kubelets.

Deterministic and without threads: time moves only when `Cluster.settle` is called with a later `now`.
It models what the planner depends on: pods follow node labels through DaemonSets, take memory by
request, start after a while, fetch a model that the node does not hold, crash, and stay on the API
server as they were while their node is offline.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slmops.api.base import quantity_value
from slmops.model.observed import NodeView, OwnedKind, OwnedView, PodView, RevisionView
from slmops.planning.distribution import content_of
from slmops.planning.network import digest_of
from slmwire.labels import REVISION, ROLE, VARIANT, Role
from slmwire.reasons import Reason, Termination

CONTROLLER_SECONDS = 0.2
"""How long the DaemonSet controller takes to follow a label."""
GRACE_SECONDS = 1.0
CRASH_SECONDS = 3.0
MOUNT_SECONDS = 20.0
"""How often a kubelet tries again to mount what is missing."""


@dataclass(kw_only=True)
class Behaviour:
    """How one model version behaves on the nodes."""

    start_seconds: float = 2.0
    crashes: bool = False
    crashes_on: frozenset[str] = frozenset()
    oom: bool = False
    fetch_error: Reason | None = None
    score: float | None = 0.99
    """Evaluation score; None for no data, NaN for 0/0."""
    judged: float | None = 0.9
    """Mean judgement of users; None for no data."""
    error_rate: float | None = 0.0
    error_rates: Mapping[str, float] = field(default_factory=dict)
    """By variant, where it differs."""
    p95_seconds: float = 1.0
    samples: int = 1000
    """Behind each value, per variant."""
    restarts_later: int = 0
    """Restarts of each serving pod after it got ready."""


@dataclass(kw_only=True)
class SimNode:
    """A node with its kubelet."""

    name: str
    labels: dict[str, str]
    online: bool = True
    ready_since: float = 0.0
    silent: bool = False
    """It has just come back: Ready itself, but its pods are still shown as they were while it was away."""
    memory_bytes: int = 0
    others_bytes: int = 0
    """Requested by pods that are not ours; the planner cannot see it."""
    fetch_seconds: float = 5.0
    cache: set[str] = field(default_factory=set)
    deleting: bool = False
    address: str = ""
    """Empty: some text that is no address."""

    def view(self) -> NodeView:
        return NodeView(
            name=self.name,
            labels=dict(self.labels),
            ready=self.online,
            ready_since=self.ready_since,
            allocatable_memory_bytes=self.memory_bytes,
            deleting=self.deleting,
            address=self.address or f"address-of-{self.name}",
        )


@dataclass(kw_only=True)
class SimPod:
    """A pod of a DaemonSet on a node."""

    workload: str
    node: str
    revision: str
    variant: str
    role: Role
    memory_bytes: int
    digest: str
    version: str
    created_at: float
    secrets: frozenset[str] = frozenset()
    """Secrets without which the kubelet begins no container."""
    scheduled: bool = False
    phase_at: float = 0.0
    """When the present phase ends."""
    phase: str = "Pending"
    """Pending, Mounting, Fetching, Starting, Ready or Broken."""
    restarts: int = 0
    reason: str = ""
    termination: Termination | None = None
    gone_at: float | None = None

    def view(self, *, online: bool) -> PodView:
        return PodView(
            name=f"{self.workload}-{self.node}",
            node=self.node,
            revision=self.revision,
            variant=self.variant,
            role=self.role,
            ready=self.phase == "Ready" and online,
            created_at=self.created_at,
            restarts=self.restarts,
            server_restarts=0 if self.termination else self.restarts,
            waiting_reason="CrashLoopBackOff" if self.phase == "Broken" and self.restarts >= 2 else "",
            last_exit_reason=self.reason,
            last_exit_code=1 if self.restarts else 0,
            termination=self.termination,
            unschedulable=not self.scheduled,
            unstarted=self.phase == "Mounting",
            deleting=self.gone_at is not None,
        )


class Cluster:
    """Objects as the API server stores them, and the controllers that act on them."""

    def __init__(self, behaviours: Mapping[str, Behaviour]) -> None:
        self.behaviours = dict(behaviours)
        self.nodes: dict[str, SimNode] = {}
        self.objects: dict[tuple[OwnedKind, str], dict[str, Any]] = {}
        self.pods: list[SimPod] = []
        self.missing_secrets: set[str] = set()
        self.pod_gone: list[tuple[str, str, float]] = []
        self.changed_labels_at = 0.0

    # Reads

    def behaviour(self, version: str) -> Behaviour:
        return self.behaviours.setdefault(version, Behaviour())

    def version_of(self, revision: str) -> str:
        """Model version of a stored revision, or of one whose pods still run."""
        for (kind, _), body in self.objects.items():
            if kind is OwnedKind.CONTROLLER_REVISION and body["metadata"]["labels"][REVISION] == revision:
                return str(body["data"]["modelVersion"])
        return next((pod.version for pod in self.pods if pod.revision == revision), "")

    def serving(self, node: str) -> bool:
        """A serving pod of what the node's labels ask for is ready."""
        return any(
            pod.node == node and pod.role is Role.SERVE and pod.phase == "Ready" and pod.gone_at is None
            for pod in self.pods
        )

    def serving_revisions(self, node: str) -> set[str]:
        return {
            pod.revision
            for pod in self.pods
            if pod.node == node and pod.role is Role.SERVE and pod.phase == "Ready" and pod.gone_at is None
        }

    def node_views(self) -> tuple[NodeView, ...]:
        return tuple(node.view() for node in self.nodes.values())

    def pod_views(self) -> tuple[PodView, ...]:
        return tuple(pod.view(online=self._reports(pod.node)) for pod in self.pods)

    def owned_views(self, drifted: set[tuple[OwnedKind, str]]) -> tuple[OwnedView, ...]:
        return tuple(
            OwnedView(
                kind=kind,
                name=name,
                drifted=(kind, name) in drifted,
                content=content_of(body),
                digest=digest_of(body),
            )
            for (kind, name), body in self.objects.items()
        )

    def revision_views(self) -> tuple[RevisionView, ...]:
        return tuple(
            RevisionView(
                revision=body["metadata"]["labels"][REVISION], number=body["revision"], data=body["data"]
            )
            for (kind, _), body in self.objects.items()
            if kind is OwnedKind.CONTROLLER_REVISION
        )

    def selectors(self) -> dict[str, tuple[str, str]]:
        """Label key and value that each DaemonSet selects nodes by."""
        return {
            name: _selector(body)
            for (kind, name), body in self.objects.items()
            if kind is OwnedKind.DAEMON_SET
        }

    def _online(self, name: str) -> bool:
        node = self.nodes.get(name)
        return node is not None and node.online

    def _reports(self, name: str) -> bool:
        return self._online(name) and not self.nodes[name].silent

    # Time

    def next_event(self, now: float) -> float | None:
        """When something happens by itself after `now`."""
        times = [pod.gone_at for pod in self.pods if pod.gone_at is not None and self._online(pod.node)]
        times += [
            pod.phase_at
            for pod in self.pods
            if pod.scheduled and pod.gone_at is None and pod.phase != "Ready" and self._online(pod.node)
        ]
        if self._wants_controller():
            times.append(self.changed_labels_at + CONTROLLER_SECONDS)
        return min((max(t, now + 0.001) for t in times), default=None)

    def settle(self, now: float) -> None:
        """Let controllers and kubelets do what is due by `now`."""
        if now >= self.changed_labels_at + CONTROLLER_SECONDS:
            self._run_controller(now)
        self.pods = [
            pod
            for pod in self.pods
            if pod.node in self.nodes
            and not (pod.gone_at is not None and pod.gone_at <= now and self._online(pod.node))
        ]
        for pod in self.pods:
            if pod.gone_at is None and self._online(pod.node):
                self._run_pod(pod, now)

    def _wants_controller(self) -> bool:
        wanted, present = self._wanted(), self._present()
        missing = {key for key in wanted if key not in present and self._online(key[1])}
        return bool(missing or (present - wanted))

    def _wanted(self) -> set[tuple[str, str]]:
        return {
            (workload, node.name)
            for workload, (key, value) in self.selectors().items()
            for node in self.nodes.values()
            if node.labels.get(key) == value
        }

    def _present(self) -> set[tuple[str, str]]:
        return {(pod.workload, pod.node) for pod in self.pods if pod.gone_at is None}

    def _run_controller(self, now: float) -> None:
        wanted, present = self._wanted(), self._present()
        for pod in self.pods:
            if pod.gone_at is None and (pod.workload, pod.node) not in wanted:
                pod.gone_at = now + GRACE_SECONDS
        for workload, node in sorted(wanted - present):
            # The DaemonSet controller makes no pod on a node that is tainted as not ready.
            if self._online(node):
                self.pods.append(self._new_pod(workload, node, now))

    def _new_pod(self, workload: str, node: str, now: float) -> SimPod:
        body = self.objects[OwnedKind.DAEMON_SET, workload]
        template = body["spec"]["template"]
        marks = template["metadata"]["labels"]
        revision = marks.get(REVISION, "")
        memory = template["spec"]["containers"][0]["resources"]["requests"].get("memory", "0")
        return SimPod(
            workload=workload,
            node=node,
            revision=revision,
            variant=marks.get(VARIANT, ""),
            role=Role(marks[ROLE]),
            memory_bytes=int(quantity_value(memory)),
            digest=f"{revision}/{marks.get(VARIANT, '')}",
            version=self.version_of(revision),
            created_at=now,
            secrets=frozenset(
                volume["secret"]["secretName"]
                for volume in template["spec"]["volumes"]
                if "secret" in volume and not volume["secret"].get("optional")
            ),
        )

    def _run_pod(self, pod: SimPod, now: float) -> None:
        node, behaviour = self.nodes[pod.node], self.behaviour(pod.version)
        if not pod.scheduled:
            used = sum(p.memory_bytes for p in self.pods if p.node == pod.node and p.scheduled)
            if node.memory_bytes and used + node.others_bytes + pod.memory_bytes > node.memory_bytes:
                return
            pod.scheduled = True
            pod.phase, pod.phase_at = "Mounting", now
        if pod.phase == "Mounting" and pod.phase_at <= now:
            if pod.secrets & self.missing_secrets:
                pod.phase_at = now + MOUNT_SECONDS
                return
            pod.phase = "Fetching"
            pod.phase_at = now + (0.1 if pod.digest in node.cache else node.fetch_seconds)
        while pod.phase in ("Fetching", "Starting", "Broken") and pod.phase_at <= now:
            self._next_phase(pod, node, behaviour)

    def _next_phase(self, pod: SimPod, node: SimNode, behaviour: Behaviour) -> None:
        if pod.phase == "Fetching" and pod.role is Role.RELEASE:
            node.cache.clear()
            pod.phase = "Ready"
        elif pod.phase == "Fetching" and (error := self._fetch_error(pod, node, behaviour)) is not None:
            pod.termination = Termination(reason=error, message="the source said no")
            pod.reason = "Error"  # the latest end counts, whatever the server died of before
            pod.restarts += 1
            pod.phase_at += max(CRASH_SECONDS, node.fetch_seconds) * 2 ** min(pod.restarts, 6)
        elif pod.phase == "Fetching":
            node.cache.add(pod.digest)
            pod.termination = None
            pod.phase, pod.phase_at = "Starting", pod.phase_at + behaviour.start_seconds
            if pod.role is Role.PREFETCH:
                pod.phase = "Ready"
        elif behaviour.crashes or behaviour.oom or pod.node in behaviour.crashes_on:
            pod.phase, pod.restarts = "Broken", pod.restarts + 1
            pod.reason = "OOMKilled" if behaviour.oom else "Error"
            pod.phase_at += CRASH_SECONDS * 2 ** min(pod.restarts, 6)
        else:
            pod.phase = "Ready"
            pod.restarts += behaviour.restarts_later if pod.role is Role.SERVE else 0

    def _fetch_error(self, pod: SimPod, node: SimNode, behaviour: Behaviour) -> Reason | None:
        """What the source says, or the network: NetworkPolicies are enforced here. None where the node holds
        the model."""
        if pod.digest in node.cache:
            return None
        roles = [
            set(body["spec"]["podSelector"]["matchExpressions"][0]["values"])
            for (kind, _), body in self.objects.items()
            if kind is OwnedKind.NETWORK_POLICY and body["spec"]["egress"]
        ]
        if roles and not any(pod.role.value in opened for opened in roles):
            return Reason.SOURCE_UNAVAILABLE
        return behaviour.fetch_error


def _selector(body: Mapping[str, Any]) -> tuple[str, str]:
    affinity = body["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    term = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0]
    (requirement,) = term["matchExpressions"]
    return requirement["key"], requirement["values"][0]
