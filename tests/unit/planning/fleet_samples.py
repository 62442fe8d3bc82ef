# SPDX-License-Identifier: Apache-2.0
"""What a metrics provider says of one class of pods that behave in a given way."""

import math

from slmops.model.observed import Preset, Sample
from tests.unit.planning.fleet_cluster import Behaviour

LATENCY_BOUNDS = tuple(0.05 * 1.4**step for step in range(16))


def sample_of(behaviour: Behaviour, preset: Preset | None, variant: str) -> Sample | None:
    """A value as a provider gives it, with the counts behind it; None for no series."""
    samples = behaviour.samples
    if preset in (Preset.LATENCY_P95, Preset.TTFT_P95):
        # Exponential, with this 95 % quantile.
        shares = [-math.expm1(-bound * math.log(20) / behaviour.p95_seconds) for bound in LATENCY_BOUNDS]
        buckets = tuple((b, share * samples) for b, share in zip(LATENCY_BOUNDS, shares, strict=True))
        return Sample(
            value=behaviour.p95_seconds, samples=samples, buckets=(*buckets, (math.inf, float(samples)))
        )
    if preset is Preset.ERROR_RATE:
        rate = behaviour.error_rates.get(variant, behaviour.error_rate)
        return None if rate is None else Sample(value=rate, samples=samples, events=rate * samples)
    score = behaviour.judged if preset is Preset.FEEDBACK_SCORE else behaviour.score
    return None if score is None or math.isnan(score) else Sample(value=score, samples=samples)
