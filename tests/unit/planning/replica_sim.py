# SPDX-License-Identifier: Apache-2.0
"""The virtual operator on a virtual cluster that runs Deployments, for `placement.mode: Replicas`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slmops.api import SLMDeploymentStatus
from slmops.api.base import quantity_value
from slmops.model.observed import OwnedKind, OwnedView, PodView
from slmops.model.plan import ApplyObject, DeleteObject, PatchNodeLabels
from slmops.planning.decision import ACTIVE
from slmops.planning.distribution import content_of
from slmops.planning.network import digest_of
from slmwire.labels import REVISION, ROLE, SITE, VARIANT, Role
from tests.unit.planning.fleet_cluster import CONTROLLER_SECONDS, GRACE_SECONDS, Behaviour, Cluster, SimPod
from tests.unit.planning.fleet_sim import FleetSim, Look
from tests.unit.planning.fleet_spec import GIB, merged, spec_body

STATUS_LIMIT_BYTES = 64 * 1024


@dataclass(kw_only=True)
class ReplicaPod(SimPod):
    """A pod of a Deployment; `node` is empty until there is room for it."""

    name: str
    site: str = ""

    def view(self, *, online: bool) -> PodView:
        return PodView(
            name=self.name,
            node=self.node,
            site=self.site,
            revision=self.revision,
            variant=self.variant,
            role=self.role,
            ready=self.phase == "Ready" and online,
            created_at=self.created_at,
            restarts=self.restarts,
            server_restarts=self.restarts,
            waiting_reason="CrashLoopBackOff" if self.phase == "Broken" and self.restarts >= 2 else "",
            last_exit_reason=self.reason,
            last_exit_code=1 if self.restarts else 0,
            unschedulable=not self.scheduled,
            deleting=self.gone_at is not None,
        )


class ReplicaCluster(Cluster):
    """Deployment controller and scheduler: pods follow replicas, those that are not ready go first."""

    def __init__(self, behaviours: Mapping[str, Behaviour]) -> None:
        super().__init__(behaviours)
        self.made = 0

    def owned_views(self, drifted: set[tuple[OwnedKind, str]]) -> tuple[OwnedView, ...]:
        return tuple(
            OwnedView(
                kind=kind,
                name=name,
                drifted=(kind, name) in drifted,
                replicas=body["spec"]["replicas"] if kind is OwnedKind.DEPLOYMENT else None,
                content=content_of(body),
                digest=digest_of(body),
            )
            for (kind, name), body in self.objects.items()
        )

    def replicas(self) -> dict[str, int]:
        """Replicas that each Deployment asks for."""
        return {
            name: body["spec"]["replicas"]
            for (kind, name), body in self.objects.items()
            if kind is OwnedKind.DEPLOYMENT
        }

    def alive(self, workload: str = "") -> list[SimPod]:
        return [p for p in self.pods if p.gone_at is None and workload in ("", p.workload)]

    def next_event(self, now: float) -> float | None:
        times = [pod.gone_at for pod in self.pods if pod.gone_at is not None]
        times += [p.phase_at for p in self.alive() if p.scheduled and p.phase != "Ready"]
        present = Counter(p.workload for p in self.alive())
        if {k: v for k, v in self.replicas().items() if v} != dict(present):
            times.append(self.changed_labels_at + CONTROLLER_SECONDS)
        return min((max(t, now + 0.001) for t in times), default=None)

    def settle(self, now: float) -> None:
        if now >= self.changed_labels_at + CONTROLLER_SECONDS:
            self._run_deployments(now)
        self.pods = [
            p for p in self.pods if p.node in ("", *self.nodes) and (p.gone_at is None or p.gone_at > now)
        ]
        for pod in self.alive():
            self._schedule(pod)
            if pod.node:
                self._run_pod(pod, now)

    def _run_deployments(self, now: float) -> None:
        wanted = self.replicas()
        for workload in sorted({p.workload for p in self.alive()} | set(wanted)):
            number = wanted.get(workload, 0)
            present = sorted(self.alive(workload), key=lambda p: (p.phase == "Ready", -p.created_at))
            for pod in present[: max(0, len(present) - number)]:
                pod.gone_at = now + GRACE_SECONDS
            for _ in range(number - len(present)):
                self.pods.append(self._new_replica(workload, now))

    def _new_replica(self, workload: str, now: float) -> ReplicaPod:
        template = self.objects[OwnedKind.DEPLOYMENT, workload]["spec"]["template"]
        marks = template["metadata"]["labels"]
        memory = template["spec"]["containers"][0]["resources"]["requests"].get("memory", "0")
        self.made += 1
        return ReplicaPod(
            name=f"{workload}-{self.made:04d}",
            workload=workload,
            node="",
            site=marks.get(SITE, ""),
            revision=marks[REVISION],
            variant=marks[VARIANT],
            role=Role(marks[ROLE]),
            memory_bytes=int(quantity_value(memory)),
            digest=f"{marks[REVISION]}/{marks[VARIANT]}",
            version=self.version_of(marks[REVISION]),
            created_at=now,
        )

    def _schedule(self, pod: SimPod) -> None:
        if pod.node or (OwnedKind.DEPLOYMENT, pod.workload) not in self.objects:
            return
        spec = self.objects[OwnedKind.DEPLOYMENT, pod.workload]["spec"]["template"]["spec"]
        required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        (term,) = required["nodeSelectorTerms"]
        for node in self.nodes.values():
            used = sum(p.memory_bytes for p in self.pods if p.node == node.name)
            fits = used + node.others_bytes + pod.memory_bytes <= node.memory_bytes
            if fits and all(node.labels.get(e["key"]) in e["values"] for e in term["matchExpressions"]):
                pod.node = node.name
                return


class ReplicaSim(FleetSim):
    """One SLMDeployment of mode Replicas."""

    cluster: ReplicaCluster

    def __init__(self, spec: Mapping[str, Any], *, behaviours: Mapping[str, Behaviour] | None = None) -> None:
        super().__init__(spec, behaviours=behaviours)
        self.cluster = ReplicaCluster(behaviours or {})

    def settled(self) -> bool:
        return self.step in ("Completed", "Failed", "Cancelled") and not any(
            isinstance(action, ApplyObject | DeleteObject) and action.kind is OwnedKind.DEPLOYMENT
            for action in self.looks[-1].plan.actions
        )

    def ready(self, site: str = "") -> Counter[str]:
        """Ready pods of each model version."""
        return Counter(
            p.version
            for p in self.cluster.alive()
            if p.phase == "Ready" and isinstance(p, ReplicaPod) and p.site == site
        )

    def has_site(self, site: str) -> bool:
        """A matching node belongs to it, or there is no node at all."""
        nodes = self.cluster.nodes.values()
        return not nodes or any(n.labels.get("slm") == "yes" and n.labels.get("site") == site for n in nodes)

    def asked(self) -> Counter[str]:
        """Replicas that the Deployments of each model version ask for."""
        result: Counter[str] = Counter()
        for name, number in self.cluster.replicas().items():
            marks = self.cluster.objects[OwnedKind.DEPLOYMENT, name]["metadata"]["labels"]
            result[self.cluster.version_of(marks[REVISION])] += number
        return result

    def scale_by_hand(self, workload: str, replicas: int) -> None:
        """Somebody (an HPA, say) scales one of our Deployments."""
        self.cluster.objects[OwnedKind.DEPLOYMENT, workload]["spec"]["replicas"] = replicas
        self.cluster.changed_labels_at = self.now
        self._memory.applied.discard((OwnedKind.DEPLOYMENT, workload))

    def scale(self, replicas: int) -> None:
        """`kubectl scale slmdeployment`."""
        self.edit(placement={"replicas": replicas})


class ReplicaWatch:
    """What must hold at every look."""

    def __call__(self, sim: FleetSim, look: Look) -> None:
        assert isinstance(sim, ReplicaSim)
        if sim.deleting_since is not None:
            return
        assert not any(isinstance(action, PatchNodeLabels) for action in look.plan.actions)
        status = look.plan.status
        body = status.to_body()
        assert SLMDeploymentStatus.model_validate(body) == status
        assert len(str(body)) < STATUS_LIMIT_BYTES
        self.check_order(sim, look)
        self.check_serving(sim, look)
        self.check_stable(sim, look)

    def check_order(self, sim: ReplicaSim, look: Look) -> None:
        """What adds pods is written before what takes some away: whoever is killed in between has more."""
        before = sim.cluster.replicas()
        less = [
            isinstance(action, DeleteObject) or action.body["spec"]["replicas"] < before.get(action.name, 0)
            for action in look.plan.actions
            if isinstance(action, ApplyObject | DeleteObject) and action.kind is OwnedKind.DEPLOYMENT
        ]
        assert less == sorted(less)

    def check_serving(self, sim: ReplicaSim, look: Look) -> None:
        """Make before break: no write takes a site below what is wanted, as far as it was ready."""
        if sim.spec.rollout.strategy == "Recreate":
            return
        before, after = _ready_by_site(sim), _ready_by_site(sim, look)
        # What more has just been asked for is not there yet.
        slots = Counter[str]()
        for entry in look.observed.deployment.status.replica_counts:
            slots[entry.site] += entry.replicas
        for site in before:
            if site and not sim.has_site(site):
                continue
            if slots[site] > sim.spec.placement.replicas or sim.kills:
                # Scaled down, or killed half-way through that: shares decide, also where the pod of one
                # was just evicted.
                continue
            have, left = sum(before[site].values()), sum(after[site].values())
            slack = 1 if any(entry.moving for entry in look.plan.status.replica_counts) else 0
            assert left >= min(have, slots[site], sim.spec.placement.replicas) - slack, (
                f"{before} {after}\n{sim.explain()}"
            )

    def check_stable(self, sim: ReplicaSim, look: Look) -> None:
        """While a revision is tried, no write takes the last ready pod of the stable one of any site."""
        rollout = look.plan.status.rollout
        if rollout is None or rollout.step not in ACTIVE | {"RollingBack"}:
            return
        if sim.spec.rollout.strategy == "Recreate" or sim.spec.placement.replicas == 0:
            return
        stable = look.plan.status.stable_revision
        before, after = _ready_by_site(sim), _ready_by_site(sim, look)
        # Of several sites one may have had its turn as a whole before the last wave.
        whole = rollout.wave == len(rollout.waves) - 1 or sim.spec.placement.replica_scope == "PerSite"
        stuck = whole and any(not p.scheduled for p in sim.cluster.alive())
        for site, ready in before.items():
            if site and not sim.has_site(site):
                continue
            if stuck and after[site][rollout.revision]:
                continue  # there is no room for both: the new revision's pods go first
            assert not ready[stable] or after[site][stable], f"{before} {after}\n{sim.explain()}"


def _ready_by_site(sim: ReplicaSim, look: Look | None = None) -> dict[str, Counter[str]]:
    """Ready pods of each revision by site; with a look, after what it writes."""
    limits: dict[str, int] = {}
    for action in look.plan.actions if look else ():
        if isinstance(action, ApplyObject) and action.kind is OwnedKind.DEPLOYMENT:
            limits[action.name] = action.body["spec"]["replicas"]
        elif isinstance(action, DeleteObject) and action.kind is OwnedKind.DEPLOYMENT:
            limits[action.name] = 0
    result: dict[str, Counter[str]] = {}
    wanted = sim.cluster.replicas()
    for workload in sorted({p.workload for p in sim.cluster.alive()}):
        pods = sim.cluster.alive(workload)
        first = pods[0]
        assert isinstance(first, ReplicaPod)
        ready = sum(1 for p in pods if p.phase == "Ready")
        number = min(ready, limits.get(workload, wanted.get(workload, 0)))
        result.setdefault(first.site, Counter())[first.revision] += number
    return result


def replica_spec(
    *, replicas: int = 4, placement: Mapping[str, Any] | None = None, **spec: Any
) -> dict[str, Any]:
    """A spec of so many replicas in all."""
    where = {"mode": "Replicas", "replicas": replicas, **(placement or {})}
    return merged(spec_body(**spec), {"placement": where})


def installed(
    replicas: int = 4, *, nodes: int = 3, behaviours: dict[str, Behaviour] | None = None, **spec: Any
) -> ReplicaSim:
    """A checked deployment whose replicas serve v1."""
    memory_bytes = spec.pop("memory_bytes", 8 * GIB)
    sim = ReplicaSim(replica_spec(replicas=replicas, **spec), behaviours=behaviours)
    sim.checks.append(ReplicaWatch())
    for index in range(nodes):
        sim.add_node(f"n{index}", memory_bytes=memory_bytes, labels={"site": f"s{index % 2}"})
    sim.settle()
    return sim
