# SPDX-License-Identifier: Apache-2.0
"""`spec.distribution`: how models reach the nodes over thin links."""

from typing import Any, Final, Literal

from pydantic import ConfigDict, Field

from slmops.api.base import ApiModel, Quantity, cel, validations
from slmops.api.rollout import Window

MIN_RATE_BYTES: Final = 1024
"""Less than this per second is taken for a slip of the pen, `1m` for `1M`, say."""


def _rate_rule(name: str) -> dict[str, str]:
    return cel(
        f"!has(self.{name}) || quantity(self.{name}).compareTo(quantity('1Ki')) >= 0",
        f"{name} is in bytes per second and must be at least 1Ki, for example 2M",
    )


class Distribution(ApiModel):
    """How models reach the nodes: shared within a site, within bandwidth and times. It may be changed at
    any time; no pod is restarted for it."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "!has(self.siteRateLimit) || has(self.maxConcurrentPerSite)",
                "siteRateLimit is shared out among the nodes that fetch at a time: set maxConcurrentPerSite, "
                "too",
            ),
            _rate_rule("rateLimit"),
            _rate_rule("siteRateLimit"),
        )
    )

    peers: Literal["Site", "None"] = Field(
        default="Site",
        description="Site: nodes of one site (placement.siteLabel) take what they can from each other, so "
        "that a model comes to the site once. Every file is verified on every node. That needs "
        "cache.hostPath to be what the store agents serve (chart value storeAgent.hostPath) or a folder "
        "directly below it. None: each node takes it from the source.",
    )
    rate_limit: Quantity | None = Field(
        default=None,
        description="Most bytes per second that a node takes from the source, for example 2M; unset means no "
        "limit. What comes from peers is not limited.",
    )
    site_rate_limit: Quantity | None = Field(
        default=None,
        description="Most bytes per second that the nodes of a site take from the source together while they "
        "fetch ahead; each gets the share that maxConcurrentPerSite leaves it. Needs maxConcurrentPerSite.",
    )
    max_concurrent_per_site: int | None = Field(
        default=None,
        ge=1,
        le=100000,
        description="Most nodes of a site that fetch at a time; unset means no limit. New nodes fetch ahead "
        "then, too, before they get their inference pod.",
    )
    windows: list[Window] = Field(
        default_factory=list,
        max_length=20,
        description="Times in which nodes may fetch; empty means always. Outside them no fetch begins, also "
        "not for a new node, and one that is under way stops and goes on where it was in the next window. A "
        "rollback needs no fetch and waits for no window.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


def not_with_replicas() -> dict[str, Any]:
    """CEL rule for spec: replicas fetch where they start, so limits on fetching ahead are not for them."""
    return validations(
        cel(
            "!has(self.placement.mode) || self.placement.mode != 'Replicas' || !has(self.distribution) || "
            "!(has(self.distribution.siteRateLimit) || has(self.distribution.maxConcurrentPerSite) || "
            "has(self.distribution.windows) && self.distribution.windows.size() > 0)",
            "distribution: with placement.mode Replicas nothing is fetched ahead, so leave siteRateLimit, "
            "maxConcurrentPerSite and windows out and use rateLimit and rollout.windows",
        )
    )
