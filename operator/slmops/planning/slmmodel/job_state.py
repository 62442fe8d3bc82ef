# SPDX-License-Identifier: Apache-2.0
"""How far a Job is and how it ended, from the Job and its pod's containers.

What containers say comes from a node, which may have been tampered with: numbers are checked, texts are cut.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from slmops.api.slmmodel_status import MESSAGE_LIMIT
from slmops.api.variant import ENGINE_NAMES
from slmops.model.jobs import ContainerView, JobPodView, JobView
from slmops.planning.nodes import DOWNLOAD_REASONS, IMAGE_PULL_REASONS
from slmwire.jobs import EvaluateReport, PublishReport, parse_report
from slmwire.reasons import Reason, parse_termination

IMAGE_SECONDS: Final = 600.0
"""A Job whose image cannot be pulled for so long is given up; it is tried again like one that a source let
down."""
POD_SECONDS: Final = 60.0
"""A Job that has no pod for so long will hardly get one."""
_CANNOT_BE_MADE: Final = frozenset({"InvalidImageName", "CreateContainerConfigError", "CreateContainerError"})
RETRIED: Final = DOWNLOAD_REASONS | {
    "PodLost",
    "ReportLost",
    "Evicted",
    "Unschedulable",
    "ImagePullBackOff",
    "NotStarted",
}
"""Reasons that another attempt may get over; a recipe that does not apply fails for good."""
_LIMIT: Final = 2.0**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a Job, or what it left, is of no use."""

    reason: str
    message: str

    @property
    def retried(self) -> bool:
        """Whether another attempt may succeed."""
        return self.reason in RETRIED


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """One attempt."""

    phase: Literal["Absent", "Running", "Succeeded", "Failed"]
    progress: str = ""
    """Containers that are done, of all."""
    waits: Failure | None = None
    """Why a running one does not move."""
    looks_again_at: float | None = None
    """When that makes it a failure, or standing still makes it wait."""
    failure: Failure | None = None
    publish: PublishReport | None = None
    evaluate: EvaluateReport | None = None


ABSENT: Final = JobState(phase="Absent")


def read_job(
    job: JobView | None, pods: Iterable[JobPodView], *, now: float, waited: Failure | None
) -> JobState:
    """State of a Job with its pods; `waited` is what it was seen waiting with before, if anything."""
    if job is None:
        return ABSENT
    # A kubelet may make pods with any label, but none that a Job owns.
    own = (pod for pod in pods if pod.job == job.name and pod.owner_uid == job.uid)
    pod = max(own, key=lambda pod: pod.created_at, default=None)
    containers = pod.containers if pod is not None else ()
    done = sum(container.state == "Done" for container in containers)
    progress = f"{done}/{len(containers)}" if containers else ""
    if job.state == "Complete":
        return _finished(pod, progress)
    if job.state == "Failed":
        return JobState(phase="Failed", progress=progress, failure=_failure(job, pod, waited))
    if pod is None:
        return _without_pod(job, now)
    if pod.deleting and not job.deleting:
        # On a node that does not answer it stays so, and its Job active, until somebody removes the node.
        message = f"the Job's pod is being removed; node {pod.node or 'none'} is drained or does not answer"
        return JobState(phase="Failed", progress=progress, failure=Failure(reason="PodLost", message=message))
    return _running(pod, progress, now)


def _without_pod(job: JobView, now: float) -> JobState:
    late_at = job.created_at + POD_SECONDS
    if now < late_at:
        return JobState(phase="Running", looks_again_at=late_at)
    # Admission refuses pods to the controller alone, which says so in Events.
    message = (
        f"the Job has no pod; kubectl describe job {job.name} names the cause (Pod Security level, quota, "
        "priority class)"
    )
    return JobState(phase="Running", waits=Failure(reason="NotStarted", message=message))


def _running(pod: JobPodView, progress: str, now: float) -> JobState:
    waits = _waits(pod)
    late_at = max(pod.created_at, pod.started_at, *(c.finished_at for c in pod.containers)) + IMAGE_SECONDS
    if waits is None:
        begins = any(c.state != "Done" for c in pod.containers) and not any(
            c.state == "Running" for c in pod.containers
        )
        if not begins or not pod.node:
            return JobState(phase="Running", progress=progress)
        if late_at <= now:
            message = (
                f"nothing has begun for 10 minutes; kubectl describe pod {pod.name} names the cause: an "
                "image that is being pulled, or a Secret or volume that is missing"
            )
            waits = Failure(reason="NotStarted", message=message)
        return JobState(phase="Running", progress=progress, waits=waits, looks_again_at=late_at)
    if waits.reason == "Unschedulable":
        return JobState(phase="Running", progress=progress, waits=waits)
    if waits.reason == "StepFailed" or late_at <= now:
        return JobState(phase="Failed", progress=progress, failure=waits)
    return JobState(phase="Running", progress=progress, waits=waits, looks_again_at=late_at)


def _finished(pod: JobPodView | None, progress: str) -> JobState:
    reports = [parse_report(c.message) for c in pod.containers if c.state == "Done"] if pod else []
    publish = next((r for r in reports if isinstance(r, PublishReport)), None)
    evaluate = next((r for r in reports if isinstance(r, EvaluateReport)), None)
    if evaluate is not None and pod is not None:
        evaluate = _checked(evaluate)
        score = next((c for c in pod.containers if c.name == "score"), None)
        if score is not None:
            value = _score(score.message)
            if value is None:
                said = last_words(score.message) or "nothing"
                message = (
                    f'the scorer printed no score: its termination message must be {{"score": 0.93}}, 0 '
                    f"to 1; it said: {said}"
                )
                return JobState(
                    phase="Failed", progress=progress, failure=Failure(reason="NoScore", message=message)
                )
            evaluate = replace(evaluate, score=value)
    if publish is None and evaluate is None:
        message = "the Job ended without a report, or its pod was removed before it was read"
        return JobState(
            phase="Failed", progress=progress, failure=Failure(reason="ReportLost", message=message)
        )
    return JobState(phase="Succeeded", progress=progress, publish=publish, evaluate=evaluate)


def _failure(job: JobView, pod: JobPodView | None, waited: Failure | None) -> Failure:
    if job.reason == "DeadlineExceeded":
        if waited is not None:
            return Failure(
                reason=waited.reason,
                message=f"the deadline passed meanwhile; {waited.message}"[:MESSAGE_LIMIT],
            )
        return Failure(reason="DeadlineExceeded", message="the Job's deadline passed; give it more time")
    if pod is None:
        return Failure(reason="PodLost", message="the Job's pod was removed before it had ended")
    if pod.reason == "Evicted":
        return Failure(reason="Evicted", message=f"the node evicted the pod: {last_words(pod.message)}")
    failed = next((c for c in pod.containers if c.state == "Failed"), None)
    if failed is None:
        return Failure(reason="PodLost", message="the Job's pod did not end by itself; its node may be gone")
    termination = parse_termination(failed.message)
    if termination is not None and termination.reason:
        known = termination.reason in set(Reason)
        reason = termination.reason if known else "StepFailed"
        return Failure(reason=reason, message=f"{failed.name}: {last_words(termination.message)}")
    if failed.reason == "OOMKilled":
        return Failure(
            reason="OOMKilled",
            message=f"{failed.name}: out of memory; raise spec.jobs.resources.limits.memory",
        )
    return Failure(
        reason="StepFailed", message=f"{failed.name}: {last_words(failed.message) or failed.reason}"
    )


def _waits(pod: JobPodView) -> Failure | None:
    if pod.unschedulable:
        return Failure(
            reason="Unschedulable", message=f"no node takes the pod: {last_words(pod.unschedulable)}"
        )
    for container in pod.containers:
        if container.state == "Waiting" and container.reason in IMAGE_PULL_REASONS | _CANNOT_BE_MADE:
            pulls = container.reason in IMAGE_PULL_REASONS
            reason = "ImagePullBackOff" if pulls else "StepFailed"
            return Failure(reason=reason, message=_say_waiting(container))
    return None


def _say_waiting(container: ContainerView) -> str:
    return f"{container.name}: {container.reason}: {last_words(container.message)}".rstrip(": ")


def last_words(text: str) -> str:
    """The end of what a container said, in one line of what can be printed."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= 300 else f"...{line[-297:]}"


def _score(text: str) -> float | None:
    try:
        value = json.loads(text)["score"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return _number(value, most=1.0)


def _number(value: object, *, most: float = _LIMIT) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Compared first: an integer may be too large for a float. NaN is within no bounds, and -0.0 is 0.
    return abs(float(value)) if 0 <= value <= most else None


def _count(value: object) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _checked(report: EvaluateReport) -> EvaluateReport:
    """The report without what is no quantity."""
    return EvaluateReport(
        engine=report.engine if report.engine in ENGINE_NAMES else "",
        samples=_count(report.samples) or 0,
        exact_match=_number(report.exact_match, most=1.0),
        perplexity=_number(report.perplexity),
        score=_number(report.score, most=1.0),
        prompt_tokens_per_second=_number(report.prompt_tokens_per_second),
        decode_tokens_per_second=_number(report.decode_tokens_per_second),
        first_token_seconds=_number(report.first_token_seconds),
        memory_bytes=_count(report.memory_bytes),
        cache_bytes_per_token=_count(report.cache_bytes_per_token),
        size_bytes=_count(report.size_bytes),
    )
