# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of the operator itself."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from slmops.api import SLMDeploymentStatus, SLMModelStatus
from slmops.api.status import Measurement
from slmops.model.observed import Deployment
from slmops.model.plan import Transition
from slmops.model.slmmodel import ModelObject
from slmops.planning import times
from slmops.planning.transitions import HOLDS, hold_of

STEPS = (
    "Installing",
    "Prefetching",
    "Flipping",
    "Soaking",
    "Analysing",
    "RollingBack",
    "Completed",
    "Failed",
    "Cancelled",
)
_OBJECT = ("namespace", "deployment")


class OperatorMetrics:
    """All series of one operator; each instance has a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconcile_seconds = Histogram(
            "slmops_reconcile_duration_seconds",
            "One look at an SLMDeployment: observe, plan, write.",
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60),
            registry=self.registry,
        )
        self.plan_seconds = Histogram(
            "slmops_plan_duration_seconds",
            "Planning alone, without any I/O.",
            buckets=(0.0005, 0.002, 0.01, 0.05, 0.2, 1, 5),
            registry=self.registry,
        )
        self.event_to_write = Histogram(
            "slmops_event_to_write_seconds",
            "From the first event that woke a look to its first write, of looks that write.",
            buckets=(0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 20),
            registry=self.registry,
        )
        self.errors = Counter(
            "slmops_reconcile_errors_total",
            "Looks that could not be finished, by kind of error.",
            ("reason",),
            registry=self.registry,
        )
        self.writes = Counter(
            "slmops_writes_total", "Writes that succeeded.", ("kind", "verb"), registry=self.registry
        )
        self.requests = Counter(
            "slmops_kubernetes_requests_total",
            "Requests to the Kubernetes API; code 0 is no answer.",
            ("verb", "resource", "code"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "slmops_kubernetes_request_duration_seconds",
            "Requests to the Kubernetes API until the answer's headers.",
            ("verb",),
            buckets=(0.002, 0.01, 0.05, 0.2, 1, 5, 30),
            registry=self.registry,
        )
        self.workers = Gauge("slmops_deployments", "SLMDeployments looked after.", registry=self.registry)
        self.waiting = Gauge(
            "slmops_reconciles_waiting", "Looks that wait for a turn.", registry=self.registry
        )
        self.holds_lease = Gauge(
            "slmops_lease_held", "1 while this process is the one that writes.", registry=self.registry
        )
        self.transitions = Counter(
            "slmops_transitions_total",
            "State changes of SLMDeployments, by reason.",
            (*_OBJECT, "reason"),
            registry=self.registry,
        )
        self.verdicts = Counter(
            "slmops_measurements_total",
            "Judged measurements.",
            (*_OBJECT, "metric", "verdict"),
            registry=self.registry,
        )
        self.step = Gauge(
            "slmops_rollout_step",
            "1 for the step that the rollout is in.",
            (*_OBJECT, "step"),
            registry=self.registry,
        )
        self.held = Gauge(
            "slmops_rollout_held",
            "1 for the reason that a rollout under way waits with.",
            (*_OBJECT, "reason"),
            registry=self.registry,
        )
        self.feedback = Gauge(
            "slmops_feedback_rule_broken",
            "1 for a rule of spec.feedback that has been broken for long enough.",
            (*_OBJECT, "rule"),
            registry=self.registry,
        )
        self.wave_seconds = Histogram(
            "slmops_wave_duration_seconds",
            "From the begin of a wave to its verdict.",
            (*_OBJECT, "verdict"),
            buckets=(10, 60, 300, 900, 3600, 14400, 86400),
            registry=self.registry,
        )
        self.nodes = Gauge(
            "slmops_nodes", "Matching nodes by state.", (*_OBJECT, "state"), registry=self.registry
        )
        self.adapter_sites = Gauge(
            "slmops_adapter_sites",
            "Sites that adapt the model, by phase.",
            (*_OBJECT, "phase"),
            registry=self.registry,
        )
        self.adapter_trainings = Counter(
            "slmops_adapter_trainings_total",
            "Trainings of adapters that ended, by outcome: Accepted, or the reason that there is no adapter.",
            (*_OBJECT, "outcome"),
            registry=self.registry,
        )
        self.events_dropped = Counter(
            "slmops_events_dropped_total",
            "Events not posted because too many waited.",
            registry=self.registry,
        )

        self.model_versions = Gauge(
            "slmops_model_versions",
            "Versions of SLMModels by state: Accepted, or the reason that they are not.",
            ("namespace", "model", "state"),
            registry=self.registry,
        )
        self.model_jobs = Counter(
            "slmops_model_jobs_total",
            "Jobs of SLMModels that ended, by outcome: Succeeded, or the reason of the failure.",
            ("namespace", "model", "work", "outcome"),
            registry=self.registry,
        )

    def count_request(self, verb: str, resource: str, status: int, seconds: float) -> None:
        """Count one request to the Kubernetes API (a `RequestHook`)."""
        self.requests.labels(verb, resource, str(status)).inc()
        self.request_seconds.labels(verb).observe(seconds)

    def show_status(self, deployment: Deployment, new: SLMDeploymentStatus) -> None:
        """Bring the series of one deployment in line with its new status."""
        where = (deployment.namespace, deployment.name)
        step = new.rollout.step if new.rollout else ""
        for name in STEPS:
            self.step.labels(*where, name).set(1 if name == step else 0)
        for state, count in new.nodes.model_dump().items():
            self.nodes.labels(*where, state).set(count)
        hold = hold_of(new)
        for reason in HOLDS:
            if reason == hold:
                self.held.labels(*where, reason).set(1)
            else:
                self.held.remove_by_labels(
                    {"namespace": deployment.namespace, "deployment": deployment.name, "reason": reason}
                )
        self.feedback.remove_by_labels({"namespace": deployment.namespace, "deployment": deployment.name})
        for rule in new.feedback.rules if new.feedback else []:
            if rule.fired_at is not None:
                self.feedback.labels(*where, rule.name).set(1)
        self.adapter_sites.remove_by_labels({"namespace": where[0], "deployment": where[1]})
        for site in new.adaptation.sites if new.adaptation else []:
            self.adapter_sites.labels(*where, site.phase).inc()
        for outcome in _ended_trainings(deployment.status, new):
            self.adapter_trainings.labels(*where, outcome).inc()
        for verdict, seconds in _judged_waves(deployment.status, new):
            self.wave_seconds.labels(*where, verdict).observe(seconds)
        seen = {(m.metric, m.at) for m in _measurements(deployment.status)}
        for measurement in _measurements(new):
            if (measurement.metric, measurement.at) not in seen:
                self.verdicts.labels(*where, measurement.metric, measurement.verdict).inc()

    def count_transition(self, deployment: Deployment, transition: Transition) -> None:
        """Count one state change."""
        self.transitions.labels(deployment.namespace, deployment.name, transition.reason).inc()

    def show_model(self, model: ModelObject, new: SLMModelStatus) -> None:
        """Bring the series of one SLMModel in line with its new status."""
        self.model_versions.remove_by_labels({"namespace": model.namespace, "model": model.name})
        for version in new.versions:
            state = "Accepted" if version.accepted else version.reason
            self.model_versions.labels(model.namespace, model.name, state).inc()

    def forget_model(self, namespace: str, name: str) -> None:
        """Drop the series of an SLMModel that is gone."""
        for metric in (self.model_versions, self.model_jobs):
            metric.remove_by_labels({"namespace": namespace, "model": name})

    def forget(self, namespace: str, name: str) -> None:
        """Drop the series of a deployment that is gone."""
        labels = {"namespace": namespace, "deployment": name}
        by_rollout = (self.step, self.held, self.wave_seconds, self.nodes, self.transitions, self.verdicts)
        for metric in (*by_rollout, self.feedback, self.adapter_sites, self.adapter_trainings):
            metric.remove_by_labels(labels)


def _judged_waves(old: SLMDeploymentStatus, new: SLMDeploymentStatus) -> list[tuple[str, float]]:
    """(verdict, seconds) of each wave that was judged between the two."""
    if new.rollout is None:
        return []
    before = {wave.name: wave.finished_at for wave in old.rollout.waves} if old.rollout else {}
    return [
        (wave.verdict, times.to_seconds(wave.finished_at) - times.to_seconds(wave.started_at))
        for wave in new.rollout.waves
        if wave.finished_at and wave.started_at and before.get(wave.name) != wave.finished_at
    ]


def _ended_trainings(old: SLMDeploymentStatus, new: SLMDeploymentStatus) -> list[str]:
    """Outcome of each training that ended between the two. That an adapter failed its rollout is no end of
    one."""
    before = {site.site: site.finished_at for site in old.adaptation.sites} if old.adaptation else {}
    return [
        "Accepted" if site.phase == "Accepted" else site.reason or site.phase
        for site in (new.adaptation.sites if new.adaptation else [])
        if site.phase in ("Accepted", "Refused", "Failed")
        and site.finished_at is not None
        and site.finished_at != before.get(site.site)
    ]


def _measurements(status: SLMDeploymentStatus) -> list[Measurement]:
    return status.rollout.measurements if status.rollout else []
