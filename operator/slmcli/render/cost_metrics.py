# SPDX-License-Identifier: Apache-2.0
"""`cost -o prometheus`: the text form of metrics, for a textfile collector or a push gateway."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from slmcli.cost.collect import NotCounted
from slmcli.cost.estimate import CostRow, Costs
from slmcli.cost.prices import Prices
from slmcli.safe import clean

_JOULES_PER_KILOWATT_HOUR: Final = 3.6e6


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gauge:
    """A metric of each row; `value` gives None for what is not known, which has no sample."""

    name: str
    meaning: str
    value: Callable[[Costs], float | None]
    is_money: bool = False


def _joules(costs: Costs) -> float | None:
    hours = costs.kilowatt_hours
    return None if hours is None else hours * _JOULES_PER_KILOWATT_HOUR


_GAUGES: Final = (
    _Gauge(name="nodes", meaning="Devices that are counted", value=lambda c: c.nodes),
    _Gauge(name="pods", meaning="Serving pods that are counted", value=lambda c: c.pods),
    _Gauge(name="input_tokens", meaning="Input tokens in the period", value=lambda c: c.input_tokens),
    _Gauge(name="output_tokens", meaning="Output tokens in the period", value=lambda c: c.output_tokens),
    _Gauge(name="busy_ratio", meaning="Busy share of the devices, at most", value=lambda c: c.busy_share),
    _Gauge(name="energy_joules", meaning="Energy in the period", value=_joules),
    _Gauge(name="energy_money", meaning="Price of the energy", value=lambda c: c.energy, is_money=True),
    _Gauge(name="devices_money", meaning="Price of the devices", value=lambda c: c.devices, is_money=True),
    _Gauge(name="total_money", meaning="Energy and devices", value=lambda c: c.total, is_money=True),
    _Gauge(
        name="cloud_money",
        meaning="The same tokens by the cloud's price list",
        value=lambda c: c.cloud,
        is_money=True,
    ),
)  # fmt: skip


def cost_metrics(
    rows: Sequence[CostRow],
    left: Sequence[NotCounted],
    *,
    period_seconds: float,
    prices: Prices | None,
    now: float,
) -> str:
    """Gauges by namespace, deployment and site; sums are the reader's to make. ASCII but for label values."""
    money = {"currency": prices.currency} if prices is not None else {}
    lines = [
        *_head("period_seconds", "Span that all numbers are for"),
        f"slmops_cost_period_seconds {_number(period_seconds)}",
        *_head("computed_timestamp_seconds", "When the numbers were computed"),
        f"slmops_cost_computed_timestamp_seconds {_number(now)}",
    ]
    for gauge in _GAUGES:
        samples = [
            _sample(gauge.name, _labels(row) | (money if gauge.is_money else {}), value)
            for row in rows
            if (value := gauge.value(row.costs)) is not None
        ]
        lines += [*_head(gauge.name, gauge.meaning), *samples] if samples else []
    missed = Counter(entry.deployment for entry in left)
    counted = {row.deployment for row in rows}
    lines += _head("pods_not_counted", "Serving pods whose counters could not be read")
    for namespace, name in sorted({*counted, *missed}):
        labels = {"namespace": namespace, "deployment": name}
        lines.append(_sample("pods_not_counted", labels, missed[namespace, name]))
    return "\n".join(lines) + "\n"


def _labels(row: CostRow) -> dict[str, str]:
    return {"namespace": row.deployment[0], "deployment": row.deployment[1], "site": row.site}


def _head(name: str, meaning: str) -> Iterable[str]:
    return (f"# HELP slmops_cost_{name} {meaning}.", f"# TYPE slmops_cost_{name} gauge")


def _sample(name: str, labels: dict[str, str], value: float) -> str:
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"slmops_cost_{name}{{{pairs}}} {_number(value)}"


def _escaped(text: str) -> str:
    return clean(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return repr(float(value))
