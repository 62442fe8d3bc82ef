# SPDX-License-Identifier: Apache-2.0
"""Checks of `spec.adaptation`."""

import re

from slmops.api import SLMDeploymentSpec
from slmops.api.adaptation import BASE_NAME
from slmops.api.base import duration_seconds
from slmops.planning.finding import Finding

_WHERE = "spec.adaptation"


def find_adaptation_problem(spec: SLMDeploymentSpec) -> Finding | None:
    """First finding."""
    adaptation = spec.adaptation
    if adaptation is None:
        return _without(spec)
    if spec.placement.mode != "PerNode":
        return _invalid(
            f"{_WHERE}: it needs placement.mode PerNode: examples and adapters stay on the nodes of a site"
        )
    if adaptation.name == BASE_NAME:
        return _invalid(f"{_WHERE}.name: {BASE_NAME} names the model without an adapter; use another name")
    for override in spec.overrides or ():
        if any(adapter.name == BASE_NAME for adapter in override.adapters or ()):
            return _invalid(
                f"spec.overrides[{override.name}].adapters: with spec.adaptation none can be called "
                f"{BASE_NAME}, which names the model without the one that was trained; rename it"
            )
    if len(set(adaptation.sites)) != len(adaptation.sites):
        return _invalid(f"{_WHERE}.sites: a site occurs twice; name each once")
    if spec.privacy.allowed_sites is not None:
        refused = sorted(set(adaptation.sites) - spec.privacy.site_set)
        if refused:
            return _invalid(
                f"{_WHERE}.sites: {', '.join(refused)} is not among spec.privacy.allowedSites, so the model "
                "does not run there; allow the site, or leave it out here"
            )
    if adaptation.training.min_examples >= adaptation.collect.max_examples:
        return _invalid(
            f"{_WHERE}.training.minExamples: {adaptation.training.min_examples} is not below "
            "collect.maxExamples, so no node could ever train; raise that, or lower this"
        )
    rate = float(adaptation.training.learning_rate)
    if not 0 < rate <= 1:
        return _invalid(f"{_WHERE}.training.learningRate: {rate:g} must be above 0 and at most 1")
    if duration_seconds(adaptation.training.deadline) < 1:
        return _invalid(f"{_WHERE}.training.deadline: must be at least 1s")
    return _patterns(adaptation.collect.patterns)


def _patterns(patterns: list[str]) -> Finding | None:
    for index, pattern in enumerate(patterns):
        where = f"{_WHERE}.collect.patterns[{index}]"
        try:
            # Never run here, not even on an empty text: that may take for ever. Servers bound it.
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            return _invalid(f"{where}: it is no regular expression of Python: {error}")
    return None


def _without(spec: SLMDeploymentSpec) -> Finding | None:
    rules = spec.feedback.rules if spec.feedback is not None else []
    for index, rule in enumerate(rules):
        if rule.action == "TrainAdapter":
            return _invalid(
                f"spec.feedback.rules[{index}].action: TrainAdapter needs spec.adaptation, the sites that "
                "may train"
            )
    return None


def _invalid(message: str) -> Finding:
    return Finding(reason="InvalidSpec", message=message)
