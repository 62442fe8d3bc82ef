# SPDX-License-Identifier: Apache-2.0
"""What one look at an SLMModel collects: questions to sources, Jobs to create, and who waits until when."""

from dataclasses import dataclass, field
from typing import Final

from slmops.api import SLMModelSpec
from slmops.api.slmmodel_status import MESSAGE_LIMIT
from slmops.api.source import Source
from slmops.model.jobs import CreateJob, JobPodView, JobView, Work
from slmops.model.observed import Resolved, ResolveFailure
from slmops.model.plan import ResolveRequest
from slmops.model.slmmodel import JobOutcome, ModelObserved
from slmops.planning.slmmodel.job_state import Failure, JobState, read_job
from slmops.planning.slmmodel.keys import job_name

WRITE_FAILED: Final = "WriteFailed"


@dataclass(slots=True)
class Ledger:
    """Of one look, `now` in seconds since the epoch."""

    observed: ModelObserved
    spec: SLMModelSpec
    now: float
    requests: dict[str, ResolveRequest] = field(default_factory=dict)
    questions: set[str] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)
    creates: list[CreateJob] = field(default_factory=list)
    current: set[str] = field(default_factory=set)
    """Names of Jobs whose end is still to be read, or that are still to be made."""
    outcomes: list[JobOutcome] = field(default_factory=list)
    wakes_at: list[float] = field(default_factory=list)
    making: int = 0
    """Optimise Jobs that run or are created."""
    measuring: set[str] = field(default_factory=set)
    """Profiles on which a measurement runs or is created."""

    def ask(self, question: str, source: Source) -> Resolved | ResolveFailure | None:
        """The answer to a question about a source; without one it is asked, unless it failed just now."""
        self.questions.add(question)
        outcome = self.observed.resolutions.get(question)
        if isinstance(outcome, Resolved):
            return outcome
        if isinstance(outcome, ResolveFailure) and outcome.retry_at > self.now:
            self.wakes_at.append(outcome.retry_at)
        elif not self.spec.paused:
            self.requests[question] = ResolveRequest(source_hash=question, variant="", source=source)
        return outcome

    def manifest(self, digest: str) -> Resolved | None:
        """What was resolved before to this digest; kept from now on."""
        self.digests.add(digest)
        known = self.observed.manifests.get(digest)
        if known is not None:
            return known
        return next(
            (
                found
                for found in self.observed.resolutions.values()
                if isinstance(found, Resolved) and found.manifest.digest == digest
            ),
            None,
        )

    def look_at(self, work: Work, key: str, attempt: int, *, waited: Failure | None) -> tuple[str, JobState]:
        """Name and state of the Job of one attempt, which stays in place until its end was read."""
        name = job_name(self.observed.model, work, key, attempt)
        self.current.add(name)
        return name, read_job(self._job(name), self._pods(name), now=self.now, waited=waited)

    def runs(self, work: Work, key: str, attempt: int) -> bool:
        """Whether the Job of that attempt exists and has not ended."""
        job = self._job(job_name(self.observed.model, work, key, attempt))
        return job is not None and job.state == "Active"

    def say_refused(self, name: str) -> dict[str, str]:
        """Changes of what the Job is for, when the API server does not take the Job."""
        said = self.observed.refused.get(name)
        if said is None:
            return {}
        return {"reason": WRITE_FAILED, "message": f"Job {name}: {said}"[:MESSAGE_LIMIT]}

    def is_in_the_way(self, name: str) -> bool:
        """Whether a Job of that name is being deleted: none can be made until it is gone."""
        job = self._job(name)
        return job is not None and job.deleting

    def ended(self, work: Work, name: str, outcome: str) -> None:
        """The Job's end is taken into status: it is needed for its logs only."""
        self.current.discard(name)
        self.outcomes.append(JobOutcome(work=work, outcome=outcome))

    def _job(self, name: str) -> JobView | None:
        return next((job for job in self.observed.jobs if job.name == name), None)

    def _pods(self, name: str) -> tuple[JobPodView, ...]:
        return tuple(pod for pod in self.observed.pods if pod.job == name)
