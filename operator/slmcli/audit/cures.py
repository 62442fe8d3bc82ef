# SPDX-License-Identifier: Apache-2.0
"""What to do about a network that is open, by who keeps its policies."""

from collections.abc import Iterable

from slmcli.audit.policies import managed_names
from slmcli.audit.report import Audit
from slmwire.labels import Role


def policy_cure(audit: Audit) -> str:
    """What closes the pods' network, as far as spec leaves it to the operator."""
    privacy = audit.observed.view.spec.privacy if audit.observed.view.spec is not None else None
    if privacy is not None and privacy.network_policy == "None":
        return "set spec.privacy.networkPolicy: Managed, or apply manifests/examples/network-policy.yaml"
    return (
        "set spec.privacy.networkPolicy: Managed, and name who may use the API in spec.privacy.clients"
        if privacy is None or privacy.clients is None
        else "look at the operator's NetworkPolicies, and at those that others have made"
    )


def anywhere_cure(audit: Audit, policies: Iterable[str], role: str) -> str:
    """What closes a rule that names every address, in the policies that select pods of the role."""
    managed = managed_names(audit.observed.policies or ())
    if not any(name in managed for name in policies):
        return "name the model source's address in the policy"
    by_address = "give the model source by address: a policy knows no names"
    if role == Role.SERVE:
        return f"spec.privacy.egress: Denied leaves serving pods nothing; or {by_address}"
    return by_address
