# SPDX-License-Identifier: Apache-2.0
"""What status keeps of the sites that adapt the model, and what of it counts for the effective spec."""

from slmops.api import SLMDeploymentSpec, SLMDeploymentStatus
from slmops.api.adaptation_status import SiteAdapter
from slmops.planning.adapters import TrainedAdapter, build_trained


def trained_adapters(spec: SLMDeploymentSpec, status: SLMDeploymentStatus) -> dict[str, TrainedAdapter]:
    """By site; those that wait for their turn are not among them."""
    adaptation, states = spec.adaptation, status.adaptation
    if adaptation is None or states is None:
        return {}
    return {
        state.site: as_trained(adaptation.name, state.adapter)
        for state in states.sites
        if state.adapter is not None and state.site in adaptation.sites
    }


def has_changed(old: SLMDeploymentStatus, new: SLMDeploymentStatus) -> bool:
    """Whether spec stands for something else after a look, because adapters came or went."""
    return _adapters_in(old) != _adapters_in(new)


def _adapters_in(status: SLMDeploymentStatus) -> dict[str, str]:
    states = status.adaptation.sites if status.adaptation is not None else []
    return {state.site: state.adapter.sha256 for state in states if state.adapter is not None}


def as_trained(name: str, adapter: SiteAdapter) -> TrainedAdapter:
    """The adapter as the planner works with it."""
    return build_trained(name=name, sha256=adapter.sha256, size=adapter.size, base_digest=adapter.base_digest)
