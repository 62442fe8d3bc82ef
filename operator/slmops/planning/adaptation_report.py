# SPDX-License-Identifier: Apache-2.0
"""How far a training is and how it ended, from its Job and the containers of its pod.

What containers say comes from a node, which may have been tampered with: numbers are checked, and whether an
adapter is good enough is judged again here. Texts of a report are not handed on at all.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from slmops.api.base import SHA256_PATTERN
from slmops.model.jobs import JobPodView, JobView
from slmops.planning.adaptation_jobs import JUDGE, KEEP, PREPARE
from slmops.planning.slmmodel.job_state import Failure, read_job
from slmwire.gates import pass_gates
from slmwire.jobs import AdapterReport, TrainOrder, TrainOutcome, parse_report
from slmwire.reasons import parse_termination

BAD_REPORT: Final = "BadReport"
MAX_SIZE_BYTES: Final = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt: exactly one of report and failure is set once it has ended."""

    phase: Literal["Absent", "Running", "Judged", "Failed"]
    waits: Failure | None = None
    """Why a running one does not move."""
    looks_again_at: float | None = None
    """When that makes it a failure, or standing still makes it wait."""
    report: AdapterReport | None = None
    """Checked; its message says what came of it, in words of our own."""
    failure: Failure | None = None


ABSENT: Final = Attempt(phase="Absent")


def read_training(
    job: JobView | None,
    pods: Iterable[JobPodView],
    *,
    order: TrainOrder,
    digests: Collection[str],
    now: float,
) -> Attempt:
    """State of a Job with its pods; `order` is what spec asks for now, `digests` the files
    that it may be about."""
    if job is None:
        return ABSENT
    # A kubelet may make pods with any label, but none that a Job owns.
    own = [pod for pod in pods if pod.job == job.name and pod.owner_uid == job.uid]
    pod = max(own, key=lambda pod: pod.created_at, default=None)
    if job.state == "Complete":
        return _complete(pod, order, digests)
    if job.state == "Failed":
        refusal = _refusal(pod, order)
        if refusal is not None:
            return Attempt(phase="Judged", report=refusal)
    found = read_job(job, own, now=now, waited=None)
    if found.failure is not None:
        return Attempt(phase="Failed", failure=_own_words(found.failure))
    return Attempt(phase="Running", waits=found.waits, looks_again_at=found.looks_again_at)


def _own_words(failure: Failure) -> Failure:
    if failure.reason == "OOMKilled":
        container = failure.message.partition(":")[0]
        message = f"{container}: out of memory; raise spec.adaptation.training.resources.limits.memory"
        return Failure(reason="OOMKilled", message=message)
    if failure.reason == "DeadlineExceeded":
        message = "the Job's deadline passed; raise spec.adaptation.training.deadline, or take fewer epochs"
        return Failure(reason="DeadlineExceeded", message=message)
    if failure.reason == "StepFailed":
        return Failure(reason="TrainingFailed", message=failure.message)
    return failure


def _said(pod: JobPodView | None, name: str, state: str) -> str:
    """Termination message of the container, if it ended so; else empty."""
    found = (
        c.message for c in (pod.containers if pod is not None else ()) if (c.name, c.state) == (name, state)
    )
    return next(found, "")


def _refusal(pod: JobPodView | None, order: TrainOrder) -> AdapterReport | None:
    """What a container that ended the training says of it; None where none has judged it."""
    for name in (PREPARE, JUDGE):
        report = parse_report(_said(pod, name, "Failed"))
        if not isinstance(report, AdapterReport) or report.outcome not in tuple(TrainOutcome):
            continue  # looked for in a tuple: a list, which has no hash, may come from a node as well
        outcome = TrainOutcome(report.outcome)
        if outcome is TrainOutcome.ACCEPTED or (name == PREPARE) != (
            outcome is TrainOutcome.TOO_FEW_EXAMPLES
        ):
            continue
        return _worded(_cleaned(report, outcome), order)
    return None


def _complete(pod: JobPodView | None, order: TrainOrder, digests: Collection[str]) -> Attempt:
    report = parse_report(_said(pod, JUDGE, "Done"))
    kept = parse_termination(_said(pod, KEEP, "Done"))
    if report is None or kept is None:
        message = "the Job ended without a report, or its pod was removed before it was read"
        return Attempt(phase="Failed", failure=Failure(reason="ReportLost", message=message))
    if not isinstance(report, AdapterReport):
        return _bad("it is no report about an adapter")
    problem = find_report_problem(report, digests=digests)
    if problem:
        return _bad(problem)
    if kept.digest != f"sha256:{report.sha256}":
        return _bad("the file that was kept is not the one that was judged")
    return Attempt(phase="Judged", report=_worded(_cleaned(report, judge_again(report, order)), order))


def _bad(problem: str) -> Attempt:
    message = f"{problem}; what the node says of its training cannot be right"
    return Attempt(phase="Failed", failure=Failure(reason=BAD_REPORT, message=message))


def find_report_problem(report: AdapterReport, *, digests: Collection[str]) -> str:
    """What is impossible about a report of an adapter that was accepted; empty when all is as it can be."""
    if report.outcome != TrainOutcome.ACCEPTED:
        return "the Job succeeded, and its report is of no accepted adapter"
    if not isinstance(report.sha256, str) or not re.fullmatch(SHA256_PATTERN, report.sha256):
        return "sha256 is no SHA-256"
    if not 1 <= (_count(report.size_bytes) or 0) <= MAX_SIZE_BYTES:
        return "the adapter's size is none"
    if not isinstance(report.base_digest, str) or report.base_digest not in digests:
        return "the adapter is for other files than the model's"
    if not _count(report.examples) or not _count(report.held_out):
        return "the counts of examples are none"
    if _share(report.before) is None or _share(report.after) is None:
        return "before and after are no shares"
    samples = _count(report.golden_samples)
    if samples is None:
        return "the count of golden samples is none"
    if samples and (_share(report.golden_before) is None or _share(report.golden_after) is None):
        return "golden_before and golden_after are no shares"
    return ""


def judge_again(report: AdapterReport, order: TrainOrder) -> TrainOutcome:
    """The gates of spec, by the numbers of a report without a problem."""
    if report.examples < order.min_examples:
        return TrainOutcome.TOO_FEW_EXAMPLES
    has_golden = report.golden_samples > 0
    return pass_gates(
        order,
        before=report.before or 0.0,
        after=report.after or 0.0,
        golden_before=report.golden_before if has_golden else None,
        golden_after=report.golden_after if has_golden else None,
    )


def _cleaned(report: AdapterReport, outcome: TrainOutcome) -> AdapterReport:
    """The report without what is no quantity."""
    accepted = outcome is TrainOutcome.ACCEPTED
    return AdapterReport(
        outcome=outcome,
        sha256=report.sha256 if accepted else "",
        size_bytes=_count(report.size_bytes) or 0 if accepted else 0,
        base_digest=report.base_digest if accepted else "",
        examples=_count(report.examples) or 0,
        held_out=_count(report.held_out) or 0,
        before=_share(report.before),
        after=_share(report.after),
        golden_samples=_count(report.golden_samples) or 0,
        golden_before=_share(report.golden_before),
        golden_after=_share(report.golden_after),
    )


def _worded(report: AdapterReport, order: TrainOrder) -> AdapterReport:
    shares = f"{_text(report.before)} before and {_text(report.after)} with it"
    match TrainOutcome(report.outcome):
        case TrainOutcome.ACCEPTED:
            message = f"held-back examples: {shares}"
        case TrainOutcome.TOO_FEW_EXAMPLES:
            message = (
                f"{report.examples} examples to train on, spec asks for {order.min_examples}, and "
                f"{report.held_out} to judge by"
            )
        case TrainOutcome.NO_GAIN:
            message = f"held-back examples: {shares}, spec asks for a gain of {order.min_gain:g}"
        case TrainOutcome.QUALITY_LOSS:
            message = (
                f"golden set: {_text(report.golden_before)} without and {_text(report.golden_after)} with "
                f"it, spec allows a loss of {order.max_quality_loss:g}"
            )
    return replace(report, message=message)


def _text(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.3f}"


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SIZE_BYTES:
        return None
    return value


def _share(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # NaN is within no bounds, and -0.0 is 0.
    return abs(float(value)) if 0 <= value <= 1 else None
