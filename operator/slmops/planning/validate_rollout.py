# SPDX-License-Identifier: Apache-2.0
"""Checks that keep a rollout from beginning or going on, while what is stable is still looked after."""

from collections import Counter
from collections.abc import Sequence

from slmops.api import SLMDeploymentSpec
from slmops.api.rollout import Window
from slmops.api.spec import Wave
from slmops.model.observed import NodeView
from slmops.planning.finding import Finding
from slmops.planning.waves import find_empty, find_overlap
from slmops.planning.windows import load_zone


def find_rollout_problem(spec: SLMDeploymentSpec) -> Finding | None:
    """First finding in the waves and windows as written; None when they make sense."""
    replicas = _replica_waves(spec.rollout.waves) if spec.placement.mode == "Replicas" else None
    return replicas or _wave_order(spec.rollout.waves) or _wave_kinds(spec.rollout.waves) or _windows(spec)


def find_fleet_problem(waves: Sequence[Wave], nodes: Sequence[NodeView]) -> Finding | None:
    """First finding in how the waves fit these nodes; looked at before a rollout begins."""
    overlap = find_overlap(waves, nodes)
    if overlap is not None:
        node, first, second = overlap
        return Finding(
            reason="InvalidWaves",
            message=f"spec.rollout.waves: node {node} is selected by both {first} and {second}; narrow one "
            "of their nodeSelectors",
        )
    empty = find_empty(waves, nodes)
    if empty is not None:
        return Finding(
            reason="InvalidWaves",
            message=f"spec.rollout.waves: the nodeSelector of {empty} selects no node; correct it, label a "
            "node for it, or set its emptyPolicy to Skip",
        )
    return None


def _invalid(message: str) -> Finding:
    return Finding(reason="InvalidWaves", message=message)


def _replica_waves(waves: Sequence[Wave]) -> Finding | None:
    for index, wave in enumerate(waves):
        if wave.node_selector is not None:
            return _invalid(
                f"spec.rollout.waves[{index}].nodeSelector: with placement.mode Replicas waves are shares of "
                "the replicas; use count, percent or exponential"
            )
    return None


def _wave_order(waves: Sequence[Wave]) -> Finding | None:
    last = 0
    for index, wave in enumerate(waves):
        where = f"spec.rollout.waves[{index}]"
        if wave.exponential is not None:
            if index != len(waves) - 1:
                return _invalid(f"{where}.exponential: it grows up to all nodes; make it the last wave")
            last = 100
            continue
        if wave.percent is None:
            if last:
                return _invalid(f"{where}: waves with a nodeSelector or a count come before percentages")
            continue
        if wave.percent <= last:
            return _invalid(
                f"{where}.percent: {wave.percent} is not above {last} of the wave before; percentages are of "
                "all nodes and must grow"
            )
        last = wave.percent
    if last != 100:
        return _invalid(
            "spec.rollout.waves: the last wave must be percent: 100 or exponential, or some nodes would "
            "never get a new revision"
        )
    return None


def _wave_kinds(waves: Sequence[Wave]) -> Finding | None:
    for index, wave in enumerate(waves):
        kinds = (wave.node_selector, wave.count, wave.percent, wave.exponential)
        if sum(kind is not None for kind in kinds) != 1:
            return _invalid(
                f"spec.rollout.waves[{index}]: set exactly one of nodeSelector, count, percent, exponential"
            )
    doubled = [name for name, times in Counter(wave.name for wave in waves).items() if times > 1]
    if doubled:
        return _invalid(f"spec.rollout.waves: two waves are named {doubled[0]}; give each a name of its own")
    if waves[-1].max_per_site is not None:
        return _invalid("spec.rollout.waves: the last wave takes all that is left; leave its maxPerSite out")
    return None


def _windows(spec: SLMDeploymentSpec) -> Finding | None:
    groups = (("rollout", spec.rollout.windows), ("distribution", spec.distribution.windows))
    for group, windows in groups:
        for index, window in enumerate(windows):
            found = _window(f"spec.{group}.windows[{index}]", window)
            if found is not None:
                return found
    return None


def _window(where: str, window: Window) -> Finding | None:
    if load_zone(window.time_zone) is None:
        return Finding(
            reason="InvalidWindow",
            message=f"{where}.timeZone: there is no time zone {window.time_zone}; use an IANA name such "
            "as Europe/Berlin",
        )
    if window.start_time in (window.end_time, "24:00"):
        return Finding(
            reason="InvalidWindow",
            message=f"{where}: from {window.start_time} to {window.end_time} it never opens; 00:00 to "
            "24:00 is the whole day",
        )
    return None
