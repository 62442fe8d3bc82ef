# SPDX-License-Identifier: Apache-2.0
"""What follows for the sites of spec.adaptation: Jobs that train, and adapters that become part of the model.

Everything that decides is in status, so a restart of the operator changes nothing. One Job for a site at a
time, at most four in all. An adapter that was accepted waits until no rollout is under way, and goes out then
as any other revision; when its rollout fails, it is dropped, and what spec stands for is what is stable.
"""

from dataclasses import dataclass, field
from typing import Final

from slmops.api import TRAIN_ANNOTATION, SLMDeploymentSpec
from slmops.api.adaptation import Adaptation
from slmops.api.adaptation_status import MESSAGE_LIMIT, AdaptationStatus, SiteAdaptationStatus
from slmops.model.jobs import DeleteJob
from slmops.model.observed import Observed
from slmops.model.plan import Action
from slmops.planning import times
from slmops.planning.adaptation_attempts import (
    TrainingLook,
    begin_training,
    follow_training,
    is_running,
    rest,
)
from slmops.planning.adaptation_support import (
    NO_NODES,
    find_absence,
    find_obstacle,
    has_lost,
    hosts_by_site,
)
from slmops.planning.adaptation_triggers import (
    blamed_sites,
    find_busy,
    fired_rules,
    holds_adapter,
    seconds_to_rest,
    trained_bases,
)
from slmops.planning.decision import FINISHED, Decision
from slmops.planning.feedback import FeedbackLook
from slmops.planning.finding import Finding
from slmops.planning.fleet import Fleet
from slmops.planning.names import Names
from slmops.planning.operations import Standing
from slmops.planning.resolution import Resolution

KEPT_SECONDS: Final = 3600.0
"""How long a Job that has ended is kept for whoever wants to see it."""
SOON_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptationLook:
    """What one look made of the sites."""

    status: AdaptationStatus | None
    actions: tuple[Action, ...] = ()
    wakes_in_seconds: float | None = None


def plan_adaptation(
    names: Names,
    observed: Observed,
    fleet: Fleet,
    decision: Decision,
    *,
    standing: Standing,
    resolution: Resolution,
    rules: FeedbackLook,
    finding: Finding | None,
    now: float,
) -> AdaptationLook:
    """Where the sites stand after this look. `fleet.stable` is the revision that is stable after it."""
    spec, old = fleet.spec, observed.deployment.status.adaptation
    adaptation = spec.adaptation
    if adaptation is None:
        return AdaptationLook(status=None, actions=_delete_jobs(observed, frozenset()))
    fired = fired_rules(spec, rules.status, fleet.stable)
    look = _Look(
        training=TrainingLook(
            names=names,
            observed=observed,
            fleet=fleet,
            adaptation=adaptation,
            now=now,
            hosts=hosts_by_site(fleet, frozenset(adaptation.sites)),
        ),
        busy=find_busy(spec, decision, standing, resolution, finding),
        fired=bool(fired),
        blamed=blamed_sites(adaptation, fired, fleet.stable),
        token=observed.deployment.annotations.get(TRAIN_ANNOTATION, "")[:256],
        answered=old.train_token if old is not None else "",
    )
    if not look.busy and (wait := seconds_to_rest(decision, now)) > 0:
        look.busy = "a rollout has just ended"
        look.wake_at(now + wait)
    known = {state.site: state for state in old.sites} if old is not None else {}
    states = [known.get(s) or SiteAdaptationStatus(site=s) for s in sorted(adaptation.sites)]
    states = [follow_training(look.training, state) for state in states]
    failed = _failed_with_adapters(fleet, decision, resolution)
    if failed:
        states = [_drop_failed(look, state, failed, decision) for state in states]
    states = [_take_up(look, _heed(look, _drop_lost(look, state))) for state in states]
    if any(state.adapter != getattr(known.get(state.site), "adapter", None) for state in states):
        look.busy = "spec stands for another revision from now on"
    look.training.running = sum(is_running(state) for state in states)
    states = [_begin(look, state) for state in states]
    wanted = frozenset(state.job for state in states if _keeps_job(look, state))
    status = AdaptationStatus(train_token=look.token or look.answered, sites=states)
    wakes_at = look.training.wakes_at
    return AdaptationLook(
        status=status,
        actions=(*look.training.actions, *_delete_jobs(observed, wanted)),
        wakes_in_seconds=max(SOON_SECONDS, min(wakes_at) - now) if wakes_at else None,
    )


@dataclass(slots=True, kw_only=True)
class _Look:
    """What all sites are looked at with."""

    training: TrainingLook
    busy: str
    """Why nothing may begin or count, see `find_busy`."""
    fired: bool
    """Some rule wants trainings."""
    blamed: frozenset[str]
    """Sites that are to train for one."""
    token: str
    answered: str
    bases: dict[str, frozenset[str]] = field(default_factory=dict)

    @property
    def now(self) -> float:
        return self.training.now

    @property
    def adaptation(self) -> Adaptation:
        return self.training.adaptation

    @property
    def spec(self) -> SLMDeploymentSpec:
        return self.training.fleet.spec

    def bases_of(self, site: str) -> frozenset[str]:
        """Digests of the model files that the site's servers keep examples for."""
        if site not in self.bases:
            self.bases[site] = trained_bases(self.training.fleet.stable, site)
        return self.bases[site]

    def wake_at(self, seconds: float) -> None:
        self.training.wakes_at.append(seconds)


# The end of a rollout


def _failed_with_adapters(fleet: Fleet, decision: Decision, resolution: Resolution) -> str:
    """The revision that spec stands for, if it has failed and nothing is under way any more; else empty."""
    rollout, wanted = decision.rollout, resolution.revision
    under_way = rollout is not None and rollout.step not in FINISHED
    if under_way or resolution.unmet is not None or wanted in ("", decision.stable_revision):
        return ""
    return wanted if any(entry.revision == wanted for entry in decision.failed) else ""


def _drop_failed(
    look: _Look, state: SiteAdaptationStatus, failed: str, decision: Decision
) -> SiteAdaptationStatus:
    """Without an adapter that came with the failed revision: the one that is stable is wanted again."""
    fleet, adapter, previous = look.training.fleet, state.adapter, state.previous
    if adapter is None or holds_adapter(fleet.stable, state.site, adapter.sha256):
        return state
    if not holds_adapter(fleet.revisions.get(failed), state.site, adapter.sha256):
        return state
    why = next((entry.message for entry in decision.failed if entry.revision == failed), "")
    back = previous if previous and holds_adapter(fleet.stable, state.site, previous.sha256) else None
    look.wake_at(look.now)
    ended = {
        "phase": "RolledBack",
        "reason": "AdapterRolledBack",
        "message": f"revision {failed} with the adapter failed: {why}"[:MESSAGE_LIMIT],
        # Nobody trains the same again at once; who was asked meanwhile waits, too.
        "finished_at": times.to_text(look.now),
    }
    running = state.phase == "Training"
    return state.model_copy(update={"adapter": back, "previous": None} | ({} if running else ended))


def _drop_lost(look: _Look, state: SiteAdaptationStatus) -> SiteAdaptationStatus:
    """Without an adapter that no node of the site has: none of them could serve with it, now or again.

    That of a rollout goes while it is under way, which would wait for it for ever.
    """
    fleet, adapter, previous = look.training.fleet, state.adapter, state.previous
    if adapter is None:
        return state
    revision = fleet.stable
    if not holds_adapter(revision, state.site, adapter.sha256):
        revision = fleet.target
    if not has_lost(revision, state.site, adapter, look.training.hosts_of(state.site), trainer=state.node):
        return state
    look.wake_at(look.now)
    back = previous if previous and holds_adapter(fleet.stable, state.site, previous.sha256) else None
    lost = {
        "phase": "RolledBack",
        "reason": "AdapterLost",
        "message": "no node of the site has the adapter any more; it goes on without it",
        "finished_at": times.to_text(look.now),
        "asked_at": None,
        "retry_at": None,
    }
    running = state.phase == "Training"
    return state.model_copy(update={"adapter": back, "previous": None} | ({} if running else lost))


def _take_up(look: _Look, state: SiteAdaptationStatus) -> SiteAdaptationStatus:
    """An accepted adapter becomes part of the model, once that is no other rollout's business."""
    waiting = state.waiting
    if waiting is None or look.busy:
        return state
    look.wake_at(look.now)
    bases = look.bases_of(state.site)
    if waiting.base_digest not in bases:
        # Another version of the model was rolled out meanwhile; what was learned is learned anew for it.
        state = state.model_copy(update={"waiting": None})
        return _ask(look, state, "NewModel") if bases and state.phase != "Training" else state
    before = state.adapter
    if before is not None and before.sha256 == waiting.sha256:
        return state.model_copy(update={"waiting": None})
    return state.model_copy(update={"waiting": None, "adapter": waiting, "previous": before})


# Triggers


def _heed(look: _Look, state: SiteAdaptationStatus) -> SiteAdaptationStatus:
    """Whether a training is wanted that was not before, or one is no longer wanted."""
    if state.phase == "Training":
        return state
    if look.token and look.token != look.answered:
        return _ask(look, state, "Annotation")
    if state.asked_at is not None:
        gone = state.asked_by == "Rule" and not look.fired
        return rest(state.model_copy(update={"asked_at": None})) if gone else state
    if look.busy or state.waiting is not None:
        return state
    bases = look.bases_of(state.site)
    is_new = state.adapter is not None and state.adapter.base_digest not in bases
    if bases and is_new and state.base_digest not in bases:
        return _ask(look, state, "NewModel")
    if state.site not in look.blamed:
        return state
    ready_at = times.to_seconds(state.finished_at) + look.training.cooldown if state.finished_at else 0.0
    if ready_at > look.now:
        look.wake_at(ready_at)
        return state
    return _ask(look, state, "Rule")


def _ask(look: _Look, state: SiteAdaptationStatus, by: str) -> SiteAdaptationStatus:
    fresh = {"failures": 0, "tried": [], "retry_at": None}
    return state.model_copy(update={"asked_at": times.to_text(look.now), "asked_by": by, **fresh})


# What begins


def _begin(look: _Look, state: SiteAdaptationStatus) -> SiteAdaptationStatus:
    if is_running(state):
        return state
    hosts = look.training.hosts_of(state.site)
    obstacle = find_obstacle(look.training.fleet, look.training.observed.config, state.site, hosts)
    if obstacle:
        unmet = {"phase": "Unsupported", "reason": "Unsupported", "message": obstacle[:MESSAGE_LIMIT]}
        return state.model_copy(update=unmet | {"asked_at": None, "retry_at": None})
    if state.phase == "Unsupported":
        phase = "Accepted" if state.adapter is not None else "Collecting"
        state = state.model_copy(update={"phase": phase, "reason": "", "message": ""})
    # Of a site that has trained once, how that ended is worth more.
    is_new = state.phase == "Collecting"
    if is_new and (absence := find_absence(look.spec, state.site, hosts)):
        return state.model_copy(update={"reason": NO_NODES, "message": absence[:MESSAGE_LIMIT]})
    if state.asked_at is None:
        return rest(state)
    return begin_training(look.training, state, busy=look.busy)


def _keeps_job(look: _Look, state: SiteAdaptationStatus) -> bool:
    """Whether the site's latest Job is still of use: it runs, or has ended a moment ago."""
    if not state.job:
        return False
    if state.phase == "Training" or state.finished_at is None:
        return True
    until = times.to_seconds(state.finished_at) + KEPT_SECONDS
    if until > look.now and any(job.name == state.job for job in look.training.observed.jobs):
        look.wake_at(until)
    return until > look.now


def _delete_jobs(observed: Observed, wanted: frozenset[str]) -> tuple[DeleteJob, ...]:
    """Jobs that nobody waits for any more."""
    return tuple(
        DeleteJob(name=job.name, why="no longer needed")
        for job in observed.jobs
        if job.name not in wanted and not job.deleting
    )
