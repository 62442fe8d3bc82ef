# SPDX-License-Identifier: Apache-2.0
"""Checks of `spec.distribution`."""

from slmops.api import SLMDeploymentSpec
from slmops.api.base import quantity_value
from slmops.api.distribution import MIN_RATE_BYTES
from slmops.planning.finding import Finding

_WHERE = "spec.distribution"


def find_distribution_problem(spec: SLMDeploymentSpec) -> Finding | None:
    """First finding in the limits; their windows are checked with those of the rollout."""
    wanted = spec.distribution
    for name, text in (("rateLimit", wanted.rate_limit), ("siteRateLimit", wanted.site_rate_limit)):
        if text is not None and quantity_value(text) < MIN_RATE_BYTES:
            return _invalid(
                f"{_WHERE}.{name}: {text} is less than 1Ki bytes per second; give it in bytes, for example 2M"
            )
    limit, places = wanted.site_rate_limit, wanted.max_concurrent_per_site
    if limit is not None and places is None:
        return _invalid(
            f"{_WHERE}.siteRateLimit: it is shared out among the nodes that fetch at a time; set "
            "maxConcurrentPerSite, too"
        )
    if limit is not None and places is not None and quantity_value(limit) / places < MIN_RATE_BYTES:
        return _invalid(
            f"{_WHERE}.siteRateLimit: {limit} among {places} nodes (maxConcurrentPerSite) is less than 1Ki "
            "bytes per second each; let fewer nodes fetch at a time"
        )
    if spec.placement.mode == "Replicas" and (limit or places or wanted.windows):
        return _invalid(
            f"{_WHERE}: with placement.mode Replicas nothing is fetched ahead; leave siteRateLimit, "
            "maxConcurrentPerSite and windows out and use rateLimit and rollout.windows"
        )
    return None


def _invalid(message: str) -> Finding:
    return Finding(reason="InvalidSpec", message=message)
