# SPDX-License-Identifier: Apache-2.0
"""Metrics that are read off the pods: Restarts and OOMKills. No metrics provider is asked."""

from typing import Final

from slmops.api.analysis import Analysis
from slmops.api.status import RolloutStatus
from slmops.model.observed import PodView, Preset, Reading, Sample, Samples
from slmops.planning.fleet import Fleet
from slmops.planning.metric_rules import is_read_off_pods, seconds_until_due
from slmops.planning.nodes import OOM_KILLED
from slmwire.labels import Role

_STEPS: Final = frozenset({"Flipping", "Soaking", "Analysing"})


def pod_readings(
    analysis: Analysis, rollout: RolloutStatus, fleet: Fleet, *, now: float
) -> tuple[Reading, ...]:
    """Readings that are due at this look, of the serving pods of the revision being rolled out.

    By class: the value is that of the worst node, the samples are its nodes. Pods of the revision exist
    only since their node took it, so all their restarts count, those of earlier waves included. There
    is no stable side: its pods are older.
    """
    if rollout.step not in _STEPS:
        return ()
    states = {state.name: state for state in rollout.metrics}
    return tuple(
        Reading(
            metric=metric.name,
            canary=_count(fleet, rollout.revision, Preset(metric.preset or "")),
            stable={},
            at=now,
        )
        for metric in analysis.metrics
        if is_read_off_pods(metric)
        and seconds_until_due(metric, states.get(metric.name), analysis, now=now) <= 0
    )


def _count(fleet: Fleet, revision: str, preset: Preset) -> Samples:
    by_class: dict[str, list[int]] = {}
    for state in fleet.states:
        by_variant: dict[str, int] = {}
        for pod in state.pods_of(revision, Role.SERVE):
            by_variant[pod.variant] = by_variant.get(pod.variant, 0) + _count_of(pod, preset)
        for variant, count in by_variant.items():
            by_class.setdefault(variant, []).append(count)
    return {
        variant: Sample(value=float(max(counts)), samples=len(counts)) for variant, counts in by_class.items()
    }


def _count_of(pod: PodView, preset: Preset) -> int:
    if preset is Preset.RESTARTS:
        return pod.server_restarts
    # The kubelet tells only how a container ended last: if by its memory, all its restarts count as such.
    return max(1, pod.server_restarts) if pod.last_exit_reason == OOM_KILLED else 0
