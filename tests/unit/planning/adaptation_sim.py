# SPDX-License-Identifier: Apache-2.0
"""A fleet whose sites train adapters: Jobs in virtual time, and servers that are better or worse for them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from slmops.api.adaptation_status import SiteAdaptationStatus
from slmops.model.jobs import ContainerView, CreateJob, DeleteJob, JobPodView, JobView
from slmops.model.observed import MetricQuery, Observed, OwnedKind, Preset, Reading, Samples
from slmwire.jobs import AdapterReport, TrainOutcome, parse_order, to_message
from slmwire.labels import REVISION, SITE
from slmwire.manifest import STORE_URL
from slmwire.reasons import Termination
from tests.unit.planning.fleet_checks import watch
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_samples import sample_of
from tests.unit.planning.fleet_sim import CONFIG
from tests.unit.planning.profile_kit import GIB, ProfileSim, body_of, variant

TRAINERS = replace(CONFIG, optimizer_image="slmops/optimizer:test")
RULE: dict[str, Any] = {
    "name": "score",
    "metric": {"preset": "FeedbackScore"},
    "min": "0.6",
    "window": "10m",
    "for": "10m",
    "action": "TrainAdapter",
}
ADAPTATION: dict[str, Any] = {"sites": ["north", "south"], "training": {"cooldown": "2h"}}
STEPS = ("prepare", "train", "judge", "keep")


def sha_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(kw_only=True)
class Training:
    """How the next Jobs of a node go."""

    outcome: TrainOutcome = TrainOutcome.ACCEPTED
    seconds: float = 120.0
    seed: str = "a"
    """Of the file that is made."""
    examples: int = 120
    after: float = 0.9
    crash: str = ""
    """Container that fails without a report."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """What the report says instead."""


@dataclass(kw_only=True)
class SimJob:
    name: str
    site: str
    node: str
    base: str
    body: Mapping[str, Any]
    made_at: float
    ends_at: float
    training: Training
    sha256: str = ""


class AdaptationSim(ProfileSim):
    """Two nodes at each of the sites north and south, and two at west."""

    def __init__(self, **changes: Any) -> None:
        weights = [variant("int4", "800Mi")]
        super().__init__(body_of(*weights, **{"adaptation": ADAPTATION} | changes))
        self.config = TRAINERS
        self.jobs: dict[str, SimJob] = {}
        self.made: list[SimJob] = []
        self.trainings: dict[str, Training] = {}
        """By node."""
        self.scores: dict[str, float] = {}
        """Judgement of users, by variant, without an adapter."""
        self.adapted = Behaviour()
        """How servers with a trained adapter behave."""
        watch(self)
        for site in ("north", "south", "west"):
            for index in range(2):
                self.add_node(f"{site}{index}", labels={"site": site}, memory_bytes=4 * GIB)

    # What tests ask

    def site(self, name: str) -> SiteAdaptationStatus:
        assert self.status.adaptation is not None
        return next(state for state in self.status.adaptation.sites if state.site == name)

    def train(self, token: str = "") -> None:
        self.annotations["slmops.dev/train"] = token or f"{self.now}"

    def fire(self, variant_name: str) -> None:
        """Users judge a variant badly from now on."""
        self.edit(feedback={"interval": "10m", "rules": [RULE]})
        self.scores[variant_name] = 0.2

    def adapters(self, revision: str) -> dict[str, str]:
        """Hash of the trained file of each variant of a stored revision that has one."""
        body = self.cluster.objects[OwnedKind.CONTROLLER_REVISION, self.names.controller_revision(revision)]
        return {
            entry["name"]: row["sha256"]
            for entry in body["data"]["variants"]
            for row in entry.get("adapters", ())
            if row.get("url") == STORE_URL
        }

    # The world

    def sample(self, query: MetricQuery) -> Samples:
        found = dict(super().sample(query))
        trained = self.adapters(query.revision) if query.revision in self._stored() else {}
        for name in found:
            if name in trained:
                sample = sample_of(self.adapted, query.preset, name)
            elif query.preset is Preset.FEEDBACK_SCORE and name in self.scores:
                sample = sample_of(Behaviour(judged=self.scores[name]), query.preset, name)
            else:
                continue
            if sample is not None:
                found[name] = sample
        return found

    def _stored(self) -> set[str]:
        return {
            body["metadata"]["labels"][REVISION]
            for (kind, _), body in self.cluster.objects.items()
            if kind is OwnedKind.CONTROLLER_REVISION
        }

    def observed(self, readings: Iterable[Reading] = ()) -> Observed:
        return replace(
            super().observed(readings),
            jobs=tuple(self._view(job) for job in self.jobs.values()),
            job_pods=tuple(self._pod(job) for job in self.jobs.values()),
        )

    def _fingerprint(self) -> object:
        return super()._fingerprint(), tuple((name, self._state(job)) for name, job in self.jobs.items())

    def _act(self, action: Any) -> None:
        match action:
            case CreateJob(name=name, body=body):
                if name not in self.jobs:
                    self.jobs[name] = self._new_job(name, json.loads(json.dumps(body)))
                    self.made.append(self.jobs[name])
            case DeleteJob(name=name):
                self.jobs.pop(name, None)
            case _:
                super()._act(action)

    def _new_job(self, name: str, body: Mapping[str, Any]) -> SimJob:
        pod = body["spec"]["template"]["spec"]
        node = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ][0]["matchExpressions"][0]["values"][0]
        training = self.trainings.get(node, Training())
        judge = next(c for c in pod["initContainers"] if c["name"] == "judge")
        base = next(e["value"] for e in judge["env"] if e["name"] == "SLM_MODEL_DIGEST")
        job = SimJob(
            name=name,
            site=body["metadata"]["labels"][SITE],
            node=node,
            base=base,
            body=body,
            made_at=self.now,
            ends_at=self.now + training.seconds,
            training=training,
            sha256=sha_of(f"{node}/{training.seed}/{base}"),
        )
        self.at(training.seconds, lambda: None)  # the watch tells of its end
        return job

    def _state(self, job: SimJob) -> str:
        node = self.cluster.nodes.get(job.node)
        if self.now < job.ends_at or node is None or not node.online:
            return "Active"
        good = not job.training.crash and job.training.outcome is TrainOutcome.ACCEPTED
        return "Complete" if good else "Failed"

    def _view(self, job: SimJob) -> JobView:
        state: Any = self._state(job)
        ended = job.ends_at if state != "Active" else 0.0
        return JobView(
            name=job.name,
            work="train",
            uid=f"uid-{job.name}",
            state=state,
            reason="BackoffLimitExceeded" if state == "Failed" else "",
            created_at=job.made_at,
            finished_at=ended,
        )

    def _pod(self, job: SimJob) -> JobPodView:
        return JobPodView(
            name=f"{job.name}-x",
            job=job.name,
            owner_uid=f"uid-{job.name}",
            node=job.node,
            created_at=job.made_at,
            started_at=job.made_at,
            containers=self._containers(job),
        )

    def _containers(self, job: SimJob) -> tuple[ContainerView, ...]:
        training = job.training
        if self._state(job) == "Active":
            return tuple(
                ContainerView(name=name, state="Running" if name == "prepare" else "Waiting")
                for name in STEPS
            )
        last = "keep"
        if training.crash:
            last = training.crash
        elif training.outcome is not TrainOutcome.ACCEPTED:
            last = "prepare" if training.outcome is TrainOutcome.TOO_FEW_EXAMPLES else "judge"
        result = []
        for name in STEPS[: STEPS.index(last) + 1]:
            failed = name == last and (bool(training.crash) or training.outcome is not TrainOutcome.ACCEPTED)
            message = self._message(job, name) if not (failed and training.crash) else ""
            result.append(
                ContainerView(
                    name=name,
                    state="Failed" if failed else "Done",
                    reason="Error" if failed else "Completed",
                    message=message,
                    finished_at=job.ends_at,
                )
            )
        rest = STEPS[len(result) :]
        return (*result, *(ContainerView(name=name) for name in rest))

    def _message(self, job: SimJob, name: str) -> str:
        training = job.training
        order = parse_order(
            job.body["spec"]["template"]["metadata"]["annotations"]["slmops.dev/told-job.json"]
        )
        if name == "keep":
            return Termination(digest=f"sha256:{job.sha256}").to_json()
        too_few = training.outcome is TrainOutcome.TOO_FEW_EXAMPLES
        if name != ("prepare" if too_few else "judge"):
            return ""
        report = AdapterReport(
            outcome=training.outcome,
            sha256=job.sha256,
            size_bytes=4096,
            base_digest=job.base,
            examples=order.min_examples - 1 if too_few else training.examples,
            held_out=20,
            before=0.2,
            after=training.after,
            golden_samples=50,
            golden_before=0.99,
            golden_after=0.98,
        )
        return to_message(replace(report, **training.report))


def installed_sites(**changes: Any) -> AdaptationSim:
    """A fleet that serves v1 at all sites."""
    sim = AdaptationSim(**changes)
    sim.settle()
    return sim
