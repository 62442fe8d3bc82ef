# SPDX-License-Identifier: Apache-2.0
"""What is said of the sites that adapt the model: condition AdaptationHealthy, and Events."""

from collections.abc import Iterable

from slmops.api import SLMDeploymentStatus
from slmops.api.adaptation_status import AdaptationStatus, SiteAdaptationStatus
from slmops.model.plan import Transition
from slmops.planning.adaptation_support import NO_NODES
from slmops.planning.conditions import Says

_WRONG = (("Failed", "TrainingFailed"), ("Unsupported", "Unsupported"), ("RolledBack", "AdapterRolledBack"))
"""Phases that a person should look at, the worst first, each with the condition's reason."""


def say_adaptation(status: AdaptationStatus | None, *, stable: str) -> Says | None:
    """AdaptationHealthy; None without spec.adaptation."""
    if status is None:
        return None
    if not stable:
        return Says(status="Unknown", reason="NotServing", message="no revision is the stable one yet")
    for phase, reason in _WRONG:
        found = [state for state in status.sites if state.phase == phase]
        if found:
            return Says(status="False", reason=reason, message=_texts(found))
    training = [state for state in status.sites if state.phase == "Training"]
    adapted = sum(state.adapter is not None for state in status.sites)
    where = f"{adapted} of {len(status.sites)} site(s) have an adapter of their own"
    if training:
        names = ", ".join(state.site for state in training)
        return Says(status="True", reason="Training", message=f"{where}; {names}: training")
    absent = [state for state in status.sites if state.reason == NO_NODES]
    message = f"{where}; {_texts(absent)}" if absent else where
    return Says(status="True", reason="Adapted" if adapted else "Collecting", message=message)


def _texts(states: Iterable[SiteAdaptationStatus]) -> str:
    return "; ".join(f"{state.site}: {state.reason}: {state.message}" for state in states)


def adaptation_transitions(old: SLMDeploymentStatus, new: SLMDeploymentStatus) -> list[Transition]:
    """One for each training that begins or ends, and for each adapter that is dropped."""
    if new.adaptation is None:
        return []
    known = {state.site: state for state in old.adaptation.sites} if old.adaptation is not None else {}
    result = []
    for state in new.adaptation.sites:
        before = known.get(state.site, SiteAdaptationStatus(site=state.site))
        if state.job != before.job:
            message = f"site {state.site}: an adapter is trained on node {state.node} (Job {state.job})"
            result.append(Transition(kind="Normal", reason="TrainingStarted", message=message))
        if (state.phase, state.finished_at) != (before.phase, before.finished_at):
            result += _ended(state)
    return result


def _ended(state: SiteAdaptationStatus) -> list[Transition]:
    message = f"site {state.site}: {state.message}"
    match state.phase:
        case "Accepted" if state.last_outcome == "Accepted" and state.message:
            return [Transition(kind="Normal", reason="AdapterAccepted", message=message)]
        case "Refused":
            return [Transition(kind="Normal", reason="AdapterRefused", message=f"{message} ({state.reason})")]
        case "Failed":
            return [
                Transition(kind="Warning", reason="TrainingFailed", message=f"{message} ({state.reason})")
            ]
        case "RolledBack":
            return [Transition(kind="Warning", reason="AdapterRolledBack", message=message)]
        case "Unsupported":
            return [Transition(kind="Warning", reason="Unsupported", message=message)]
    return []
