# SPDX-License-Identifier: Apache-2.0
"""Kubernetes label selector semantics."""

from collections.abc import Mapping

from slmops.api.base import LabelSelector, LabelSelectorRequirement


def matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether `labels` satisfy every requirement; an empty selector selects everything."""
    # Plain loops: this runs for each node and selector at every look.
    for key, value in selector.match_labels.items():
        if labels.get(key) != value:
            return False
    for requirement in selector.match_expressions:  # noqa: SIM110
        if not _holds(requirement, labels):
            return False
    return True


def _holds(requirement: LabelSelectorRequirement, labels: Mapping[str, str]) -> bool:
    # NotIn holds for a missing key: that is what the API server does.
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value is not None and value in requirement.values
        case "NotIn":
            return value is None or value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
