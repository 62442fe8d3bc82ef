# SPDX-License-Identifier: Apache-2.0
"""Where the sites of `spec.adaptation` stand, in sentences."""

from collections.abc import Iterator

from slmcli.actions import Action, command_line
from slmcli.view import DeploymentView
from slmops.api.adaptation_status import SiteAdaptationStatus


def site_states(view: DeploymentView) -> tuple[SiteAdaptationStatus, ...]:
    """What status says of each site, by name; empty without spec.adaptation."""
    found = view.status.adaptation if view.status is not None else None
    if found is None or view.spec is None or view.spec.adaptation is None:
        return ()
    return tuple(sorted(found.sites, key=lambda state: state.site))


def site_text(state: SiteAdaptationStatus) -> str:
    """One site: how its last training ended, or where the present one is."""
    head = f"site {state.site} {_PHASES.get(state.phase, state.phase)}"
    if state.phase == "Training" and state.node:
        head += f" on {state.node} (Job {state.job})"
    if state.reason and state.reason != state.phase:
        head += f", {state.reason}"
    parts = [f"{head}: {state.message}" if state.message else head]
    if gain := gain_text(state):
        parts.append(gain)
    if state.waiting is not None:
        parts.append("its adapter waits until no other rollout is under way")
    return "; ".join(parts)


_PHASES = {
    "Collecting": "collects corrections",
    "Training": "trains an adapter",
    "Accepted": "has trained an adapter",
    "Refused": "has trained no adapter",
    "Failed": "could not train",
    "RolledBack": "has lost its adapter, whose rollout failed",
    "Unsupported": "cannot train",
}


def gain_text(state: SiteAdaptationStatus) -> str:
    """What the judgement measured; empty when it measured nothing, or an earlier training than the last."""
    judged = state.phase in ("Accepted", "Refused", "RolledBack")
    if not judged or state.before is None or state.after is None:
        return ""
    text = (
        f"right answers to {state.held_out} examples held back: {_share(state.before)} before, "
        f"{_share(state.after)} with it, from {state.examples} examples"
    )
    if state.golden_before is not None and state.golden_after is not None:
        text += f"; golden set {_share(state.golden_before)} and {_share(state.golden_after)}"
    return text


def _share(text: str) -> str:
    try:
        return f"{float(text):.0%}"
    except ValueError:
        return text


def trainings_decided(view: DeploymentView) -> Iterator[tuple[str, str]]:
    """When the latest training of each site began and ended, with what came of it."""
    for state in site_states(view):
        asked = {"Rule": "a rule", "Annotation": "somebody", "NewModel": "a new model"}.get(state.asked_by)
        if state.started_at is not None:
            by = f", asked for by {asked}" if asked else ""
            yield state.started_at, f"training at site {state.site} began on {state.node or 'a node'}{by}"
        if state.finished_at is not None and state.phase != "Training":
            gain = gain_text(state)
            yield state.finished_at, f"site {state.site}: {state.phase}{f', {gain}' if gain else ''}"


def training_actions(view: DeploymentView) -> tuple[Action, ...]:
    """What one can ask of the sites."""
    states = site_states(view)
    if not states or all(state.phase in ("Training", "Unsupported") for state in states):
        return ()
    return (
        Action(
            command=command_line(view, "train"),
            effect="train an adapter at each site of spec.adaptation now, whatever the cooldown",
        ),
    )
