# SPDX-License-Identifier: Apache-2.0
"""Metrics, readings and rollouts for tests of analysis."""

import json
from collections.abc import Mapping
from typing import Any

from slmops.api.analysis import Metric
from slmops.api.status import RolloutStatus, WaveStatus
from slmops.model.observed import Preset, Reading, Sample
from slmops.planning import times
from slmops.planning.analysis import Assessment, assess_reading
from slmops.planning.evidence import required_log_e
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_samples import sample_of

NOW = 1_750_000_000.0
REQUIRED = required_log_e(0.01, 2)


def metric(preset: str = "ErrorRate", **fields: Any) -> Metric:
    return Metric.model_validate({"name": "m", "preset": preset, **fields})


def errors(rate: float, samples: int = 3000) -> Sample:
    return Sample(value=rate, samples=samples, events=rate * samples)


def latency(p95_seconds: float, samples: int = 3000) -> Sample:
    sample = sample_of(Behaviour(p95_seconds=p95_seconds, samples=samples), Preset.LATENCY_P95, "")
    assert sample is not None
    return sample


def reading(
    canary: Mapping[str, Sample], stable: Mapping[str, Sample] | None = None, *, at: float = NOW
) -> Reading:
    return Reading(metric="m", canary=canary, stable=stable or {}, at=at)


def assess(judge: Metric, seen: Reading, kept: Mapping[str, Sample] | None = None) -> Assessment:
    return assess_reading(judge, seen, required_log_e=REQUIRED, kept=kept)


MAX = metric(max="0.05")
WORSE = metric(max_degradation="0.02")
WORSE_THRESHOLD = metric(max_degradation="0.02", test="Threshold")
SLOWER = metric("LatencyP95", max_degradation="20%")
SLOW = metric("LatencyP95", max="1.5")
BOTH = metric(max="0.05", max_degradation="0.02")


def rollout(step: str = "Analysing", **fields: Any) -> RolloutStatus:
    at = times.to_text(NOW)
    return RolloutStatus.model_validate(
        {
            "revision": "new",
            "step": step,
            "step_started_at": at,
            "wave_started_at": at,
            "started_at": at,
            "waves": [WaveStatus(name="canary"), WaveStatus(name="rest")],
            **fields,
        }
    )


def stored(status: RolloutStatus) -> RolloutStatus:
    """As the API server gives it back."""
    return RolloutStatus.model_validate(json.loads(json.dumps(status.to_body())))
