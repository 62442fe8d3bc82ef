# SPDX-License-Identifier: Apache-2.0
"""Why a deployment stands where it stands: what it waits for, what comes next, what a person can do.

Everything follows from spec, status and annotations; the operator's own words (condition messages) are kept
and this adds what they leave out: times that are left, counts that are needed, the exact commands.
"""

from dataclasses import dataclass
from typing import Final

from slmcli.actions import Action, actions_for
from slmcli.adapting import site_states, site_text, training_actions, trainings_decided
from slmcli.render.parts import MetricLine, counts_text, latest_metrics
from slmcli.times import seconds_of, span_text
from slmcli.view import DeploymentView
from slmcli.window_text import window_wait
from slmops.api.base import duration_seconds
from slmops.api.rollout import Wave
from slmops.api.spec import Rollout, SLMDeploymentSpec
from slmops.api.status import ConditionType, RolloutStatus

DECISIONS: Final = 8
_HEALTH: Final = (
    ConditionType.ACCEPTED,
    ConditionType.MODEL_RESOLVED,
    ConditionType.READY,
    ConditionType.FEEDBACK_HEALTHY,
    ConditionType.ADAPTATION_HEALTHY,
)
"""Conditions that are worth a line where they are not True."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """Something that was decided; `at` is an RFC 3339 time."""

    at: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The explanation; every entry is a sentence or a line."""

    summary: str
    because: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    decisions: tuple[Decided, ...] = ()
    measurements: tuple[MetricLine, ...] = ()
    actions: tuple[Action, ...] = ()


def assess_standing(view: DeploymentView, *, now: float) -> Standing:
    """The explanation at `now`, in seconds since the epoch."""
    status = view.status
    if status is None:
        return Standing(
            summary="The operator has not looked at it yet.",
            because=view.notes,
            waits_for=("the operator to see the object, which takes seconds when it runs",),
            next=("the spec is checked and the model's files are looked up",),
            actions=actions_for(view),
        )
    summary, waits_for, following = _story(view, now)
    return Standing(
        summary=summary,
        because=_because(view),
        waits_for=waits_for,
        next=following,
        decisions=_decisions(view),
        measurements=latest_metrics(status.rollout) if status.rollout is not None else (),
        actions=(*actions_for(view), *training_actions(view)),
    )


def _because(view: DeploymentView) -> tuple[str, ...]:
    status = view.status
    assert status is not None
    found = [*view.notes]
    if not view.up_to_date:
        found.append(
            f"the operator has not acted on the latest spec yet (generation {view.generation}, seen "
            f"{status.observed_generation})"
        )
    for kind in _HEALTH:
        condition = view.condition(kind)
        if condition is not None and condition.status != "True":
            found.append(f"{kind} is {condition.status}, {condition.reason}: {condition.message}")
    for kind in (ConditionType.PROGRESSING, ConditionType.ROLLOUT_SUCCEEDED):
        condition = view.condition(kind)
        if condition is not None and condition.reason not in ("Complete", "Promoted"):
            found.append(f"{kind} is {condition.status}, {condition.reason}: {condition.message}")
    rollout = status.rollout
    if rollout is not None and rollout.message:
        found.append(f"rollout {rollout.revision} {rollout.reason}: {rollout.message}")
    if rollout is not None and rollout.judged_by is not None:
        found.append(_judge_text(view, rollout))
    found += map(site_text, site_states(view))
    found.append(counts_text(status.nodes))
    return tuple(dict.fromkeys(found))


def _judge_text(view: DeploymentView, rollout: RolloutStatus) -> str:
    """Who measures the rollout, or measured it last."""
    analysis = view.spec.rollout.analysis if view.spec is not None else None
    if rollout.judged_by == "Direct":
        chosen = analysis is not None and analysis.provider == "Direct"
        why = "as spec.rollout.analysis.provider says" if chosen else "for no Prometheus is named"
        return f"judged by the operator itself (Direct), {why}: it reads the pods' /metrics"
    url = analysis.prometheus.url if analysis is not None else None
    return f"judged by Prometheus {url}" if url else "judged by the operator's Prometheus"


Story = tuple[str, tuple[str, ...], tuple[str, ...]]
"""Summary, what it waits for, what comes next."""


def _story(view: DeploymentView, now: float) -> Story:
    accepted = view.condition(ConditionType.ACCEPTED)
    if view.deleting:
        return (
            "It is being deleted.",
            ("its pods, node labels and cached models to go; offline nodes are not waited for long",),
            ("the finalizer is taken off and the object is gone",),
        )
    if accepted is not None and accepted.status == "False":
        return (
            f"The spec is refused: {accepted.reason}.",
            ("somebody to correct the spec",),
            ("the corrected spec is checked and, when it makes sense, rolled out",),
        )
    running = view.running
    if running is None:
        return _at_rest(view)
    if view.paused:
        return (
            f"The rollout of {running.revision} is paused in step {running.step}{_where(running)}.",
            (_pause_text(view),),
            ("it goes on from there; its clocks have stood still meanwhile",),
        )
    if running.step == "Installing":
        return (
            f"The first revision, {running.revision}, is being installed.",
            (window_wait(view) or "enough reachable nodes to fetch, verify and serve the model",),
            (f"{running.revision} becomes the stable revision",),
        )
    if running.step == "RollingBack":
        cancelled = running.reason in ("Reverted", "Superseded")
        return (
            f"The rollout of {running.revision} is being rolled back: {running.reason}.",
            ("the nodes that have it to serve the stable revision again",),
            (
                "the rollout ends as Cancelled"
                if cancelled
                else "the rollout ends as Failed, and the revision is not tried again until spec changes or "
                "somebody retries it",
            ),
        )
    return _in_wave(view, running, now)


def _pause_text(view: DeploymentView) -> str:
    if view.paused == "annotation":
        return "somebody to resume it (the annotation slmops.dev/paused is set)"
    return "somebody to set spec.rollout.paused to false"


def _at_rest(view: DeploymentView) -> Story:
    status, rollout = view.status, view.rollout
    assert status is not None
    resolved = view.condition(ConditionType.MODEL_RESOLVED)
    succeeded = view.condition(ConditionType.ROLLOUT_SUCCEEDED)
    if not view.up_to_date:
        return (
            "Spec has changed; the operator has not acted on it yet.",
            ("the operator to look, which takes seconds when it runs",),
            ("the spec is checked and, when it makes sense, rolled out",),
        )
    if resolved is not None and resolved.status != "True":
        waits = (
            f"the model's source: {resolved.message}"
            if resolved.status == "False"
            else "the model's files to be looked up"
        )
        return (
            "The model's files are not known by digest yet; what serves is left alone.",
            (waits,),
            ("when they are known, the revision is rolled out",),
        )
    if status.pinned is not None:
        return (
            f"{status.pinned.revision} serves by hand instead of {status.pinned.instead_of}, which spec "
            "stands for.",
            (),
            ("this stays until spec changes",),
        )
    if succeeded is not None and succeeded.status == "False":
        return (
            f"The rollout of {status.update_revision} failed ({succeeded.reason}); {status.stable_revision} "
            "serves.",
            (),
            (
                "nothing by itself: the revision is remembered as failed until spec changes or somebody "
                "retries",
            ),
        )
    if (
        rollout is not None
        and rollout.step == "Cancelled"
        and status.update_revision != status.stable_revision
    ):
        return (
            "The last rollout was cancelled.",
            ("the operator to begin the next",),
            (f"{status.update_revision} is rolled out",),
        )
    if view.paused:
        return (
            f"{status.stable_revision or 'nothing'} is the stable revision; rollouts are paused.",
            (_pause_text(view),),
            ("a new revision is not rolled out before that",),
        )
    return (
        f"{status.stable_revision or 'No revision'} is the stable revision, and spec stands for it.",
        (wait,) if (wait := window_wait(view)) else (),
        ("nothing until spec changes; nodes that come back are brought to it",),
    )


def _in_wave(view: DeploymentView, rollout: RolloutStatus, now: float) -> Story:
    spec = view.spec
    where = _where(rollout)
    if rollout.wave >= len(rollout.waves) or spec is None:
        return f"{rollout.revision} is being rolled out: {rollout.step}.", (), ()
    settings, name = spec.rollout, rollout.waves[rollout.wave].name
    progressing = view.condition(ConditionType.PROGRESSING)
    reason = progressing.reason if progressing is not None else ""
    summary = f"{rollout.revision} is being rolled out: {rollout.step}{where}."
    after = _after(spec, rollout)
    waits: list[str] = []
    if reason == "AwaitingApproval":
        waits.append(f"somebody to approve wave {name}: its nodes have the model and take it then")
    elif reason == "OutsideWindow":
        waits.append(window_wait(view))
    if rollout.step == "Prefetching":
        if reason not in ("AwaitingApproval", "OutsideWindow"):
            waits.append("the wave's nodes to fetch and verify the model; what serves is not touched")
        waits.append(
            _left(
                "fetching ahead",
                rollout.step_started_at,
                settings.prefetch_deadline,
                settings,
                _stopped(rollout, now),
            )
        )
        following = (
            f"then the nodes of {name} take it, at most {settings.max_unavailable} at a time without a pod",
        )
    elif rollout.step == "Flipping":
        wave = rollout.waves[rollout.wave]
        waits.append(
            f"the wave's nodes to serve it: {wave.ready} of {wave.nodes} do, it was given to {wave.updated}"
        )
        waits.append(_deadline(rollout, settings, now))
        following = (f"then the wave soaks for {_soak(spec, name)} and is judged",)
    elif rollout.step == "Soaking":
        left = duration_seconds(_soak(spec, name)) - (
            _stopped(rollout, now) - _since(rollout.step_started_at, now)
        )
        waits.append(f"the soak of {_soak(spec, name)} to end: {span_text(max(0.0, left))} left")
        waits.append(_deadline(rollout, settings, now))
        following = (f"then wave {name} is judged; when it passes, {after}",)
    else:
        waits += _metrics_waited_for(spec, rollout)
        waits.append(_deadline(rollout, settings, now))
        following = (
            f"when they pass, {after}; when one fails, the wave is rolled back to the stable revision",
        )
    return summary, tuple(filter(None, waits)), following


def _metrics_waited_for(spec: SLMDeploymentSpec, rollout: RolloutStatus) -> list[str]:
    analysis = spec.rollout.analysis
    states = {state.name: state for state in rollout.metrics}
    latest = {line.name: line.latest for line in latest_metrics(rollout)}
    found = []
    for metric in analysis.metrics:
        state, measured = states.get(metric.name), latest.get(metric.name)
        passes = state.consecutive_passes if state is not None else 0
        if not metric.required or metric.dry_run or passes >= analysis.passes:
            continue
        said = (
            f"{measured.verdict}: {measured.message or 'no reason given'}" if measured else "not measured yet"
        )
        found.append(
            f"metric {metric.name} to pass {analysis.passes} times in a row, {passes} so far; {said}"
        )
    return found or ["the next look at the metrics"]


def _after(spec: SLMDeploymentSpec, rollout: RolloutStatus) -> str:
    if rollout.wave + 1 >= len(rollout.waves):
        return f"{rollout.revision} becomes the stable revision"
    name = rollout.waves[rollout.wave + 1].name
    wave = find_wave(spec, name)
    manual = wave is not None and wave.approval == "Manual"
    return f"wave {name} follows{', which waits for approval' if manual else ''}"


def find_wave(spec: SLMDeploymentSpec, name: str) -> Wave | None:
    """The wave of spec behind a name in status: an exponential wave `x` stands for `x-1`, `x-2`, ..."""
    waves = {wave.name: wave for wave in spec.rollout.waves}
    stem = name.rpartition("-")[0]
    growing = waves.get(stem)
    return waves.get(name) or (growing if growing is not None and growing.exponential is not None else None)


def _soak(spec: SLMDeploymentSpec, name: str) -> str:
    wave = find_wave(spec, name)
    return (wave.soak if wave is not None else None) or spec.rollout.soak


def _where(rollout: RolloutStatus) -> str:
    if rollout.wave >= len(rollout.waves):
        return ""
    return f", wave {rollout.waves[rollout.wave].name} ({rollout.wave + 1} of {len(rollout.waves)})"


def _since(at: str, now: float) -> float:
    seconds = seconds_of(at)
    return now if seconds is None else seconds


def _stopped(rollout: RolloutStatus, now: float) -> float:
    """Now, or when the clocks of the rollout were stopped."""
    return now if rollout.paused_at is None else _since(rollout.paused_at, now)


def _deadline(rollout: RolloutStatus, settings: Rollout, now: float) -> str:
    return _left(
        "the wave", rollout.wave_started_at, settings.progress_deadline, settings, _stopped(rollout, now)
    )


def _left(what: str, since: str, deadline: str, settings: Rollout, now: float) -> str:
    left = duration_seconds(deadline) - (now - _since(since, now))
    then = "it is rolled back" if settings.on_deadline == "Rollback" else "it holds until somebody decides"
    if left <= 0:
        return f"the deadline of {what} ({deadline}) has passed: {then}"
    return f"at most {span_text(left)} more for {what} (deadline {deadline}), then {then}"


def _decisions(view: DeploymentView) -> tuple[Decided, ...]:
    status = view.status
    assert status is not None
    found = [
        Decided(at=o.at, text=f"{o.operation} {o.token}: {o.outcome}{f', {o.message}' if o.message else ''}")
        for o in status.operations
    ]
    found += [
        Decided(at=f.at, text=f"revision {f.revision} failed, {f.reason}: {f.message}")
        for f in status.failed_revisions
    ]
    if status.pinned is not None:
        pin = status.pinned
        found.append(Decided(at=pin.at, text=f"revision {pin.revision} pinned instead of {pin.instead_of}"))
    rollout = status.rollout
    if rollout is not None:
        found.append(Decided(at=rollout.started_at, text=f"rollout of {rollout.revision} began"))
        found += [
            Decided(at=wave.finished_at, text=f"wave {wave.name} judged {wave.verdict}")
            for wave in rollout.waves
            if wave.finished_at is not None
        ]
        found += [
            Decided(at=wave.approved_at, text=f"wave {wave.name} approved")
            for wave in rollout.waves
            if wave.approved_at is not None
        ]
        if rollout.finished_at is not None:
            found.append(
                Decided(at=rollout.finished_at, text=f"rollout of {rollout.revision}: {rollout.step}")
            )
    found += [Decided(at=at, text=text) for at, text in trainings_decided(view)]
    found.sort(key=lambda decided: seconds_of(decided.at) or 0.0, reverse=True)
    return tuple(found[:DECISIONS])
