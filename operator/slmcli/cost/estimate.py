# SPDX-License-Identifier: Apache-2.0
"""From counters to energy and money. Everything is for a period at the mean rates since the servers' starts.

The formulas, and what they leave out, are in docs/cost.md.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from slmcli.cost.meters import Meter
from slmcli.cost.prices import Prices, Watts, entry_of

HOURS_PER_YEAR: Final = 8766.0
YOUNGEST_SECONDS: Final = 60.0
"""A server that runs for less says nothing about a rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodUse:
    """What a serving pod has done. `seconds` is since its server started."""

    deployment: tuple[str, str]
    node: str
    site: str
    profile: str
    """DeviceProfile of the node; empty for none."""
    seconds: float
    meter: Meter


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a group of devices does and takes in a period; money is None where a price or watts lack."""

    nodes: int
    pods: int
    since_seconds: float
    """Age of the server that has run the longest."""
    counted_input: float
    counted_output: float
    """Tokens that were counted since the starts."""
    input_tokens: float
    output_tokens: float
    """In the period, by rate."""
    busy_share: float
    """Mean over the devices, an upper bound."""
    kilowatt_hours: float | None
    energy: float | None
    devices: float | None
    cloud: float | None

    @property
    def total(self) -> float | None:
        """Energy and devices; None when one of them is not known."""
        return None if self.energy is None or self.devices is None else self.energy + self.devices

    @property
    def per_thousand_tokens(self) -> float | None:
        """Of input and output together; None where nothing was served."""
        tokens = self.input_tokens + self.output_tokens
        return None if self.total is None or tokens <= 0 else 1000 * self.total / tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """The costs of a deployment at one site."""

    deployment: tuple[str, str]
    site: str
    costs: Costs


@dataclass(frozen=True, slots=True, kw_only=True)
class _NodeUse:
    """A device as far as one deployment uses it. `share` of it is charged to that deployment."""

    pods: Sequence[PodUse]
    share: float

    @property
    def busy_share(self) -> float:
        # Requests that overlap are counted each, so this is never less than the time that it was busy.
        return min(1.0, sum(pod.meter.request_seconds / pod.seconds for pod in self.pods))


def estimate_costs(
    uses: Iterable[PodUse], *, period_seconds: float, watts: Mapping[str, Watts], prices: Prices | None
) -> tuple[tuple[CostRow, ...], Costs]:
    """One row per deployment and site, by name, and all together.

    A device that several of the deployments use is charged to them in equal parts.
    """
    found = list(uses)
    sharers: dict[str, set[tuple[str, str]]] = defaultdict(set)
    by_node: dict[tuple[tuple[str, str], str, str], list[PodUse]] = defaultdict(list)
    for use in found:
        sharers[use.node].add(use.deployment)
        by_node[use.deployment, use.site, use.node].append(use)
    groups: dict[tuple[tuple[str, str], str], list[_NodeUse]] = defaultdict(list)
    for (deployment, site, node), pods in by_node.items():
        groups[deployment, site].append(_NodeUse(pods=pods, share=1 / len(sharers[node])))
    rows = tuple(
        CostRow(deployment=key[0], site=key[1], costs=_costs(nodes, period_seconds, watts, prices))
        for key, nodes in sorted(groups.items())
    )
    everything = [node for nodes in groups.values() for node in nodes]
    return rows, _costs(everything, period_seconds, watts, prices)


def _costs(
    nodes: Sequence[_NodeUse], period_seconds: float, watts: Mapping[str, Watts], prices: Prices | None
) -> Costs:
    pods = [pod for node in nodes for pod in node.pods]
    inputs = sum(pod.meter.input_tokens / pod.seconds for pod in pods) * period_seconds
    outputs = sum(pod.meter.output_tokens / pod.seconds for pod in pods) * period_seconds
    hours = period_seconds / 3600
    kilowatts = _sum(_kilowatts(node, watts) for node in nodes)
    hourly = _sum(_hourly(node, prices) for node in nodes)
    energy_price = prices.per_kilowatt_hour if prices is not None else None
    kilowatt_hours = None if kilowatts is None else kilowatts * hours
    cloud = prices.cloud if prices is not None else None
    return Costs(
        nodes=len({pod.node for pod in pods}),
        pods=len(pods),
        since_seconds=max((pod.seconds for pod in pods), default=0.0),
        counted_input=sum(pod.meter.input_tokens for pod in pods),
        counted_output=sum(pod.meter.output_tokens for pod in pods),
        input_tokens=inputs,
        output_tokens=outputs,
        busy_share=sum(node.busy_share for node in nodes) / len(nodes) if nodes else 0.0,
        kilowatt_hours=kilowatt_hours,
        energy=None if kilowatt_hours is None or energy_price is None else kilowatt_hours * energy_price,
        devices=None if hourly is None else hourly * hours,
        cloud=None
        if cloud is None
        else (inputs * cloud.per_million_input + outputs * cloud.per_million_output) / 1e6,
    )


def _kilowatts(node: _NodeUse, watts: Mapping[str, Watts]) -> float | None:
    """Mean power. At rest the device runs for all its deployments, busy for the one that it answers."""
    power = entry_of(watts, node.pods[0].profile)
    if power is None:
        return None
    more = max(0.0, power.busy - power.idle)
    return (power.idle * node.share + more * node.busy_share) / 1000


def _hourly(node: _NodeUse, prices: Prices | None) -> float | None:
    device = entry_of(prices.devices, node.pods[0].profile) if prices is not None else None
    return None if device is None else node.share * device.price / (device.years * HOURS_PER_YEAR)


def _sum(values: Iterable[float | None]) -> float | None:
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total
