# SPDX-License-Identifier: Apache-2.0
"""Checks of `spec.privacy`."""

from slmops.api import SLMDeploymentSpec
from slmops.planning.finding import Finding

_WHERE = "spec.privacy"


def find_privacy_problem(spec: SLMDeploymentSpec) -> Finding | None:
    """First finding."""
    privacy, placement = spec.privacy, spec.placement
    if placement.mode == "Replicas":
        if privacy.allowed_sites is not None and placement.replica_scope != "PerSite":
            return _invalid(
                f"{_WHERE}.allowedSites: replicas in total go to any site; use placement.replicaScope "
                "PerSite or placement.mode PerNode"
            )
        if privacy.egress == "Denied":
            return _invalid(
                f"{_WHERE}.egress: replicas fetch the model themselves, so Denied needs placement.mode "
                "PerNode; use Sources"
            )
    if privacy.network_policy == "None" and (privacy.egress == "Denied" or privacy.clients is not None):
        return _invalid(
            f"{_WHERE}.networkPolicy: clients and egress: Denied are for NetworkPolicies of the operator; "
            "set networkPolicy: Managed, or leave them out"
        )
    return None


def _invalid(message: str) -> Finding:
    return Finding(reason="InvalidSpec", message=message)
