# SPDX-License-Identifier: Apache-2.0
"""From counts to samples, alike for every metrics provider.

Counts may be fractions (Prometheus extrapolates) and sums of many pods. What comes out is what the
judge may rely on: whole samples, no more events than samples, buckets that never fall. None means
that there is no evidence, which is not the same as a value of zero.
"""

import math
from collections.abc import Mapping
from typing import Final

from slmops.model.observed import Sample

QUANTILE: Final = 0.95
_MOST_SAMPLES: Final = 2**53
"""More cannot be told apart by a float."""


def count_whole(count: float) -> int:
    """Whole samples in an extrapolated count; 0 for what is no count."""
    return min(_MOST_SAMPLES, int(count + 1e-6)) if math.isfinite(count) and count > 0 else 0


def build_share(*, requests: float, errors: float) -> Sample | None:
    """Share of the requests that were errors."""
    samples = count_whole(requests)
    if not samples or not math.isfinite(errors):
        return None
    events = min(max(errors, 0.0), float(samples))
    return Sample(value=events / samples, samples=samples, events=events)


def build_latency(buckets: Mapping[float, float]) -> Sample | None:
    """95th percentile of a histogram: upper bound in seconds to requests up to it, cumulative."""
    samples = count_whole(buckets.get(math.inf, 0.0))
    if not samples or not all(math.isfinite(count) for count in buckets.values()):
        return None
    counts: list[tuple[float, float]] = []
    least = 0.0
    for bound in sorted(bound for bound in buckets if not math.isnan(bound)):
        least = float(samples) if bound == math.inf else min(max(least, buckets[bound]), float(samples))
        counts.append((bound, least))
    value = quantile(tuple(counts), QUANTILE)
    return None if value is None else Sample(value=value, samples=samples, buckets=tuple(counts))


def quantile(buckets: tuple[tuple[float, float], ...], share: float) -> float | None:
    """As PromQL's histogram_quantile: linear within a bucket, the last finite bound beyond it."""
    if len(buckets) < 2 or buckets[-1][1] <= 0:
        return None
    rank = share * buckets[-1][1]
    at = next(i for i, (_, count) in enumerate(buckets) if count >= rank)
    if at == len(buckets) - 1:
        return buckets[-2][0]
    bound, count = buckets[at]
    if at == 0 and bound <= 0:
        return bound
    lower, below = buckets[at - 1] if at else (0.0, 0.0)
    return lower + (bound - lower) * (rank - below) / (count - below)


def build_speed(*, tokens: float, seconds: float, requests: float) -> Sample | None:
    """Tokens generated per second of a request."""
    samples = count_whole(requests)
    if not samples or not math.isfinite(tokens) or not math.isfinite(seconds) or seconds <= 0:
        return None
    return Sample(value=max(tokens, 0.0) / seconds, samples=samples)


def build_score(*, weighted: float, cases: float) -> Sample | None:
    """Mean score of golden cases or judgements; `weighted` is the sum of the scores of all cases."""
    samples = count_whole(cases)
    if not samples or not math.isfinite(weighted):
        return None
    return Sample(value=weighted / cases, samples=samples)


def build_drift(signals: Mapping[str, tuple[float, float]]) -> Sample | None:
    """The signal that drifted most: name to (sum of index times samples, samples).

    The index of several pods is their mean, weighted by their samples.
    """
    found = [build_score(weighted=weighted, cases=samples) for weighted, samples in signals.values()]
    return max(
        (sample for sample in found if sample), key=lambda s: (s.value or 0.0, s.samples), default=None
    )
