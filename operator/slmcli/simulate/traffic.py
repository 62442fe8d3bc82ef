# SPDX-License-Identifier: Apache-2.0
"""What a metrics provider would read: requests of the nodes that can be scraped, drawn at random."""

import math
from bisect import bisect_right
from itertools import pairwise
from random import Random
from typing import Final

from slmcli.simulate.settings import Settings
from slmcli.simulate.tally import Tally
from slmops.api.analysis import Metric
from slmops.model.observed import MetricQuery, Preset, Sample, Samples

WARM_SECONDS: Final = 3600.0
"""So long the stable version has served before the simulation begins."""
GOLDEN_CASES: Final = 20
"""Cases of the golden set that each node answers."""
TOKENS_PER_SECOND: Final = 20.0
_SIGMA: Final = 0.6
_MEDIAN_SECONDS: Final = {Preset.LATENCY_P95: 1.5, Preset.TTFT_P95: 0.3}
"""Of the stable version; requests take log-normal times around it."""
_BOUNDS: Final = (
    0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 3.5, 5.0, 7.5,
    10.0, 15.0, 25.0, 40.0, 60.0, 120.0, math.inf,
)  # fmt: skip
"""Buckets of the inference server's histograms, in seconds."""
_SMALL: Final = 30.0
"""Above this mean a count is drawn from the normal distribution."""
_Counts = tuple[float, ...]
"""requests, errors, then requests per latency bucket, then per first-token bucket."""


class Traffic:
    """Counters of all (revision, variant) pairs, read at any time, as Prometheus keeps them."""

    def __init__(
        self, tally: Tally, settings: Settings, *, target: str, metrics: tuple[Metric, ...], random: Random
    ) -> None:
        self._tally = tally
        self._settings = settings
        self._target = target
        self._random = random
        self._metrics = {metric.name: metric for metric in metrics}
        self._timed = tuple(p for p in _MEDIAN_SECONDS if any(m.preset == p for m in metrics))
        self._areas: dict[tuple[str, str], float] = {}
        self._times: dict[tuple[str, str], list[float]] = {}
        self._counts: dict[tuple[str, str], list[_Counts]] = {}
        begin = settings.start_seconds
        for key, gauge in tally.seen.items():
            self._note(key, gauge.value * WARM_SECONDS, begin)

    def advance(self, now: float) -> None:
        """Draw the requests since the last call."""
        for key, gauge in self._tally.seen.items():
            area = gauge.area(now)
            self._note(key, area - self._areas.get(key, 0.0), now)
            self._areas[key] = area

    def read(self, metric: str, query: MetricQuery, now: float) -> Samples:
        """Answer to one side of a measurement."""
        if query.preset is None:
            return {"": Sample(value=self._healthy(metric), samples=1)}
        since = query.since or now - query.window_seconds
        return {
            variant: self._sample(query.preset, (revision, variant), since)
            for revision, variant in sorted(self._times)
            if revision == query.revision
        }

    def rates(self, revision: str) -> float:
        """Share of the requests to a revision that fail."""
        effect = self._settings.effect.error_rate
        return effect if effect is not None and revision == self._target else self._settings.base_error_rate

    def _healthy(self, name: str) -> float:
        """A value that no bound of the metric forbids, the same on both sides."""
        metric = self._metrics.get(name)
        low = float(metric.min) if metric is not None and metric.min is not None else None
        high = float(metric.max) if metric is not None and metric.max is not None else None
        if low is not None and high is not None:
            return (low + high) / 2
        if low is not None:
            return low * 2 or 1.0
        return high / 2 if high is not None else 1.0

    def _note(self, key: tuple[str, str], node_seconds: float, now: float) -> None:
        times = self._times.setdefault(key, [now - WARM_SECONDS - 1.0])
        width = 2 + len(self._timed) * len(_BOUNDS)
        counts = self._counts.setdefault(key, [(0.0,) * width])
        if node_seconds <= 0 and times[-1] >= now:
            return
        mean = max(0.0, node_seconds) / 60 * self._settings.requests_per_node_minute
        requests = draw_poisson(self._random, mean)
        fresh = [float(requests), float(draw_binomial(self._random, requests, self.rates(key[0])))]
        factor = self._settings.effect.latency_factor if key[0] == self._target else 1.0
        for preset in self._timed:
            fresh += self._draw_buckets(requests, _MEDIAN_SECONDS[preset] * factor)
        times.append(now)
        counts.append(tuple(a + b for a, b in zip(counts[-1], fresh, strict=True)))

    def _draw_buckets(self, requests: int, median_seconds: float) -> list[float]:
        drawn = []
        left, before = requests, 0.0
        for bound in _BOUNDS:
            below = _below(bound, median_seconds)
            share = (below - before) / (1 - before) if before < 1 else 1.0
            count = left if math.isinf(bound) else draw_binomial(self._random, left, share)
            drawn.append(float(count))
            left, before = left - count, below
        return drawn

    def _sample(self, preset: Preset, key: tuple[str, str], since: float) -> Sample:
        times, counts = self._times[key], self._counts[key]
        # Status keeps whole seconds: what was counted within the second of `since` is from its begin.
        first = counts[max(0, bisect_right(times, since + 1.0) - 1)]
        window = [b - a for a, b in zip(first, counts[-1], strict=True)]
        effect, requests = self._settings.effect, int(window[0])
        bad = key[0] == self._target
        if preset is Preset.EVALUATION_SCORE:
            nodes = int(self._tally.seen[key].value)
            score = effect.score if bad and effect.score is not None else self._settings.base_score
            return Sample(value=score if nodes else None, samples=nodes * GOLDEN_CASES)
        if not requests:
            return Sample(value=None, samples=0)
        if preset is Preset.ERROR_RATE:
            return Sample(value=window[1] / requests, samples=requests, events=window[1])
        if preset is Preset.FEEDBACK_SCORE:
            score = effect.score if bad and effect.score is not None else self._settings.base_score
            return Sample(value=score, samples=requests)
        if preset is Preset.TOKENS_PER_SECOND:
            return Sample(value=TOKENS_PER_SECOND / (effect.latency_factor if bad else 1.0), samples=requests)
        if preset not in self._timed:
            return Sample(value=0.0, samples=requests)
        begin = 2 + self._timed.index(preset) * len(_BOUNDS)
        total, buckets = 0.0, []
        for bound, count in zip(_BOUNDS, window[begin : begin + len(_BOUNDS)], strict=True):
            total += count
            buckets.append((bound, total))
        return Sample(value=quantile(buckets, 0.95), samples=requests, buckets=tuple(buckets))


def _below(bound: float, median: float) -> float:
    """Share of log-normal times up to `bound`."""
    if math.isinf(bound):
        return 1.0
    return 0.5 * (1 + math.erf(math.log(bound / median) / (_SIGMA * math.sqrt(2))))


def quantile(buckets: list[tuple[float, float]], share: float) -> float:
    """As Prometheus' histogram_quantile: linear within the bucket, the last bound for the open one."""
    wanted = share * buckets[-1][1]
    if wanted <= buckets[0][1]:
        return buckets[0][0]
    for (low, before), (high, upto) in pairwise(buckets):
        if wanted <= upto:
            return low if math.isinf(high) else low + (high - low) * (wanted - before) / (upto - before)
    return buckets[-2][0]


def draw_poisson(random: Random, mean: float) -> int:
    """A count with this mean."""
    if mean > _SMALL:
        return max(0, round(random.gauss(mean, math.sqrt(mean))))
    count, product, limit = 0, random.random(), math.exp(-mean)
    while product > limit:
        count += 1
        product *= random.random()
    return count


def draw_binomial(random: Random, trials: int, share: float) -> int:
    """How many of `trials` happen, each with the chance `share`."""
    if share > 0.5:
        return trials - draw_binomial(random, trials, 1 - share)
    if trials <= 0 or share <= 0:
        return 0
    mean = trials * share
    if mean > _SMALL:
        drawn = round(random.gauss(mean, math.sqrt(mean * (1 - share))))
        return min(trials, max(0, drawn))
    # From one success to the next: geometric gaps.
    count, at, scale = 0, 0, math.log1p(-share)
    while True:
        at += math.floor(math.log(1.0 - random.random()) / scale) + 1
        if at > trials:
            return count
        count += 1
