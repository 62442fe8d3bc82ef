# SPDX-License-Identifier: Apache-2.0
"""Seeded traces for `e2e.bench.evidence`: what a scrape every ten seconds shows of both sides of a wave.

Ten canary and twenty stable nodes answer 0.4 requests a second each, as a Poisson process.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from slmserve.metrics import SECONDS_BUCKETS

LOOK_SECONDS: Final = 10
CANARY_NODES: Final = 10
STABLE_NODES: Final = 20
REQUESTS_PER_LOOK: Final = 4.0
"""Of one node."""
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Error rates of the two sides and what the comparison allows."""

    stable: float
    canary: float
    allowed: float = 0.02
    relative: float = 0.0
    burst_rate: float = 0.0
    """Error rate of a node in a bad spell; nodes fall into one independently, on either side."""
    outage_rate: float = 0.0
    """Error rate of everybody while a backend that both share is down, minutes 5 to 8."""
    node_spread: float = 0.0
    """Coefficient of variation of the nodes' own rates (gamma distributed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Lognormal latencies; the stable p95 is anywhere from 0.3 s to 30 s, another one in each trace."""

    factor: float
    """Canary's latency relative to the stable's."""
    buckets: tuple[float, ...]
    relative: float = 0.2
    sigma: float = 0.5
    """Of the logarithm; 0.5 puts the p95 at 2.3 times the median, 0.8 at 3.7 times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One kind of trace."""

    name: str
    law: Rates | Latency
    minutes: int
    regressed: bool

    @property
    def looks(self) -> int:
        """Looks in one trace."""
        return self.minutes * 60 // LOOK_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class RateTrace:
    """Cumulative counts at each look, one array item per look."""

    canary_events: Array
    canary_total: Array
    stable_events: Array
    stable_total: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTrace:
    """Cumulative counts at each look: rows are looks, columns are buckets (cumulative, the last is all)."""

    buckets: tuple[float, ...]
    canary: Array
    stable: Array


SCENARIOS: Final = (
    *(
        Scenario(
            name=f"errors equal, {rate:.1%}", law=Rates(stable=rate, canary=rate), minutes=60, regressed=False
        )
        for rate in (0.001, 0.01, 0.05, 0.2)
    ),
    Scenario(
        name="errors at the margin, 1 -> 3 %",
        law=Rates(stable=0.01, canary=0.03),
        minutes=60,
        regressed=False,
    ),
    Scenario(
        name="errors at a relative margin, 5 -> 6 %",
        law=Rates(stable=0.05, canary=0.06, allowed=0.0, relative=0.2),
        minutes=60,
        regressed=False,
    ),
    Scenario(
        name="errors in bursts of single nodes, 1.5 % overall",
        law=Rates(stable=0.005, canary=0.005, burst_rate=0.3),
        minutes=60,
        regressed=False,
    ),
    Scenario(
        name="shared backend down for 3 min",
        law=Rates(stable=0.01, canary=0.01, outage_rate=0.5),
        minutes=60,
        regressed=False,
    ),
    Scenario(
        name="nodes differ, 1 % on average",
        law=Rates(stable=0.01, canary=0.01, node_spread=1.0),
        minutes=60,
        regressed=False,
    ),
    Scenario(name="p95 equal", law=Latency(factor=1.0, buckets=SECONDS_BUCKETS), minutes=30, regressed=False),
    Scenario(
        name="p95 at the margin, x1.2",
        law=Latency(factor=1.2, buckets=SECONDS_BUCKETS),
        minutes=30,
        regressed=False,
    ),
    Scenario(name="errors 1 -> 6 %", law=Rates(stable=0.01, canary=0.06), minutes=10, regressed=True),
    Scenario(name="errors 1 -> 10 %", law=Rates(stable=0.01, canary=0.10), minutes=5, regressed=True),
    Scenario(
        name="errors 1.5 -> 10 %, bursts of single nodes",
        law=Rates(stable=0.005, canary=0.09, burst_rate=0.3),
        minutes=10,
        regressed=True,
    ),
    Scenario(name="p95 x1.5", law=Latency(factor=1.5, buckets=SECONDS_BUCKETS), minutes=10, regressed=True),
    Scenario(
        name="p95 x1.5, broad latencies",
        law=Latency(factor=1.5, buckets=SECONDS_BUCKETS, sigma=0.8),
        minutes=20,
        regressed=True,
    ),
    Scenario(name="p95 x2", law=Latency(factor=2.0, buckets=SECONDS_BUCKETS), minutes=10, regressed=True),
)


def draw_trace(scenario: Scenario, random: np.random.Generator) -> RateTrace | LatencyTrace:
    """One trace of the scenario."""
    if isinstance(scenario.law, Rates):
        canary = _draw_errors(scenario.law, scenario.law.canary, CANARY_NODES, scenario.looks, random)
        stable = _draw_errors(scenario.law, scenario.law.stable, STABLE_NODES, scenario.looks, random)
        return RateTrace(
            canary_events=canary[0], canary_total=canary[1], stable_events=stable[0], stable_total=stable[1]
        )
    law = scenario.law
    p95 = math.exp(random.uniform(math.log(0.3), math.log(30.0)))
    return LatencyTrace(
        buckets=(*law.buckets, math.inf),
        canary=_draw_latencies(law, p95 * law.factor, CANARY_NODES, scenario.looks, random),
        stable=_draw_latencies(law, p95, STABLE_NODES, scenario.looks, random),
    )


def _draw_errors(
    law: Rates, rate: float, nodes: int, looks: int, random: np.random.Generator
) -> tuple[Array, Array]:
    rates = np.full((looks, nodes), rate)
    if law.node_spread > 0:
        shape = law.node_spread**-2
        rates = np.repeat(random.gamma(shape, rate / shape, (1, nodes)), looks, axis=0)
    if law.burst_rate > 0:
        # A spell begins once in half an hour on average and lasts a minute.
        spell = 60 // LOOK_SECONDS
        begins = random.random((looks + spell, nodes)) < LOOK_SECONDS / 1800
        ill = np.stack([begins[shift : shift + looks] for shift in range(spell)]).any(axis=0)
        rates = np.where(ill, law.burst_rate, rates)
    if law.outage_rate > 0:
        rates[300 // LOOK_SECONDS : 480 // LOOK_SECONDS] = law.outage_rate
    total = random.poisson(REQUESTS_PER_LOOK, (looks, nodes))
    events = random.binomial(total, np.minimum(rates, 1.0))
    return (
        np.cumsum(events.sum(axis=1)).astype(np.float64),
        np.cumsum(total.sum(axis=1)).astype(np.float64),
    )


def _draw_latencies(law: Latency, p95: float, nodes: int, looks: int, random: np.random.Generator) -> Array:
    middle = math.log(p95) - 1.6448536 * law.sigma
    below = [
        0.5 + 0.5 * math.erf((math.log(bound) - middle) / law.sigma / math.sqrt(2)) for bound in law.buckets
    ]
    shares = np.diff([0.0, *below, 1.0])
    total = random.poisson(REQUESTS_PER_LOOK * nodes, looks)
    each = random.multinomial(total, shares)
    return np.cumsum(np.cumsum(each, axis=0), axis=1).astype(np.float64)
