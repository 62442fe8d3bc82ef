# SPDX-License-Identifier: Apache-2.0
"""`spec.privacy`: at which sites the model may run, and whom its pods may speak with."""

from functools import cached_property
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints

from slmops.api.base import ApiModel, LabelSelector, cel, validations

SiteName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", min_length=1, max_length=63)
]
"""A label value that is not empty."""
NetworkPolicyMode = Literal["Managed", "None"]

PER_SITE_RULE: Final = cel(
    "!has(self.placement.mode) || self.placement.mode != 'Replicas' || !has(self.privacy) || "
    "!has(self.privacy.allowedSites) || "
    "(has(self.placement.replicaScope) && self.placement.replicaScope == 'PerSite')",
    "privacy.allowedSites needs placement.mode PerNode or placement.replicaScope PerSite: replicas in total "
    "go to any site",
)
PREFETCH_RULE: Final = cel(
    "!has(self.placement.mode) || self.placement.mode != 'Replicas' || !has(self.privacy) || "
    "!has(self.privacy.egress) || self.privacy.egress != 'Denied'",
    "privacy.egress: Denied needs placement.mode PerNode: replicas fetch the model themselves",
)


class Client(ApiModel):
    """Pods that may use the API; what is set must hold together."""

    namespace_selector: LabelSelector | None = Field(
        default=None,
        description="Labels of their namespaces, for example kubernetes.io/metadata.name; an empty selector "
        "takes all. Unset means the SLMDeployment's namespace.",
    )
    pod_selector: LabelSelector | None = Field(
        default=None, description="Labels of the pods; unset means all pods of those namespaces."
    )


class Privacy(ApiModel):
    """At which sites the model may run, and whom its pods may speak with. It may be changed at any time; no
    pod is restarted for it."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "!has(self.networkPolicy) || self.networkPolicy != 'None' || "
                "(!has(self.clients) && (!has(self.egress) || self.egress == 'Sources'))",
                "clients and egress: Denied are for NetworkPolicies of the operator: set networkPolicy: "
                "Managed",
            )
        )
    )

    allowed_sites: Annotated[list[SiteName], Field(min_length=1, max_length=1000)] | None = Field(
        default=None,
        description="Data residency: a node must have one of these values of placement.siteLabel. Other "
        "nodes, and those without the label, get no pod and are reported as SiteNotAllowed; one that comes "
        "to such a site loses its pod at once, also while the rollout is paused; with placement.mode "
        "Replicas it keeps the pods that it has until they are deleted. Unset allows all sites.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    network_policy: NetworkPolicyMode | None = Field(
        default=None,
        description="Managed: the operator keeps NetworkPolicies for the pods of this SLMDeployment, which "
        "hold where the network plugin enforces them. None: it keeps none. Unset is Managed with clients or "
        "egress: Denied, else the operator's default (chart value privacy.networkPolicy).",
    )
    egress: Literal["Sources", "Denied"] = Field(
        default="Sources",
        description="What pods may open connections to, with networkPolicy Managed. Sources: the cluster's "
        "DNS, the model's sources and the stores of other nodes. Denied: nothing for serving pods; a model "
        "is always fetched ahead then, by pods that serve nothing.",
    )
    clients: Annotated[list[Client], Field(max_length=50)] | None = Field(
        default=None,
        description="Who may use the API, with networkPolicy Managed, beside what scrapes metrics and the "
        "node itself; [{}] is the SLMDeployment's namespace, an empty list nobody. Unset takes the "
        "operator's default (chart value privacy.clients).",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )

    @cached_property
    def site_set(self) -> frozenset[str]:
        """`allowed_sites` to look things up in; empty when unset."""
        return frozenset(self.allowed_sites or ())


def privacy_rules() -> list[dict[str, Any]]:
    """CEL rules for spec that are about more than `privacy` alone."""
    return [PER_SITE_RULE, PREFETCH_RULE]
